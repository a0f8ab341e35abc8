// The codes of packed weights (linear_formats.h says where they lie), and what codes are looked up in.
#pragma once

#include "kernels/kernels.h"
#include "kernels/tables.h"
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

// kWords: 32-bit words of a row's block. code<i>(p): quad i of the block at p.

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

// As Codes2, then one word whose bit i of every byte is the third bit of quad i.
struct Codes3 {
  using Dot = CodeDot;
  static constexpr int kWords = 3;

  template <int i>
  HOTSET_INLINE static I32 code(const uint8_t* p) {
    I32 bits = load_i32(p + 2 * kWordBytes);
    if constexpr (i < 2) {
      bits = shift_left<2 - i>(bits);
    } else {
      bits = shift_right<i - 2>(bits);
    }
    return Codes2::code<i>(p) | (bits & broadcast(0x04040404));
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

// Up to sixteen values, to each of which `bias` is added for the sake of the dot product.
template <class DotOf, int bias, class>
struct Table;
template <class DotOf, int bias, int... values>
struct Table<DotOf, bias, Values<values...>> {
  using Dot = DotOf;
  alignas(16) static constexpr uint8_t kBytes[16] = {uint8_t(values + bias)...};
};
template <class Values>
using WideTable = Table<TableDot, kTableBias, Values>;
template <class Values>
using NarrowTable = Table<CodeDot, 16, Values>;  // of values from -16 to 16; the format's offset is 16

template <class Places, class TableOf>
struct LookedUp {
  using Dot = typename TableOf::Dot;
  static constexpr int kWords = Places::kWords;

  template <int i>
  HOTSET_INLINE static I32 code(const uint8_t* p) {
    return look_up(TableOf::kBytes, Places::template code<i>(p));
  }
};

}  // namespace
}  // namespace hotset
