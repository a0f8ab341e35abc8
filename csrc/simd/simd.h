// One vocabulary for every instruction set: the only file that names intrinsics. The flags a file is compiled
// with choose the section. A register holds kLanes 32-bit lanes:
//   F32   kLanes floats
//   I32   kLanes integers, or 4 * kLanes bytes; shifts act on 32-bit lanes
//   CodeDot, ByteDot, TableDot   sums of products of bytes, four to a lane (see "Dot products" below)
// spread<n, r>(a) has number (r * kLanes + l) / n of a in lane l: what n words each share, for register r of
// these words; n is at least 4. not_less(a, b) has bit l set where not a < b in lane l. A half is 16 bits of
// a lane; dot_halves(a, b) is, in every lane, the sum of the products of its two signed halves.
// interleave_low(a, b) has in its lanes a half of a (low) and the same one of b (high): of every four lanes,
// the four halves of the first two; interleave_high those of the last two. look_up(table, a) has, for every
// byte of a (below 16), that byte of the table. Everything is in an anonymous
// namespace, and no STL header is included, so that no symbol of one instruction set can be linked into
// another's kernels.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE4_2__) || defined(__AVX2__)
#define HOTSET_X86 1
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#else
#error "simd.h: no section for this instruction set"
#endif

// HOTSET_TABLE(linear) is linear_avx2 in the files compiled with -DHOTSET_LEVEL=avx2.
#define HOTSET_JOIN2(a, b) a##_##b
#define HOTSET_JOIN(a, b) HOTSET_JOIN2(a, b)
#define HOTSET_TABLE(name) HOTSET_JOIN(name, HOTSET_LEVEL)

#define HOTSET_INLINE [[gnu::always_inline]] inline
#define HOTSET_INLINED __attribute__((always_inline))  // of a lambda

