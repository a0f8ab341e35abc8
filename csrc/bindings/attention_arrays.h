// Attention of plain arrays by one level's kernels and one thread: for tests (bindings_vector.cpp,
// vector_runner.cpp).
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/vector.h"
#include "runtime/memory.h"

namespace hotset {

// q is (tokens, heads, dim), k (positions, kv_heads, dim), v (positions, kv_heads, value_dim), out (tokens,
// heads, value_dim); the queries, already scaled, stand at the last positions. Without v, keys begin with the
// values.
struct HeadShapes {
  int64_t tokens, positions, heads, kv_heads, dim, value_dim;
};

inline void attend_arrays(const AttentionKernels& kernels, KvType type, const HeadShapes& s, const float* q,
                          const float* k, const float* v, int64_t window, float* out, float soft_cap = 0) {
  const int64_t group = s.heads / s.kv_heads, rows = s.tokens * group;
  const int64_t blocks = (s.positions + kernels.key_block - 1) / kernels.key_block;
  const int64_t width = (s.value_dim + kernels.key_block - 1) / kernels.key_block * kernels.key_block;
  const Buffer keys(static_cast<size_t>(blocks * kernels.key_block_bytes(type, s.dim)), Pages::kSmall);
  const Buffer values(static_cast<size_t>(s.positions * kernels.value_row_bytes(type, s.value_dim)),
                      Pages::kSmall);
  const Buffer scratch(kernels.scratch_bytes(s.dim, s.value_dim, rows), Pages::kSmall);
  for (int64_t head = 0; head < s.kv_heads; ++head) {
    for (int64_t position = 0; position < s.positions; ++position) {
      const int64_t at = position * s.kv_heads + head;
      kernels.store_key(type, k + at * s.dim, s.dim, position, keys.data());
      if (v) kernels.store_value(type, v + at * s.value_dim, s.value_dim, position, values.data());
    }
    const int64_t position = s.positions - s.tokens;
    const int64_t first = std::max<int64_t>(0, position + 1 - window) / kernels.split * kernels.split;
    const AttentionTile tile{type,
                             s.dim,
                             s.value_dim,
                             group,
                             rows,
                             position,
                             window,
                             soft_cap,
                             first,
                             s.positions,
                             keys.data(),
                             v ? values.data() : nullptr,
                             q + head * group * s.dim,
                             s.heads * s.dim,
                             scratch.data()};
    kernels.attend(&tile);
    const auto* states = reinterpret_cast<const AttentionState*>(scratch.data());
    const float* sums = reinterpret_cast<const float*>(scratch.data()) + (rows * 2 + 15) / 16 * 16;
    for (int64_t row = 0; row < rows; ++row) {
      float* y = out + (row / group * s.heads + head * group + row % group) * s.value_dim;
      for (int64_t i = 0; i < s.value_dim; ++i) y[i] = sums[row * width + i] / states[row].sum;
    }
  }
}

}  // namespace hotset
