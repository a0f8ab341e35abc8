// Products of quantised weights with int8 activations.
#pragma once

#include "linear_activations.h"
#include "linear_formats.h"

namespace hotset {
namespace {

constexpr int kPrefetch = 4096;  // bytes ahead

// Adds block j of a meta record to y: `codes` and `x` point at the block.
template <class F, int j>
HOTSET_INLINE F32 add_block(F32 y, const typename F::Meta& meta, const uint8_t* codes, const uint8_t* x) {
  using Dot = typename F::Dot;
  if constexpr (F::kSplit) {
    Dot first = F::template start<0>(load_word<1>(x, kFirstHalfWord, 0));
    Dot second = F::template start<1>(load_word<1>(x, kSecondHalfWord, 0));
    unroll<4>([&](auto i) {
      first.add(F::Codes::template code<i.value>(codes), load_quad<1>(x, i.value, 0));
      second.add(F::Codes::template code<i.value + 4>(codes), load_quad<1>(x, i.value + 4, 0));
    });
    int32_t scale = load_word<1>(x, kScaleWord, 0);
    y = fma(first.scaled(scale), meta.template scale<j, 0>(), y);
    return fma(second.scaled(scale), meta.template scale<j, 1>(), y);
  } else {
    Dot dot = F::template start<0>(load_word<1>(x, kCorrectionWord, 0));
    unroll<4>([&](auto i) {
      dot.add(F::Codes::template code<i.value>(codes), load_quad<1>(x, i.value, 0));
      dot.add(F::Codes::template code<i.value + 4>(codes), load_quad<1>(x, i.value + 4, 0));
    });
    y = fma(dot.scaled(load_word<1>(x, kScaleWord, 0)), meta.template scale<j, 0>(), y);
    if constexpr (F::kMin) y = fma(broadcast(load_float<1>(x, kSumWord, 0)), F::template min<j>(meta), y);
    return y;
  }
}

template <class F>
void matvec_int8(const PackedMatrix* w, int64_t panel0, int64_t panel1, const uint8_t* x, float* y) {
  using Meta = typename F::Meta;
  const int64_t n_blocks = w->cols / kBlock;
  float factor;
  memcpy(&factor, x + n_blocks * kActBlockBytes<1>, 4);
  for (int64_t panel = panel0; panel < panel1; panel++, y += kLanes) {
    const uint8_t* meta_at = w->data + panel * w->panel_bytes;
    const uint8_t* codes = meta_at + F::codes_start(w->cols);
    const uint8_t* ahead = meta_at + kPrefetch;
    const uint8_t* block = x;
    F32 sum = zero_f32();
    for (int64_t b = 0; b < n_blocks; b += Meta::kBlocks, meta_at += F::kMetaBytes) {
      Meta meta(meta_at);
      unroll<Meta::kBlocks>([&](auto j) {
        for (int k = 0; k < F::kCodeBytes; k += 64) prefetch(ahead + k);
        sum = add_block<F, j.value>(sum, meta, codes, block);
        codes += F::kCodeBytes;
        ahead += F::kCodeBytes;
        block += kActBlockBytes<1>;
      });
    }
    store(y, sum * broadcast(factor));
  }
}

}  // namespace
}  // namespace hotset
