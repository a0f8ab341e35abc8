// Norms, activations and RoPE over simd.h.
#include "kernels/vector.h"

#include <math.h>

#include "simd/vector_math.h"

namespace hotset {
extern const AttentionKernels HOTSET_TABLE(attention);
extern const DeltaNetKernels HOTSET_TABLE(delta_net);

namespace {

void add(const float* x, int64_t n, float* out) {
  map(out, x, n, out, [](F32 a, F32 b) { return a + b; });
}

void scale(float* x, float factor, int64_t n) {
  map(x, n, x, [f = broadcast(factor)](F32 a) { return a * f; });
}

void gate(const float* gates, int64_t n, float* x) {
  map(x, gates, n, x, [](F32 a, F32 g) { return a / (broadcast(1.0f) + exp(zero_f32() - g)); });
}

// y = (x - mean) * weight / deviation + bias
void normalise(const float* x, const float* weight, const float* bias, float mean, float eps, int64_t n,
               float* y) {
  const F32 m = broadcast(mean);
  const float squares = sum_of(x, n, mean, [m](F32 a) { return (a - m) * (a - m); });
  const F32 factor = broadcast(1.0f / sqrtf(squares / static_cast<float>(n) + eps));
  map(x, weight, n, y, [m, factor](F32 a, F32 w) { return (a - m) * factor * w; });
  if (bias) add(bias, n, y);
}

void rms_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y) {
  normalise(x, weight, bias, 0.0f, eps, n, y);
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y) {
  const float mean = sum_of(x, n, 0.0f, [](F32 a) { return a; }) / static_cast<float>(n);
  normalise(x, weight, bias, mean, eps, n, y);
}

F32 relu(F32 x) { return max(zero_f32(), x); }  // NaN stays

// x times the logistic function of s x.
F32 swish(F32 x, F32 minus_sx) { return x / (broadcast(1.0f) + exp(minus_sx)); }

F32 silu(F32 x) { return swish(x, zero_f32() - x); }

// gpt-oss: g times the logistic function of 1.702 g, g being x or 7, what is less.
F32 clamped_swish(F32 x) {
  const F32 g = min(broadcast(7.0f), x);
  return swish(g, broadcast(-1.702f) * g);
}

// 0.5 x (1 + tanh z) is x times the logistic function of 2 z; z = sqrt(2 / pi) (x + 0.044715 x^3).
F32 gelu_tanh(F32 x) {
  const F32 inner = fma(x * x, broadcast(-1.59576912f * 0.044715f), broadcast(-1.59576912f));
  return swish(x, x * inner);
}

// max(x, 0) - |x| Phi(-|x|), and Phi(-|x|) = erfc(|x| / sqrt 2) / 2 by Abramowitz and Stegun's
// formula 7.1.26, whose error is below 1.5e-7.
F32 gelu(F32 x) {
  const F32 size = abs(x);
  const F32 t = broadcast(1.0f) / fma(size, broadcast(0.3275911f * 0.70710678f), broadcast(1.0f));
  F32 p = broadcast(0.5f * 1.061405429f);
  p = fma(p, t, broadcast(0.5f * -1.453152027f));
  p = fma(p, t, broadcast(0.5f * 1.421413741f));
  p = fma(p, t, broadcast(0.5f * -0.284496736f));
  p = fma(p, t, broadcast(0.5f * 0.254829592f));
  return relu(x) - size * p * t * exp(x * x * broadcast(-0.5f));
}

template <class F>
void apply(float* gate, const float* up, int64_t n, F act) {
  if (up) {
    map(gate, up, n, gate, [act](F32 g, F32 u) { return act(g) * u; });
  } else {
    map(gate, n, gate, act);
  }
}

void activate(Activation kind, float* gate, const float* up, int64_t n) {
  switch (kind) {
    case Activation::kRelu:
      return apply(gate, up, n, [](F32 x) { return relu(x); });
    case Activation::kDrelu:
      return map(gate, up, n, gate, [](F32 g, F32 u) { return relu(g) * relu(u); });
    case Activation::kRelu2:
      return apply(gate, up, n, [](F32 x) { return relu(x) * relu(x); });
    case Activation::kSilu:
      return apply(gate, up, n, [](F32 x) { return silu(x); });
    case Activation::kGelu:
      return apply(gate, up, n, [](F32 x) { return gelu(x); });
    case Activation::kGeluTanh:
      return apply(gate, up, n, [](F32 x) { return gelu_tanh(x); });
    case Activation::kSwigluClamped:
      if (!up) return map(gate, n, gate, clamped_swish);
      return map(gate, up, n, gate, [](F32 g, F32 u) {
        const F32 clamped = max(broadcast(-7.0f), min(broadcast(7.0f), u));
        return clamped_swish(g) * (clamped + broadcast(1.0f));
      });
  }
}

void rope(float* x, const float* cos, const float* sin, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const F32 a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(x + i, a * c - b * s);
    store(x + half + i, fma(a, s, b * c));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cos[i] - b * sin[i];
    x[half + i] = a * sin[i] + b * cos[i];
  }
}

void rope_interleaved(float* x, const float* cos, const float* sin, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32 a = load(x + i);
    store(x + i, fma(a, load(cos + i), swap_pairs(a) * load(sin + i)));
  }
  for (; i < n; i += 2) {
    const float a = x[i], b = x[i + 1];
    x[i] = a * cos[i] + b * sin[i];
    x[i + 1] = b * cos[i + 1] + a * sin[i + 1];
  }
}

void cap(float* x, float limit, int64_t n) {
  map(x, n, x, [limit](F32 v) { return soft_cap(v, limit); });
}

}  // namespace

extern const VectorKernels HOTSET_TABLE(vector);
const VectorKernels HOTSET_TABLE(vector) = {rms_norm,
                                            layer_norm,
                                            activate,
                                            rope,
                                            rope_interleaved,
                                            scale,
                                            add,
                                            cap,
                                            gate,
                                            &HOTSET_TABLE(attention),
                                            &HOTSET_TABLE(delta_net)};

}  // namespace hotset