namespace hotset {
namespace {

// Dot products of bytes. Weights are codes (unsigned, at most 63) or bytes (signed), activations x are int8
// from -127 to 127; add() adds to every lane the product of its four weights with its four activations.
//
// - start(correction) begins a sum of (code - offset) * x; `correction` is correction_word() of the
// activations.
//
// - scaled(scale) is the sum times `scale`, in every lane the scale_word() of an integer from 0 to 32767.
//
// - scaled_sum(a, scale_a, b, scale_b) is the same of two sums, added up; codes are at most 16 from their
// offset.
//
// A sum takes sixteen columns. Where the hardware adds in int16, (code - offset) * x stays within it for
// either half of a lane, and additions wrap, so that passing beyond its range on the way does no harm; a
// scaled sum stays within int32.
//
// - TableDot sums signed bytes that come from a table, to each of which kTableBias has been added.
//
// - ByteDot::add_uncorrected() does as add() does, in a sum that began with no correction: with start<0>(0).

constexpr int log2_of(int power) { return power <= 1 ? 0 : 1 + log2_of(power / 2); }
HOTSET_INLINE int32_t float_bits(float a) {
  int32_t bits;
  memcpy(&bits, &a, 4);
  return bits;
}
HOTSET_INLINE int32_t int16_pair(int32_t low, int32_t high) {
  return (low & 0xffff) | int32_t(uint32_t(high) << 16);
}

// ---------------------------------------------------------------------------------------------------------------
// Registers and their arithmetic, by instruction set.

#if defined(__AVX512VNNI__)

constexpr int kLanes = 16;
struct F32 {
  __m512 v;
};
struct I32 {
  __m512i v;
};

HOTSET_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
HOTSET_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
HOTSET_INLINE F32 broadcast(float a) { return {_mm512_set1_ps(a)}; }
HOTSET_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
HOTSET_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
HOTSET_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
HOTSET_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
HOTSET_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
HOTSET_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
HOTSET_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
HOTSET_INLINE F32 swap_pairs(F32 a) { return {_mm512_permute_ps(a.v, 0xb1)}; }  // lanes 1 0 3 2 ...
HOTSET_INLINE F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
template <int n, int r>
HOTSET_INLINE F32 spread(F32 a) {
  constexpr int k = 16 * r;
  return {_mm512_permutexvar_ps(
      _mm512_setr_epi32(k / n, (k + 1) / n, (k + 2) / n, (k + 3) / n, (k + 4) / n, (k + 5) / n, (k + 6) / n,
                        (k + 7) / n, (k + 8) / n, (k + 9) / n, (k + 10) / n, (k + 11) / n, (k + 12) / n,
                        (k + 13) / n, (k + 14) / n, (k + 15) / n),
      a.v)};
}
HOTSET_INLINE uint32_t not_less(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ); }
HOTSET_INLINE float sum(F32 a) { return _mm512_reduce_add_ps(a.v); }
HOTSET_INLINE float max(F32 a) { return _mm512_reduce_max_ps(a.v); }

HOTSET_INLINE I32 load_i32(const void* p) { return {_mm512_loadu_si512(p)}; }
HOTSET_INLINE void store(void* p, I32 a) { _mm512_storeu_si512(p, a.v); }
HOTSET_INLINE I32 broadcast(int32_t a) { return {_mm512_set1_epi32(a)}; }
HOTSET_INLINE I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
HOTSET_INLINE I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
HOTSET_INLINE I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
HOTSET_INLINE I32 operator|(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n>
HOTSET_INLINE I32 shift_left(I32 a) {
  return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
HOTSET_INLINE I32 shift_right(I32 a) {  // zeros come in
  return {_mm512_srli_epi32(a.v, n)};
}
template <int n>
HOTSET_INLINE I32 shift_right_signed(I32 a) {
  return {_mm512_srai_epi32(a.v, n)};
}
HOTSET_INLINE I32 interleave_low(I32 a, I32 b) { return {_mm512_unpacklo_epi16(a.v, b.v)}; }
HOTSET_INLINE I32 interleave_high(I32 a, I32 b) { return {_mm512_unpackhi_epi16(a.v, b.v)}; }
template <int n>
HOTSET_INLINE I32 shift_halves_right(I32 a) {  // zeros come in
  return {_mm512_srli_epi16(a.v, n)};
}
HOTSET_INLINE I32 dot_halves(I32 a, I32 b) { return {_mm512_madd_epi16(a.v, b.v)}; }
HOTSET_INLINE I32 look_up(const uint8_t* table, I32 a) {
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table))),
                              a.v)};
}
HOTSET_INLINE F32 to_f32(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
HOTSET_INLINE I32 round_to_i32(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest even
HOTSET_INLINE F32 bits_to_f32(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
HOTSET_INLINE I32 f32_to_bits(F32 a) { return {_mm512_castps_si512(a.v)}; }

HOTSET_INLINE F32 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
HOTSET_INLINE void store_f16(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
HOTSET_INLINE I32 load_u16(const uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
HOTSET_INLINE I32 load_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
HOTSET_INLINE void store_i8(int8_t* p, I32 a) {  // saturates
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v));
}

struct CodeDot {
  __m512i v;
  // Shifted before it is broadcast: shifts of vectors would wait for the port that the products keep busy.
  template <int offset>
  HOTSET_INLINE static CodeDot start(int32_t correction) {
    if constexpr (offset == 0) {
      return {_mm512_setzero_si512()};
    } else if constexpr (offset < 8) {
      return {_mm512_set1_epi32(correction >> log2_of(8 / offset))};
    } else {
      return {_mm512_set1_epi32(correction << log2_of(offset / 8))};
    }
  }
  HOTSET_INLINE void add(I32 codes, I32 x) { v = _mm512_dpbusd_epi32(v, codes.v, x.v); }
  HOTSET_INLINE F32 scaled(I32 scale) const {
    return {_mm512_mul_ps(_mm512_cvtepi32_ps(v), _mm512_castsi512_ps(scale.v))};
  }
};
struct ByteDot {
  CodeDot v;
  template <int>
  HOTSET_INLINE static ByteDot start(int32_t correction) {
    return {CodeDot::start<128>(correction)};
  }
  HOTSET_INLINE void add(I32 bytes, I32 x) {
    v.add({_mm512_xor_si512(bytes.v, _mm512_set1_epi32(int32_t(0x80808080)))}, x);
  }
  HOTSET_INLINE void add_uncorrected(I32 bytes, I32 x) {
    const __mmask64 negative = _mm512_movepi8_mask(bytes.v);
    v.add({_mm512_abs_epi8(bytes.v)}, {_mm512_mask_sub_epi8(x.v, negative, _mm512_setzero_si512(), x.v)});
  }
  HOTSET_INLINE F32 scaled(I32 scale) const { return v.scaled(scale); }
};
constexpr int kTableBias = 128;
struct TableDot {
  CodeDot v;
  template <int>
  HOTSET_INLINE static TableDot start(int32_t correction) {
    return {CodeDot::start<128>(correction)};
  }
  HOTSET_INLINE void add(I32 bytes, I32 x) { v.add(bytes, x); }
  HOTSET_INLINE F32 scaled(I32 scale) const { return v.scaled(scale); }
};
HOTSET_INLINE int32_t scale_word(int32_t scale) { return float_bits(float(scale)); }
HOTSET_INLINE int32_t correction_word(int32_t sum01, int32_t sum23) { return -8 * (sum01 + sum23); }

#elif defined(__AVX2__)

constexpr int kLanes = 8;
struct F32 {
  __m256 v;
};
struct I32 {
  __m256i v;
};

HOTSET_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
HOTSET_INLINE void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
HOTSET_INLINE F32 broadcast(float a) { return {_mm256_set1_ps(a)}; }
HOTSET_INLINE F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
HOTSET_INLINE F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
HOTSET_INLINE F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
HOTSET_INLINE F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
HOTSET_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
HOTSET_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
HOTSET_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
HOTSET_INLINE F32 swap_pairs(F32 a) { return {_mm256_permute_ps(a.v, 0xb1)}; }  // lanes 1 0 3 2 ...
HOTSET_INLINE F32 abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
template <int n, int r>
HOTSET_INLINE F32 spread(F32 a) {
  constexpr int k = 8 * r;
  return {
      _mm256_permutevar8x32_ps(a.v, _mm256_setr_epi32(k / n, (k + 1) / n, (k + 2) / n, (k + 3) / n,
                                                      (k + 4) / n, (k + 5) / n, (k + 6) / n, (k + 7) / n))};
}
HOTSET_INLINE uint32_t not_less(F32 a, F32 b) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_NLT_UQ)));
}
HOTSET_INLINE float sum(F32 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
HOTSET_INLINE float max(F32 a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

HOTSET_INLINE I32 load_i32(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
HOTSET_INLINE void store(void* p, I32 a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a.v); }
HOTSET_INLINE I32 broadcast(int32_t a) { return {_mm256_set1_epi32(a)}; }
HOTSET_INLINE I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
HOTSET_INLINE I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
HOTSET_INLINE I32 operator&(I32 a, I32 b) { return {_mm256_and_si256(a.v, b.v)}; }
HOTSET_INLINE I32 operator|(I32 a, I32 b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int n>
HOTSET_INLINE I32 shift_left(I32 a) {
  return {_mm256_slli_epi32(a.v, n)};
}
template <int n>
HOTSET_INLINE I32 shift_right(I32 a) {  // zeros come in
  return {_mm256_srli_epi32(a.v, n)};
}
template <int n>
HOTSET_INLINE I32 shift_right_signed(I32 a) {
  return {_mm256_srai_epi32(a.v, n)};
}
HOTSET_INLINE I32 interleave_low(I32 a, I32 b) { return {_mm256_unpacklo_epi16(a.v, b.v)}; }
HOTSET_INLINE I32 interleave_high(I32 a, I32 b) { return {_mm256_unpackhi_epi16(a.v, b.v)}; }
template <int n>
HOTSET_INLINE I32 shift_halves_right(I32 a) {  // zeros come in
  return {_mm256_srli_epi16(a.v, n)};
}
HOTSET_INLINE I32 dot_halves(I32 a, I32 b) { return {_mm256_madd_epi16(a.v, b.v)}; }
HOTSET_INLINE I32 look_up(const uint8_t* table, I32 a) {
  return {_mm256_shuffle_epi8(
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table))), a.v)};
}
HOTSET_INLINE F32 to_f32(I32 a) { return {_mm256_cvtepi32_ps(a.v)}; }
HOTSET_INLINE I32 round_to_i32(F32 a) { return {_mm256_cvtps_epi32(a.v)}; }  // to nearest even
HOTSET_INLINE F32 bits_to_f32(I32 a) { return {_mm256_castsi256_ps(a.v)}; }
HOTSET_INLINE I32 f32_to_bits(F32 a) { return {_mm256_castps_si256(a.v)}; }

