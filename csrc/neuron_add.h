// Sums of single rows of weights, each times a number: downs of the neurons of a list.
//
// In whole numbers, but for half-precision weights: a neuron's value times a block's scale is rounded to
// sixteen bits, in units that the largest such product of the list sets, and multiplies the block's codes, of
// two rows in one instruction. Sums of 32 bits then hold all neurons exactly, so that neither their order nor
// neurons that are zero change a bit of the result.
//
// While it grows, a token's sum is: 32-bit sums of codes, in whole groups of columns; then for each block the
// sum of its factors, since codes are meant less their offset, which halves what rounding does; then, for
// weights with minima, the float sum of the values at that offset.
#pragma once

#include "neuron_rows.h"

namespace hotset {
namespace {

HOTSET_INLINE int64_t groups_of(int64_t cols) { return (cols + kGroupCols - 1) / kGroupCols; }
HOTSET_INLINE int64_t sum_floats(int64_t cols) { return groups_of(cols) * (kGroupCols + 2 * kLanes); }

// What one is worth in the whole numbers of a sum, and its inverse.
struct Unit {
  float size, inverse;
};

// `most` neurons cannot leave 32 bits. NaN becomes the unit, and so the result.
template <class R>
HOTSET_INLINE Unit unit_of(const NeuronList* list, const float* h, int64_t most) {
  float peak = 0;
  for (int64_t i = 0; i < list->count; i++) {
    const float product = (h[i] < 0 ? -h[i] : h[i]) * list->matrix->largest_scales[list->indices[i]];
    if (product > peak || product != product) peak = product;
  }
  const int64_t bound = 0x7fffffff / (most * (R::kMaxCode + 1 - R::kOffset));
  const float limit = float(bound < 0x7fff ? bound : 0x7fff);
  return {peak / limit, peak > 1e-30f ? limit / peak : 0.0f};
}

// The factors of a group's blocks, of each two rows in the halves of a lane; and what is summed by block.
template <class R, int pairs>
HOTSET_INLINE void find_factors(const uint8_t* const* rows, const Layout<R>& layout, int64_t group,
                                const float* h, float inverse, int32_t (*factors)[kLanes], int32_t* totals,
                                float* centres) {
  const int64_t meta = group * 2 * kLanes;
  I32 total = load_i32(totals);
  F32 centre = load(centres);
  unroll<pairs>([&](auto p) HOTSET_INLINED {
    I32 q[2];
    unroll<2>([&](auto k) HOTSET_INLINED {
      constexpr int row = 2 * p.value + k.value;
      const F32 scales = load_f16(reinterpret_cast<const uint16_t*>(rows[row] + meta));
      q[k.value] = round_to_i32(scales * broadcast(h[row] * inverse));
      total = total + q[k.value];
      if constexpr (R::kHalves == 2) {
        const F32 minima = R::min(scales, rows[row] + layout.minima + meta);
        centre = fma(fma(scales, broadcast(float(R::kOffset)), minima), broadcast(h[row]), centre);
      }
    });
    store(factors[p.value], join_halves(q[0], shift_left<16>(q[1])));
  });
  store(totals, total);
  if constexpr (R::kHalves == 2) store(centres, centre);
}

// sums (those of a group) += register r of the group of each row.
template <class R, int pairs, int r>
HOTSET_INLINE void add_register(const uint8_t* const* rows, int64_t at, const int32_t (*factors)[kLanes],
                                int32_t* sums) {
  constexpr int kCodes = 16 / R::kBits;  // of half a lane
  unroll<2>([&](auto half) HOTSET_INLINED {
    constexpr int kColumn = (r * 2 + half.value) * kCodes * kLanes;
    I32 acc[kCodes];
    int32_t* to = sums + kColumn;
    unroll<kCodes>([&](auto i) HOTSET_INLINED { acc[i.value] = load_i32(to + i.value * kLanes); });
    unroll<pairs>([&](auto p) HOTSET_INLINED {
      const I32 w0 = load_i32(rows[2 * p.value] + at), w1 = load_i32(rows[2 * p.value + 1] + at);
      const I32 both =
          half.value == 0 ? join_halves(w0, shift_left<16>(w1)) : join_halves(shift_right<16>(w0), w1);
      unroll<kCodes>([&](auto i) HOTSET_INLINED {
        constexpr int block = (kColumn + i.value * kLanes) / kBlock;
        const I32 codes = shift_right<i.value * R::kBits>(both) & broadcast(R::kMaxCode * 0x10001);
        acc[i.value] = acc[i.value] + dot_halves(codes, broadcast(factors[p.value][block]));
      });
    });
    unroll<kCodes>([&](auto i) HOTSET_INLINED { store(to + i.value * kLanes, acc[i.value]); });
  });
}

// Adds the rows, each times its h, for one group of columns: to `sums` and to what is summed by block. The
// last group of a row may have fewer registers than a `whole` one. With `ahead`, as much of the rows `next`
// is prefetched as is read.
template <class R, int pairs, bool ahead, bool whole>
HOTSET_INLINE void add_group(const uint8_t* const* rows, const uint8_t* const* next, const Layout<R>& layout,
                             int64_t group, const float* h, float inverse, int32_t* sums, int32_t* totals,
                             float* centres) {
  constexpr int kLineGroups = 64 / (2 * kLanes), kLineRegisters = 64 / kWordBytes;
  int32_t factors[pairs][kLanes];
  find_factors<R, pairs>(rows, layout, group, h, inverse, factors, totals, centres);
  unroll<2 * pairs>([&](auto p) HOTSET_INLINED {
    if (group % kLineGroups == 0) {
      const int64_t at = group * 2 * kLanes;
      if (ahead) prefetch_l2(next[p.value] + at);
      if (ahead && R::kHalves == 2) prefetch_l2(next[p.value] + layout.minima + at);
    }
  });
  unroll<R::kWords>([&](auto r) HOTSET_INLINED {
    if (!whole && group * R::kWords + r.value >= layout.registers) return;
    const int64_t at = layout.codes + (group * R::kWords + r.value) * kWordBytes;
    unroll<2 * pairs>([&](auto p) HOTSET_INLINED {
      if (ahead && r.value % kLineRegisters == 0) prefetch_l2(next[p.value] + at);
    });
    add_register<R, pairs, r.value>(rows, at, factors, sums);
  });
}

template <class R, int pairs, bool ahead>
HOTSET_INLINE void add_rows(const uint8_t* const* rows, const uint8_t* const* next, const Layout<R>& layout,
                            const float* h, float inverse, int32_t* sums) {
  int32_t* totals = sums + layout.groups * kGroupCols;
  auto* centres = reinterpret_cast<float*>(totals + layout.groups * kLanes);
  const auto add = [&](int64_t g, auto whole) HOTSET_INLINED {
    add_group<R, pairs, ahead, whole.value>(rows, next, layout, g, h, inverse, sums + g * kGroupCols,
                                            totals + g * kLanes, centres + g * kLanes);
  };
  const int64_t whole = layout.registers / R::kWords;
  for (int64_t g = 0; g < whole; g++) add(g, Int<1>{});
  if (whole < layout.groups) add(whole, Int<0>{});
}

// From whole numbers to floats, in place.
template <class R>
HOTSET_INLINE void finish_sums(int64_t cols, float unit, int32_t* sums) {
  auto* floats = reinterpret_cast<float*>(sums);
  const int64_t groups = groups_of(cols);
  const int32_t* totals = sums + groups * kGroupCols;
  const float* centres = floats + groups * (kGroupCols + kLanes);
  for (int64_t c = 0; c < cols; c += kLanes) {
    // Wraps, as the sums of codes may.
    const auto offset = int32_t(uint32_t(R::kOffset) * uint32_t(totals[c / kBlock]));
    const F32 sum = to_f32(load_i32(sums + c) - broadcast(offset)) * broadcast(unit);
    store(floats + c, R::kHalves == 2 ? sum + broadcast(centres[c / kBlock]) : sum);
  }
}

template <int n, bool ahead>
HOTSET_INLINE void add_half_rows(const uint8_t* const* rows, const uint8_t* const* next, int64_t cols,
                                 const float* h, float* sums) {
  F32 factors[n];
  unroll<n>([&](auto p) HOTSET_INLINED { factors[p.value] = broadcast(h[p.value]); });
  for (int64_t k = 0; k < cols; k += 4 * kLanes) {
    F32 acc[4];
    unroll<4>([&](auto i) HOTSET_INLINED { acc[i.value] = load(sums + k + i.value * kLanes); });
    unroll<n>([&](auto p) HOTSET_INLINED {
      const auto* w = reinterpret_cast<const uint16_t*>(rows[p.value]) + k;
      for (int line = 0; ahead && line < 8 * kLanes; line += 64) prefetch_l2(next[p.value] + 2 * k + line);
      unroll<4>([&](auto i) HOTSET_INLINED {
        acc[i.value] = fma(load_f16(w + i.value * kLanes), factors[p.value], acc[i.value]);
      });
    });
    unroll<4>([&](auto i) HOTSET_INLINED { store(sums + k + i.value * kLanes, acc[i.value]); });
  }
}

// Calls add(rows, next, h, token) for each group of rows of the list and each token.
template <class F>
HOTSET_INLINE void add_list(const NeuronList* list, const float* h, int64_t ldh, int64_t tokens, F add) {
  for (int64_t i = 0; i < list->count; i += kRowsAtOnce) {
    const uint8_t *rows[kRowsAtOnce], *next[kRowsAtOnce];
    find_rows<kRowsAtOnce>(list, i, rows);
    find_next<kRowsAtOnce>(list, i + kRowsAtOnce, next);
    for (int64_t t = 0; t < tokens; t++) {
      float factors[kRowsAtOnce];
      bool any = false;
      for (int p = 0; p < kRowsAtOnce; p++) {
        factors[p] = i + p < list->count ? h[t * ldh + i + p] : 0.0f;
        any |= factors[p] != 0.0f;
      }
      if (any) add(rows, next, factors, t);
    }
  }
}

void neuron_add(const NeuronList* list, const float* h, int64_t ldh, int64_t tokens, int64_t most,
                float* sums) {
  const NeuronMatrix* w = list->matrix;
  const int64_t stride = sum_floats(w->cols);
  memset(sums, 0, size_t(tokens * stride) * sizeof(float));
  using Rows = const uint8_t* const*;
  if (w->type == kF16) {
    const int64_t cols = float_cols(w->cols);
    return add_list(list, h, ldh, tokens, [&](Rows rows, Rows next, const float* factors, int64_t t) {
      float* to = sums + t * stride;
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
    Unit units[kMostListed];
    for (int64_t t = 0; t < tokens; t++) units[t] = unit_of<R>(list, h + t * ldh, most);
    add_list(list, h, ldh, tokens, [&](Rows rows, Rows next, const float* factors, int64_t t) {
      auto* to = reinterpret_cast<int32_t*>(sums + t * stride);
      if (t > 0) {
        add_rows<R, kRowsAtOnce / 2, false>(rows, next, layout, factors, units[t].inverse, to);
      } else {
        add_rows<R, kRowsAtOnce / 2, true>(rows, next, layout, factors, units[t].inverse, to);
      }
    });
    for (int64_t t = 0; t < tokens; t++) {
      finish_sums<R>(w->cols, units[t].size, reinterpret_cast<int32_t*>(sums + t * stride));
    }
  });
}

}  // namespace
}  // namespace hotset
