// Sums of single rows of weights, each times a number: downs of the neurons of a list.
//
// In integers, but for half-precision weights: a neuron's value times a block's scale is rounded to
// sixteen bits, in units that the largest such product of the list sets for each block, and multiplies the
// block's codes, of two rows in one instruction. The list's sums, of 32 bits, are exact, and become floats as
// they are added to those before. Codes are meant less their offset, which the sums start from.
#pragma once

#include "kernels/neuron_rows.h"

namespace hotset {
namespace {

HOTSET_INLINE int64_t sum_floats(int64_t cols) { return round_up(cols, kGroupCols); }

// Code n of every half, times 2^code_shift<R>(n): a mask does where nothing can be taken for a sign.
template <class R>
constexpr int code_shift(int n) {
  return n == 16 / R::kBits - 1 ? 0 : n * R::kBits;
}
template <class R, int n>
HOTSET_INLINE I32 code_of_halves(I32 halves) {
  if constexpr (n == 16 / R::kBits - 1) return shift_halves_right<16 - R::kBits>(halves);
  return halves & broadcast(R::kMaxCode * 0x10001 << code_shift<R>(n));
}

// What a group of blocks' codes are multiplied with, and what becomes of their sums; with the shifts of
// codes.
template <class R, int rows>
struct Factors {
  static constexpr int kShifts = R::kBits == 4 ? 3 : 1;
  int32_t pairs[rows / 2][kLanes];  // of each two rows, in the halves of a word
  int32_t starts[kShifts][kLanes];
  float units[kShifts][kLanes];
  float centres[kLanes];  // of weights with minima: the sum of the rows at the codes' offset
};

// A NaN becomes the unit, and so the result.
template <class R, int rows>
HOTSET_INLINE void find_factors(const uint8_t* const* data, const Layout<R>& layout, int64_t meta,
                                const float* h, Factors<R, rows>& factors) {
  F32 products[rows], peak = zero_f32(), not_finite = zero_f32(), centre = zero_f32();
  unroll<rows>([&](auto p) HOTSET_INLINED {
    const F32 scales = load_f16(reinterpret_cast<const uint16_t*>(data[p.value] + meta));
    products[p.value] = scales * broadcast(h[p.value]);
    peak = max(peak, abs(products[p.value]));
    not_finite = fma(products[p.value], zero_f32(), not_finite);
    if constexpr (R::kHalves == 2) {
      const F32 minima = R::min(scales, data[p.value] + layout.minima + meta);
      centre = fma(fma(scales, broadcast(float(R::kOffset)), minima), broadcast(h[p.value]), centre);
    }
  });
  constexpr float kMost = 0x7fff;
  const F32 inverse = broadcast(kMost) / max(peak, broadcast(1e-30f));
  const F32 unit = fma(peak, broadcast(1.0f / kMost), not_finite);
  I32 total = broadcast(0);
  unroll<rows / 2>([&](auto p) HOTSET_INLINED {
    const I32 a = round_to_i32(products[2 * p.value] * inverse);
    const I32 b = round_to_i32(products[2 * p.value + 1] * inverse);
    total = total + a + b;
    store(factors.pairs[p.value], (a & broadcast(0xffff)) | shift_left<16>(b));
  });
  const I32 start = broadcast(0) - shift_left<R::kBits - 1>(total);  // the offset is half of all codes
  unroll<Factors<R, rows>::kShifts>([&](auto s) HOTSET_INLINED {
    store(factors.starts[s.value], shift_left<s.value * R::kBits>(start));
    store(factors.units[s.value], unit * broadcast(1.0f / (1 << s.value * R::kBits)));
  });
  if constexpr (R::kHalves == 2) store(factors.centres, centre);
}

// sums (those of a register's columns) += the register of codes at `at` of each row, whose first block has
// its factors at `block`.
template <class R, int rows>
HOTSET_INLINE void add_register(const uint8_t* const* data, int64_t at, const Factors<R, rows>& factors,
                                int64_t block, float* sums) {
  constexpr int kHalfCodes = 16 / R::kBits;
  I32 acc[2 * kHalfCodes];  // as many registers of columns
  const auto block_of = [=](int i) HOTSET_INLINED { return block + i * kLanes / kBlock; };
  const auto shift_of = [](int i) HOTSET_INLINED { return code_shift<R>(i % kHalfCodes) / R::kBits; };
  unroll<2 * kHalfCodes>([&](auto i) HOTSET_INLINED {
    acc[i.value] = broadcast(factors.starts[shift_of(i.value)][block_of(i.value)]);
  });
  unroll<rows / 2>([&](auto p) HOTSET_INLINED {
    const I32 a = load_i32(data[2 * p.value] + at), b = load_i32(data[2 * p.value + 1] + at);
    const I32 halves[2] = {interleave_low(a, b), interleave_high(a, b)};
    unroll<2 * kHalfCodes>([&](auto i) HOTSET_INLINED {
      const I32 codes = code_of_halves<R, i.value % kHalfCodes>(halves[i.value / kHalfCodes]);
      acc[i.value] = acc[i.value] + dot_halves(codes, broadcast(factors.pairs[p.value][block_of(i.value)]));
    });
  });
  unroll<2 * kHalfCodes>([&](auto i) HOTSET_INLINED {
    float* to = sums + i.value * kLanes;
    F32 before = load(to);
    if constexpr (R::kHalves == 2) before = before + broadcast(factors.centres[block_of(i.value)]);
    const float unit = factors.units[shift_of(i.value)][block_of(i.value)];
    store(to, fma(to_f32(acc[i.value]), broadcast(unit), before));
  });
}

// sums += each row times its h.
template <class R, int rows>
HOTSET_INLINE void add_rows(const uint8_t* const* data, const Layout<R>& layout, const float* h, float* sums,
                            Ahead* ahead) {
  constexpr int kColumns = kWordBytes * 8 / R::kBits;  // of a register of codes
  const uint8_t* row[rows];                            // in registers, where there are as many
  unroll<rows>([&](auto p) HOTSET_INLINED { row[p.value] = data[p.value]; });
  Factors<R, rows> factors;
  for (int64_t r = 0; r < layout.registers; r += R::kWords) {
    ahead->go_on<rows>();
    find_factors<R, rows>(row, layout, r / R::kWords * 2 * kLanes, h, factors);
    for (int64_t i = r; i < r + R::kWords && i < layout.registers; i++) {
      add_register<R, rows>(row, layout.codes + i * kWordBytes, factors, (i - r) * kColumns / kBlock,
                            sums + i * kColumns);
    }
  }
}

// Half-precision weights.
template <int rows>
HOTSET_INLINE void add_half_rows(const uint8_t* const* data, int64_t cols, const float* h, float* sums,
                                 Ahead* ahead) {
  F32 factors[rows];
  unroll<rows>([&](auto p) HOTSET_INLINED { factors[p.value] = broadcast(h[p.value]); });
  for (int64_t k = 0; k < cols; k += 4 * kLanes) {
    ahead->go_on<rows>();
    F32 acc[4];
    unroll<4>([&](auto i) HOTSET_INLINED { acc[i.value] = load(sums + k + i.value * kLanes); });
    unroll<rows>([&](auto p) HOTSET_INLINED {
      const auto* w = reinterpret_cast<const uint16_t*>(data[p.value]) + k;
      unroll<4>([&](auto i) HOTSET_INLINED {
        acc[i.value] = fma(load_f16(w + i.value * kLanes), factors[p.value], acc[i.value]);
      });
    });
    unroll<4>([&](auto i) HOTSET_INLINED { store(sums + k + i.value * kLanes, acc[i.value]); });
  }
}

// Calls add(rows, h, ahead) for row `first` of the list and those after it, which fetches rows in `calls`
// calls of go_on().
template <int rows, class F>
HOTSET_INLINE void add_list(const NeuronList* list, int64_t first, int64_t calls, const float* h, F add) {
  const uint8_t* data[rows];
  find_rows<rows>(list, first, data);
  Ahead ahead;
  ahead.begin<rows>(list, first, data, calls);
  float factors[rows];
  for (int p = 0; p < rows; p++) factors[p] = first + p < list->count ? h[first + p] : 0.0f;
  add(data, factors, &ahead);
}

void neuron_add(const NeuronList* list, const float* h, float* sums) {
  const NeuronMatrix* w = list->matrix;
  // Fewer rows than there are would be read again and multiplied by zero.
  const auto add = [&](int64_t calls, auto rows_times_h) HOTSET_INLINED {
    for (int64_t i = 0; i < list->count; i += kAddRows) {
      if (list->count - i > kAddRows / 2) {
        add_list<kAddRows>(list, i, calls, h, rows_times_h(Int<kAddRows>{}));
      } else {
        add_list<kAddRows / 2>(list, i, calls, h, rows_times_h(Int<kAddRows / 2>{}));
      }
    }
  };
  using Rows = const uint8_t* const*;
  if (w->type == kF16) {
    const int64_t cols = float_cols(w->cols);
    add(cols / (4 * kLanes), [&](auto rows) HOTSET_INLINED {
      constexpr int kRows = decltype(rows)::value;
      return [&, cols](Rows data, const float* factors, Ahead* ahead)
                 HOTSET_INLINED { add_half_rows<kRows>(data, cols, factors, sums, ahead); };
    });
    return;
  }
  with_row(w->type, [&](auto r) {
    using R = decltype(r);
    const Layout<R> layout(w->cols);
    add(layout.groups, [&](auto rows) HOTSET_INLINED {
      constexpr int kRows = decltype(rows)::value;
      return [&](Rows data, const float* factors, Ahead* ahead)
                 HOTSET_INLINED { add_rows<R, kRows>(data, layout, factors, sums, ahead); };
    });
  });
}

}  // namespace
}  // namespace hotset