HOTSET_INLINE F32 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
HOTSET_INLINE void store_f16(uint16_t* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
HOTSET_INLINE I32 load_u16(const uint16_t* p) {
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
HOTSET_INLINE I32 load_i8(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
HOTSET_INLINE void store_i8(int8_t* p, I32 a) {  // saturates
  __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

struct CodeDot {
  __m256i v;
  template <int offset>
  HOTSET_INLINE static CodeDot start(int32_t correction) {
    if constexpr (offset == 0) return {_mm256_setzero_si256()};
    return {_mm256_slli_epi16(_mm256_set1_epi32(correction), log2_of(offset / 4))};
  }
  HOTSET_INLINE void add(I32 codes, I32 x) { v = _mm256_add_epi16(v, _mm256_maddubs_epi16(codes.v, x.v)); }
  HOTSET_INLINE I32 times(I32 scale) const { return {_mm256_madd_epi16(v, scale.v)}; }
  HOTSET_INLINE F32 scaled(I32 scale) const { return to_f32(times(scale)); }
};
struct ByteDot {
  __m256i v;
  template <int>
  HOTSET_INLINE static ByteDot start(int32_t) {
    return {_mm256_setzero_si256()};
  }
  HOTSET_INLINE void add(I32 bytes, I32 x) {
    const auto pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(bytes.v), _mm256_sign_epi8(x.v, bytes.v));
    v = _mm256_add_epi32(v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  HOTSET_INLINE void add_uncorrected(I32 bytes, I32 x) { add(bytes, x); }
  HOTSET_INLINE F32 scaled(I32 scale) const { return to_f32(I32{v}) * to_f32(shift_right<16>(scale)); }
};
HOTSET_INLINE F32 scaled_sum(CodeDot a, I32 scale_a, CodeDot b, I32 scale_b) {
  return to_f32(a.times(scale_a) + b.times(scale_b));
}
HOTSET_INLINE int32_t scale_word(int32_t scale) { return scale * 0x10001; }
HOTSET_INLINE int32_t correction_word(int32_t sum01, int32_t sum23) {
  return int16_pair(-4 * sum01, -4 * sum23);
}

#elif defined(HOTSET_X86)

constexpr int kLanes = 4;
struct F32 {
  __m128 v;
};
struct I32 {
  __m128i v;
};

HOTSET_INLINE F32 load(const float* p) { return {_mm_loadu_ps(p)}; }
HOTSET_INLINE void store(float* p, F32 a) { _mm_storeu_ps(p, a.v); }
HOTSET_INLINE F32 broadcast(float a) { return {_mm_set1_ps(a)}; }
HOTSET_INLINE F32 operator+(F32 a, F32 b) { return {_mm_add_ps(a.v, b.v)}; }
HOTSET_INLINE F32 operator-(F32 a, F32 b) { return {_mm_sub_ps(a.v, b.v)}; }
HOTSET_INLINE F32 operator*(F32 a, F32 b) { return {_mm_mul_ps(a.v, b.v)}; }
HOTSET_INLINE F32 operator/(F32 a, F32 b) { return {_mm_div_ps(a.v, b.v)}; }
HOTSET_INLINE F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
HOTSET_INLINE F32 max(F32 a, F32 b) { return {_mm_max_ps(a.v, b.v)}; }
HOTSET_INLINE F32 min(F32 a, F32 b) { return {_mm_min_ps(a.v, b.v)}; }
HOTSET_INLINE F32 swap_pairs(F32 a) { return {_mm_shuffle_ps(a.v, a.v, 0xb1)}; }  // lanes 1 0 3 2
HOTSET_INLINE F32 abs(F32 a) { return {_mm_andnot_ps(_mm_set1_ps(-0.0f), a.v)}; }
template <int n, int r>
HOTSET_INLINE F32 spread(F32 a) {
  return {_mm_shuffle_ps(a.v, a.v, 4 * r / n * 0x55)};
}
HOTSET_INLINE uint32_t not_less(F32 a, F32 b) { return uint32_t(_mm_movemask_ps(_mm_cmpnlt_ps(a.v, b.v))); }
HOTSET_INLINE float sum(F32 a) {
  __m128 s = _mm_add_ps(a.v, _mm_movehl_ps(a.v, a.v));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
HOTSET_INLINE float max(F32 a) {
  __m128 s = _mm_max_ps(a.v, _mm_movehl_ps(a.v, a.v));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

HOTSET_INLINE I32 load_i32(const void* p) { return {_mm_loadu_si128(static_cast<const __m128i*>(p))}; }
HOTSET_INLINE void store(void* p, I32 a) { _mm_storeu_si128(static_cast<__m128i*>(p), a.v); }
HOTSET_INLINE I32 broadcast(int32_t a) { return {_mm_set1_epi32(a)}; }
HOTSET_INLINE I32 operator+(I32 a, I32 b) { return {_mm_add_epi32(a.v, b.v)}; }
HOTSET_INLINE I32 operator-(I32 a, I32 b) { return {_mm_sub_epi32(a.v, b.v)}; }
HOTSET_INLINE I32 operator&(I32 a, I32 b) { return {_mm_and_si128(a.v, b.v)}; }
HOTSET_INLINE I32 operator|(I32 a, I32 b) { return {_mm_or_si128(a.v, b.v)}; }
template <int n>
HOTSET_INLINE I32 shift_left(I32 a) {
  return {_mm_slli_epi32(a.v, n)};
}
template <int n>
HOTSET_INLINE I32 shift_right(I32 a) {  // zeros come in
  return {_mm_srli_epi32(a.v, n)};
}
template <int n>
HOTSET_INLINE I32 shift_right_signed(I32 a) {
  return {_mm_srai_epi32(a.v, n)};
}
HOTSET_INLINE I32 interleave_low(I32 a, I32 b) { return {_mm_unpacklo_epi16(a.v, b.v)}; }
HOTSET_INLINE I32 interleave_high(I32 a, I32 b) { return {_mm_unpackhi_epi16(a.v, b.v)}; }
template <int n>
HOTSET_INLINE I32 shift_halves_right(I32 a) {  // zeros come in
  return {_mm_srli_epi16(a.v, n)};
}
HOTSET_INLINE I32 dot_halves(I32 a, I32 b) { return {_mm_madd_epi16(a.v, b.v)}; }
HOTSET_INLINE I32 look_up(const uint8_t* table, I32 a) {
  return {_mm_shuffle_epi8(_mm_load_si128(reinterpret_cast<const __m128i*>(table)), a.v)};
}
HOTSET_INLINE F32 to_f32(I32 a) { return {_mm_cvtepi32_ps(a.v)}; }
HOTSET_INLINE I32 round_to_i32(F32 a) { return {_mm_cvtps_epi32(a.v)}; }  // to nearest even
HOTSET_INLINE F32 bits_to_f32(I32 a) { return {_mm_castsi128_ps(a.v)}; }
HOTSET_INLINE I32 f32_to_bits(F32 a) { return {_mm_castps_si128(a.v)}; }

HOTSET_INLINE I32 load_u16(const uint16_t* p) {
  return {_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
HOTSET_INLINE I32 load_i8(const int8_t* p) {
  int32_t bytes;
  memcpy(&bytes, p, 4);
  return {_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes))};
}
HOTSET_INLINE void store_i8(int8_t* p, I32 a) {  // saturates
  __m128i words = _mm_packs_epi32(a.v, a.v);
  int32_t bytes = _mm_cvtsi128_si32(_mm_packs_epi16(words, words));
  memcpy(p, &bytes, 4);
}

// x86-64-v2 has no half-precision instructions. The exponent is moved into a float's place and rebased by a
// multiplication, which also makes halves' subnormals right; infinities and NaNs are patched.
HOTSET_INLINE F32 load_f16(const uint16_t* p) {
  __m128i h = load_u16(p).v;
  __m128i magnitude = _mm_slli_epi32(_mm_and_si128(h, _mm_set1_epi32(0x7fff)), 13);
  __m128i sign = _mm_slli_epi32(_mm_and_si128(h, _mm_set1_epi32(0x8000)), 16);
  __m128i special = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32((0x7c00 << 13) - 1));
  __m128 value = _mm_mul_ps(_mm_castsi128_ps(magnitude), _mm_set1_ps(0x1p112f));
  value = _mm_or_ps(value, _mm_castsi128_ps(_mm_and_si128(special, _mm_set1_epi32(0x7f800000))));
  return {_mm_or_ps(value, _mm_castsi128_ps(sign))};
}
// Rounds to nearest even: by an integer addition for normal halves, by the float adder (0.5 has a half's
// smallest subnormal as its last place) for subnormal ones.
HOTSET_INLINE void store_f16(uint16_t* p, F32 a) {
  __m128i bits = _mm_castps_si128(a.v);
  __m128i sign = _mm_and_si128(bits, _mm_set1_epi32(INT32_MIN));
  __m128i magnitude = _mm_xor_si128(bits, sign);
  __m128i odd = _mm_and_si128(_mm_srli_epi32(magnitude, 13), _mm_set1_epi32(1));
  __m128i normal = _mm_add_epi32(_mm_add_epi32(magnitude, odd), _mm_set1_epi32(0xfff - (112 << 23)));
  normal = _mm_srli_epi32(normal, 13);
  __m128 half = _mm_set1_ps(0.5f);
  __m128i tiny = _mm_castps_si128(_mm_add_ps(_mm_castsi128_ps(magnitude), half));
  tiny = _mm_sub_epi32(tiny, _mm_castps_si128(half));
  __m128i is_tiny = _mm_cmplt_epi32(magnitude, _mm_set1_epi32(113 << 23));
  __m128i is_infinite = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x477fefff));
  __m128i is_nan = _mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7f800000));
  __m128i result = _mm_blendv_epi8(normal, tiny, is_tiny);
  result = _mm_blendv_epi8(result, _mm_set1_epi32(0x7c00), is_infinite);
  result = _mm_or_si128(result, _mm_and_si128(is_nan, _mm_set1_epi32(0x200)));
  result = _mm_or_si128(result, _mm_srli_epi32(sign, 16));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(result, result));
}

struct CodeDot {
  __m128i v;
  template <int offset>
  HOTSET_INLINE static CodeDot start(int32_t correction) {
    if constexpr (offset == 0) return {_mm_setzero_si128()};
    return {_mm_slli_epi16(_mm_set1_epi32(correction), log2_of(offset / 4))};
  }
  HOTSET_INLINE void add(I32 codes, I32 x) { v = _mm_add_epi16(v, _mm_maddubs_epi16(codes.v, x.v)); }
  HOTSET_INLINE I32 times(I32 scale) const { return {_mm_madd_epi16(v, scale.v)}; }
  HOTSET_INLINE F32 scaled(I32 scale) const { return to_f32(times(scale)); }
};
struct ByteDot {
  __m128i v;
  template <int>
  HOTSET_INLINE static ByteDot start(int32_t) {
    return {_mm_setzero_si128()};
  }
  HOTSET_INLINE void add(I32 bytes, I32 x) {
    const auto pairs = _mm_maddubs_epi16(_mm_abs_epi8(bytes.v), _mm_sign_epi8(x.v, bytes.v));
    v = _mm_add_epi32(v, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
  }
  HOTSET_INLINE void add_uncorrected(I32 bytes, I32 x) { add(bytes, x); }
  HOTSET_INLINE F32 scaled(I32 scale) const { return to_f32(I32{v}) * to_f32(shift_right<16>(scale)); }
};
HOTSET_INLINE F32 scaled_sum(CodeDot a, I32 scale_a, CodeDot b, I32 scale_b) {
  return to_f32(a.times(scale_a) + b.times(scale_b));
}
HOTSET_INLINE int32_t scale_word(int32_t scale) { return scale * 0x10001; }
HOTSET_INLINE int32_t correction_word(int32_t sum01, int32_t sum23) {
  return int16_pair(-4 * sum01, -4 * sum23);
}

#else  // NEON

constexpr int kLanes = 4;
struct F32 {
  float32x4_t v;
};
struct I32 {
  int32x4_t v;
};

HOTSET_INLINE F32 load(const float* p) { return {vld1q_f32(p)}; }
HOTSET_INLINE void store(float* p, F32 a) { vst1q_f32(p, a.v); }
HOTSET_INLINE F32 broadcast(float a) { return {vdupq_n_f32(a)}; }
HOTSET_INLINE F32 operator+(F32 a, F32 b) { return {vaddq_f32(a.v, b.v)}; }
HOTSET_INLINE F32 operator-(F32 a, F32 b) { return {vsubq_f32(a.v, b.v)}; }
HOTSET_INLINE F32 operator*(F32 a, F32 b) { return {vmulq_f32(a.v, b.v)}; }
HOTSET_INLINE F32 operator/(F32 a, F32 b) { return {vdivq_f32(a.v, b.v)}; }
HOTSET_INLINE F32 fma(F32 a, F32 b, F32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
HOTSET_INLINE F32 max(F32 a, F32 b) { return {vmaxq_f32(a.v, b.v)}; }
HOTSET_INLINE F32 min(F32 a, F32 b) { return {vminq_f32(a.v, b.v)}; }
HOTSET_INLINE F32 swap_pairs(F32 a) { return {vrev64q_f32(a.v)}; }  // lanes 1 0 3 2
HOTSET_INLINE F32 abs(F32 a) { return {vabsq_f32(a.v)}; }
template <int n, int r>
HOTSET_INLINE F32 spread(F32 a) {
  return {vdupq_laneq_f32(a.v, 4 * r / n)};
}
HOTSET_INLINE uint32_t not_less(F32 a, F32 b) {
  constexpr uint32_t bits[4] = {1, 2, 4, 8};
  return vaddvq_u32(vbicq_u32(vld1q_u32(bits), vcltq_f32(a.v, b.v)));
}
HOTSET_INLINE float sum(F32 a) { return vaddvq_f32(a.v); }
HOTSET_INLINE float max(F32 a) { return vmaxvq_f32(a.v); }

HOTSET_INLINE I32 load_i32(const void* p) {
  return {vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p)))};
}
HOTSET_INLINE void store(void* p, I32 a) { vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_s32(a.v)); }
HOTSET_INLINE I32 broadcast(int32_t a) { return {vdupq_n_s32(a)}; }
HOTSET_INLINE I32 operator+(I32 a, I32 b) { return {vaddq_s32(a.v, b.v)}; }
HOTSET_INLINE I32 operator-(I32 a, I32 b) { return {vsubq_s32(a.v, b.v)}; }
HOTSET_INLINE I32 operator&(I32 a, I32 b) { return {vandq_s32(a.v, b.v)}; }
HOTSET_INLINE I32 operator|(I32 a, I32 b) { return {vorrq_s32(a.v, b.v)}; }
template <int n>
HOTSET_INLINE I32 shift_left(I32 a) {
  return {vshlq_s32(a.v, vdupq_n_s32(n))};
}
template <int n>
HOTSET_INLINE I32 shift_right(I32 a) {  // zeros come in
  return {vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a.v), vdupq_n_s32(-n)))};
}
template <int n>
HOTSET_INLINE I32 shift_right_signed(I32 a) {
  return {vshlq_s32(a.v, vdupq_n_s32(-n))};
}
HOTSET_INLINE I32 interleave_low(I32 a, I32 b) {
  return {vreinterpretq_s32_s16(vzip1q_s16(vreinterpretq_s16_s32(a.v), vreinterpretq_s16_s32(b.v)))};
}
HOTSET_INLINE I32 interleave_high(I32 a, I32 b) {
  return {vreinterpretq_s32_s16(vzip2q_s16(vreinterpretq_s16_s32(a.v), vreinterpretq_s16_s32(b.v)))};
}
template <int n>
HOTSET_INLINE I32 shift_halves_right(I32 a) {  // zeros come in
  return {vreinterpretq_s32_u16(vshrq_n_u16(vreinterpretq_u16_s32(a.v), n))};
}
HOTSET_INLINE I32 dot_halves(I32 a, I32 b) {
  int16x8_t p = vreinterpretq_s16_s32(a.v), q = vreinterpretq_s16_s32(b.v);
  return {vpaddq_s32(vmull_s16(vget_low_s16(p), vget_low_s16(q)), vmull_high_s16(p, q))};
}
HOTSET_INLINE I32 look_up(const uint8_t* table, I32 a) {
  return {vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table), vreinterpretq_u8_s32(a.v)))};
}
HOTSET_INLINE F32 to_f32(I32 a) { return {vcvtq_f32_s32(a.v)}; }
HOTSET_INLINE I32 round_to_i32(F32 a) { return {vcvtnq_s32_f32(a.v)}; }  // to nearest even
HOTSET_INLINE F32 bits_to_f32(I32 a) { return {vreinterpretq_f32_s32(a.v)}; }
HOTSET_INLINE I32 f32_to_bits(F32 a) { return {vreinterpretq_s32_f32(a.v)}; }

