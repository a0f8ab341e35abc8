// Runs one level's kernels over neurons on cases read from standard input (see linear_runner.cpp). A case is
// six int64 (type, neurons, columns, tokens, listed neurons, bytes of the weights of gate and of down each),
// these weights, x (tokens x columns), h (tokens x listed), the list (int32) and h of all neurons
// (tokens x neurons). The answer: products of the list with x (tokens x listed), sums of the list's rows
// times h (tokens x columns), sums of all rows (tokens x columns), each by its kernel; then which of h's
// first token's neurons have a magnitude of at least one half (their number as int64, then int32 each).
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "binary_streams.h"
#include "kernels/kernels.h"

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)

namespace hotset {
extern const NeuronKernels JOIN(neurons_, HOTSET_LEVEL);
}

using namespace hotset;

namespace {

const NeuronKernels& k = JOIN(neurons_, HOTSET_LEVEL);

template <class T>
std::vector<T> read(int64_t count) {
  std::vector<T> values(count);
  if (fread(values.data(), sizeof(T), count, stdin) != size_t(count)) exit(3);
  return values;
}
template <class T>
void write(const T* values, int64_t count) {
  fwrite(values, sizeof(T), count, stdout);
}

struct Aligned {
  explicit Aligned(size_t bytes) : data(static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{64}))) {}
  ~Aligned() { ::operator delete(data, std::align_val_t{64}); }
  uint8_t* data;
};

NeuronMatrix pack(Type type, NeuronUse use, int64_t rows, int64_t cols, const std::vector<uint8_t>& weights,
                  Aligned& memory) {
  const int64_t to = k.row_bytes(type, cols), from = int64_t(weights.size()) / rows;
  std::vector<uint8_t> back(from);
  for (int64_t j = 0; j < rows; j++) {
    k.pack_row(type, use, weights.data() + j * from, cols, memory.data + j * to);
    if (use != kNeuronDot) continue;
    k.unpack_row(type, memory.data + j * to, cols, back.data());
    if (memcmp(back.data(), weights.data() + j * from, from) != 0) exit(4);
  }
  return {type, rows, cols, to, memory.data};
}

void run(const std::vector<int64_t>& header) {
  const Type type = static_cast<Type>(header[0]);
  const int64_t rows = header[1], cols = header[2], tokens = header[3], count = header[4], bytes = header[5];
  const auto gate_bytes = read<uint8_t>(bytes), down_bytes = read<uint8_t>(bytes);
  const auto x = read<float>(tokens * cols), h = read<float>(tokens * count);
  const auto list = read<int32_t>(count);
  const auto all = read<float>(tokens * rows);

  Aligned gate_memory(rows * k.row_bytes(type, cols)), down_memory(rows * k.row_bytes(type, cols));
  const NeuronMatrix gate = pack(type, kNeuronDot, rows, cols, gate_bytes, gate_memory);
  const NeuronMatrix down = pack(type, kNeuronAdd, rows, cols, down_bytes, down_memory);

  const int64_t x_bytes = k.activation_bytes(type, cols);
  Aligned packed(tokens * x_bytes);
  for (int64_t t = 0; t < tokens; t++)
    k.pack_activations(type, x.data() + t * cols, cols, packed.data + t * x_bytes);
  std::vector<float> products(tokens * count);
  // In lists of more rows than are added up at once, each of which names the one that is read after it.
  constexpr int64_t kMost = 2 * kAddRows;
  const auto lists = [&](const NeuronMatrix& matrix, const std::vector<int32_t>& indices, auto use) {
    const int64_t n = indices.size();
    for (int64_t i = 0; i < n; i += kMost) {
      const int64_t left = n - i - kMost;
      NeuronList now = {&matrix, indices.data() + i, std::min(kMost, n - i), nullptr};
      const NeuronList next = {&matrix, indices.data() + i + kMost, std::min(kMost, left), nullptr};
      if (left > 0) now.next = &next;
      use(now, i);
    }
  };
  lists(gate, list, [&](const NeuronList& now, int64_t i) {
    for (int64_t t = 0; t < tokens; t++)
      k.dot(&now, packed.data + t * x_bytes, products.data() + t * count + i);
  });
  write(products.data(), tokens * count);

  const int64_t floats = k.sum_floats(cols);
  std::vector<float> added(tokens * floats);
  lists(down, list, [&](const NeuronList& now, int64_t i) {
    for (int64_t t = 0; t < tokens; t++) k.add(&now, h.data() + t * count + i, added.data() + t * floats);
  });
  for (int64_t t = 0; t < tokens; t++) write(added.data() + t * floats, cols);

  // A neuron more, whose h are zero, changes no bit.
  const int64_t few = std::min(kAddRows - 1, count);
  std::vector<int32_t> indices(list.begin(), list.begin() + few);
  indices.insert(indices.begin(), 0);
  std::vector<float> values(tokens * (few + 1)), sums_of[2];
  for (int64_t t = 0; t < tokens; t++)
    std::copy_n(h.data() + t * count, few, values.data() + t * (few + 1) + 1);
  for (int64_t more = 0; more < 2; more++) {
    const NeuronList one = {&down, indices.data() + 1 - more, few + more, nullptr};
    sums_of[more].resize(tokens * floats);
    for (int64_t t = 0; t < tokens; t++)
      k.add(&one, values.data() + t * (few + 1) + 1 - more, sums_of[more].data() + t * floats);
  }
  if (memcmp(sums_of[0].data(), sums_of[1].data(), tokens * floats * sizeof(float)) != 0) exit(5);

  const int64_t groups = (cols + k.group_cols - 1) / k.group_cols, width = groups * k.group_cols;
  std::vector<float> sums(tokens * width);
  for (int64_t g = 0; g < groups; g++) {
    k.multiply(&down, g, all.data(), rows, tokens, sums.data() + g * k.group_cols, width);
  }
  for (int64_t t = 0; t < tokens; t++) write(sums.data() + t * width, cols);

  std::vector<int32_t> chosen;
  for (int64_t j = 0; j < rows; j++) {
    const int64_t first = j / 64 * 64, n = std::min<int64_t>(64, rows - first);
    const uint64_t bits = k.select(all.data() + first, nullptr, true, n, 0.5f);
    if (bits >> (j - first) & 1) chosen.push_back(j);
  }
  const int64_t n = chosen.size();
  write(&n, 1);
  write(chosen.data(), n);
}

}  // namespace

int main() {
  use_binary_streams();
  std::vector<int64_t> header(6);
  while (fread(header.data(), sizeof(int64_t), 6, stdin) == 6) run(header);
}
