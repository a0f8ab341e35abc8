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

int64_t select_neurons(const float* scores, int64_t stride, const float* factors, bool magnitude, int64_t n,
                       int64_t tokens, float cutoff, int32_t first, int32_t* indices) {
  // Bit l: neuron j + l is chosen.
  const auto chosen = [&](int64_t j) HOTSET_INLINED {
    const int64_t left = n - j;
    const auto read = [&](const float* p) HOTSET_INLINED {
      const F32 a = left < kLanes ? load_first(p, left) : load(p);
      return magnitude ? abs(a) : a;
    };
    F32 best = read(scores + j);
    for (int64_t t = 1; t < tokens; t++) best = max(best, read(scores + t * stride + j));
    if (factors) best = best * (left < kLanes ? load_first(factors + j, left) : load(factors + j));
    const uint32_t bits = not_less(best, broadcast(cutoff));  // NaN too, so that it comes to light
    return uint64_t(left < kLanes ? bits & ((1u << left) - 1) : bits);
  };
  int64_t count = 0;
  for (int64_t j = 0; j < n; j += 64) {  // as a loop's end is what cannot be predicted
    uint64_t bits = 0;
    for (int l = 0; l < 64 && j + l < n; l += kLanes) bits |= chosen(j + l) << l;
    for (; bits != 0; bits &= bits - 1) indices[count++] = first + int32_t(j + __builtin_ctzll(bits));
  }
  return count;
}

}  // namespace

extern const NeuronKernels HOTSET_TABLE(neurons);
const NeuronKernels HOTSET_TABLE(neurons) = {
    row_bytes,  pack_row,   unpack_row, activation_bytes, pack_activations, neuron_dot,
    sum_floats, neuron_add, kGroupCols, neuron_multiply,  select_neurons,
};

}  // namespace hotset