HOTSET_INLINE F32 load_f16(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }
HOTSET_INLINE void store_f16(uint16_t* p, F32 a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a.v))); }
HOTSET_INLINE I32 load_u16(const uint16_t* p) { return {vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p)))}; }
HOTSET_INLINE I32 load_i8(const int8_t* p) {
  int32_t bytes;
  memcpy(&bytes, p, 4);
  return {vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)))))};
}
HOTSET_INLINE void store_i8(int8_t* p, I32 a) {  // saturates
  int16x4_t words = vqmovn_s32(a.v);
  int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
  memcpy(p, &bytes, 4);
}

HOTSET_INLINE int32_t scale_word(int32_t scale) { return float_bits(float(scale)); }

#if defined(__ARM_FEATURE_DOTPROD)

struct CodeDot {
  int32x4_t v;
  template <int offset>
  HOTSET_INLINE static CodeDot start(int32_t correction) {
    if constexpr (offset == 0) return {vdupq_n_s32(0)};
    return {vdupq_n_s32(correction * (offset / 4))};
  }
  HOTSET_INLINE void add(I32 codes, I32 x) {
    v = vdotq_s32(v, vreinterpretq_s8_s32(codes.v), vreinterpretq_s8_s32(x.v));
  }
  HOTSET_INLINE F32 scaled(I32 scale) const { return to_f32(I32{v}) * bits_to_f32(scale); }
};
struct ByteDot : CodeDot {
  template <int>
  HOTSET_INLINE static ByteDot start(int32_t) {
    return {CodeDot::start<0>(0)};
  }
  HOTSET_INLINE void add_uncorrected(I32 bytes, I32 x) { add(bytes, x); }
};
HOTSET_INLINE int32_t correction_word(int32_t sum01, int32_t sum23) { return -4 * (sum01 + sum23); }

