// How packed weights of each quantised type are read. Every type is seen as blocks of 32 columns: a code of a
// few bits for each weight, a scale for each block (or each half of it) and perhaps a minimum:
//   w = scale * (code - offset) + min
// Of some types a code is a place in a table, which has what is multiplied.
// A panel holds, for kLanes rows, first the scales ("meta": one record for 1, 2 or 8 blocks), then, from the
// next multiple of 64 bytes, the codes. Both are interleaved by row, in 32-bit words (scales of type f16:
// 16-bit), so that one register holds the same four columns, a "quad", of every row. Quad i of a block is
// columns 4 * i to 4 * i + 3.
#pragma once

#include "kernels/linear_codes.h"

namespace hotset {
namespace {

// ---- Scales. A record holds, for every row, kHalves f16 numbers, then kWords words, then kBytes bytes, and
// serves kBlocks blocks. Each block has kScales scales (one, or one for each half of it) and kMins minima
// (none, one, or one for each half). decode() gives those of all its blocks.

struct OneBlock {
  static constexpr int kBlocks = 1, kHalves = 0, kWords = 0, kBytes = 0, kScales = 1, kMins = 0;
};
struct EightBlocks : OneBlock {
  static constexpr int kBlocks = 8;
};

struct Scale : OneBlock {
  static constexpr int kHalves = 1;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32*) { scales[0] = load_half(p, 0); }
  HOTSET_INLINE static F32 load_half(const uint8_t* p, int k) {
    return load_f16(reinterpret_cast<const uint16_t*>(p) + k * kLanes);
  }
};

struct ScaleMin : OneBlock {
  static constexpr int kHalves = 2, kMins = 1;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32* mins) {
    scales[0] = Scale::load_half(p, 0);
    mins[0] = Scale::load_half(p, 1);
  }
};

// Four levels that lie around zero: -1.5, -0.5, 0.5 and 1.5 times the scale.
struct ScaleCentred : OneBlock {
  static constexpr int kHalves = 1, kMins = 1;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32* mins) {
    scales[0] = Scale::load_half(p, 0);
    mins[0] = broadcast(-1.5f) * scales[0];
  }
};

// A power of two: the byte is a float's exponent. Zero is zero, so that scales below 2^-126 are.
struct ScalePower : OneBlock {
  static constexpr int kBytes = 1;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32*) {
    const I32 exponent = shift_left<23>(load_i8(reinterpret_cast<const int8_t*>(p)));
    scales[0] = bits_to_f32(exponent & broadcast(0x7f800000));
  }
};

// Four floats of a byte each, for half blocks: four bits of exponent, three of mantissa, no sign. Moved into
// a float's place they are 2^120 too small, subnormal ones too; and the values are doubled.
struct ScaleHalvesFp8 : OneBlock {
  static constexpr int kBlocks = 2, kWords = 1, kScales = 2;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32*) {
    const I32 word = load_i32(p), bits = broadcast(0x07f00000);
    const I32 floats[4] = {shift_left<20>(word), shift_left<12>(word), shift_left<4>(word),
                           shift_right<4>(word)};
    unroll<4>([&](auto i) HOTSET_INLINED {
      scales[i.value] = bits_to_f32(floats[i.value] & bits) * broadcast(0x1p119f);
    });
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
struct KScaleMin : EightBlocks {
  static constexpr int kHalves = 2, kWords = 3, kMins = 1;

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
struct KScaleHalves : EightBlocks {
  static constexpr int kHalves = 1, kWords = 4, kScales = 2;

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

// Q3_K: d and sixteen factors of 6 bits, less 32, one for each half block: the low nibbles of words 0 and 1,
// then their high ones, topped by every two bits of word 2.
struct KScaleHalves6 : EightBlocks {
  static constexpr int kHalves = 1, kWords = 3, kScales = 2;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32*) {
    const F32 d = Scale::load_half(p, 0), centre = broadcast(-32.0f) * d;
    const uint8_t* words = p + 2 * kLanes;
    const I32 nibble = broadcast(0x0f0f0f0f), two = broadcast(0x30303030);
    const I32 low[2] = {load_i32(words), load_i32(words + kWordBytes)},
              top = load_i32(words + 2 * kWordBytes);
    const I32 factors[4] = {(low[0] & nibble) | (shift_left<4>(top) & two),
                            (low[1] & nibble) | (shift_left<2>(top) & two),
                            (shift_right<4>(low[0]) & nibble) | (top & two),
                            (shift_right<4>(low[1]) & nibble) | (shift_right<2>(top) & two)};
    unroll<16>([&](auto i) HOTSET_INLINED {
      scales[i.value] = fma(byte_to_f32<i.value % 4>(factors[i.value / 4]), d, centre);
    });
  }
};

// Q2_K: d, dmin and sixteen bytes, one for each half block: in the low nibble d's factor, in the high dmin's.
struct KScaleMinHalves : EightBlocks {
  static constexpr int kHalves = 2, kWords = 4, kScales = 2, kMins = 2;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32* mins) {
    const F32 d = Scale::load_half(p, 0), m = broadcast(0.25f) * Scale::load_half(p, 1);
    unroll<kWords>([&](auto word) HOTSET_INLINED {
      const I32 factors = load_i32(p + (1 + word.value) * kWordBytes), nibble = broadcast(0x0f0f0f0f);
      const I32 low = factors & nibble, high = shift_right<4>(factors) & nibble;
      unroll<4>([&](auto i) HOTSET_INLINED {
        scales[4 * word.value + i.value] = byte_to_f32<i.value>(low) * d;
        mins[4 * word.value + i.value] = byte_to_f32<i.value>(high) * m;
      });
    });
  }
};

// IQ4_XS: d and eight factors of 6 bits, less 32: a word has the low four of each, a half the upper two.
struct KScale6 : EightBlocks {
  static constexpr int kHalves = 2, kWords = 1;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32*) {
    const F32 d = Scale::load_half(p, 0), centre = broadcast(-32.0f) * d;
    const I32 top = load_u16(reinterpret_cast<const uint16_t*>(p) + kLanes), low = load_i32(p + kWordBytes);
    unroll<8>([&](auto i) HOTSET_INLINED {
      I32 upper;
      if constexpr (i.value < 2) {
        upper = shift_left<4 - 2 * i.value>(top);
      } else {
        upper = shift_right<2 * i.value - 4>(top);
      }
      const I32 lower = shift_right<4 * i.value>(low) & broadcast(15);
      scales[i.value] = fma(to_f32(lower | (upper & broadcast(0x30))), d, centre);
    });
  }
};

