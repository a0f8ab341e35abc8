// Products of single rows of weights with activations: gates and ups of the neurons of a list.
//
// Each lane of a register has columns of its own, so that the activations lie in vectors, with their scales
// expanded to every lane. Layout of one token's, in quantised form: the row's factor (64 bytes); for 4-bit
// types, the float sums of scale * q of each block, in whole registers; then for each whole group and half of
// its blocks, the registers of x that its registers of codes meet (4-bit: two each, for the low and the high
// nibbles) and that of their scale words. For the other blocks, the same for each register of codes.
#pragma once

#include "kernels/neuron_rows.h"

namespace hotset {
namespace {

constexpr int kFactorBytes = 64;

template <class R>
constexpr int kParts = R::kWords == 4 ? 2 : 1;  // registers of x to a register of codes
template <class R>
constexpr int kHalfWords = R::kWords / 2;  // words of a block that share a scale of x
template <class R>
constexpr int kActHalfBytes = (kHalfWords<R> * kParts<R> + 1) * kWordBytes;
template <class R>
constexpr int kActRegisterBytes = (kParts<R> + 1) * kWordBytes;

template <class R>
HOTSET_INLINE int64_t act_codes(const Layout<R>& layout) {
  return kFactorBytes + (R::kWords == 4 ? layout.groups * kWordBytes : 0);
}

template <class R>
HOTSET_INLINE int64_t act_bytes(const Layout<R>& layout) {
  const int64_t rest = layout.registers - layout.whole_groups * R::kWords;
  return act_codes(layout) + layout.whole_groups * 2 * kActHalfBytes<R> + rest * kActRegisterBytes<R>;
}

template <class R>
void pack_neuron_activations(const float* x, int64_t cols, uint8_t* out) {
  const Layout<R> layout(cols);
  const int64_t whole_blocks = layout.whole_groups * kLanes;
  uint8_t* sums = out + kFactorBytes;
  uint8_t* groups = out + act_codes(layout);
  uint8_t* rest = groups + layout.whole_groups * 2 * kActHalfBytes<R>;
  memset(out, 0, act_bytes(layout));
  const Int8Scaling scaling(x, cols);
  memcpy(out, &scaling.factor, 4);
  for (int64_t b = 0; b < cols / kBlock; b++) {
    int32_t total = 0;
    for (int half = 0; half < 2; half++, x += kBlock / 2) {
      int8_t q[kBlock / 2];
      const int32_t scale = scaling.quantise(x, q);
      const QuadSums sums_of_q = quad_sums(q);
      total += scale * (sums_of_q.sum01 + sums_of_q.sum23);
      const int32_t scales = scale_word(scale);
      for (int i = 0; i < 4; i++) {
        const int part = i / kHalfWords<R>, word = i % kHalfWords<R>;
        if (b < whole_blocks) {
          uint8_t* to = groups + (b / kLanes * 2 + half) * kActHalfBytes<R> + b % kLanes * 4;
          memcpy(to + (word * kParts<R> + part) * kWordBytes, q + 4 * i, 4);
          memcpy(to + kHalfWords<R> * kParts<R> * kWordBytes, &scales, 4);
        } else {
          const int64_t at = (b - whole_blocks) * R::kWords + half * kHalfWords<R> + word;
          uint8_t* to = rest + at / kLanes * kActRegisterBytes<R> + at % kLanes * 4;
          memcpy(to + part * kWordBytes, q + 4 * i, 4);
          memcpy(to + kParts<R> * kWordBytes, &scales, 4);
        }
      }
    }
    const float sum = float(total);
    if (R::kWords == 4) memcpy(sums + 4 * b, &sum, 4);
  }
}

// Sums of one scale of x in every lane.
template <class R>
struct RowDot {
  typename R::Dot dot = R::Dot::template start<0>(0);

