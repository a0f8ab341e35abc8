// Activations as the products want them.
//
// kActF32: floats, interleaved by tile: x[k][token].
//
// kActInt8: symmetric int8 with one scale for each 16 columns. With a = max |x| over 16 columns and A = max
// |x| over the row:
//
//   factor = A / 127 / 32767                       a float, one for the row
//
//   scale = ceil(32767 a / A)                      in [1, 32767], one for 16 columns
//
//   q = round(x / (scale * factor))                to nearest even, so that x ~ q * scale * factor
//
// An integer scale lets int16 hardware multiply by it for nothing, and errs by less than a code's own
// rounding. A tile of n tokens (1, or kTile) is its blocks of 32 columns, each the quads int8[8][n][4] and
// then the words of BlockWord [n] each, and then the factors [n].
#pragma once

#include "kernels/linear_formats.h"

namespace hotset {
namespace {

constexpr int kTile = 4;  // tokens that a matrix product handles together

HOTSET_INLINE int64_t tile_tokens(int64_t rows) { return rows == 1 ? 1 : kTile; }

// The words that follow a block's quads, for each token of the tile.
enum BlockWord {
  kScaleWord,                        // scale_word() of columns 0 to 15, of columns 16 to 31
  kCorrectionWord = kScaleWord + 2,  // correction_word(), likewise
  kSumWord = kCorrectionWord + 2,    // sum of scale * q over all 32 columns, a float
  kBlockWords,
};

template <int n>
constexpr int64_t kActBlockBytes = n * (kBlock + 4 * kBlockWords);

template <int n>
HOTSET_INLINE int32_t load_word(const uint8_t* block, int word, int token) {
  int32_t bits;
  memcpy(&bits, block + 4 * (n * (kQuads + word) + token), 4);
  return bits;
}
template <int n>
HOTSET_INLINE float load_float(const uint8_t* block, int word, int token) {
  float value;
  memcpy(&value, block + 4 * (n * (kQuads + word) + token), 4);
  return value;
}
template <int n>
HOTSET_INLINE I32 load_quad(const uint8_t* block, int quad, int token) {
  int32_t bytes;
  memcpy(&bytes, block + 4 * (n * quad + token), 4);
  return broadcast(bytes);
}

// The factor of a row, given its tile and the number of blocks.
template <int n>
HOTSET_INLINE float load_factor(const uint8_t* tile, int64_t n_blocks, int token) {
  float factor;
  memcpy(&factor, tile + n_blocks * kActBlockBytes<n> + 4 * token, 4);
  return factor;
}

HOTSET_INLINE int64_t tile_bytes(ActivationFormat format, int64_t tokens, int64_t cols) {
  int64_t bytes = format == kActF32 ? cols * 4 : cols / kBlock * kActBlockBytes<1> + 4;
  return (tokens * bytes + 63) / 64 * 64;
}

HOTSET_INLINE float largest_magnitude(const float* x, int64_t n) {
  F32 largest = zero_f32();
  for (int64_t k = 0; k < n; k += kLanes) largest = max(largest, abs(load(x + k)));
  return max(largest);
}

// Zero, or NaN where one of the numbers is not finite.
HOTSET_INLINE float not_finite(const float* x, int64_t n) {
  F32 sums = zero_f32();
  for (int64_t k = 0; k < n; k += kLanes) sums = fma(load(x + k), zero_f32(), sums);
  return sum(sums);
}

// Sums of 16 columns' bytes, in [-127, 127]: of the first two of every four, and of the last two.
struct QuadSums {
  int32_t sum01, sum23;
};
HOTSET_INLINE QuadSums quad_sums(const int8_t* q) {
  constexpr uint64_t kLowBytes = 0x00ff00ff00ff00ff;
  uint64_t bytes[2], pairs = 0;
  memcpy(bytes, q, 16);
  for (uint64_t b : bytes) {
    b ^= 0x8080808080808080;  // now 128 more, without sign
    pairs += (b & kLowBytes) + (b >> 8 & kLowBytes);
  }
  const uint32_t sums = uint32_t(pairs) + uint32_t(pairs >> 32);
  return {int32_t(sums & 0xffff) - 8 * 128, int32_t(sums >> 16) - 8 * 128};
}

// A row's share in its quantisation: its factor, and that of its halves of blocks. A number that is not
// finite makes the factor NaN, and so all products with the row.
struct Int8Scaling {
  float factor, to_scale;

  HOTSET_INLINE Int8Scaling(const float* x, int64_t cols) {
    const float row_max = largest_magnitude(x, cols);
    factor = row_max / (127.0f * 32767.0f);
    if (!(factor >= 1e-37f)) factor = 0.0f;  // all zero, or too small for a float's range
    to_scale = factor > 0.0f ? 32767.0f / row_max : 0.0f;
    factor += not_finite(x, cols);
  }

  // Writes 16 columns' q; returns their scale.
  HOTSET_INLINE int32_t quantise(const float* x, int8_t* q) const {
    const float wanted = __builtin_ceilf(largest_magnitude(x, kBlock / 2) * to_scale);
    const int32_t scale = wanted > 1.0f ? (wanted < 32767.0f ? int32_t(wanted) : 32767) : 1;
    const F32 inverse = broadcast(factor > 0.0f ? 1.0f / (float(scale) * factor) : 0.0f);
    for (int k = 0; k < kBlock / 2; k += kLanes) store_i8(q + k, round_to_i32(load(x + k) * inverse));
    return scale;
  }
};

// Quantises one row into place `token` of a tile of `n`.
template <int n>
void pack_int8_row(const float* x, int64_t cols, int64_t token, uint8_t* tile) {
  const Int8Scaling scaling(x, cols);
  for (int64_t b = 0; b < cols / kBlock; b++, tile += kActBlockBytes<n>) {
    int32_t words[kBlockWords];
    int32_t sum = 0;
    for (int half = 0; half < 2; half++, x += kBlock / 2) {
      int8_t q[kBlock / 2];
      const int32_t scale = scaling.quantise(x, q);
      for (int i = 0; i < kQuads / 2; i++) {
        memcpy(tile + 4 * (n * (half * kQuads / 2 + i) + token), q + 4 * i, 4);
      }
      const QuadSums sums = quad_sums(q);
      words[kScaleWord + half] = scale_word(scale);
      words[kCorrectionWord + half] = correction_word(sums.sum01, sums.sum23);
      sum += scale * (sums.sum01 + sums.sum23);
    }
    words[kSumWord] = float_bits(float(sum));
    for (int i = 0; i < kBlockWords; i++) memcpy(tile + 4 * (n * (kQuads + i) + token), &words[i], 4);
  }
  memcpy(tile + 4 * token, &scaling.factor, 4);
}

HOTSET_INLINE void pack_float_activations(const float* x, int64_t cols, int64_t n, int64_t token,
                                          uint8_t* tile) {
  for (int64_t k = 0; k < cols; k++) memcpy(tile + 4 * (n * k + token), x + k, 4);
}

}  // namespace
}  // namespace hotset
