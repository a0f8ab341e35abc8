// Products of quantised weights with int8 activations.
#pragma once

#include "kernels/linear_activations.h"
#include "kernels/linear_formats.h"

namespace hotset {
namespace {

// ---- Decode

constexpr int64_t kAhead = 2 << 10;  // bytes that a stream of weights is fetched ahead

// y + one block of weights, at `codes`, times the block of activations at `x`.
template <class F>
HOTSET_INLINE F32 add_block(F32 y, const uint8_t* codes, const F32* scales, const F32* mins,
                            const uint8_t* x) {
  typename F::Dot first = F::start(load_word<1>(x, kCorrectionWord, 0));
  typename F::Dot second = F::start(load_word<1>(x, kCorrectionWord + 1, 0));
  unroll<4>([&](auto i) HOTSET_INLINED {
    first.add(F::Codes::template code<i.value>(codes), load_quad<1>(x, i.value, 0));
    second.add(F::Codes::template code<i.value + 4>(codes), load_quad<1>(x, i.value + 4, 0));
  });
  const I32 scale0 = broadcast(load_word<1>(x, kScaleWord, 0));
  const I32 scale1 = broadcast(load_word<1>(x, kScaleWord + 1, 0));
  if constexpr (F::Meta::kScales == 2) {
    y = fma(second.scaled(scale1), scales[1], fma(first.scaled(scale0), scales[0], y));
  } else {
    y = fma(scaled_sum(first, scale0, second, scale1), scales[0], y);
  }
  if constexpr (F::Meta::kMins == 1) y = fma(broadcast(load_float<1>(x, kSumWord, 0)), mins[0], y);
  if constexpr (F::Meta::kMins == 2) {
    y = fma(F::half_sum(load_word<1>(x, kCorrectionWord, 0), scale0), mins[0], y);
    y = fma(F::half_sum(load_word<1>(x, kCorrectionWord + 1, 0), scale1), mins[1], y);
  }
  return y;
}

// `n` panels at once, `stride` bytes apart: as many streams of weights keep more requests to memory in flight
// than one. Each prefetches a little ahead, beyond the panel's end too, where the next one of its run lies.
template <class F, int n>
HOTSET_INLINE void matvec_panels(const uint8_t* panel, int64_t stride, int64_t cols, const uint8_t* x,
                                 float* y, int64_t ldy) {
  using Meta = typename F::Meta;
  const uint8_t* codes = panel + F::codes_start(cols);
  F32 sums[n];
  for (F32& sum : sums) sum = zero_f32();
  for (int64_t b = 0; b < cols / kBlock; b += Meta::kBlocks, panel += F::kMetaBytes) {
    F32 scales[n][Meta::kBlocks * Meta::kScales], mins[n][Meta::kBlocks * F::kMinRoom];
    unroll<n>([&](auto p) HOTSET_INLINED {
      F::decode_meta(panel + p.value * stride, scales[p.value], mins[p.value]);
    });
    for (int j = 0; j < Meta::kBlocks; j++, codes += F::kCodeBytes, x += kActBlockBytes<1>) {
      unroll<n>([&](auto p) HOTSET_INLINED {
        const uint8_t* block = codes + p.value * stride;
        for (int k = 0; n > 1 && k < F::kCodeBytes; k += 64) prefetch_l2(block + kAhead + k);
        sums[p.value] = add_block<F>(sums[p.value], block, scales[p.value] + j * Meta::kScales,
                                     mins[p.value] + j * Meta::kMins, x);
      });
    }
  }
  const F32 factor = broadcast(load_factor<1>(x, 0, 0));
  unroll<n>([&](auto p) HOTSET_INLINED { store(y + p.value * ldy, sums[p.value] * factor); });
}

// Fetches what `n` streams begin with, `stride` bytes apart: nothing has asked for it yet.
template <class F>
void fetch_starts(const uint8_t* panel, int n, int64_t stride, int64_t cols) {
  const int64_t codes = F::codes_start(cols), scales = codes < kAhead ? codes : kAhead;
  for (int p = 0; p < n; p++, panel += stride) {
    for (int64_t k = 0; k < scales; k += 64) prefetch_l2(panel + k);
    for (int64_t k = 0; k < kAhead; k += 64) prefetch_l2(panel + codes + k);
  }
}

// Each stream has a run of panels of its own: where rows are short, the hardware notices a stream of only one
// panel when it is nearly over.
template <class F>
void matvec_int8(const PackedMatrix* w, int64_t panel0, int64_t panel1, const uint8_t* x, float* y) {
  constexpr int n = 4;
  const int64_t run = (panel1 - panel0) / n, bytes = w->panel_bytes;
  if (run > 0) fetch_starts<F>(w->data + panel0 * bytes, n, run * bytes, w->cols);
  for (int64_t i = 0; i < run; i++) {
    matvec_panels<F, n>(w->data + (panel0 + i) * bytes, run * bytes, w->cols, x, y + i * kLanes,
                        run * kLanes);
  }
  for (int64_t panel = panel0 + n * run; panel < panel1; panel++) {
    matvec_panels<F, 1>(w->data + panel * bytes, 0, w->cols, x, y + (panel - panel0) * kLanes, 0);
  }
}

// ---- Prefill

constexpr int kTokenBlock = 128;  // tokens whose activations stay in the second-level cache
constexpr int kChunkBlocks =
    256 / kLanes;  // blocks whose codes stay in the first-level cache, 16 KB for two panels

// Some blocks of n panels, decoded once for many tokens.
template <class F, int n>
struct Chunk {
  alignas(64) uint8_t codes[kChunkBlocks][kQuads][n][kWordBytes];
  F32 scales[kChunkBlocks][F::Meta::kScales][n];
  F32 mins[kChunkBlocks][F::kMinRoom][n];

