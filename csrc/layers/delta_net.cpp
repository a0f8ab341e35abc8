// The gated delta net: projections over all rows of a batch, then for each span and each key head, with the
// value heads that read it, everything up to the output's projection.
#include "layers/delta_net.h"

#include <algorithm>
#include <cmath>

#include "layers/recurrent_job.h"

namespace hotset {
namespace {

struct DeltaJob : RecurrentJob<DeltaJob> {
  const DeltaNet* layer;
  const float *z, *beta, *alpha;

  void clear(const RecurrentScratch& s) const { clear_rows(s.values); }

  void prepare(const RecurrentSpan& span, int64_t head, int64_t row, int64_t first, int64_t n,
               const RecurrentScratch& s) const {
    for (int64_t i = 0; i < n; ++i) {
      const float* taps[64];
      const auto convolve = [&](int64_t channel, float* to) {
        for (int64_t t = 0; t < shape.kernel; ++t) {
          taps[t] = input(span, span.start + row + i - shape.kernel + 1 + t) + channel;
        }
        kernels().convolve(taps, layer->conv.data() + channel, shape.channels, shape.kernel, dim(), to);
      };
      float* key = s.both + i * dim();
      float* query = s.both + (n + i) * dim();
      convolve(head * dim(), query);
      convolve((keys() + head) * dim(), key);
      kernels().unit(query, 1.0f / std::sqrt(static_cast<float>(dim())), dim());
      kernels().unit(key, 1.0f, dim());
      for (int64_t d = 0; d < dim(); ++d) s.keys[d * kDeltaChunk + first + i] = key[d];
      for (int64_t m = 0; m < group(); ++m) {
        const int64_t own = value_head(head, m), at = (span.row0 + row + i) * shape.n_value_heads + own;
        convolve((2 * keys() + own) * dim(), s.values + (m * kDeltaChunk + i) * width());
        s.beta[m * kDeltaChunk + i] = 1.0f / (1.0f + std::exp(-beta[at]));
        const auto of = static_cast<size_t>(own);
        decay(alpha[at] + layer->dt_bias[of], layer->decay[of], first + i, s.decays + m * kDeltaChunk);
      }
    }
  }

  DeltaRows rows_of(int64_t m, int64_t, const RecurrentScratch& s) const {
    DeltaRows rows{};
    rows.both = s.both;
    rows.values = s.values + m * kDeltaChunk * width();
    rows.beta = s.beta + m * kDeltaChunk;
    return rows;
  }

  // Norms n rows of results and multiplies them by silu(z).
  void take(const RecurrentSpan& span, int64_t head, int64_t m, int64_t row, int64_t n,
            const RecurrentScratch& s) const {
    const VectorKernels& vector = runtime->vector;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = (span.row0 + row + i) * shape.n_value_heads + value_head(head, m);
      float* out = s.y + ((row + i) * group() + m) * dim();
      std::copy_n(z + at * dim(), dim(), out);
      float* result = s.results + i * width();
      layer->out_norm.apply(vector, result, result);
      vector.activate(Activation::kSilu, out, result, dim());
    }
  }

  void finish(const RecurrentSpan&, int64_t, int64_t, int64_t, const RecurrentScratch&) const {}

  template <class Copy>
  void each_part(int64_t head, Copy copy) const {
    copy(head * dim(), dim());
    copy((keys() + head) * dim(), dim());
    for (int64_t m = 0; m < group(); ++m) copy((2 * keys() + value_head(head, m)) * dim(), dim());
  }
};

}  // namespace

void DeltaNet::forward(const float* x, float* out, const Batch& batch) const {
  Session session(runtime->pool);
  Zone zone(runtime->zones, ZoneName::kRecurrentInput);
  const int64_t rows = batch.rows(), channels = shape.channels;
  const int64_t values = shape.n_value_heads * shape.key_dim;
  auto* inputs = session.allocate<float>(rows * channels);
  auto* gates = session.allocate<float>(rows * values);
  auto* betas = session.allocate<float>(rows * shape.n_value_heads);
  auto* alphas = session.allocate<float>(rows * shape.n_value_heads);
  auto* mixed = session.allocate<float>(rows * values);
  auto* zeros = session.allocate<float>(channels);
  std::fill_n(zeros, channels, 0.0f);

  const auto n_spans = static_cast<int64_t>(batch.spans().size());
  auto* plans = session.allocate<RecurrentSpan>(n_spans);
  const int64_t most_rows = place_spans(batch, index, plans);

  const Activations normed =
      pack(session, *runtime, x, rows, &norm, {qkv.get(), z.get(), beta.get(), alpha.get()});
  multiply(session, *runtime, normed,
           {{qkv.get(), inputs, channels},
            {z.get(), gates, values},
            {beta.get(), betas, shape.n_value_heads},
            {alpha.get(), alphas, shape.n_value_heads}},
           false);
  zone.next(ZoneName::kRecurrentStates);
  session.run(n_spans * shape.n_key_heads,
              DeltaJob{{runtime.get(), shape, tiled, plans, inputs, channels, zeros, mixed, most_rows},
                       this,
                       gates,
                       betas,
                       alphas});
  zone.next(ZoneName::kRecurrentOutput);
  const Activations heads = pack(session, *runtime, mixed, rows, nullptr, {output.get()});
  multiply_residual(session, *runtime, heads, *output, nullptr, out);
}

}  // namespace hotset
