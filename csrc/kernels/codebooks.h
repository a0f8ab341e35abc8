// Types whose codes are places in a codebook: of 8 (or 4) columns at once, with a sign for each column. Here
// their blocks of 256 are taken apart into one small code for each column, an entry's number with its sign on
// top, and a scale for each 16, d * (2 s + 1) / 8. So they lie in memory without loss, in 3 or 4 bits.
#pragma once

#include <string.h>

#include "kernels/kernels.h"
#include "kernels/tables.h"

namespace hotset {
namespace {

inline uint32_t read_u32(const uint8_t* p) {
  uint32_t word;
  memcpy(&word, p, 4);
  return word;
}
inline uint32_t read_u16(const uint8_t* p) { return uint32_t(p[0]) | uint32_t(p[1]) << 8; }
inline uint32_t nibble(const uint8_t* p, int i) { return uint32_t(p[i / 2]) >> i % 2 * 4 & 15; }

// Seven signs; the eighth makes the number of minus signs even.
inline uint32_t even_signs(uint32_t seven) {
  uint32_t odd = seven ^ seven >> 4;
  odd ^= odd >> 2;
  odd ^= odd >> 1;
  return seven | (odd & 1) << 7;
}

// kEntries: those of the codebook; kEntry: columns of one; kSign: the bit of a code that is its sign. For
// columns 8 g to 8 g + 7: entry(b, i) is the number of entry i of the block, signs(b, g) a bit for each
// column; scale(b, h) is s of columns 16 h to 16 h + 15, half(b) the bits of d.
struct Book {
  static constexpr int kEntry = 8, kSign = 2;
  static uint16_t half(const uint8_t* b) { return uint16_t(read_u16(b)); }
};
struct IQ2_XXS : Book {
  static constexpr int kBytes = 66;
  static constexpr int kEntries = 256;
  using Values = Book2;
  static uint32_t signs_word(const uint8_t* b, int part) { return read_u32(b + 6 + 8 * part); }
  static uint32_t entry(const uint8_t* b, int i) { return b[2 + i / 4 * 8 + i % 4]; }
  static uint32_t signs(const uint8_t* b, int g) {
    return even_signs(signs_word(b, g / 4) >> 7 * (g % 4) & 127);
  }
  static uint32_t scale(const uint8_t* b, int h) { return signs_word(b, h / 2) >> 28; }
};
struct IQ2_XS : Book {
  static constexpr int kBytes = 74;
  static constexpr int kEntries = 512;
  using Values = Book2;
  static uint32_t entry(const uint8_t* b, int i) { return read_u16(b + 2 + 2 * i) & 511; }
  static uint32_t signs(const uint8_t* b, int g) { return even_signs(read_u16(b + 2 + 2 * g) >> 9); }
  static uint32_t scale(const uint8_t* b, int h) { return nibble(b + 66, h); }
};
struct IQ2_S : Book {
  static constexpr int kBytes = 82;
  static constexpr int kEntries = 1024;
  using Values = Book2;
  static uint32_t entry(const uint8_t* b, int i) { return b[2 + i] | (b[66 + i / 4] >> i % 4 * 2 & 3u) << 8; }
  static uint32_t signs(const uint8_t* b, int g) { return b[34 + g]; }
  static uint32_t scale(const uint8_t* b, int h) { return nibble(b + 74, h); }
};
struct IQ3_XXS : Book {
  static constexpr int kBytes = 98, kEntry = 4, kSign = 3;
  static constexpr int kEntries = 256;
  using Values = Book3_XXS;
  static uint32_t entry(const uint8_t* b, int i) { return b[2 + i]; }
  static uint32_t signs(const uint8_t* b, int g) {
    return even_signs(read_u32(b + 66 + g / 4 * 4) >> 7 * (g % 4) & 127);
  }
  static uint32_t scale(const uint8_t* b, int h) { return read_u32(b + 66 + h / 2 * 4) >> 28; }
};
struct IQ3_S : Book {
  static constexpr int kBytes = 110, kEntry = 4, kSign = 3;
  static constexpr int kEntries = 512;
  using Values = Book3_S;
  static uint32_t entry(const uint8_t* b, int i) { return b[2 + i] | (b[66 + i / 8] >> i % 8 & 1u) << 8; }
  static uint32_t signs(const uint8_t* b, int g) { return b[74 + g]; }
  static uint32_t scale(const uint8_t* b, int h) { return nibble(b + 106, h / 2); }
};
// Where a "sign" is set, an eighth is taken off instead of added.
struct IQ1_S : Book {
  static constexpr int kBytes = 50;
  static constexpr int kEntries = 2048;
  using Values = Book1;
  static uint32_t high(const uint8_t* b, int part) { return read_u16(b + 34 + 2 * part); }
  static uint32_t entry(const uint8_t* b, int i) {
    return b[2 + i] | (high(b, i / 4) >> 3 * (i % 4) & 7) << 8;
  }
  static uint32_t signs(const uint8_t* b, int g) { return high(b, g / 4) >> 15 ? 255 : 0; }
  static uint32_t scale(const uint8_t* b, int h) { return high(b, h / 2) >> 12 & 7; }
};
struct IQ1_M : Book {
  static constexpr int kBytes = 56;
  static constexpr int kEntries = 2048;
  using Values = Book1;
  static uint16_t half(const uint8_t* b) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) bits |= read_u16(b + 48 + 2 * i) >> 12 << 4 * i;
    return uint16_t(bits);
  }
  static uint32_t entry(const uint8_t* b, int i) { return b[i] | (nibble(b + 32, i) & 7) << 8; }
  static uint32_t signs(const uint8_t* b, int g) { return nibble(b + 32, g) >> 3 ? 255 : 0; }
  static uint32_t scale(const uint8_t* b, int h) { return read_u16(b + 48 + h / 4 * 2) >> 3 * (h % 4) & 7; }
};

// The codes of columns 32 * part and on of a block. Entries have, of every column, the number of its
// magnitude from the smallest; of IQ1_S and IQ1_M the value itself, -1 to 1, plus 1.
template <class Block>
void take_apart(const uint8_t* block, int part, const uint8_t* entries, uint8_t* codes) {
  constexpr int n = Block::kEntry;
  for (int g = 4 * part; g < 4 * part + 4; g++, codes += 8) {
    for (int i = 0; i < 8 / n; i++) {
      memcpy(codes + i * n, entries + n * Block::entry(block, g * (8 / n) + i), n);
    }
    const uint32_t signs = Block::signs(block, g);
    for (int j = 0; j < 8; j++) codes[j] |= uint8_t((signs >> j & 1) << Block::kSign);
  }
}

// Calls f with the block of a type that has a codebook; false where it has none.
template <class F>
bool with_book(Type type, F f) {
  switch (type) {
    case kIQ2_XXS:
      return f(IQ2_XXS{}), true;
    case kIQ2_XS:
      return f(IQ2_XS{}), true;
    case kIQ2_S:
      return f(IQ2_S{}), true;
    case kIQ3_XXS:
      return f(IQ3_XXS{}), true;
    case kIQ3_S:
      return f(IQ3_S{}), true;
    case kIQ1_S:
      return f(IQ1_S{}), true;
    case kIQ1_M:
      return f(IQ1_M{}), true;
    default:
      return false;
  }
}

}  // namespace
}  // namespace hotset