  // `panel` is the first panel's start, `block` the first block, a multiple of Meta::kBlocks.
  void unpack_meta(const uint8_t* panel, int64_t panel_bytes, int64_t block, int64_t n_blocks) {
    using Meta = typename F::Meta;
    for (int p = 0; p < n; p++, panel += panel_bytes) {
      const uint8_t* meta = panel + block / Meta::kBlocks * F::kMetaBytes;
      for (int64_t b = 0; b < n_blocks; b += Meta::kBlocks, meta += F::kMetaBytes) {
        F32 s[Meta::kBlocks * Meta::kScales], m[Meta::kBlocks * F::kMinRoom];
        F::decode_meta(meta, s, m);
        for (int j = 0; j < Meta::kBlocks; j++) {
          for (int k = 0; k < Meta::kScales; k++) scales[b + j][k][p] = s[j * Meta::kScales + k];
          for (int k = 0; k < Meta::kMins; k++) mins[b + j][k][p] = m[j * Meta::kMins + k];
        }
      }
    }
  }

  // `source` is where the first panel has the codes of the first block.
  void unpack_codes(const uint8_t* source, int64_t panel_bytes, int64_t n_blocks) {
    for (int p = 0; p < n; p++, source += panel_bytes) {
      for (int64_t b = 0; b < n_blocks; b++) {
        unroll<kQuads>([&](auto i) HOTSET_INLINED {
          store(codes[b][i.value][p], F::Codes::template code<i.value>(source + b * F::kCodeBytes));
        });
      }
    }
  }

  // Adds the products with a tile of activations, at its first block here, to sums[token][panel].
  HOTSET_INLINE void multiply(int64_t n_blocks, const uint8_t* x, F32* sums) const {
    multiply_with(
        n_blocks, x, sums, [](int64_t) HOTSET_INLINED {},
        [&](int64_t b, auto quad, auto p) HOTSET_INLINED { return load_i32(codes[b][quad.value][p.value]); });
  }

  // The same, of codes that are not unpacked but lie at `source`, as for unpack_codes(). With each block, one
  // further on is fetched.
  template <bool fetch>
  [[gnu::noinline]] void multiply_packed(const uint8_t* source, int64_t panel_bytes, int64_t n_blocks,
                                         const uint8_t* x, F32* sums) const {
    const auto codes_of = [&](int64_t b, int p)
                              HOTSET_INLINED { return source + p * panel_bytes + b * F::kCodeBytes; };
    multiply_with(
        n_blocks, x, sums,
        [&](int64_t b) HOTSET_INLINED {
          for (int p = 0; p < n; p++) {
            for (int k = 0; fetch && k < F::kCodeBytes; k += 64) prefetch_l2(codes_of(b, p) + kAhead + k);
          }
        },
        [&](int64_t b, auto quad, auto p)
            HOTSET_INLINED { return F::Codes::template code<quad.value>(codes_of(b, p.value)); });
  }

