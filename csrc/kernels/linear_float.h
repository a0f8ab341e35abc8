// Products of F32, F16 and BF16 weights with float activations.
#pragma once

#include "kernels/linear_activations.h"
#include "kernels/linear_pack.h"

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

// `n` panels at once (see linear_int8.h), whose sums hide the latency of additions from one another: each has
// one only, so that it adds in the same order as a product with many tokens does.
template <class W, int n>
HOTSET_INLINE void matvec_panels(const uint8_t* panel, int64_t panel_bytes, int64_t cols, const float* x,
                                 float* y) {
  constexpr int kStep = kLanes * W::kBytes, kTogether = 2;
  F32 sums[n];
  for (F32& sum : sums) sum = zero_f32();
  const auto add = [&](int64_t k) HOTSET_INLINED {
    const F32 factor = broadcast(x[k]);
    unroll<n>([&](auto p) HOTSET_INLINED {
      const uint8_t* w = panel + p.value * panel_bytes + k * kStep;
      sums[p.value] = fma(W::load_lanes(w), factor, sums[p.value]);
    });
  };
  int64_t k = 0;
  for (; k + kTogether <= cols; k += kTogether) {
    for (int p = 0; n > 1 && p < n; p++) prefetch_l2(panel + p * panel_bytes + k * kStep + n * panel_bytes);
    unroll<kTogether>([&](auto i) HOTSET_INLINED { add(k + i.value); });
  }
  for (; k < cols; k++) add(k);
  unroll<n>([&](auto p) HOTSET_INLINED { store(y + p.value * kLanes, sums[p.value]); });
}

template <class W>
void matvec_float(const PackedMatrix* w, int64_t panel0, int64_t panel1, const float* x, float* y) {
  int64_t panel = panel0;
  for (; panel + 4 <= panel1; panel += 4, y += 4 * kLanes) {
    matvec_panels<W, 4>(w->data + panel * w->panel_bytes, w->panel_bytes, w->cols, x, y);
  }
  for (; panel < panel1; panel++, y += kLanes) {
    matvec_panels<W, 1>(w->data + panel * w->panel_bytes, w->panel_bytes, w->cols, x, y);
  }
}

template <class W, int n>
void matmul_panels(const uint8_t* panel, int64_t panel_bytes, int64_t cols, const float* x, int64_t tokens,
                   float* y, int64_t ldy) {
  constexpr int kStep = kLanes * W::kBytes;
  F32 sums[kTile * n];
  for (F32& sum : sums) sum = zero_f32();
  for (int64_t k = 0; k < cols; k++, panel += kStep, x += kTile) {
    F32 w[n];
    unroll<n>([&](auto p) HOTSET_INLINED { w[p.value] = W::load_lanes(panel + p.value * panel_bytes); });
    unroll<kTile * n>([&](auto i) HOTSET_INLINED {
      sums[i.value] = fma(w[i.value % n], broadcast(x[i.value / n]), sums[i.value]);
    });
  }
  for (int i = 0; i < tokens * n; i++) store(y + i / n * ldy + i % n * kLanes, sums[i]);
}

template <class W>
void matmul_float(const PackedMatrix* w, int64_t panel0, int64_t panel1, const uint8_t* x, int64_t row0,
                  int64_t row1, float* y, int64_t ldy) {
  const int64_t bytes = tile_bytes(kActF32, kTile, w->cols);
  for (int64_t panel = panel0; panel < panel1; panel += 2, y += 2 * kLanes) {
    const uint8_t* weights = w->data + panel * w->panel_bytes;
    for (int64_t row = row0; row < row1; row += kTile) {
      const float* tile = reinterpret_cast<const float*>(x + row / kTile * bytes);
      const int64_t tokens = row1 - row < kTile ? row1 - row : kTile;
      float* out = y + (row - row0) * ldy;
      if (panel + 2 <= panel1) {
        matmul_panels<W, 2>(weights, w->panel_bytes, w->cols, tile, tokens, out, ldy);
      } else {
        matmul_panels<W, 1>(weights, w->panel_bytes, w->cols, tile, tokens, out, ldy);
      }
    }
  }
}

}  // namespace
}  // namespace hotset