// TQ1_0 and TQ2_0: codes 0 to 2 are -d, 0 and d.
struct ScaleTernary : EightBlocks {
  static constexpr int kHalves = 1, kMins = 1;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32* mins) {
    const F32 d = Scale::load_half(p, 0), m = zero_f32() - d;
    unroll<8>([&](auto i) HOTSET_INLINED {
      scales[i.value] = d;
      mins[i.value] = m;
    });
  }
};

// Types with codebooks: d and sixteen nibbles s, one for each half block, whose scale is d * (2 s + 1) / 8.
struct OddScales : EightBlocks {
  static constexpr int kHalves = 1, kWords = 2, kScales = 2;

  HOTSET_INLINE static void decode(const uint8_t* p, F32* scales, F32*) {
    const F32 d = Scale::load_half(p, 0), quarter = broadcast(0.25f) * d, eighth = broadcast(0.125f) * d;
    const I32 words[2] = {load_i32(p + 2 * kLanes), load_i32(p + 2 * kLanes + kWordBytes)};
    unroll<16>([&](auto i) HOTSET_INLINED {
      const I32 s = shift_right<i.value % 8 * 4>(words[i.value / 8]) & broadcast(15);
      scales[i.value] = fma(to_f32(s), quarter, eighth);
    });
  }
};

template <class CodesOf, class MetaOf, int offset>
struct Format {
  using Codes = CodesOf;
  using Meta = MetaOf;
  using Dot = typename Codes::Dot;
  static constexpr int kMetaBytes = kLanes * (2 * Meta::kHalves + 4 * Meta::kWords + Meta::kBytes);
  static constexpr int kCodeBytes = kWordBytes * Codes::kWords;
  static constexpr int kMinRoom = Meta::kMins ? Meta::kMins : 1;

  static constexpr int64_t codes_start(int64_t cols) {
    return (cols / kBlock / Meta::kBlocks * kMetaBytes + 63) / 64 * 64;
  }
  static constexpr int64_t panel_bytes(int64_t cols) {
    return (codes_start(cols) + cols / kBlock * kCodeBytes + 63) / 64 * 64;
  }

  // A dot product that begins with the offset's share, given the correction_word() of the activations.
  HOTSET_INLINE static Dot start(int32_t correction) { return Dot::template start<offset>(correction); }

  // The sum of half a block's activations, times their scale and -4: what its minimum, times -1/4, is for.
  HOTSET_INLINE static F32 half_sum(int32_t correction, I32 scale) {
    return Dot::template start<4>(correction).scaled(scale);
  }

  // The scales and minima of a record, for code - offset; where halves of blocks have minima, -1/4 of them.
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
using FormatQ2_K = Format<Codes2, KScaleMinHalves, 0>;
using FormatQ3_K = Format<Codes3, KScaleHalves6, 4>;
using FormatIQ4_NL = Format<LookedUp<Codes4, WideTable<Uneven>>, Scale, 0>;
using FormatIQ4_XS = Format<LookedUp<Codes4, WideTable<Uneven>>, KScale6, 0>;
using FormatMXFP4 = Format<LookedUp<Codes4, NarrowTable<Fp4>>, ScalePower, 16>;
using FormatNVFP4 = Format<LookedUp<Codes4, NarrowTable<Fp4>>, ScaleHalvesFp8, 16>;
using FormatTernary = Format<Codes2, ScaleTernary, 0>;
using FormatBook2 = Format<LookedUp<Codes3, WideTable<Book2>>, OddScales, 0>;
using FormatBook3_XXS = Format<LookedUp<Codes4, WideTable<Book3_XXS>>, OddScales, 0>;
using FormatBook3_S = Format<LookedUp<Codes4, WideTable<Book3_S>>, OddScales, 0>;
using FormatBook1 = Format<LookedUp<Codes3, NarrowTable<Book1>>, OddScales, 16>;

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
    case kQ2_K:
      return f(FormatQ2_K{});
    case kQ3_K:
      return f(FormatQ3_K{});
    case kIQ4_NL:
      return f(FormatIQ4_NL{});
    case kIQ4_XS:
      return f(FormatIQ4_XS{});
    case kMXFP4:
      return f(FormatMXFP4{});
    case kNVFP4:
      return f(FormatNVFP4{});
    case kTQ1_0:
    case kTQ2_0:
      return f(FormatTernary{});
    case kIQ2_XXS:
    case kIQ2_XS:
    case kIQ2_S:
      return f(FormatBook2{});
    case kIQ3_XXS:
      return f(FormatBook3_XXS{});
    case kIQ3_S:
      return f(FormatBook3_S{});
    case kIQ1_S:
    case kIQ1_M:
      return f(FormatBook1{});
    default:
      return f(FormatQ8_0{});
  }
}

}  // namespace
}  // namespace hotset
