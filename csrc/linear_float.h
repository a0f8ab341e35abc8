// Products of F32, F16 and BF16 weights with float activations.
#pragma once

#include "linear_activations.h"
#include "linear_pack.h"

namespace hotset {
namespace {

struct WeightF32 {
  static constexpr int kBytes = 4;
  HOTSET_INLINE static F32 load_lanes(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};
struct WeightF16 {
  static constexpr int kBytes = 2;
  HOTSET_INLINE static F32 load_lanes(const uint8_t* p) {
    return load_f16(reinterpret_cast<const uint16_t*>(p));
  }
};
struct WeightBF16 {
  static constexpr int kBytes = 2;
  HOTSET_INLINE static F32 load_lanes(const uint8_t* p) {
    return load_bf16(reinterpret_cast<const uint16_t*>(p));
  }
};

// Calls f with the reader of a float type.
template <class F>
HOTSET_INLINE auto with_weight(Type type, F f) {
  switch (type) {
    case kF16:
      return f(WeightF16{});
    case kBF16:
      return f(WeightBF16{});
    default:
      return f(WeightF32{});
  }
}

template <class W>
void matvec_float(const PackedMatrix* w, int64_t panel0, int64_t panel1, const float* x, float* y) {
  constexpr int kChains = 8;  // hide the latency of additions
  constexpr int kStep = kLanes * W::kBytes;
  for (int64_t panel = panel0; panel < panel1; panel++, y += kLanes) {
    const uint8_t* p = w->data + panel * w->panel_bytes;
    F32 sums[kChains];
    for (F32& s : sums) s = zero_f32();
    int64_t k = 0;
    for (; k + kChains <= w->cols; k += kChains, p += kChains * kStep) {
      for (int i = 0; i < kChains * kStep; i += 64) prefetch(p + 4096 + i);
      unroll<kChains>([&](auto i) {
        sums[i.value] = fma(W::load_lanes(p + i.value * kStep), broadcast(x[k + i.value]), sums[i.value]);
      });
    }
    for (; k < w->cols; k++, p += kStep) sums[0] = fma(W::load_lanes(p), broadcast(x[k]), sums[0]);
    store(y, ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
  }
}

}  // namespace
}  // namespace hotset
