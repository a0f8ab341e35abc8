// Prefill: many tokens' h times rows stored by neuron. A group of columns of some rows becomes floats, which
// stay in the first-level cache while the tokens go by.
#pragma once

#include "kernels/neuron_rows.h"

namespace hotset {
namespace {

constexpr int kTileRows = 16 * 8 / kLanes;  // 16 KB of floats

// Columns of a group, of one row, as floats.
void unpack_group(const NeuronMatrix* w, int64_t row, int64_t group, float* out) {
  const uint8_t* data = w->data + row * w->stride;
  if (w->type == kF16) {
    const int64_t cols = float_cols(w->cols) - group * kGroupCols;
    const auto* halves = reinterpret_cast<const uint16_t*>(data) + group * kGroupCols;
    for (int64_t c = 0; c < kGroupCols; c += kLanes) {
      store(out + c, c < cols ? load_f16(halves + c) : zero_f32());
    }
    return;
  }
  with_row(w->type, [&](auto r) {
    using R = decltype(r);
    const Layout<R> layout(w->cols);
    const uint8_t* meta = data + group * 2 * kLanes;
    float scales[kLanes], minima[kLanes];
    const F32 scale = load_f16(reinterpret_cast<const uint16_t*>(meta));
    store(scales, scale);
    store(minima, R::min(scale, meta + layout.minima));
    constexpr int kHalfCodes = 16 / R::kBits;
    unroll<R::kWords>([&](auto k) HOTSET_INLINED {
      const int64_t at = group * R::kWords + k.value;
      const I32 none = broadcast(0);
      const I32 word = at < layout.registers ? load_i32(data + layout.codes + at * kWordBytes) : none;
      const I32 halves[2] = {interleave_low(word, none), interleave_high(word, none)};
      unroll<2 * kHalfCodes>([&](auto n) HOTSET_INLINED {
        constexpr int column = (k.value * 2 * kHalfCodes + n.value) * kLanes;
        const I32 codes = shift_right<n.value % kHalfCodes * R::kBits>(halves[n.value / kHalfCodes]);
        store(out + column, fma(to_f32(codes & broadcast(R::kMaxCode)), broadcast(scales[column / kBlock]),
                                broadcast(minima[column / kBlock])));
      });
    });
  });
}

// y (n tokens, a group of columns) += h (n tokens, `rows` rows) times tile (rows, a group of columns).
template <int n>
HOTSET_INLINE void multiply_tile(const float* tile, int64_t rows, const float* h, int64_t ldh, float* y,
                                 int64_t ldy) {
  for (int64_t c = 0; c < kGroupCols; c += 2 * kLanes) {
    F32 sums[n][2];
    unroll<2 * n>([&](auto i) HOTSET_INLINED {
      sums[i.value / 2][i.value % 2] = load(y + i.value / 2 * ldy + c + i.value % 2 * kLanes);
    });
    for (int64_t j = 0; j < rows; j++) {
      const F32 w[2] = {load(tile + j * kGroupCols + c), load(tile + j * kGroupCols + c + kLanes)};
      unroll<n>([&](auto t) HOTSET_INLINED {
        const F32 factor = broadcast(h[t.value * ldh + j]);
        sums[t.value][0] = fma(w[0], factor, sums[t.value][0]);
        sums[t.value][1] = fma(w[1], factor, sums[t.value][1]);
      });
    }
    unroll<2 * n>([&](auto i) HOTSET_INLINED {
      store(y + i.value / 2 * ldy + c + i.value % 2 * kLanes, sums[i.value / 2][i.value % 2]);
    });
  }
}

void neuron_multiply(const NeuronMatrix* w, int64_t group, const float* h, int64_t ldh, int64_t tokens,
                     float* y, int64_t ldy) {
  alignas(64) float tile[kTileRows * kGroupCols];
  for (int64_t row = 0; row < w->rows; row += kTileRows) {
    const int64_t rows = w->rows - row < kTileRows ? w->rows - row : kTileRows;
    for (int64_t j = 0; j < rows; j++) unpack_group(w, row + j, group, tile + j * kGroupCols);
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) multiply_tile<4>(tile, rows, h + t * ldh + row, ldh, y + t * ldy, ldy);
    for (; t < tokens; t++) multiply_tile<1>(tile, rows, h + t * ldh + row, ldh, y + t * ldy, ldy);
  }
}

}  // namespace
}  // namespace hotset
