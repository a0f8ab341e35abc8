// Sums of single rows of weights, each times a number: downs of the neurons of a list.
//
// All in float. A 4-bit code is masked, not shifted, before it becomes a float, so that nibble n counts
// 16^(n % 4) times; this stands in the sums of its columns until finish(). Minima and offsets are summed by
// block, apart. So an accumulator is: sums of all columns, in whole groups, then those of blocks' minima.
#pragma once

#include "neuron_rows.h"
#include "vector_math.h"

namespace hotset {
namespace {

HOTSET_INLINE int64_t groups_of(int64_t cols) { return (cols + kGroupCols - 1) / kGroupCols; }
HOTSET_INLINE int64_t accumulator_floats(int64_t cols) { return groups_of(cols) * (kGroupCols + kLanes); }

// A row's scales of a group's blocks times h, each for itself; minima times h are added to `minima`.
template <class R>
HOTSET_INLINE void scale_group(const uint8_t* meta, const Layout<R>& layout, float h, float* scaled,
                               F32& minima) {
  const F32 factor = broadcast(h), scales = load_f16(reinterpret_cast<const uint16_t*>(meta)) * factor;
  store(scaled, scales);
  if constexpr (R::kHalves == 2) {
    minima = fma(R::min(scales, meta + layout.minima), factor, minima);
  } else if constexpr (R::kWords == 4) {
    minima = minima + R::min(scales, nullptr);
  }
}

// sums (those of a group) += register r of the group of each row.
template <class R, int n, int r>
HOTSET_INLINE void add_register(const uint8_t* const* rows, int64_t at, const float (*scaled)[kLanes],
                                float* sums) {
  if constexpr (R::kWords == 4) {
    unroll<2>([&](auto half) HOTSET_INLINED {
      constexpr int kBlocks = (4 * kLanes + kBlock - 1) / kBlock;  // of half a register: one, AVX-512: two
      constexpr int kColumn = (r * 8 + half.value * 4) * kLanes;
      F32 acc[4];
      float* to = sums + kColumn;
      unroll<4>([&](auto i) HOTSET_INLINED { acc[i.value] = load(to + i.value * kLanes); });
      unroll<n>([&](auto p) HOTSET_INLINED {
        I32 w = load_i32(rows[p.value] + at);
        if constexpr (half.value == 1) w = shift_right<16>(w);
        unroll<4>([&](auto i) HOTSET_INLINED {
          constexpr int block = kColumn / kBlock + i.value * kBlocks / 4;
          acc[i.value] =
              fma(to_f32(w & broadcast(15 << 4 * i.value)), broadcast(scaled[p.value][block]), acc[i.value]);
        });
      });
      unroll<4>([&](auto i) HOTSET_INLINED { store(to + i.value * kLanes, acc[i.value]); });
    });
  } else {
    constexpr int kColumn = r * 4 * kLanes;
    F32 acc[4];
    float* to = sums + kColumn;
    unroll<4>([&](auto i) HOTSET_INLINED { acc[i.value] = load(to + i.value * kLanes); });
    unroll<n>([&](auto p) HOTSET_INLINED {
      unroll<4>([&](auto i) HOTSET_INLINED {
        constexpr int block = (kColumn + i.value * kLanes) / kBlock;
        const auto* bytes = reinterpret_cast<const int8_t*>(rows[p.value] + at) + i.value * kLanes;
        acc[i.value] = fma(to_f32(load_i8(bytes)), broadcast(scaled[p.value][block]), acc[i.value]);
      });
    });
    unroll<4>([&](auto i) HOTSET_INLINED { store(to + i.value * kLanes, acc[i.value]); });
  }
}

// Adds the rows, each times its h, for one group of columns: to `sums` and to the group's `minima`. The last
// group of a row may have fewer registers than a `whole` one. With `ahead`, as much of the rows `next` is
// prefetched as is read.
template <class R, int n, bool ahead, bool whole>
HOTSET_INLINE void add_group(const uint8_t* const* rows, const uint8_t* const* next, const Layout<R>& layout,
                             int64_t group, const float* h, float* sums, float* minima) {
  constexpr int kLineGroups = 64 / (2 * kLanes), kLineRegisters = 64 / kWordBytes;
  const int64_t meta = group * 2 * kLanes;
  float scaled[n][kLanes];
  F32 mins = load(minima);
  unroll<n>([&](auto p) HOTSET_INLINED {
    if (ahead && group % kLineGroups == 0) {
      prefetch_l2(next[p.value] + meta);
      if (R::kHalves == 2) prefetch_l2(next[p.value] + layout.minima + meta);
    }
    scale_group<R>(rows[p.value] + meta, layout, h[p.value], scaled[p.value], mins);
  });
  if constexpr (R::kWords == 4) store(minima, mins);
  unroll<R::kWords>([&](auto r) HOTSET_INLINED {
    if (!whole && group * R::kWords + r.value >= layout.registers) return;
    const int64_t at = layout.codes + (group * R::kWords + r.value) * kWordBytes;
    unroll<n>([&](auto p) HOTSET_INLINED {
      if (ahead && r.value % kLineRegisters == 0) prefetch_l2(next[p.value] + at);
    });
    add_register<R, n, r.value>(rows, at, scaled, sums);
  });
}

template <class R, int n, bool ahead>
HOTSET_INLINE void add_rows(const uint8_t* const* rows, const uint8_t* const* next, const Layout<R>& layout,
                            const float* h, float* accumulator) {
  float* minima = accumulator + layout.groups * kGroupCols;
  const int64_t whole = layout.registers / R::kWords;
  for (int64_t g = 0; g < whole; g++) {
    add_group<R, n, ahead, true>(rows, next, layout, g, h, accumulator + g * kGroupCols, minima + g * kLanes);
  }
  if (whole < layout.groups) {
    add_group<R, n, ahead, false>(rows, next, layout, whole, h, accumulator + whole * kGroupCols,
                                  minima + whole * kLanes);
  }
}

template <int n, bool ahead>
HOTSET_INLINE void add_half_rows(const uint8_t* const* rows, const uint8_t* const* next, int64_t cols,
                                 const float* h, float* accumulator) {
  F32 factors[n];
  unroll<n>([&](auto p) HOTSET_INLINED { factors[p.value] = broadcast(h[p.value]); });
  for (int64_t k = 0; k < cols; k += 4 * kLanes) {
    F32 acc[4];
    unroll<4>([&](auto i) HOTSET_INLINED { acc[i.value] = load(accumulator + k + i.value * kLanes); });
    unroll<n>([&](auto p) HOTSET_INLINED {
      const auto* w = reinterpret_cast<const uint16_t*>(rows[p.value]) + k;
      for (int line = 0; ahead && line < 8 * kLanes; line += 64) prefetch_l2(next[p.value] + 2 * k + line);
      unroll<4>([&](auto i) HOTSET_INLINED {
        acc[i.value] = fma(load_f16(w + i.value * kLanes), factors[p.value], acc[i.value]);
      });
    });
    unroll<4>([&](auto i) HOTSET_INLINED { store(accumulator + k + i.value * kLanes, acc[i.value]); });
  }
}

// Calls f(rows, next, h, n, ahead) for each token and group of rows of the list.
template <class F>
HOTSET_INLINE void add_list(const NeuronMatrix* w, const int32_t* indices, int64_t count, const float* h,
                            int64_t ldh, int64_t tokens, F add) {
  for (int64_t i = 0; i < count; i += kRowsAtOnce) {
    const uint8_t *rows[kRowsAtOnce], *next[kRowsAtOnce];
    find_rows<kRowsAtOnce>(w, indices, count, i, rows);
    find_rows<kRowsAtOnce>(w, indices, count, i + kRowsAtOnce, next);
    for (int64_t t = 0; t < tokens; t++) {
      float factors[kRowsAtOnce];
      bool any = false;
      for (int p = 0; p < kRowsAtOnce; p++) {
        factors[p] = i + p < count ? h[t * ldh + i + p] : 0.0f;
        any |= factors[p] != 0.0f;
      }
      if (any) add(rows, next, factors, t);
    }
  }
}

void neuron_add(const NeuronMatrix* w, const int32_t* indices, int64_t count, const float* h, int64_t ldh,
                int64_t tokens, float* accumulators) {
  const int64_t stride = accumulator_floats(w->cols);
  using Rows = const uint8_t* const*;
  if (w->type == kF16) {
    const int64_t cols = float_cols(w->cols);
    return add_list(w, indices, count, h, ldh, tokens,
                    [&](Rows rows, Rows next, const float* factors, int64_t t) {
                      float* to = accumulators + t * stride;
                      if (t > 0) {
                        add_half_rows<kRowsAtOnce, false>(rows, next, cols, factors, to);
                      } else {
                        add_half_rows<kRowsAtOnce, true>(rows, next, cols, factors, to);
                      }
                    });
  }
  with_row(w->type, [&](auto r) {
    using R = decltype(r);
    const Layout<R> layout(w->cols);
    add_list(w, indices, count, h, ldh, tokens, [&](Rows rows, Rows next, const float* factors, int64_t t) {
      float* to = accumulators + t * stride;
      if (t > 0) {
        add_rows<R, kRowsAtOnce, false>(rows, next, layout, factors, to);
      } else {
        add_rows<R, kRowsAtOnce, true>(rows, next, layout, factors, to);
      }
    });
  });
}

HOTSET_INLINE bool has_minima(Type type) { return type == kQ4_0 || type == kQ4_1; }

// What register `i` of an accumulator is to be multiplied with.
HOTSET_INLINE F32 finish_factor(Type type, int64_t i) {
  constexpr float kFactors[4] = {1.0f, 0x1p-4f, 0x1p-8f, 0x1p-12f};
  return broadcast(has_minima(type) ? kFactors[i % 4] : 1.0f);
}

void neuron_finish(Type type, int64_t cols, const float* accumulators, int64_t count, int64_t stride,
                   int64_t col0, int64_t col1, float* y) {
  for (int64_t c = col0; c < col1; c += kLanes) {
    F32 sum = zero_f32();
    for (int64_t i = 0; i < count; i++) sum = sum + load(accumulators + i * stride + c);
    sum = sum * finish_factor(type, c / kLanes);
    if (c + kLanes <= col1) {
      store(y + c - col0, sum);
    } else {
      store_first(y + c - col0, sum, col1 - c);
    }
  }
  if (!has_minima(type)) return;
  const float* minima = accumulators + groups_of(cols) * kGroupCols;
  for (int64_t c = col0; c < col1; c += kBlock, y += kBlock) {
    float min = 0;
    for (int64_t i = 0; i < count; i++) min += minima[i * stride + c / kBlock];
    for (int k = 0; k < kBlock; k++) y[k] += min;
  }
}

}  // namespace
}  // namespace hotset
