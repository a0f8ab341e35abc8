// How packed weights of each quantised type are read. Every type is seen as blocks of 32 columns: a code of a
// few bits for each weight, a scale for each block (or each half of it) and perhaps a minimum:
//   w = scale * (code - offset) + min
// A panel holds, for kLanes rows, first the scales ("meta": one record for 1 or 8 blocks), then, from the
// next multiple of 64 bytes, the codes. Both are interleaved by row, in 32-bit words (scales of type f16:
// 16-bit), so that one register holds the same four columns, a "quad", of every row. Quad i of a block is
// columns 4 * i to 4 * i + 3.
#pragma once

#include "kernels/kernels.h"
#include "simd/simd.h"

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

// Two words: bits 2 * i and 2 * i + 1 of every byte are quad i (first word) or i + 4.
struct Codes2 {
  using Dot = CodeDot;
  static constexpr int kWords = 2;

  template <int i>
  HOTSET_INLINE static I32 code(const uint8_t* p) {
    return shift_right<2 * (i % 4)>(load_i32(p + i / 4 * kWordBytes)) & broadcast(0x03030303);
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

// ---- Scales. A record holds, for every row, kHalves f16 numbers, then kWords words, and serves kBlocks
// blocks. Each block has kScales scales (one, or one for each half of it) and kMins minima (none or one).
// decode() gives those of all its blocks.

struct Scale {
  static constexpr int kBlocks = 1, kHalves = 1, kWords = 0, kScales = 1, kMins = 0;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32*) { scales[0] = load_half(p, 0); }
  HOTSET_INLINE static F32 load_half(const uint8_t* p, int k) {
    return load_f16(reinterpret_cast<const uint16_t*>(p) + k * kLanes);
  }
};

struct ScaleMin {
  static constexpr int kBlocks = 1, kHalves = 2, kWords = 0, kScales = 1, kMins = 1;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32* mins) {
    scales[0] = Scale::load_half(p, 0);
    mins[0] = Scale::load_half(p, 1);
  }
};

// Four levels that lie around zero: -1.5, -0.5, 0.5 and 1.5 times the scale.
struct ScaleCentred {
  static constexpr int kBlocks = 1, kHalves = 1, kWords = 0, kScales = 1, kMins = 1;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32* mins) {
    scales[0] = Scale::load_half(p, 0);
    mins[0] = broadcast(-1.5f) * scales[0];
  }
};

// Byte `i` of every word, unsigned.
template <int i>
HOTSET_INLINE F32 byte_to_f32(I32 word) {
  if constexpr (i == 3) {
    return to_f32(shift_right<24>(word));
  } else {
    return to_f32(shift_right<8 * i>(word) & broadcast(0xff));
  }
}
template <int i>
HOTSET_INLINE F32 signed_byte_to_f32(I32 word) {
  return to_f32(shift_right_signed<24>(shift_left<24 - 8 * i>(word)));
}

// Q4_K and Q5_K: d, dmin and eight pairs of 6-bit factors in 12 bytes. Of the first four blocks, the factors
// of d are the low six bits of word 0, those of dmin of word 1; of the last four, the low and high nibbles of
// word 2, topped by the upper two bits of words 0 and 1.
struct KScaleMin {
  static constexpr int kBlocks = 8, kHalves = 2, kWords = 3, kScales = 1, kMins = 1;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32* mins) {
    F32 d = Scale::load_half(p, 0), m = zero_f32() - Scale::load_half(p, 1);
    I32 word0 = load_i32(p + kWordBytes), word1 = load_i32(p + 2 * kWordBytes),
        word2 = load_i32(p + 3 * kWordBytes);
    I32 six = broadcast(0x3f3f3f3f), nibble = broadcast(0x0f0f0f0f), top = broadcast(0x30303030);
    I32 scales0 = word0 & six, scales1 = (word2 & nibble) | (shift_right<2>(word0) & top);
    I32 mins0 = word1 & six, mins1 = (shift_right<4>(word2) & nibble) | (shift_right<2>(word1) & top);
    unroll<4>([&](auto i) HOTSET_INLINED {
      scales[i.value] = byte_to_f32<i.value>(scales0) * d;
      scales[i.value + 4] = byte_to_f32<i.value>(scales1) * d;
      mins[i.value] = byte_to_f32<i.value>(mins0) * m;
      mins[i.value + 4] = byte_to_f32<i.value>(mins1) * m;
    });
  }
};

// Q6_K: d and sixteen signed factors, one for each half block.
struct KScaleHalves {
  static constexpr int kBlocks = 8, kHalves = 1, kWords = 4, kScales = 2, kMins = 0;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32*) {
    F32 d = Scale::load_half(p, 0);
    unroll<kWords>([&](auto word) HOTSET_INLINED {
      I32 factors = load_i32(p + 2 * kLanes + word.value * kWordBytes);
      unroll<4>([&](auto i) HOTSET_INLINED {
        scales[4 * word.value + i.value] = signed_byte_to_f32<i.value>(factors) * d;
      });
    });
  }
};

template <class CodesOf, class MetaOf, int offset>
struct Format {
  using Codes = CodesOf;
  using Meta = MetaOf;
  using Dot = typename Codes::Dot;
  static constexpr int kMetaBytes = kLanes * (2 * Meta::kHalves + 4 * Meta::kWords);
  static constexpr int kCodeBytes = kWordBytes * Codes::kWords;

  static constexpr int64_t codes_start(int64_t cols) {
    return (cols / kBlock / Meta::kBlocks * kMetaBytes + 63) / 64 * 64;
  }
  static constexpr int64_t panel_bytes(int64_t cols) {
    return (codes_start(cols) + cols / kBlock * kCodeBytes + 63) / 64 * 64;
  }

  // A dot product that begins with the offset's share, given the correction_word() of the activations.
  HOTSET_INLINE static Dot start(int32_t correction) { return Dot::template start<offset>(correction); }

  // The scales and minima of a record, for code - offset.
  HOTSET_INLINE static void decode_meta(const uint8_t* meta, F32* scales, F32* mins) {
    Meta::decode(meta, scales, mins);
    if constexpr (Meta::kMins == 1 && offset > 0) {
      // The type has no offset: it was put in to keep the dot product within int16.
      unroll<Meta::kBlocks>([&](auto j) HOTSET_INLINED {
        mins[j.value] = fma(broadcast(float(offset)), scales[j.value], mins[j.value]);
      });
    }
  }
};

using FormatQ2 = Format<Codes2, ScaleCentred, 0>;
using FormatQ4_0 = Format<Codes4, Scale, 8>;
using FormatQ4_1 = Format<Codes4, ScaleMin, 0>;
using FormatQ5_0 = Format<Codes5, Scale, 16>;
using FormatQ5_1 = Format<Codes5, ScaleMin, 16>;
using FormatQ8_0 = Format<Codes8, Scale, 0>;
using FormatQ4_K = Format<Codes4, KScaleMin, 0>;
using FormatQ5_K = Format<Codes5, KScaleMin, 16>;
using FormatQ6_K = Format<Codes6, KScaleHalves, 32>;

// Calls f with the Format of a quantised type.
template <class F>
HOTSET_INLINE auto with_format(Type type, F f) {
  switch (type) {
    case kQ2:
      return f(FormatQ2{});
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
