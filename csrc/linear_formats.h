// How packed weights of each quantised type are read. Every type is seen as blocks of 32 columns: a code of a
// few bits for each weight, a scale for each block (or each half of it) and perhaps a minimum:
//   w = scale * (code - offset) + min
// A panel holds, for kLanes rows, first the scales ("meta": one record for 1 or 8 blocks), then, from the
// next multiple of 64 bytes, the codes. Both are interleaved by row, in 32-bit words (scales of type f16:
// 16-bit), so that one register holds the same four columns, a "quad", of every row. Quad i of a block is
// columns 4 * i to 4 * i + 3.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace hotset {
namespace {

constexpr int kBlock = 32;              // columns
constexpr int kQuads = kBlock / 4;      // of one block
constexpr int kWordBytes = 4 * kLanes;  // one 32-bit word of every row of a panel

template <int i>
struct Int {
  static constexpr int value = i;
};

// f(Int<0>{}), f(Int<1>{}) ... f(Int<n - 1>{}).
template <int n, class F>
HOTSET_INLINE void unroll(F f) {
  if constexpr (n > 0) {
    unroll<n - 1>(f);
    f(Int<n - 1>{});
  }
}

// ---- Codes. kWords: 32-bit words of a row's block. code<i>(p): quad i of the block at p.

// Word i holds quad i in its low nibbles and quad i + 4 in its high ones.
struct Codes4 {
  using Dot = CodeDot;
  static constexpr int kWords = 4;

  template <int i>
  HOTSET_INLINE static I32 code(const uint8_t* p) {
    I32 word = load_i32(p + (i % 4) * kWordBytes);
    return (i < 4 ? word : shift_right<4>(word)) & broadcast(0x0f0f0f0f);
  }
};

// Four words of nibbles, then one whose bit i of every byte is the fifth bit of quad i.
struct Codes5 {
  using Dot = CodeDot;
  static constexpr int kWords = 5;

  template <int i>
  HOTSET_INLINE static I32 code(const uint8_t* p) {
    I32 bits = load_i32(p + 4 * kWordBytes);
    if constexpr (i < 4) {
      bits = shift_left<4 - i>(bits);
    } else {
      bits = shift_right<i - 4>(bits);
    }
    return Codes4::code<i>(p) | (bits & broadcast(0x10101010));
  }
};

// Four words of nibbles, then two: bits 2 * i and 2 * i + 1 of every byte top quad i (first word) or i + 4.
struct Codes6 {
  using Dot = CodeDot;
  static constexpr int kWords = 6;

  template <int i>
  HOTSET_INLINE static I32 code(const uint8_t* p) {
    constexpr int shift = 2 * (i % 4);
    I32 bits = load_i32(p + (4 + i / 4) * kWordBytes);
    if constexpr (shift < 4) {
      bits = shift_left<4 - shift>(bits);
    } else {
      bits = shift_right<shift - 4>(bits);
    }
    return Codes4::code<i>(p) | (bits & broadcast(0x30303030));
  }
};

// Signed bytes.
struct Codes8 {
  using Dot = ByteDot;
  static constexpr int kWords = 8;

  template <int i>
  HOTSET_INLINE static I32 code(const uint8_t* p) {
    return load_i32(p + i * kWordBytes);
  }
};

// ---- Scales. A record holds, for every row, kHalves f16 numbers, then kWords words; it serves kBlocks
// blocks. scale<j, half>() and min<j>() are those of block j.

struct Scale {
  static constexpr int kBlocks = 1, kHalves = 1, kWords = 0;
  static constexpr bool kMin = false, kSplit = false;
  F32 d;

  HOTSET_INLINE explicit Scale(const uint8_t* p) : d(load_f16(reinterpret_cast<const uint16_t*>(p))) {}
  template <int j, int half>
  HOTSET_INLINE F32 scale() const {
    return d;
  }
};

struct ScaleMin {
  static constexpr int kBlocks = 1, kHalves = 2, kWords = 0;
  static constexpr bool kMin = true, kSplit = false;
  F32 d, m;

  HOTSET_INLINE explicit ScaleMin(const uint8_t* p)
      : d(load_f16(reinterpret_cast<const uint16_t*>(p))),
        m(load_f16(reinterpret_cast<const uint16_t*>(p) + kLanes)) {}
  template <int j, int half>
  HOTSET_INLINE F32 scale() const {
    return d;
  }
  template <int j>
  HOTSET_INLINE F32 min() const {
    return m;
  }
};

template <int j>
HOTSET_INLINE I32 byte_of(I32 word) {
  if constexpr (j == 0) {
    return word & broadcast(0xff);
  } else if constexpr (j == 3) {
    return shift_right<24>(word);
  } else {
    return shift_right<8 * j>(word) & broadcast(0xff);
  }
}

// Q4_K and Q5_K: d, dmin and eight pairs of 6-bit factors in 12 bytes. Of the first four blocks, the factors
// of d are the low six bits of word 0, those of dmin of word 1; of the last four, the low and high nibbles of
// word 2, topped by the upper two bits of words 0 and 1.
struct KScaleMin {
  static constexpr int kBlocks = 8, kHalves = 2, kWords = 3;
  static constexpr bool kMin = true, kSplit = false;
  F32 d, m;
  I32 d_factors[2], m_factors[2];