  // Adds a register of codes times what it meets of x.
  HOTSET_INLINE void add(I32 w, const uint8_t* x) {
    if constexpr (R::kWords == 4) {
      dot.add(w & broadcast(0x0f0f0f0f), load_i32(x));
      dot.add(shift_right<4>(w) & broadcast(0x0f0f0f0f), load_i32(x + kWordBytes));
    } else {
      dot.add_uncorrected(w, load_i32(x));
    }
  }
};

// A whole group's codes times its x.
template <class R>
HOTSET_INLINE F32 dot_group(const uint8_t* codes, const uint8_t* x) {
  RowDot<R> halves[2];
  unroll<R::kWords>([&](auto k) HOTSET_INLINED {
    constexpr int half = k.value / kHalfWords<R>, word = k.value % kHalfWords<R>;
    halves[half].add(load_i32(codes + k.value * kWordBytes),
                     x + half * kActHalfBytes<R> + word * kParts<R> * kWordBytes);
  });
  const I32 scales[2] = {load_i32(x + kActHalfBytes<R> - kWordBytes),
                         load_i32(x + 2 * kActHalfBytes<R> - kWordBytes)};
  if constexpr (R::kWords == 4) {
    return scaled_sum(halves[0].dot, scales[0], halves[1].dot, scales[1]);
  } else {
    return halves[0].dot.scaled(scales[0]) + halves[1].dot.scaled(scales[1]);
  }
}

// n rows times one token's x.
template <class R, int n>
HOTSET_INLINE void dot_rows(const uint8_t* const* rows, const Layout<R>& layout, const uint8_t* x, float* y,
                            Ahead* ahead) {
  const uint8_t* acts = x + act_codes(layout);
  F32 sums[n];
  for (F32& sum : sums) sum = zero_f32();
  int64_t at = layout.codes;
  // Calls f(row, scales of the group) for each row, after adding what its minima come to.
  const auto each_row = [&](int64_t group, auto f) HOTSET_INLINED {
    ahead->go_on<n>();
    unroll<n>([&](auto p) HOTSET_INLINED {
      const uint8_t* meta = rows[p.value] + group * 2 * kLanes;
      const F32 scales = load_f16(reinterpret_cast<const uint16_t*>(meta));
      if constexpr (R::kWords == 4) {
        const F32 x_sums = load(reinterpret_cast<const float*>(x + kFactorBytes) + group * kLanes);
        sums[p.value] = fma(R::min(scales, meta + layout.minima), x_sums, sums[p.value]);
      }
      f(p, scales);
    });
  };
  for (int64_t group = 0; group < layout.whole_groups; group++) {
    each_row(group, [&](auto p, F32 scales) HOTSET_INLINED {
      sums[p.value] = fma(dot_group<R>(rows[p.value] + at, acts), scales, sums[p.value]);
    });
    at += R::kWords * kWordBytes;
    acts += 2 * kActHalfBytes<R>;
  }
  if (layout.whole_groups < layout.groups) {
    each_row(layout.whole_groups, [&](auto p, F32 scales) HOTSET_INLINED {
      unroll<R::kWords>([&](auto k) HOTSET_INLINED {
        if (layout.whole_groups * R::kWords + k.value >= layout.registers) return;
        const uint8_t* of_register = acts + k.value * kActRegisterBytes<R>;
        RowDot<R> dot;
        dot.add(load_i32(rows[p.value] + at + k.value * kWordBytes), of_register);
        const F32 product = dot.dot.scaled(load_i32(of_register + kParts<R> * kWordBytes));
        sums[p.value] = fma(product, spread<R::kWords, k.value>(scales), sums[p.value]);
      });
    });
  }
  float factor;
  memcpy(&factor, x, 4);
  for (int p = 0; p < n; p++) y[p] = sum(sums[p]) * factor;
}

// Half-precision weights, float activations.
template <int n>
HOTSET_INLINE void dot_half_rows(const uint8_t* const* rows, int64_t cols, const float* x, float* y,
                                 Ahead* ahead) {
  F32 sums[n][2];
  for (auto& sum : sums) sum[0] = sum[1] = zero_f32();
  for (int64_t k = 0; k < cols; k += 4 * kLanes) {
    ahead->go_on<n>();
    unroll<n>([&](auto p) HOTSET_INLINED {
      const auto* w = reinterpret_cast<const uint16_t*>(rows[p.value]) + k;
      unroll<4>([&](auto i) HOTSET_INLINED {
        F32& sum = sums[p.value][i.value % 2];
        sum = fma(load_f16(w + i.value * kLanes), load(x + k + i.value * kLanes), sum);
      });
    });
  }
  for (int p = 0; p < n; p++) y[p] = sum(sums[p][0] + sums[p][1]);
}

// Calls f(rows, values, ahead) for some rows of the list at a time, and copies the values to y. Rows are
// fetched in `calls` calls of go_on().
template <class F>
HOTSET_INLINE void dot_list(const NeuronList* list, int64_t calls, float* y, F rows_times_x) {
  Ahead ahead;
  for (int64_t i = 0; i < list->count; i += kDotRows) {
    const uint8_t* rows[kDotRows];
    find_rows<kDotRows>(list, i, rows);
    ahead.begin<kDotRows>(list, i, rows, calls);
    float values[kDotRows];
    rows_times_x(rows, values, &ahead);
    for (int64_t p = 0; p < kDotRows && i + p < list->count; p++) y[i + p] = values[p];
  }
}

void neuron_dot(const NeuronList* list, const uint8_t* x, float* y) {
  const NeuronMatrix* w = list->matrix;
  using Rows = const uint8_t* const*;
  if (w->type == kF16) {
    const int64_t cols = float_cols(w->cols);
    dot_list(list, cols / (4 * kLanes), y, [&](Rows rows, float* values, Ahead* ahead) HOTSET_INLINED {
      dot_half_rows<kDotRows>(rows, cols, reinterpret_cast<const float*>(x), values, ahead);
    });
    return;
  }
  with_row(w->type, [&](auto r) {
    using R = decltype(r);
    const Layout<R> layout(w->cols);
    dot_list(list, layout.groups, y, [&](Rows rows, float* values, Ahead* ahead) HOTSET_INLINED {
      dot_rows<R, kDotRows>(rows, layout, x, values, ahead);
    });
  });
}

}  // namespace
}  // namespace hotset