#else

struct CodeDot {
  int16x8_t low, high;  // of rows 0 and 1, of rows 2 and 3: four sums a row
  template <int offset>
  HOTSET_INLINE static CodeDot start(int32_t correction) {
    if constexpr (offset == 0) return {vdupq_n_s16(0), vdupq_n_s16(0)};
    int16x4_t pairs = vreinterpret_s16_s32(vdup_n_s32(correction));
    int16x8_t v = vreinterpretq_s16_u32(vmovl_u16(vreinterpret_u16_s16(vmul_n_s16(pairs, offset / 4))));
    return {v, v};
  }
  HOTSET_INLINE void add(I32 codes, I32 x) {
    int8x16_t w = vreinterpretq_s8_s32(codes.v), a = vreinterpretq_s8_s32(x.v);
    low = vmlal_s8(low, vget_low_s8(w), vget_low_s8(a));
    high = vmlal_high_s8(high, w, a);
  }
  HOTSET_INLINE F32 scaled(I32 scale) const {
    return to_f32(I32{vpaddlq_s16(vpaddq_s16(low, high))}) * bits_to_f32(scale);
  }
};
struct ByteDot {
  int32x4_t low, high;
  template <int>
  HOTSET_INLINE static ByteDot start(int32_t) {
    return {vdupq_n_s32(0), vdupq_n_s32(0)};
  }
  HOTSET_INLINE void add(I32 bytes, I32 x) {
    int8x16_t w = vreinterpretq_s8_s32(bytes.v), a = vreinterpretq_s8_s32(x.v);
    low = vpadalq_s16(low, vmull_s8(vget_low_s8(w), vget_low_s8(a)));
    high = vpadalq_s16(high, vmull_high_s8(w, a));
  }
  HOTSET_INLINE void add_uncorrected(I32 bytes, I32 x) { add(bytes, x); }
  HOTSET_INLINE F32 scaled(I32 scale) const {
    return to_f32(I32{vpaddq_s32(low, high)}) * bits_to_f32(scale);
  }
};
HOTSET_INLINE int32_t correction_word(int32_t sum01, int32_t sum23) {
  return int16_pair(-4 * sum01, -4 * sum23);
}

#endif

#endif

// ---------------------------------------------------------------------------------------------------------------
// Shared by all of them.

#if !defined(__AVX512VNNI__)
using TableDot = ByteDot;
constexpr int kTableBias = 0;
#endif

template <class Dot>
HOTSET_INLINE F32 scaled_sum(Dot a, I32 scale_a, Dot b, I32 scale_b) {
  return a.scaled(scale_a) + b.scaled(scale_b);
}

HOTSET_INLINE F32 zero_f32() { return broadcast(0.0f); }
HOTSET_INLINE F32 load_bf16(const uint16_t* p) { return bits_to_f32(shift_left<16>(load_u16(p))); }

HOTSET_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }           // into the first-level cache
HOTSET_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }  // into the second-level cache

}  // namespace
}  // namespace hotset