  HOTSET_INLINE explicit KScaleMin(const uint8_t* p)
      : d(load_f16(reinterpret_cast<const uint16_t*>(p))),
        m(zero_f32() - load_f16(reinterpret_cast<const uint16_t*>(p) + kLanes)) {
    I32 word0 = load_i32(p + kWordBytes), word1 = load_i32(p + 2 * kWordBytes),
        word2 = load_i32(p + 3 * kWordBytes);
    I32 six = broadcast(0x3f3f3f3f), nibble = broadcast(0x0f0f0f0f), top = broadcast(0x30303030);
    d_factors[0] = word0 & six;
    m_factors[0] = word1 & six;
    d_factors[1] = (word2 & nibble) | (shift_right<2>(word0) & top);
    m_factors[1] = (shift_right<4>(word2) & nibble) | (shift_right<2>(word1) & top);
  }
  template <int j, int half>
  HOTSET_INLINE F32 scale() const {
    return to_f32(byte_of<j % 4>(d_factors[j / 4])) * d;
  }
  template <int j>
  HOTSET_INLINE F32 min() const {
    return to_f32(byte_of<j % 4>(m_factors[j / 4])) * m;
  }
};

// Q6_K: d and sixteen signed bytes, one for each half block.
struct KScaleSplit {
  static constexpr int kBlocks = 8, kHalves = 1, kWords = 4;
  static constexpr bool kMin = false, kSplit = true;
  F32 d;
  const uint8_t* factors;

  HOTSET_INLINE explicit KScaleSplit(const uint8_t* p)
      : d(load_f16(reinterpret_cast<const uint16_t*>(p))), factors(p + 2 * kLanes) {}
  template <int j, int half>
  HOTSET_INLINE F32 scale() const {
    constexpr int byte = (2 * j + half) % 4;
    I32 word = load_i32(factors + (2 * j + half) / 4 * kWordBytes);
    if constexpr (byte < 3) word = shift_left<24 - 8 * byte>(word);
    return to_f32(shift_right_signed<24>(word)) * d;
  }
};

template <class CodesOf, class MetaOf, int offset>
struct Format {
  using Codes = CodesOf;
  using Meta = MetaOf;
  using Dot = typename Codes::Dot;
  static constexpr int kOffset = offset;
  static constexpr bool kMin = Meta::kMin, kSplit = Meta::kSplit;

  static constexpr int kMetaBytes = kLanes * (2 * Meta::kHalves + 4 * Meta::kWords);
  static constexpr int kCodeBytes = kWordBytes * Codes::kWords;

  static constexpr int64_t codes_start(int64_t cols) {
    return (cols / kBlock / Meta::kBlocks * kMetaBytes + 63) / 64 * 64;
  }
  static constexpr int64_t panel_bytes(int64_t cols) {
    return (codes_start(cols) + cols / kBlock * kCodeBytes + 63) / 64 * 64;
  }

  template <int half>
  HOTSET_INLINE static Dot start(int32_t correction) {
    if constexpr (kOffset > 0) {
      return Dot::template start<kOffset>(correction);
    } else if constexpr (Codes::kWords == 8) {
      return Dot::start(correction);
    } else {
      return Dot::start();
    }
  }
  template <int j>
  HOTSET_INLINE static F32 min(const Meta& meta) {
    // Types with a minimum have no offset; where one was put in for the dot product's sake, it is taken back
    // here.
    F32 m = meta.template min<j>();
    return kOffset == 0 ? m : fma(broadcast(float(kOffset)), meta.template scale<j, 0>(), m);
  }
};

using FormatQ4_0 = Format<Codes4, Scale, 8>;
using FormatQ4_1 = Format<Codes4, ScaleMin, 0>;
using FormatQ5_0 = Format<Codes5, Scale, 16>;
using FormatQ5_1 = Format<Codes5, ScaleMin, 16>;
using FormatQ8_0 = Format<Codes8, Scale, 0>;
using FormatQ4_K = Format<Codes4, KScaleMin, 0>;
using FormatQ5_K = Format<Codes5, KScaleMin, 16>;
using FormatQ6_K = Format<Codes6, KScaleSplit, 32>;

// Calls f with the Format of a quantised type.
template <class F>
HOTSET_INLINE auto with_format(Type type, F f) {
  switch (type) {
    case kQ4_0:
      return f(FormatQ4_0{});
    case kQ4_1:
      return f(FormatQ4_1{});
    case kQ5_0:
      return f(FormatQ5_0{});
    case kQ5_1:
      return f(FormatQ5_1{});
    case kQ4_K:
      return f(FormatQ4_K{});
    case kQ5_K:
      return f(FormatQ5_K{});
    case kQ6_K:
      return f(FormatQ6_K{});
    default:
      return f(FormatQ8_0{});
  }
}

}  // namespace
}  // namespace hotset
