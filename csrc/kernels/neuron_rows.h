// How weights lie that are read neuron by neuron: every row on its own, padded to 64 bytes. First the scales
// of its blocks of 32 columns, f16, padded with zeros to whole registers of kLanes numbers (kQ4_1: then the
// minima, likewise), then the codes, in whole registers. kLanes blocks are a group, for which one register
// holds all scales. w = scale * code + min, min being -8 * scale in Q4_0. In rows to be multiplied with x,
// each of a group's registers has one word of every block, in its scale's lane; at the row's end, where there
// is no whole group left, words lie in their order. The two codes of a byte share a scale of x. In rows to be
// added up columns lie so that they come out in their order, and 8-bit codes are unsigned too.
#pragma once

#include "kernels/linear_activations.h"
#include "kernels/linear_pack.h"

namespace hotset {
namespace {

constexpr int kGroupCols = kBlock * kLanes;
constexpr int kDotRows = 4;  // whose sums stay in registers, sharing what is read of x

HOTSET_INLINE constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

struct RowQ4_0 {
  using Gguf = Gguf4<2>;
  using Dot = CodeDot;
  static constexpr int kWords = 4, kHalves = 1;  // of a block: 32-bit words of codes, f16 numbers
  static constexpr int kBits = 4, kMaxCode = 15, kOffset = 8;

  HOTSET_INLINE static F32 min(F32 scale, const uint8_t*) { return broadcast(-8.0f) * scale; }
};

struct RowQ4_1 {
  using Gguf = Gguf4<4>;
  using Dot = CodeDot;
  static constexpr int kWords = 4, kHalves = 2;
  static constexpr int kBits = 4, kMaxCode = 15, kOffset = 8;

  HOTSET_INLINE static F32 min(F32, const uint8_t* minima) {
    return load_f16(reinterpret_cast<const uint16_t*>(minima));
  }
};

struct RowQ8_0 {
  using Gguf = Gguf8;
  using Dot = ByteDot;
  static constexpr int kWords = 8, kHalves = 1;
  static constexpr int kBits = 8, kMaxCode = 255, kOffset = 128;  // of a row to be added up

  HOTSET_INLINE static F32 min(F32 scale, const uint8_t*) { return broadcast(-128.0f) * scale; }
};

// Where the parts of a row of a quantised type lie.
template <class R>
struct Layout {
  int64_t groups, whole_groups, minima, codes, registers, bytes;

  HOTSET_INLINE explicit Layout(int64_t cols) {
    const int64_t blocks = cols / kBlock;
    groups = (blocks + kLanes - 1) / kLanes;
    whole_groups = blocks / kLanes;
    minima = groups * kLanes * 2;
    codes = round_up(minima * R::kHalves, kWordBytes);
    registers = (blocks * R::kWords + kLanes - 1) / kLanes;
    bytes = round_up(codes + registers * kWordBytes, 64);
  }

  // Where word k of a block lies among those of a row to be multiplied with x.
  HOTSET_INLINE int64_t dot_word(int64_t block, int k) const {
    if (block >= whole_groups * kLanes) return block * R::kWords + k;
    return (block / kLanes * R::kWords + k) * kLanes + block % kLanes;
  }
};

HOTSET_INLINE int64_t float_cols(int64_t cols) { return round_up(cols, 4 * kLanes); }

// Calls f with the format of a quantised type.
template <class F>
HOTSET_INLINE auto with_row(Type type, F f) {
  switch (type) {
    case kQ4_0:
      return f(RowQ4_0{});
    case kQ4_1:
      return f(RowQ4_1{});
    default:
      return f(RowQ8_0{});
  }
}

HOTSET_INLINE int64_t row_bytes(Type type, int64_t cols) {
  if (type == kF16) return round_up(float_cols(cols) * 2, 64);
  return with_row(type, [&](auto r) { return Layout<decltype(r)>(cols).bytes; });
}

// Row `i` of a list and those after it; beyond its end, the last one again.
template <int n>
HOTSET_INLINE void find_rows(const NeuronList* list, int64_t i, const uint8_t** rows) {
  for (int p = 0; p < n; p++) {
    const int64_t at = i + p < list->count ? i + p : list->count - 1;
    rows[p] = list->matrix->data + list->indices[at] * list->matrix->stride;
  }
}

// Fetches rows somewhat before they are read, and towards their end those that are read next: a line of every
// row in turn, since many short streams at once are read from memory faster than one after the other. Rows
// that are over before memory would answer are fetched a whole list ahead.
struct Ahead {
  // Of each row: more than memory's latency takes, and little enough for the first-level cache to keep.
  static constexpr int64_t kBytes = 1024;

  const uint8_t *const *rows, *const *then;
  const uint8_t* found[kAddRows];
  int64_t at, due, bytes, step;

