// Gated delta nets and Mamba-2 over simd.h. With S the state at a chunk's beginning, g_i the sum of the
// logarithms of decays up to row i, and u_i what row i adds to the state along its key:
//
//   u_i = beta_i (v_i - e^g_i S^T k_i - sum over j < i of e^(g_i - g_j) (k_i . k_j) u_j)
//   o_i = e^g_i S^T q_i + sum over j <= i of e^(g_i - g_j) (q_i . k_j) u_j
//
// Mamba-2 is the same with updates that are known beforehand. Every sum is taken in one order, whatever rows
// are computed together.
#include "kernels/delta_net.h"

#include <math.h>

#include "kernels/vector.h"
#include "simd/vector_math.h"

namespace hotset {
namespace {

constexpr int64_t kChunk = kDeltaChunk;

void convolve(const float* const* rows, const float* factors, int64_t stride, int64_t kernel, int64_t n,
              float* out) {
  const auto silu = [](F32 x) { return x / (broadcast(1.0f) + exp(zero_f32() - x)); };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    F32 total = zero_f32();
    for (int64_t t = 0; t < kernel; ++t)
      total = fma(load(factors + t * stride + i), load(rows[t] + i), total);
    store(out + i, silu(total));
  }
  if (i == n) return;
  F32 total = zero_f32();
  for (int64_t t = 0; t < kernel; ++t) {
    total = fma(load_first(factors + t * stride + i, n - i), load_first(rows[t] + i, n - i), total);
  }
  store_first(out + i, silu(total), n - i);
}

void unit(float* x, float factor, int64_t n) {
  const float squares = sum_of(x, n, 0.0f, [](F32 a) { return a * a; });
  map(x, n, x, [f = broadcast(factor / sqrtf(squares + 1e-6f))](F32 a) { return a * f; });
}

// c = keep * start + a b: a (rows x k), b (k x columns), c and start (rows x columns); start may be null.
struct Product {
  int64_t k;
  const float* a;
  int64_t lda;
  const float* b;
  int64_t ldb;
  const float* start;
  float keep;
  float* c;
  int64_t ldc;  // start's, too
};

template <int kRows, int kWide>
HOTSET_INLINE void multiply_tile(const Product& p, int64_t row, int64_t column) {
  const float* a = p.a + row * p.lda;
  const float* b = p.b + column;
  F32 sums[kRows][kWide];
  const F32 keep = broadcast(p.keep);
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kWide; ++j) {
      sums[i][j] = p.start ? load(p.start + (row + i) * p.ldc + column + j * kLanes) * keep : zero_f32();
    }
  }
  for (int64_t k = 0; k < p.k; ++k) {
    F32 columns[kWide];
    for (int j = 0; j < kWide; ++j) columns[j] = load(b + k * p.ldb + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const F32 factor = broadcast(a[i * p.lda + k]);
      for (int j = 0; j < kWide; ++j) sums[i][j] = fma(factor, columns[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kWide; ++j) store(p.c + (row + i) * p.ldc + column + j * kLanes, sums[i][j]);
  }
}

template <int kRows, int kWide>
HOTSET_INLINE void multiply_rows(const Product& p, int64_t row, int64_t columns) {
  int64_t column = 0;
  for (; column + kWide * kLanes <= columns; column += kWide * kLanes) {
    multiply_tile<kRows, kWide>(p, row, column);
  }
  for (; column < columns; column += kLanes) multiply_tile<kRows, 1>(p, row, column);
}

// `columns` is a multiple of kLanes. Few rows take many columns at once, so that there are sums enough to
// hide the latency of additions.
void multiply(const Product& p, int64_t rows, int64_t columns) {
  int64_t row = 0;
  for (; row + 6 <= rows; row += 6) multiply_rows<6, 2>(p, row, columns);
  for (; row + 4 <= rows; row += 4) multiply_rows<4, 2>(p, row, columns);
  for (; row + 2 <= rows; row += 2) multiply_rows<2, 4>(p, row, columns);
  if (row < rows) multiply_rows<1, 4>(p, row, columns);
}

// sums = sums * keep + sign * sum over j < n of factors[j] * rows[j], for kWide registers.
template <int kWide>
HOTSET_INLINE void add_rows(F32* sums, const float* factors, const float* rows, int64_t ld, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    const F32 factor = broadcast(factors[j]);
    for (int i = 0; i < kWide; ++i) sums[i] = fma(factor, load(rows + j * ld + i * kLanes), sums[i]);
  }
}

