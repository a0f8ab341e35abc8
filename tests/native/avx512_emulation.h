// Included before everything else, this makes simd.h's AVX-512 section run on any CPU with AVX2, by SIMDe
// (Debian: libsimde-dev). For helpers/other_levels.py.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// What SIMDe 0.7.4 lacks, by halves.
static inline __m512 emulate_512(__m256 low, __m256 high) {
  simde__m512_private r;
  r.m256[0] = low;
  r.m256[1] = high;
  return simde__m512_from_private(r);
}
static inline __m512i emulate_512i(__m256i low, __m256i high) {
  simde__m512i_private r;
  r.m256i[0] = low;
  r.m256i[1] = high;
  return simde__m512i_from_private(r);
}
static inline __m256 emulate_half(__m512 a, int i) { return simde__m512_to_private(a).m256[i]; }
static inline __m256i emulate_half(__m512i a, int i) { return simde__m512i_to_private(a).m256i[i]; }
static inline __m128i emulate_quarter(__m256i a, int i) {
  return i ? _mm256_extracti128_si256(a, 1) : _mm256_castsi256_si128(a);
}

#define _mm512_cvtepi32_ps(a) \
  emulate_512(_mm256_cvtepi32_ps(emulate_half(a, 0)), _mm256_cvtepi32_ps(emulate_half(a, 1)))
#define _mm512_cvtps_epi32(a) \
  emulate_512i(_mm256_cvtps_epi32(emulate_half(a, 0)), _mm256_cvtps_epi32(emulate_half(a, 1)))
#define _mm512_srai_epi32(a, n) \
  emulate_512i(_mm256_srai_epi32(emulate_half(a, 0), n), _mm256_srai_epi32(emulate_half(a, 1), n))
#undef _mm512_madd_epi16  // defined with the masked one's arguments
#define _mm512_madd_epi16(a, b)                                           \
  emulate_512i(_mm256_madd_epi16(emulate_half(a, 0), emulate_half(b, 0)), \
               _mm256_madd_epi16(emulate_half(a, 1), emulate_half(b, 1)))
#define _mm512_cvtepi8_epi32(a) \
  emulate_512i(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)))
#define _mm512_cvtepu16_epi32(a) \
  emulate_512i(_mm256_cvtepu16_epi32(emulate_quarter(a, 0)), _mm256_cvtepu16_epi32(emulate_quarter(a, 1)))
#define _mm512_cvtph_ps(a) \
  emulate_512(_mm256_cvtph_ps(emulate_quarter(a, 0)), _mm256_cvtph_ps(emulate_quarter(a, 1)))
#define _mm512_cvtps_ph(a, mode)                                    \
  _mm256_set_m128i(_mm256_cvtps_ph(emulate_half(a, 1), (mode) & 3), \
                   _mm256_cvtps_ph(emulate_half(a, 0), (mode) & 3))
#define _mm512_permute_ps(a, order) simde_mm512_shuffle_ps(a, a, order)

static inline float emulate_sum(__m512 a) {
  float sum = 0;
  for (int i = 0; i < 16; i++) sum += simde__m512_to_private(a).f32[i];
  return sum;
}
static inline float emulate_max(__m512 a) {
  float max = simde__m512_to_private(a).f32[0];
  for (int i = 1; i < 16; i++)
    max = simde__m512_to_private(a).f32[i] > max ? simde__m512_to_private(a).f32[i] : max;
  return max;
}
#define _mm512_reduce_add_ps(a) emulate_sum(a)
#define _mm512_reduce_max_ps(a) emulate_max(a)

#define __AVX512VNNI__ 1
