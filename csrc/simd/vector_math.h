// Helpers over simd.h that vector.cpp and attention.cpp share.
#pragma once

#include "simd/simd.h"

namespace hotset {
namespace {

// The first n < kLanes of the numbers at p; the other lanes hold `fill`.
HOTSET_INLINE F32 load_first(const float* p, int64_t n, float fill = 0.0f) {
  float lanes[kLanes];
  store(lanes, broadcast(fill));
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

HOTSET_INLINE void store_first(float* p, F32 a, int64_t n) {
  float lanes[kLanes];
  store(lanes, a);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// y = f(a) or f(a, b), number by number.
template <class F>
HOTSET_INLINE void map(const float* a, int64_t n, float* y, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(a + i)));
  if (i < n) store_first(y + i, f(load_first(a + i, n - i)), n - i);
}
template <class F>
HOTSET_INLINE void map(const float* a, const float* b, int64_t n, float* y, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(a + i), load(b + i)));
  if (i < n) store_first(y + i, f(load_first(a + i, n - i), load_first(b + i, n - i)), n - i);
}

// The sum of f(x[i]), where f(fill) is zero.
template <class F>
HOTSET_INLINE float sum_of(const float* x, int64_t n, float fill, F f) {
  F32 sums[4] = {zero_f32(), zero_f32(), zero_f32(), zero_f32()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) sums[j] = sums[j] + f(load(x + i + j * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) sums[0] = sums[0] + f(load(x + i));
  if (i < n) sums[1] = sums[1] + f(load_first(x + i, n - i, fill));
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// exp(x), relative error below 2e-7; arguments outside [-87, 88] are clamped to that, and NaN stays.
HOTSET_INLINE F32 exp(F32 x) {
  x = min(broadcast(88.0f), max(broadcast(-87.0f), x));
  const I32 n = round_to_i32(x * broadcast(1.44269504f));
  const F32 k = to_f32(n);
  // x - k ln 2, ln 2 in two parts of which the first has few bits, so that k times it is exact.
  const F32 r = fma(k, broadcast(2.12194440e-4f), fma(k, broadcast(-0.693359375f), x));
  // The Taylor series to r^7, |r| <= ln(2) / 2.
  F32 p = broadcast(1.0f / 5040);
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return p * bits_to_f32(shift_left<23>(n + broadcast(127)));
}

// cap tanh(x / cap), by 1 - 2 / (1 + exp(2 x / cap)); absolute error below 1e-6 of the cap.
HOTSET_INLINE F32 soft_cap(F32 x, float cap) {
  const F32 whole = broadcast(cap), above = broadcast(1.0f) + exp(x * broadcast(2.0f / cap));
  return whole - broadcast(2.0f * cap) / above;
}

}  // namespace
}  // namespace hotset
