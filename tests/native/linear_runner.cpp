// Runs one level's linear kernels on cases read from standard input, where no Python module of that level can
// be loaded (see helpers/other_levels.py). A case is five int64 (type, rows, columns, tokens, bytes of
// weights), the weights and the activations, or without rows a codebook; the answer is the product, tokens x
// rows floats. One token goes through the decode kernel as well, and both must agree to the bit.
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
extern const LinearKernels JOIN(linear_, HOTSET_LEVEL);
}

using namespace hotset;

namespace {

void read(void* to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) exit(3);
}

struct Aligned {
  explicit Aligned(size_t bytes) : data(static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{64}))) {}
  ~Aligned() { ::operator delete(data, std::align_val_t{64}); }
  uint8_t* data;
};

void run(int64_t type_number, int64_t rows, int64_t cols, int64_t tokens, int64_t weight_bytes) {
  const LinearKernels& k = JOIN(linear_, HOTSET_LEVEL);
  const Type type = static_cast<Type>(type_number);
  std::vector<uint8_t> weights(weight_bytes);
  std::vector<float> x(tokens * cols);
  if (rows == 0) {  // a codebook
    uint8_t* entries = new uint8_t[weight_bytes];
    read(entries, weight_bytes);
    return k.set_codebook(type, entries);
  }
  read(weights.data(), weights.size());
  read(x.data(), x.size() * sizeof(float));

  const int64_t panels = (rows + k.lanes - 1) / k.lanes, panel_bytes = k.panel_bytes(type, cols);
  Aligned packed(panels * panel_bytes);
  for (int64_t p = 0; p < panels; p++) {
    const int64_t count = rows - p * k.lanes < k.lanes ? rows - p * k.lanes : k.lanes;
    k.pack_panel(type, weights.data() + p * k.lanes * (weight_bytes / rows), count, cols,
                 packed.data + p * panel_bytes);
  }
  const PackedMatrix matrix = {type, rows, cols, panel_bytes, packed.data};

  const ActivationFormat format = k.activation_format(type);
  Aligned activations(k.activation_bytes(format, tokens, cols));
  k.pack_activations(format, x.data(), cols, tokens, cols, 0, tokens, activations.data);
  const int64_t ldy = panels * k.lanes;
  std::vector<float> y(tokens * ldy);
  k.matmul(&matrix, 0, panels, activations.data, tokens, 0, tokens, y.data(), ldy);

  if (type != kF32 && type != kF16 && type != kBF16) {
    Aligned row(k.activation_bytes(format, 1, cols));
    std::vector<float> y0(ldy);
    k.pack_activations(format, x.data(), cols, 1, cols, 0, 1, row.data);
    k.matvec(&matrix, 0, panels, row.data, y0.data());
    if (memcmp(y0.data(), y.data(), rows * sizeof(float)) != 0) {
      fprintf(stderr, "type %d: decode and prefill differ\n", type);
      exit(4);
    }
  }
  for (int64_t t = 0; t < tokens; t++) fwrite(y.data() + t * ldy, sizeof(float), rows, stdout);
}

}  // namespace

int main() {
  use_binary_streams();
  int64_t header[5];
  while (fread(header, sizeof(int64_t), 5, stdin) == 5)
    run(header[0], header[1], header[2], header[3], header[4]);
}
