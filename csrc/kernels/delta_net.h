// Kernels of gated delta nets (arXiv 2412.06464) and of Mamba-2 (arXiv 2405.21060): delta_net.cpp.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace hotset {

// Positions are taken in chunks at multiples of so many. A chunk's rows are computed from the state at its
// beginning and from the rows before them in it, in one order of sums for one row and for many; then the
// chunk is folded into the state.
constexpr int64_t kDeltaChunk = 16;

// Rows of values have so many numbers, a multiple of every register.
inline int64_t delta_width(int64_t value_dim) { return (value_dim + 15) / 16 * 16; }

// Rows [first, first + rows) of a chunk of one value head; width is delta_width(value_dim). Mamba-2 has no
// delta rule: values and beta are null, `both` has the queries alone, and these rows' updates are given.
struct DeltaRows {
  int64_t key_dim, value_dim, first, rows;
  const float* state;   // key_dim x width at the chunk's beginning, keys down, values across; null: zero
  const float* keys;    // key_dim x kDeltaChunk, a column to each row of the chunk up to the last of these
  const float* both;    // these rows' keys, then their queries: 2 rows x key_dim
  const float* values;  // rows x width
  const float* beta;    // of these rows
  const float* decays;  // kDeltaChunk: sums of the logarithms of decays from the chunk's beginning
  float* updates;       // kDeltaChunk x width: read are those before `first`, written these rows'
  float* results;       // rows x width
  float* scratch;       // delta_scratch(value_dim) floats
};

inline int64_t delta_scratch(int64_t value_dim) {
  return 2 * kDeltaChunk * (delta_width(value_dim) + kDeltaChunk);
}

struct DeltaNetKernels {
  // out[i] = silu(sum over t of factors[t * stride + i] * rows[t][i]), in the order of t; n numbers.
  void (*convolve)(const float* const* rows, const float* factors, int64_t stride, int64_t kernel, int64_t n,
                   float* out);

  // x *= factor / sqrt(sum(x^2) + 1e-6)
  void (*unit)(float* x, float factor, int64_t n);

  void (*attend)(const DeltaRows* rows);

  // The state after a whole chunk; `next` may be `state`. Scratch has key_dim * kDeltaChunk floats.
  void (*fold)(int64_t key_dim, int64_t value_dim, const float* state, const float* keys,
               const float* updates, const float* decays, float* scratch, float* next);
};

}  // namespace hotset
