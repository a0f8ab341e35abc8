// Rows of embedding tables: tensors of every type as floats, in the order of operations of GGUF's reference,
// so that the results are the same to the last bit.
#include <cstring>

#include "kernels/codebooks.h"
#include "layers/layers.h"

namespace hotset {
namespace {

template <class T>
T read(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float half(const uint8_t* p) {
  const uint32_t h = read<uint16_t>(p), sign = (h & 0x8000) << 16, rest = (h & 0x7fff) << 13;
  // The exponent's bias differs by 112; a multiplication also makes subnormal halves right.
  const float value =
      (h & 0x7c00) == 0x7c00 ? bits_to_float(rest | 0x7f800000) : bits_to_float(rest) * 0x1p112f;
  return bits_to_float(sign | read<uint32_t>(reinterpret_cast<const uint8_t*>(&value)));
}

// Blocks of 32: nibbles, 16 low ones before 16 high ones, with fifth bits in qh.
template <class Value>
void nibbles(const uint8_t* qs, uint32_t qh, float* out, Value value) {
  for (int i = 0; i < 16; ++i) {
    out[i] = value(static_cast<int>((qs[i] & 15) | (qh >> i & 1) << 4));
    out[i + 16] = value(static_cast<int>((qs[i] >> 4) | (qh >> (i + 16) & 1) << 4));
  }
}

// The 6-bit scale and minimum of sub-block i of Q4_K and Q5_K.
void scale_and_min(const uint8_t* packed, int i, float* scale, float* min) {
  if (i < 4) {
    *scale = packed[i] & 63;
    *min = packed[i + 4] & 63;
  } else {
    *scale = (packed[i + 4] & 15) | (packed[i - 4] >> 6) << 4;
    *min = (packed[i + 4] >> 4) | (packed[i] >> 6) << 4;
  }
}

// 256 numbers in 8 sub-blocks of 32, each with a scale and a minimum; qh holds fifth bits or is null.
void sub_blocks(const uint8_t* head, const uint8_t* qh, const uint8_t* qs, float* out) {
  const float d = half(head), dmin = half(head + 2);
  for (int i = 0; i < 8; ++i) {
    float scale, min;
    scale_and_min(head + 4, i, &scale, &min);
    const float step = d * scale, offset = dmin * min;
    for (int j = 0; j < 32; ++j) {
      const int nibble = qs[i / 2 * 32 + j] >> (i % 2 * 4) & 15;
      const int fifth = qh ? (qh[j] >> i & 1) << 4 : 0;
      *out++ = step * static_cast<float>(nibble | fifth) - offset;
    }
  }
}

void q6_k(const uint8_t* block, float* out) {
  const uint8_t *ql = block, *qh = block + 128, *scales = block + 192;
  const float d = half(block + 208);
  for (int i = 0; i < 256; ++i) {
    const int part = i / 128, j = i % 128;
    const int low = ql[part * 64 + j % 64] >> (j / 64 * 4) & 15;
    const int high = qh[part * 32 + j % 32] >> (j / 32 * 2) & 3;
    const float step = d * static_cast<float>(static_cast<int8_t>(scales[i / 16]));
    out[i] = step * static_cast<float>((low | high << 4) - 32);
  }
}

// Blocks of 32 places in a table of 16 values.
void looked_up(const uint8_t* qs, const float* table, float d, float* out) {
  nibbles(qs, 0, out, [=](int q) { return d * table[q]; });
}

void iq4_xs(const uint8_t* block, float* out) {
  const float d = half(block);
  const int top = read<uint16_t>(block + 2);
  for (int i = 0; i < 8; ++i) {
    const int scale = (block[4 + i / 2] >> (i % 2 * 4) & 15) | (top >> 2 * i & 3) << 4;
    looked_up(block + 8 + 16 * i, Uneven::kFloats, d * static_cast<float>(scale - 32), out + 32 * i);
  }
}

// Half of 2^(e - 127): for doubled values.
float half_power(uint8_t e) {
  return bits_to_float(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

// 64 places in a table, with scales of a byte for each 16 of them; half of these, for doubled values.
void nvfp4(const uint8_t* block, float* out) {
  for (int i = 0; i < 64; ++i) {
    const uint8_t scale = block[i / 16], codes = block[4 + i / 16 * 8 + i % 8];
    const uint32_t bits = static_cast<uint32_t>(scale == kFp8NaN ? 0 : scale & 0x7f) << 20;
    out[i] = bits_to_float(bits) * 0x1p119f * Fp4::kFloats[codes >> (i % 16 / 8 * 4) & 15];
  }
}

// Code i of 256 of two bits.
int two_bits(const uint8_t* qs, int i) { return qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; }

void q2_k(const uint8_t* block, float* out) {
  const float d = half(block + 80), dmin = half(block + 82);
  for (int i = 0; i < 256; ++i) {
    const int scales = block[i / 16];
    const float step = d * static_cast<float>(scales & 15), min = dmin * static_cast<float>(scales >> 4);
    out[i] = step * static_cast<float>(two_bits(block + 16, i)) - min;
  }
}

void q3_k(const uint8_t* block, float* out) {
  const uint8_t* scales = block + 96;
  const float d = half(block + 108);
  for (int i = 0; i < 256; ++i) {
    const int g = i / 16, high = block[i % 32] >> (i / 32) & 1;
    const int scale = (scales[g % 8] >> (g / 8 * 4) & 15) | (scales[8 + g % 4] >> (g / 4 * 2) & 3) << 4;
    const float step = d * static_cast<float>(scale - 32);
    out[i] = step * static_cast<float>(two_bits(block + 32, i) + 4 * high - 4);
  }
}

// Digit i of 256 in base 3: linear_pack.h has the order.
int ternary(const uint8_t* qs, int i) {
  constexpr uint8_t powers[] = {1, 3, 9, 27, 81};
  const int of = i < 160 ? i % 32 : i < 240 ? 32 + i % 16 : 48 + i % 4;
  const int place = i < 160 ? i / 32 : i < 240 ? (i - 160) / 16 : (i - 240) / 4;
  return static_cast<uint8_t>(qs[of] * powers[place]) * 3 >> 8;
}

// All products are exact: scales have 16 bits, values 7.
template <class Book>
void by_codebook(const uint8_t* block, const uint8_t* entries, float* out) {
  const uint16_t bits = Book::half(block);
  const float d = half(reinterpret_cast<const uint8_t*>(&bits));
  for (int i = 0; i < 256; i += 32) {
    uint8_t codes[32];
    take_apart<Book>(block, i / 32, entries, codes);
    for (int j = 0; j < 32; ++j) {
      const auto s = static_cast<float>(Book::scale(block, (i + j) / 16));
      out[i + j] = d * (2 * s + 1) * 0.125f * Book::Values::kFloats[codes[j]];
    }
  }
}

template <class Block>
void blocks(const uint8_t* data, int64_t count, int64_t size, int64_t bytes, float* out, Block block) {
  for (int64_t i = 0; i < count; i += size, data += bytes, out += size) block(data, out);
}

}  // namespace

void dequantise(Type type, const uint8_t* data, int64_t count, float* out) {
  const bool done = with_book(type, [=](auto book) {
    using Book = decltype(book);
    blocks(data, count, 256, Book::kBytes, out,
           [entries = codebook_of(type)](const uint8_t* b, float* y) { by_codebook<Book>(b, entries, y); });
  });
  if (done) return;
  switch (type) {
    case kF32:
      std::memcpy(out, data, static_cast<size_t>(count) * 4);
      return;
    case kF16:
      return blocks(data, count, 1, 2, out, [](const uint8_t* b, float* y) { *y = half(b); });
    case kBF16:
      return blocks(data, count, 1, 2, out, [](const uint8_t* b, float* y) {
        *y = bits_to_float(static_cast<uint32_t>(read<uint16_t>(b)) << 16);
      });
    case kQ4_0:
      return blocks(data, count, 32, 18, out, [](const uint8_t* b, float* y) {
        nibbles(b + 2, 0, y, [d = half(b)](int q) { return d * static_cast<float>(q - 8); });
      });
    case kQ4_1:
      return blocks(data, count, 32, 20, out, [](const uint8_t* b, float* y) {
        nibbles(b + 4, 0, y, [d = half(b), m = half(b + 2)](int q) { return d * static_cast<float>(q) + m; });
      });
    case kQ5_0:
      return blocks(data, count, 32, 22, out, [](const uint8_t* b, float* y) {
        nibbles(b + 6, read<uint32_t>(b + 2), y,
                [d = half(b)](int q) { return d * static_cast<float>(q - 16); });
      });
    case kQ5_1:
      return blocks(data, count, 32, 24, out, [](const uint8_t* b, float* y) {
        nibbles(b + 8, read<uint32_t>(b + 4), y,
                [d = half(b), m = half(b + 2)](int q) { return d * static_cast<float>(q) + m; });
      });
    case kQ8_0:
      return blocks(data, count, 32, 34, out, [](const uint8_t* b, float* y) {
        const float d = half(b);
        for (int i = 0; i < 32; ++i) y[i] = d * static_cast<float>(static_cast<int8_t>(b[2 + i]));
      });
    case kIQ4_NL:
      return blocks(data, count, 32, 18, out,
                    [](const uint8_t* b, float* y) { looked_up(b + 2, Uneven::kFloats, half(b), y); });
    case kMXFP4:
      return blocks(data, count, 32, 17, out,
                    [](const uint8_t* b, float* y) { looked_up(b + 1, Fp4::kFloats, half_power(b[0]), y); });
    case kNVFP4:
      return blocks(data, count, 64, 36, out, nvfp4);
    case kIQ4_XS:
      return blocks(data, count, 256, 136, out, iq4_xs);
    case kQ2_K:
      return blocks(data, count, 256, 84, out, q2_k);
    case kQ3_K:
      return blocks(data, count, 256, 110, out, q3_k);
    case kTQ1_0:
      return blocks(data, count, 256, 54, out, [](const uint8_t* b, float* y) {
        for (int i = 0; i < 256; ++i) y[i] = half(b + 52) * static_cast<float>(ternary(b, i) - 1);
      });
    case kTQ2_0:
      return blocks(data, count, 256, 66, out, [](const uint8_t* b, float* y) {
        for (int i = 0; i < 256; ++i) y[i] = half(b + 64) * static_cast<float>(two_bits(b, i) - 1);
      });
    case kQ4_K:
      return blocks(data, count, 256, 144, out,
                    [](const uint8_t* b, float* y) { sub_blocks(b, nullptr, b + 16, y); });
    case kQ5_K:
      return blocks(data, count, 256, 176, out,
                    [](const uint8_t* b, float* y) { sub_blocks(b, b + 16, b + 48, y); });
    case kQ6_K:
      return blocks(data, count, 256, 210, out, q6_k);
  }
}

}  // namespace hotset
