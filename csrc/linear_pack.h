// Re-lays GGUF's blocks as panels (linear_formats.h says how those look).
#pragma once

#include "linear_formats.h"

namespace hotset {
namespace {

// A block as it lies in a GGUF file: its size, where the f16 numbers and the bytes of scales are that a panel
// keeps as they are, and codes(): the 32 codes of part `part` of a block.

HOTSET_INLINE void nibbles(const uint8_t* q, uint8_t* codes) {
  for (int i = 0; i < 16; i++) {
    codes[i] = q[i] & 15;
    codes[i + 16] = q[i] >> 4;
  }
}
HOTSET_INLINE void add_fifth_bits(const uint8_t* bits, uint8_t* codes) {
  for (int i = 0; i < 32; i++) codes[i] |= (bits[i / 8] >> (i % 8) & 1) << 4;
}

template <int header>
struct Gguf4 {
  static constexpr int kBytes = header + 16, kScales = 0;
  static void codes(const uint8_t* block, int, uint8_t* codes) { nibbles(block + header, codes); }
};
template <int header>
struct Gguf5 {
  static constexpr int kBytes = header + 20, kScales = 0;
  static void codes(const uint8_t* block, int, uint8_t* codes) {
    nibbles(block + header + 4, codes);
    add_fifth_bits(block + header, codes);
  }
};
struct Gguf8 {
  static constexpr int kBytes = 34, kScales = 0;
  static void codes(const uint8_t* block, int, uint8_t* codes) { memcpy(codes, block + 2, 32); }
};
struct Gguf4K {
  static constexpr int kBytes = 144, kScales = 4;
  static void codes(const uint8_t* block, int part, uint8_t* codes) {
    const uint8_t* q = block + 16 + part / 2 * 32;
    for (int i = 0; i < 32; i++) codes[i] = q[i] >> (part % 2 * 4) & 15;
  }
};
struct Gguf5K {
  static constexpr int kBytes = 176, kScales = 4;
  static void codes(const uint8_t* block, int part, uint8_t* codes) {
    const uint8_t *q = block + 48 + part / 2 * 32, *fifth = block + 16;
    for (int i = 0; i < 32; i++) codes[i] = (q[i] >> (part % 2 * 4) & 15) | (fifth[i] >> part & 1) << 4;
  }
};
struct Gguf6K {
  static constexpr int kBytes = 210, kScales = 192;
  static void codes(const uint8_t* block, int part, uint8_t* codes) {
    const uint8_t *q = block + part / 4 * 64 + part % 2 * 32, *top = block + 128 + part / 4 * 32;
    int shift = part % 4 / 2 * 4, top_shift = part % 4 * 2;
    for (int i = 0; i < 32; i++) codes[i] = (q[i] >> shift & 15) | (top[i] >> top_shift & 3) << 4;
  }
};
// Where the k-th f16 number of a block is: Q6_K has its only one at the end.
template <class Gguf>
constexpr int half_at(int k) {
  return Gguf::kBytes == 210 ? 208 : 2 * k;
}

template <class>
struct GgufOf;
template <>
struct GgufOf<FormatQ4_0> : Gguf4<2> {};
template <>
struct GgufOf<FormatQ4_1> : Gguf4<4> {};
template <>
struct GgufOf<FormatQ5_0> : Gguf5<2> {};
template <>
struct GgufOf<FormatQ5_1> : Gguf5<4> {};
template <>
struct GgufOf<FormatQ8_0> : Gguf8 {};
template <>
struct GgufOf<FormatQ4_K> : Gguf4K {};
template <>
struct GgufOf<FormatQ5_K> : Gguf5K {};
template <>
struct GgufOf<FormatQ6_K> : Gguf6K {};

// The words of a row's block from its 32 codes, as Codes4 to Codes8 read them.
template <int n_words>
HOTSET_INLINE void codes_to_words(const uint8_t* codes, uint8_t* words) {
  if constexpr (n_words == 8) {
    memcpy(words, codes, 32);
    return;
  }
  for (int i = 0; i < 16; i++) words[i] = (codes[i] & 15) | (codes[i + 16] & 15) << 4;
  if constexpr (n_words == 5) {
    for (int b = 0; b < 4; b++) {
      words[16 + b] = 0;
      for (int i = 0; i < 8; i++) words[16 + b] |= codes[4 * i + b] >> 4 << i;
    }
  }
  if constexpr (n_words == 6) {
    for (int b = 0; b < 8; b++) {
      const uint8_t* c = codes + b / 4 * 16 + b % 4;
      words[16 + b] = c[0] >> 4 | c[4] >> 4 << 2 | c[8] >> 4 << 4 | c[12] >> 4 << 6;
    }
  }
}

template <class F>
void pack_row(const uint8_t* src, int64_t cols, int64_t row, uint8_t* panel) {
  using Gguf = GgufOf<F>;
  using Meta = typename F::Meta;
  constexpr int n_words = F::Codes::kWords;
  uint8_t* meta = panel;
  uint8_t* quads = panel + F::codes_start(cols) + 4 * row;
  for (int64_t b = 0; b < cols / kBlock / Meta::kBlocks; b++, src += Gguf::kBytes, meta += F::kMetaBytes) {
    for (int k = 0; k < Meta::kHalves; k++) memcpy(meta + 2 * (k * kLanes + row), src + half_at<Gguf>(k), 2);
    uint8_t* words_at = meta + 2 * Meta::kHalves * kLanes + 4 * row;
    for (int k = 0; k < Meta::kWords; k++) memcpy(words_at + k * kWordBytes, src + Gguf::kScales + 4 * k, 4);
    for (int part = 0; part < Meta::kBlocks; part++, quads += F::kCodeBytes) {
      uint8_t codes[kBlock], words[4 * n_words];
      Gguf::codes(src, part, codes);
      codes_to_words<n_words>(codes, words);
      for (int k = 0; k < n_words; k++) memcpy(quads + k * kWordBytes, words + 4 * k, 4);
    }
  }
}

// Floats: column by column, one number of every row.
HOTSET_INLINE int64_t float_bytes(Type type) { return type == kF32 ? 4 : 2; }
HOTSET_INLINE int64_t float_panel_bytes(Type type, int64_t cols) {
  return (cols * kLanes * float_bytes(type) + 63) / 64 * 64;
}
template <class T>
void pack_float_row(const uint8_t* src, int64_t cols, int64_t row, uint8_t* panel) {
  for (int64_t k = 0; k < cols; k++)
    memcpy(panel + (k * kLanes + row) * sizeof(T), src + k * sizeof(T), sizeof(T));
}

HOTSET_INLINE bool is_float(Type type) { return type == kF32 || type == kF16 || type == kBF16; }

}  // namespace
}  // namespace hotset