  // begin(b) comes before block b; code(b, Int<quad>, Int<p>) is a quad of panel p of it.
  template <class Begin, class Code>
  HOTSET_INLINE void multiply_with(int64_t n_blocks, const uint8_t* x, F32* sums_of, Begin begin,
                                   Code code) const {
    F32 sums[kTile * n];
    for (int i = 0; i < kTile * n; i++) sums[i] = sums_of[i];
    for (int64_t b = 0; b < n_blocks; b++, x += kActBlockBytes<kTile>) {
      begin(b);
      typename F::Dot dots[2][kTile * n];
      unroll<2>([&](auto half) HOTSET_INLINED {
        unroll<kTile * n>([&](auto i) HOTSET_INLINED {
          dots[half.value][i.value] =
              F::start(load_word<kTile>(x, kCorrectionWord + half.value, i.value / n));
        });
        unroll<kQuads / 2>([&](auto quad) HOTSET_INLINED {
          constexpr int q = half.value * kQuads / 2 + quad.value;
          I32 w[n];
          unroll<n>([&](auto p) HOTSET_INLINED { w[p.value] = code(b, Int<q>{}, p); });
          unroll<kTile>([&](auto t) HOTSET_INLINED {
            I32 quad_of_x = load_quad<kTile>(x, q, t.value);
            unroll<n>([&](auto p) HOTSET_INLINED {
              dots[half.value][t.value * n + p.value].add(w[p.value], quad_of_x);
            });
          });
        });
      });
      unroll<kTile * n>([&](auto i) HOTSET_INLINED {
        const I32 scale0 = broadcast(load_word<kTile>(x, kScaleWord, i.value / n));
        const I32 scale1 = broadcast(load_word<kTile>(x, kScaleWord + 1, i.value / n));
        const auto first = dots[0][i.value], second = dots[1][i.value];
        const F32* scale = &scales[b][0][i.value % n];
        if constexpr (F::Meta::kScales == 2) {
          sums[i.value] =
              fma(second.scaled(scale1), scale[n], fma(first.scaled(scale0), scale[0], sums[i.value]));
        } else {
          sums[i.value] = fma(scaled_sum(first, scale0, second, scale1), scale[0], sums[i.value]);
        }
      });
      if constexpr (F::Meta::kMins == 1) {
        unroll<kTile * n>([&](auto i) HOTSET_INLINED {
          F32 sum_of_x = broadcast(load_float<kTile>(x, kSumWord, i.value / n));
          sums[i.value] = fma(sum_of_x, mins[b][0][i.value % n], sums[i.value]);
        });
      }
      if constexpr (F::Meta::kMins == 2) {
        unroll<2>([&](auto half) HOTSET_INLINED {
          unroll<kTile>([&](auto t) HOTSET_INLINED {
            const I32 scale = broadcast(load_word<kTile>(x, kScaleWord + half.value, t.value));
            const F32 sum = F::half_sum(load_word<kTile>(x, kCorrectionWord + half.value, t.value), scale);
            unroll<n>([&](auto p) HOTSET_INLINED {
              F32& y = sums[t.value * n + p.value];
              y = fma(sum, mins[b][half.value][p.value], y);
            });
          });
        });
      }
    }
    for (int i = 0; i < kTile * n; i++) sums_of[i] = sums[i];
  }
};

// What matmul_int8 is called with, and the part of it that is being worked on.
struct Matmul {
  const PackedMatrix* w;
  const uint8_t* x;        // packed activations
  int64_t row0, row1;      // rows of x
  int64_t block0, block1;  // blocks of columns
  float* y;                // of row0 and the first panel
  int64_t ldy;
};

// n panels, starting with `panel`; their products begin at column `column` of y.
template <class F, int n>
void matmul_panels(const Matmul& m, int64_t panel, int64_t column) {
  const int64_t cols = m.w->cols, n_blocks = cols / kBlock, count = m.block1 - m.block0;
  const int64_t bytes = tile_bytes(kActInt8, kTile, cols);
  Chunk<F, n> chunk;
  const uint8_t* first = m.w->data + panel * m.w->panel_bytes;
  chunk.unpack_meta(first, m.w->panel_bytes, m.block0, count);
  chunk.unpack_codes(first + F::codes_start(cols) + m.block0 * F::kCodeBytes, m.w->panel_bytes, count);
  for (int64_t row = m.row0; row < m.row1; row += kTile) {
    const uint8_t* tile = m.x + row / kTile * bytes;
    const int64_t tokens = m.row1 - row < kTile ? m.row1 - row : kTile;
    float* out = m.y + (row - m.row0) * m.ldy + column;
    F32 sums[kTile * n];
    for (F32& sum : sums) sum = zero_f32();
    if (m.block0 > 0) {
      for (int i = 0; i < tokens * n; i++) sums[i] = load(out + i / n * m.ldy + i % n * kLanes);
    }
    chunk.multiply(count, tile + m.block0 * kActBlockBytes<kTile>, sums);
    const bool last = m.block1 == n_blocks;
    for (int i = 0; i < tokens * n; i++) {
      F32 factor = broadcast(last ? load_factor<kTile>(tile, n_blocks, i / n) : 1.0f);
      store(out + i / n * m.ldy + i % n * kLanes, sums[i] * factor);
    }
  }
}

// ---- Few tokens: as in decode, weights are read once, in streams; their scales, and beyond a tile or two
// their codes too, are decoded once for all tokens, whose sums stay in the first-level cache.

constexpr int kFewTiles = kFewRows / kTile;
constexpr int kPackedTiles = kLanes == 16 ? 2 : 1;  // up to so many, codes are decoded for each: cheaper than
                                                    // to keep them
constexpr int kFewBlocks = 8;  // decoded at a time: those of a record of scales of a K-quant

// The panels at `panel` and, where n is 2, `stride` bytes after it; their products go to y and y + ldp.
template <class F, int n>
void multiply_few(const PackedMatrix* w, const uint8_t* panel, int64_t stride, const uint8_t* x, int64_t rows,
                  float* y, int64_t ldy, int64_t ldp) {
  const int64_t n_blocks = w->cols / kBlock, bytes = tile_bytes(kActInt8, kTile, w->cols);
  const int64_t tiles = (rows + kTile - 1) / kTile;
  Chunk<F, n> chunk;
  F32 sums[kFewTiles][kTile * n];
  for (int64_t t = 0; t < tiles; t++) {
    for (F32& sum : sums[t]) sum = zero_f32();
  }
  for (int64_t block = 0; block < n_blocks; block += kFewBlocks) {
    const int64_t count = n_blocks - block < kFewBlocks ? n_blocks - block : kFewBlocks;
    const uint8_t* codes = panel + F::codes_start(w->cols) + block * F::kCodeBytes;
    chunk.unpack_meta(panel, stride, block, count);
    const auto tile = [&](int64_t t) { return x + t * bytes + block * kActBlockBytes<kTile>; };
    if (tiles > kPackedTiles) {
      for (int64_t k = 0; k < count * F::kCodeBytes; k += 64) {
        for (int p = 0; p < n; p++) prefetch_l2(codes + kAhead + p * stride + k);
      }
      chunk.unpack_codes(codes, stride, count);
      for (int64_t t = 0; t < tiles; t++) chunk.multiply(count, tile(t), sums[t]);
    } else {
      chunk.template multiply_packed<true>(codes, stride, count, tile(0), sums[0]);
      for (int64_t t = 1; t < tiles; t++) {
        chunk.template multiply_packed<false>(codes, stride, count, tile(t), sums[t]);
      }
    }
  }
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t tokens = rows - t * kTile < kTile ? rows - t * kTile : kTile;
    for (int i = 0; i < tokens * n; i++) {
      const F32 factor = broadcast(load_factor<kTile>(x + t * bytes, n_blocks, i / n));
      store(y + (t * kTile + i / n) * ldy + i % n * ldp, sums[t][i] * factor);
    }
  }
}

template <class F>
void matmul_few_int8(const PackedMatrix* w, int64_t panel0, int64_t panel1, const uint8_t* x, int64_t rows,
                     float* y, int64_t ldy) {
  const int64_t run = (panel1 - panel0) / 2, bytes = w->panel_bytes;
  const uint8_t* panel = w->data + panel0 * bytes;
  for (int64_t i = 0; i < run; i++) {
    multiply_few<F, 2>(w, panel + i * bytes, run * bytes, x, rows, y + i * kLanes, ldy, run * kLanes);
  }
  if (2 * run < panel1 - panel0) {
    multiply_few<F, 1>(w, panel + 2 * run * bytes, 0, x, rows, y + 2 * run * kLanes, ldy, 0);
  }
}

// ---- Many tokens

// The columns are cut so that the activations of a block of tokens stay in the second-level cache while all
// panels go by; between the cuts the sums wait in y, without the rows' factors.
template <class F>
void matmul_int8(const PackedMatrix* w, int64_t panel0, int64_t panel1, const uint8_t* x, int64_t row0,
                 int64_t row1, float* y, int64_t ldy) {
  const int64_t n_blocks = w->cols / kBlock;
  if (row1 - row0 <= kFewRows) {
    const uint8_t* tile = x + row0 / kTile * tile_bytes(kActInt8, kTile, w->cols);
    return matmul_few_int8<F>(w, panel0, panel1, tile, row1 - row0, y, ldy);
  }
  for (int64_t row = row0; row < row1; row += kTokenBlock, y += kTokenBlock * ldy) {
    const int64_t last_row = row1 - row < kTokenBlock ? row1 : row + kTokenBlock;
    for (int64_t block = 0; block < n_blocks; block += kChunkBlocks) {
      const int64_t last_block = n_blocks - block < kChunkBlocks ? n_blocks : block + kChunkBlocks;
      const Matmul m = {w, x, row, last_row, block, last_block, y, ldy};
      int64_t panel = panel0;
      for (; panel + 2 <= panel1; panel += 2) matmul_panels<F, 2>(m, panel, (panel - panel0) * kLanes);
      if (panel < panel1) matmul_panels<F, 1>(m, panel, (panel - panel0) * kLanes);
    }
  }
}

}  // namespace
}  // namespace hotset