// One register of u_i or o_i, or four: (start - decayed base) - sum, times beta; or decayed base + sum.
template <int kWide>
HOTSET_INLINE void update_columns(const float* value, const float* base, float decay, float beta,
                                  const float* factors, const float* updates, int64_t ld, int64_t n,
                                  float* out) {
  F32 sums[kWide];
  const F32 d = broadcast(-decay), b = broadcast(beta);
  for (int i = 0; i < kWide; ++i) {
    const F32 v = load(value + i * kLanes);
    sums[i] = base ? fma(d, load(base + i * kLanes), v) : v;
  }
  add_rows<kWide>(sums, factors, updates, ld, n);
  for (int i = 0; i < kWide; ++i) store(out + i * kLanes, sums[i] * b);
}

template <int kWide>
HOTSET_INLINE void result_columns(const float* base, float decay, const float* factors, const float* updates,
                                  int64_t ld, int64_t n, float* out) {
  F32 sums[kWide];
  const F32 d = broadcast(decay);
  for (int i = 0; i < kWide; ++i) sums[i] = base ? d * load(base + i * kLanes) : zero_f32();
  add_rows<kWide>(sums, factors, updates, ld, n);
  for (int i = 0; i < kWide; ++i) store(out + i * kLanes, sums[i]);
}

void attend(const DeltaRows* of) {
  const DeltaRows& r = *of;
  const int64_t width = delta_width(r.value_dim);
  const bool rule = r.beta;
  const int64_t sides = rule ? 2 : 1, queries = rule ? r.rows : 0;
  float* base = r.scratch;                       // 2 rows x width: S^T of keys and of queries
  float* near = r.scratch + 2 * kChunk * width;  // 2 rows x kChunk: their products with the chunk's keys
  if (r.state) {
    multiply({r.key_dim, r.both, r.key_dim, r.state, width, nullptr, 0.0f, base, width}, sides * r.rows,
             width);
  }
  multiply({r.key_dim, r.both, r.key_dim, r.keys, kChunk, nullptr, 0.0f, near, kChunk}, sides * r.rows,
           kChunk);
  for (int64_t i = 0; i < r.rows; ++i) {
    const int64_t at = r.first + i;
    float* of_key = near + i * kChunk;
    float* of_query = near + (queries + i) * kChunk;
    const F32 now = broadcast(r.decays[at]);
    for (int64_t j = 0; j < kChunk; j += kLanes) {
      const F32 faded = exp(now - load(r.decays + j));
      if (rule) store(of_key + j, (zero_f32() - faded) * load(of_key + j));
      store(of_query + j, faded * load(of_query + j));
    }
    float lanes[kLanes];
    store(lanes, exp(now));
    const float decay = lanes[0];
    const float* base_key = r.state ? base + i * width : nullptr;
    const float* base_query = r.state ? base + (queries + i) * width : nullptr;
    float* update = r.updates + at * width;
    int64_t c = 0;
    for (; rule && c + 4 * kLanes <= width; c += 4 * kLanes) {
      update_columns<4>(r.values + i * width + c, base_key ? base_key + c : nullptr, decay, r.beta[i], of_key,
                        r.updates + c, width, at, update + c);
    }
    for (; rule && c < width; c += kLanes) {
      update_columns<1>(r.values + i * width + c, base_key ? base_key + c : nullptr, decay, r.beta[i], of_key,
                        r.updates + c, width, at, update + c);
    }
    for (c = 0; c + 4 * kLanes <= width; c += 4 * kLanes) {
      result_columns<4>(base_query ? base_query + c : nullptr, decay, of_query, r.updates + c, width, at + 1,
                        r.results + i * width + c);
    }
    for (; c < width; c += kLanes) {
      result_columns<1>(base_query ? base_query + c : nullptr, decay, of_query, r.updates + c, width, at + 1,
                        r.results + i * width + c);
    }
  }
}

void fold(int64_t key_dim, int64_t value_dim, const float* state, const float* keys, const float* updates,
          const float* decays, float* scratch, float* next) {
  const int64_t width = delta_width(value_dim);
  const F32 last = broadcast(decays[kChunk - 1]);
  float faded[kChunk], lanes[kLanes];
  for (int64_t j = 0; j < kChunk; j += kLanes) store(faded + j, exp(last - load(decays + j)));
  for (int64_t d = 0; d < key_dim; ++d) {
    for (int64_t j = 0; j < kChunk; j += kLanes) {
      store(scratch + d * kChunk + j, load(faded + j) * load(keys + d * kChunk + j));
    }
  }
  store(lanes, exp(last));
  multiply({kChunk, scratch, kChunk, updates, width, state, lanes[0], next, width}, key_dim, width);
}

}  // namespace

extern const DeltaNetKernels HOTSET_TABLE(delta_net);
const DeltaNetKernels HOTSET_TABLE(delta_net) = {convolve, unit, attend, fold};

}  // namespace hotset