  // Before n rows (`now`, those of the list from row i on) are read, with `calls` calls of go_on() meanwhile.
  template <int n>
  HOTSET_INLINE void begin(const NeuronList* list, int64_t i, const uint8_t* const* now, int64_t calls) {
    rows = then = now;
    bytes = row_bytes(list->matrix->type, list->matrix->cols);
    step = bytes / calls + 1;
    at = due = bytes < kBytes ? bytes : kBytes;
    if (bytes < kBytes) {
      list = list->next;
    } else if (i += n; i >= list->count) {
      list = list->next;
      i = 0;
    }
    if (!list || list->count == 0) return;
    find_rows<n>(list, i, found);
    then = found;
  }

  template <int n>
  HOTSET_INLINE void go_on() {
    for (due += step; at < due; at += 64) {
      const uint8_t* const* from = at < bytes ? rows : then;
      const int64_t offset = at < bytes ? at : at - bytes;
      unroll<n>([&](auto p) HOTSET_INLINED { prefetch(from[p.value] + offset); });
    }
  }
};

// A register of codes in GGUF's order (nibble k of word i: column 4 * i + k / 2, odd k: 16 more; 8-bit: as
// they come) as those of a row to be added up: interleave_low() brings the halves of kLanes columns each to
// the lanes of a register, first all lowest codes of the halves, and so on; then interleave_high() does.
template <class R>
HOTSET_INLINE void transpose_codes(uint8_t* data) {
  constexpr int kCodes = 32 / R::kBits, kHalfCodes = kCodes / 2;
  uint32_t words[kLanes], codes[kCodes * kLanes];
  memcpy(words, data, kWordBytes);
  for (int c = 0; c < kCodes * kLanes; c++) {
    if constexpr (R::kBits == 4) {
      codes[c] = words[c / kBlock * 4 + c % 16 / 4] >> (c % 4 * 8 + c % kBlock / 16 * 4) & 15;
    } else {
      codes[c] = (words[c / 4] >> c % 4 * 8 & 255) ^ 128;
    }
  }
  uint16_t halves[2 * kLanes];
  for (int half = 0; half < 2 * kLanes; half++) {
    const int lane = half / 8 * 4 + half % 4, high = half / 4 % 2;
    uint32_t bits = 0;
    for (int n = 0; n < kHalfCodes; n++)
      bits |= codes[(high * kHalfCodes + n) * kLanes + lane] << n * R::kBits;
    halves[half] = uint16_t(bits);
  }
  memcpy(data, halves, kWordBytes);
}

// The 4-bit codes of a block: GGUF's bytes have columns 16 apart, those of rows to be multiplied 8 apart.
HOTSET_INLINE void swap_codes(const uint8_t* from, uint8_t* to) {
  constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0f;
  uint64_t a[2];
  memcpy(a, from, 16);
  const uint64_t b[2] = {(a[0] & kLow) | (a[1] & kLow) << 4, (a[0] >> 4 & kLow) | (a[1] & ~kLow)};
  memcpy(to, b, 16);
}

template <class R>
void pack_neuron_row(NeuronUse use, const uint8_t* src, int64_t cols, uint8_t* row) {
  const Layout<R> layout(cols);
  memset(row, 0, layout.bytes);
  uint8_t* codes = row + layout.codes;
  for (int64_t b = 0; b < cols / kBlock; b++, src += R::Gguf::kBytes) {
    for (int k = 0; k < R::kHalves; k++) memcpy(row + k * layout.minima + 2 * b, src + 2 * k, 2);
    const uint8_t* block = src + 2 * R::kHalves;
    if (use == kNeuronAdd) {
      memcpy(codes + b * R::kWords * 4, block, R::kWords * 4);
      continue;
    }
    uint8_t words[R::kWords * 4];
    memcpy(words, block, sizeof words);
    if (R::kBits == 4) swap_codes(block, words);
    for (int k = 0; k < R::kWords; k++) memcpy(codes + 4 * layout.dot_word(b, k), words + 4 * k, 4);
  }
  if (use == kNeuronDot) return;
  for (int64_t r = 0; r < layout.registers; r++) transpose_codes<R>(codes + r * kWordBytes);
}

// The bytes that a row to be multiplied with x had in GGUF.
template <class R>
void unpack_neuron_row(const uint8_t* row, int64_t cols, uint8_t* dst) {
  const Layout<R> layout(cols);
  for (int64_t b = 0; b < cols / kBlock; b++, dst += R::Gguf::kBytes) {
    for (int k = 0; k < R::kHalves; k++) memcpy(dst + 2 * k, row + k * layout.minima + 2 * b, 2);
    uint8_t words[R::kWords * 4];
    for (int k = 0; k < R::kWords; k++)
      memcpy(words + 4 * k, row + layout.codes + 4 * layout.dot_word(b, k), 4);
    uint8_t* block = dst + 2 * R::kHalves;
    memcpy(block, words, sizeof words);
    if (R::kBits == 4) swap_codes(words, block);
  }
}

}  // namespace
}  // namespace hotset
