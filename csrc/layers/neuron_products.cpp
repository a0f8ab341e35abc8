#include "layers/neuron_products.h"

#include <algorithm>
#include <bit>

namespace hotset {
namespace {

// Rows of a list: as many as are read together where some are chosen only.
constexpr int64_t kGroup = 2 * kAddRows;

// Rows to a chunk where all are read.
constexpr int64_t kChunkBytes = 64 << 10;

struct AllRowsJob {
  const NeuronKernels* kernels;
  NeuronMatrix rows;
  const float* bias;
  const uint8_t* x;
  int64_t per_chunk;
  float* y;

  size_t scratch_bytes() const { return per_chunk * (sizeof(float) + sizeof(int32_t)); }

  void compute(int64_t chunk, void* scratch) const {
    const int64_t first = chunk * per_chunk, count = std::min(per_chunk, rows.rows - first);
    auto* product = static_cast<float*>(scratch);
    auto* indices = reinterpret_cast<int32_t*>(product + per_chunk);
    for (int64_t j = 0; j < count; ++j) indices[j] = static_cast<int32_t>(first + j);
    const auto group = [&](int64_t from) {
      return NeuronList{&rows, indices + from, std::clamp<int64_t>(count - from, 0, kGroup), nullptr};
    };
    for (int64_t j = 0; j < count; j += kGroup) {
      NeuronList now = group(j);
      const NeuronList next = group(std::min(j + kGroup, count));
      now.next = &next;
      kernels->dot(&now, x, product + j);
    }
    for (int64_t j = 0; bias && j < count; ++j) product[j] += bias[first + j];
  }

  void commit(int64_t chunk, void* scratch) const {
    const int64_t first = chunk * per_chunk;
    std::copy_n(static_cast<const float*>(scratch), std::min(per_chunk, rows.rows - first), y + first);
  }
};

struct FetchJob {
  const uint64_t* bits;
  int64_t words, parts;
  const uint8_t* neurons;
  int64_t neuron_bytes;
  const std::function<bool()>* enough;  // of a call that waits for the region's readers

  size_t scratch_bytes() const { return 0; }

  void compute(int64_t part, void*) const {
    for (int64_t w = part; w < words; w += parts) {
      for (uint64_t of = bits[w]; of != 0; of &= of - 1) {
        if ((*enough)()) return;
        const uint8_t* neuron = neurons + (64 * w + std::countr_zero(of)) * neuron_bytes;
        for (int64_t i = 0; i < neuron_bytes; i += 64) __builtin_prefetch(neuron + i, 0, 2);
      }
    }
  }

  void commit(int64_t, void*) const {}
};

}  // namespace

void fetch_neurons(Session& session, const Runtime& runtime, const uint64_t* bits, const NeuronRows& rows,
                   const std::function<bool()>& enough) {
  const int64_t parts = parts_of(runtime, rows.rows());
  session.run(parts,
              FetchJob{bits, ceil_div(rows.rows(), 64), parts, rows.neuron(), rows.packed.stride, &enough});
  session.await_readers();
}

RowActivations pack_for_rows(Session& session, const Runtime& runtime, const float* x, int64_t rows,
                             const Norm* norm, Type type, int64_t cols) {
  const int64_t bytes = runtime.neurons.activation_bytes(type, cols);
  auto* normed = session.allocate<float>(cols);
  auto* packed = session.allocate<uint8_t>(rows * bytes);
  for (int64_t t = 0; t < rows; ++t) {
    const float* row = x + t * cols;
    if (norm) norm->apply(runtime.vector, row, normed);
    runtime.neurons.pack_activations(type, norm ? normed : row, cols, packed + t * bytes);
  }
  return {packed, bytes, rows};
}

void multiply_all_rows(Session& session, const Runtime& runtime, const RowActivations& x,
                       const NeuronRows& rows, float* y) {
  const int64_t per_chunk = std::max<int64_t>(4, kChunkBytes / rows.packed.stride / 4 * 4);
  session.run(ceil_div(rows.rows(), per_chunk),
              AllRowsJob{&runtime.neurons, rows.packed, rows.bias_data(), x.packed, per_chunk, y});
}

}  // namespace hotset
