// Re-lays GGUF's blocks as panels (linear_formats.h says how those look).
#pragma once

#include "kernels/codebooks.h"
#include "kernels/linear_formats.h"

namespace hotset {
namespace {

// A block as it lies in a GGUF file: its bytes, where the f16 numbers and the words of scales are that a
// panel keeps as they are, byte(): the scale that is a byte, and words(): the codes of part `part` of it (32
// columns), as Codes4 to Codes8 read them.

struct Gguf {
  static constexpr int kScales = 0;
  static constexpr int half_at(int k) { return 2 * k; }
  HOTSET_INLINE static uint8_t byte(const uint8_t*) { return 0; }
};
template <int header>
struct Gguf4 : Gguf {
  static constexpr int kBytes = header + 16;
  HOTSET_INLINE static void words(const uint8_t* block, int, uint32_t* words) {
    memcpy(words, block + header, 16);
  }
};
template <int header>
struct Gguf5 : Gguf {
  static constexpr int kBytes = header + 20;
  HOTSET_INLINE static void words(const uint8_t* block, int, uint32_t* words) {
    memcpy(words, block + header + 4, 16);
    const uint32_t fifth = read_u32(block + header);  // bit i of column i
    words[4] = 0;
    for (int b = 0; b < 4; b++) {
      uint32_t bits = fifth >> b & 0x11111111;  // of columns b, b + 4 ...
      bits = (bits | bits >> 3) & 0x03030303;
      bits = (bits | bits >> 6) & 0x000f000f;
      words[4] |= ((bits | bits >> 12) & 0xff) << 8 * b;
    }
  }
};
struct Gguf8 : Gguf {
  static constexpr int kBytes = 34;
  HOTSET_INLINE static void words(const uint8_t* block, int, uint32_t* words) {
    memcpy(words, block + 2, 32);
  }
};
// 32 nibbles, the low or high ones of 32 bytes.
HOTSET_INLINE void nibble_words(const uint8_t* q, int shift, uint32_t* words) {
  for (int i = 0; i < 4; i++) {
    const uint32_t low = read_u32(q + 4 * i) >> shift & 0x0f0f0f0f;
    const uint32_t high = read_u32(q + 4 * i + 16) >> shift & 0x0f0f0f0f;
    words[i] = low | high << 4;
  }
}
struct Gguf4K : Gguf {
  static constexpr int kBytes = 144, kScales = 4;
  HOTSET_INLINE static void words(const uint8_t* block, int part, uint32_t* words) {
    nibble_words(block + 16 + part / 2 * 32, part % 2 * 4, words);
  }
};
// The same of 32 bytes that have nothing else; and their lowest two bits as Codes2 has them.
HOTSET_INLINE void nibble_words(const uint8_t* codes, uint32_t* words) {
  for (int i = 0; i < 4; i++) words[i] = read_u32(codes + 4 * i) | read_u32(codes + 4 * i + 16) << 4;
}
HOTSET_INLINE void low_words(const uint8_t* codes, uint32_t* words) {
  words[0] = words[1] = 0;
  for (int i = 0; i < kQuads; i++) words[i / 4] |= (read_u32(codes + 4 * i) & 0x03030303) << i % 4 * 2;
}
// Two-bit codes: 128 columns in 32 bytes.
HOTSET_INLINE void two_bit_words(const uint8_t* qs, int part, uint32_t* words) {
  words[0] = words[1] = 0;
  for (int i = 0; i < kQuads; i++) {
    words[i / 4] |= (read_u32(qs + part / 4 * 32 + 4 * i) >> part % 4 * 2 & 0x03030303) << i % 4 * 2;
  }
}
// One bit of each of 32 bytes, as a word whose bit i of every byte is quad i.
HOTSET_INLINE uint32_t bit_word(const uint8_t* bytes, int bit) {
  uint32_t word = 0;
  for (int i = 0; i < kQuads; i++) word |= (read_u32(bytes + 4 * i) >> bit & 0x01010101) << i;
  return word;
}
struct Gguf2K : Gguf {
  static constexpr int kBytes = 84;
  static constexpr int half_at(int k) { return 80 + 2 * k; }
  HOTSET_INLINE static void words(const uint8_t* block, int part, uint32_t* words) {
    two_bit_words(block + 16, part, words);
  }
};
struct Gguf3K : Gguf {
  static constexpr int kBytes = 110, kScales = 96;
  static constexpr int half_at(int) { return 108; }
  HOTSET_INLINE static void words(const uint8_t* block, int part, uint32_t* words) {
    two_bit_words(block + 32, part, words);
    words[2] = bit_word(block, part);
  }
};
struct Gguf4XS : Gguf {
  static constexpr int kBytes = 136, kScales = 4;
  HOTSET_INLINE static void words(const uint8_t* block, int part, uint32_t* words) {
    memcpy(words, block + 8 + part * 16, 16);
  }
};
struct GgufMX4 : Gguf4<1> {
  // The exponent of 2^(e - 128), for doubled values.
  HOTSET_INLINE static uint8_t byte(const uint8_t* block) { return block[0] > 0 ? block[0] - 1 : 0; }
};
// 64 columns: four scales, then for each 16 columns 8 bytes, whose low nibbles come before the high ones.
struct GgufNV4 : Gguf {
  static constexpr int kBytes = 36;
  static uint32_t scale_word(const uint8_t* block, int) {
    uint32_t word = 0;
    for (int i = 0; i < 4; i++) word |= uint32_t(block[i] == kFp8NaN ? 0 : block[i]) << 8 * i;
    return word;
  }
  HOTSET_INLINE static void words(const uint8_t* block, int part, uint32_t* words) {
    constexpr uint32_t low = 0x0f0f0f0f;
    for (int i = 0; i < 2; i++) {
      const uint8_t* at = block + 4 + 16 * part + 4 * i;
      const uint32_t first = read_u32(at), second = read_u32(at + 8);
      words[i] = (first & low) | (second & low) << 4;
      words[i + 2] = (first >> 4 & low) | (second & ~low);
    }
  }
};
struct Gguf5K : Gguf {
  static constexpr int kBytes = 176, kScales = 4;
  HOTSET_INLINE static void words(const uint8_t* block, int part, uint32_t* words) {
    nibble_words(block + 48 + part / 2 * 32, part % 2 * 4, words);
    words[4] = bit_word(block + 16, part);
  }
};
struct Gguf6K : Gguf {
  static constexpr int kBytes = 210, kScales = 192;
  static constexpr int half_at(int) { return 208; }
  HOTSET_INLINE static void words(const uint8_t* block, int part, uint32_t* words) {
    nibble_words(block + part / 4 * 64 + part % 2 * 32, part % 4 / 2 * 4, words);
    two_bit_words(block + 128, part, words + 4);
  }
};

// Not GGUF's: the codes are words already.
struct Block2 : Gguf {
  static constexpr int kBytes = 10;
  HOTSET_INLINE static void words(const uint8_t* block, int, uint32_t* words) { memcpy(words, block + 2, 8); }
};

// 256 ternary digits, five to a byte. A byte is their number in base 3, as a fraction of 3^5 (of 3^4 in the
// last four) times 256.
struct GgufTQ1 : Gguf {
  static constexpr int kBytes = 54;
  static constexpr int half_at(int) { return 52; }
  static uint32_t digit(const uint8_t* block, int i) {
    constexpr uint8_t powers[] = {1, 3, 9, 27, 81};
    const int of = i < 160 ? i % 32 : i < 240 ? 32 + i % 16 : 48 + i % 4;
    const int place = i < 160 ? i / 32 : i < 240 ? (i - 160) / 16 : (i - 240) / 4;
    return uint32_t(uint8_t(block[of] * powers[place])) * 3 >> 8;
  }
  HOTSET_INLINE static void words(const uint8_t* block, int part, uint32_t* words) {
    uint8_t codes[kBlock];
    for (int i = 0; i < kBlock; i++) codes[i] = uint8_t(digit(block, 32 * part + i));
    low_words(codes, words);
  }
};
struct GgufTQ2 : Gguf {
  static constexpr int kBytes = 66;
  static constexpr int half_at(int) { return 64; }
  HOTSET_INLINE static void words(const uint8_t* block, int part, uint32_t* words) {
    two_bit_words(block, part, words);
  }
};

// Of each type with a codebook, that.
template <class Block>
const uint8_t* entries_of = nullptr;

inline void set_entries(Type type, const uint8_t* entries) {
  with_book(type, [=](auto block) { entries_of<decltype(block)> = entries; });
}

// A type with a codebook, taken apart.
template <class Block, int bits>
struct GgufBook : Gguf {
  static constexpr int kBytes = Block::kBytes;
  static uint16_t half(const uint8_t* block) { return Block::half(block); }
  static uint32_t scale_word(const uint8_t* block, int k) {
    uint32_t word = 0;
    for (int i = 0; i < 8; i++) word |= Block::scale(block, 8 * k + i) << 4 * i;
    return word;
  }
  static void words(const uint8_t* block, int part, uint32_t* words) {
    uint8_t codes[kBlock];
    take_apart<Block>(block, part, entries_of<Block>, codes);
    if constexpr (bits == 4) {
      nibble_words(codes, words);
    } else {
      low_words(codes, words);
      words[2] = 0;
      for (int i = 0; i < kQuads; i++) words[2] |= (read_u32(codes + 4 * i) >> 2 & 0x01010101) << i;
    }
  }
};

// Calls f with the Format of a quantised type and its blocks in files.
template <class F>
HOTSET_INLINE void with_blocks(Type type, F f) {
  switch (type) {
    case kQ2:
      return f(FormatQ2{}, Block2{});
    case kQ4_0:
      return f(FormatQ4_0{}, Gguf4<2>{});
    case kQ4_1:
      return f(FormatQ4_1{}, Gguf4<4>{});
    case kQ5_0:
      return f(FormatQ5_0{}, Gguf5<2>{});
    case kQ5_1:
      return f(FormatQ5_1{}, Gguf5<4>{});
    case kQ2_K:
      return f(FormatQ2_K{}, Gguf2K{});
    case kQ3_K:
      return f(FormatQ3_K{}, Gguf3K{});
    case kQ4_K:
      return f(FormatQ4_K{}, Gguf4K{});
    case kQ5_K:
      return f(FormatQ5_K{}, Gguf5K{});
    case kQ6_K:
      return f(FormatQ6_K{}, Gguf6K{});
    case kIQ4_NL:
      return f(FormatIQ4_NL{}, Gguf4<2>{});
    case kIQ4_XS:
      return f(FormatIQ4_XS{}, Gguf4XS{});
    case kMXFP4:
      return f(FormatMXFP4{}, GgufMX4{});
    case kNVFP4:
      return f(FormatNVFP4{}, GgufNV4{});
    case kTQ1_0:
      return f(FormatTernary{}, GgufTQ1{});
    case kTQ2_0:
      return f(FormatTernary{}, GgufTQ2{});
    case kIQ2_XXS:
      return f(FormatBook2{}, GgufBook<IQ2_XXS, 3>{});
    case kIQ2_XS:
      return f(FormatBook2{}, GgufBook<IQ2_XS, 3>{});
    case kIQ2_S:
      return f(FormatBook2{}, GgufBook<IQ2_S, 3>{});
    case kIQ3_XXS:
      return f(FormatBook3_XXS{}, GgufBook<IQ3_XXS, 4>{});
    case kIQ3_S:
      return f(FormatBook3_S{}, GgufBook<IQ3_S, 4>{});
    case kIQ1_S:
      return f(FormatBook1{}, GgufBook<IQ1_S, 3>{});
    case kIQ1_M:
      return f(FormatBook1{}, GgufBook<IQ1_M, 3>{});
    default:
      return f(FormatQ8_0{}, Gguf8{});
  }
}

template <class F, class Block>
void pack_row(const uint8_t* src, int64_t cols, int64_t row, uint8_t* panel) {
  using Meta = typename F::Meta;
  uint8_t* meta = panel;
  uint8_t* codes = panel + F::codes_start(cols) + 4 * row;
  for (int64_t b = 0; b < cols / kBlock / Meta::kBlocks; b++, src += Block::kBytes, meta += F::kMetaBytes) {
    uint8_t* words_at = meta + 2 * Meta::kHalves * kLanes + 4 * row;
    if constexpr (requires { Block::half(src); }) {
      const uint16_t half = Block::half(src);
      memcpy(meta + 2 * row, &half, 2);
    } else {
      for (int k = 0; k < Meta::kHalves; k++)
        memcpy(meta + 2 * (k * kLanes + row), src + Block::half_at(k), 2);
    }
    if constexpr (requires { Block::scale_word(src, 0); }) {
      for (int k = 0; k < Meta::kWords; k++) {
        const uint32_t word = Block::scale_word(src, k);
        memcpy(words_at + k * kWordBytes, &word, 4);
      }
    } else {
      for (int k = 0; k < Meta::kWords; k++)
        memcpy(words_at + k * kWordBytes, src + Block::kScales + 4 * k, 4);
    }
    if (Meta::kBytes) meta[F::kMetaBytes - kLanes + row] = Block::byte(src);
    for (int part = 0; part < Meta::kBlocks; part++, codes += F::kCodeBytes) {
      uint32_t words[F::Codes::kWords];
      Block::words(src, part, words);
      for (int k = 0; k < F::Codes::kWords; k++) memcpy(codes + k * kWordBytes, &words[k], 4);
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
