// The table of kernels over neurons of one instruction set (see linear.cpp).
#include "kernels/neuron_add.h"
#include "kernels/neuron_dot.h"
#include "kernels/neuron_multiply.h"
#include "simd/vector_math.h"

namespace hotset {
namespace {

void pack_row(Type type, NeuronUse use, const uint8_t* src, int64_t cols, uint8_t* row) {
  if (type == kF16) {
    memset(row, 0, row_bytes(type, cols));
    memcpy(row, src, cols * 2);
  } else {
    with_row(type, [&](auto r) { pack_neuron_row<decltype(r)>(use, src, cols, row); });
  }
}

void unpack_row(Type type, const uint8_t* row, int64_t cols, uint8_t* dst) {
  if (type == kF16) {
    memcpy(dst, row, cols * 2);
  } else {
    with_row(type, [&](auto r) { unpack_neuron_row<decltype(r)>(row, cols, dst); });
  }
}

int64_t activation_bytes(Type type, int64_t cols) {
  if (type == kF16) return round_up(float_cols(cols) * 4, 64);
  return with_row(type, [&](auto r) {
    using R = decltype(r);
    return round_up(act_bytes(Layout<R>(cols)), 64);
  });
}

void pack_activations(Type type, const float* x, int64_t cols, uint8_t* out) {
  if (type == kF16) {
    memset(out, 0, activation_bytes(type, cols));
    memcpy(out, x, cols * 4);
  } else {
    with_row(type, [&](auto r) { pack_neuron_activations<decltype(r)>(x, cols, out); });
  }
}

uint64_t select_neurons(const float* scores, const float* factors, bool magnitude, int64_t n, float cutoff) {
  uint64_t bits = 0;
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t left = n - j;
    const auto read = [&](const float* p)
                          HOTSET_INLINED { return left < kLanes ? load_first(p + j, left) : load(p + j); };
    F32 score = magnitude ? abs(read(scores)) : read(scores);
    if (factors) score = score * read(factors);
    const uint32_t chosen = not_less(score, broadcast(cutoff));  // NaN too, so that it comes to light
    bits |= uint64_t(left < kLanes ? chosen & ((1u << left) - 1) : chosen) << j;
  }
  return bits;
}

}  // namespace

extern const NeuronKernels HOTSET_TABLE(neurons);
const NeuronKernels HOTSET_TABLE(neurons) = {
    row_bytes,  pack_row,   unpack_row, activation_bytes, pack_activations, neuron_dot,
    sum_floats, neuron_add, kGroupCols, neuron_multiply,  select_neurons,
};

}  // namespace hotset
