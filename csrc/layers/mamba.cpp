// Mamba-2: a projection over all rows of a batch, then for each span and each group of value heads, which
// share keys and queries, everything up to the output's projection. Positions are taken in chunks as gated
// delta nets take them.
#include "layers/mamba.h"

#include <algorithm>

#include "layers/recurrent_job.h"

namespace hotset {
namespace {

// `inputs` are the channels of projected rows: gates stand before them, steps behind.
struct MambaJob : RecurrentJob<MambaJob> {
  const Mamba* layer;
  const float* ones;

  int64_t own() const { return group() * dim(); }  // values of a group
  int64_t values() const { return shape.n_value_heads * dim(); }

  void clear(const RecurrentScratch& s) const { clear_rows(s.updates); }

  void prepare(const RecurrentSpan& span, int64_t head, int64_t row, int64_t first, int64_t n,
               const RecurrentScratch& s) const {
    for (int64_t i = 0; i < n; ++i) {
      const float* taps[65];
      const auto convolve = [&](int64_t channel, int64_t count, float* to) {
        for (int64_t t = 0; t < shape.kernel; ++t) {
          taps[t] = input(span, span.start + row + i - shape.kernel + 1 + t) + channel;
        }
        taps[shape.kernel] = ones;
        kernels().convolve(taps, layer->conv.data() + channel, shape.channels, shape.kernel + 1, count, to);
      };
      float* x = s.values + i * own();
      float* key = s.both + i * key_dim();
      convolve(head * own(), own(), x);
      convolve(values() + head * key_dim(), key_dim(), key);
      convolve(values() + (keys() + head) * key_dim(), key_dim(), s.both + (n + i) * key_dim());
      for (int64_t d = 0; d < key_dim(); ++d) s.keys[d * kDeltaChunk + first + i] = key[d];
      const float* steps = input(span, span.start + row + i) + shape.channels + head * group();
      for (int64_t m = 0; m < group(); ++m) {
        const auto of = static_cast<size_t>(head * group() + m);
        const float dt =
            decay(steps[m] + layer->dt_bias[of], layer->decay[of], first + i, s.decays + m * kDeltaChunk);
        float* update = s.updates + (m * kDeltaChunk + first + i) * width();
        for (int64_t d = 0; d < dim(); ++d) update[d] = dt * x[m * dim() + d];
      }
    }
  }

  DeltaRows rows_of(int64_t, int64_t n, const RecurrentScratch& s) const {
    DeltaRows rows{};
    rows.both = s.both + n * key_dim();
    return rows;
  }

  void take(const RecurrentSpan&, int64_t head, int64_t m, int64_t row, int64_t n,
            const RecurrentScratch& s) const {
    const float skip = layer->skip[static_cast<size_t>(head * group() + m)];
    for (int64_t i = 0; i < n; ++i) {
      const float* x = s.values + i * own() + m * dim();
      float* y = s.y + (row + i) * own() + m * dim();
      for (int64_t d = 0; d < dim(); ++d) y[d] = s.results[i * width() + d] + skip * x[d];
    }
  }

  // Multiplies rows' results by silu(z) and norms them, all of the group together.
  void finish(const RecurrentSpan& span, int64_t head, int64_t row, int64_t n,
              const RecurrentScratch& s) const {
    const VectorKernels& vector = runtime->vector;
    for (int64_t i = 0; i < n; ++i) {
      float* y = s.y + (row + i) * own();
      std::copy_n(input(span, span.start + row + i) - values() + head * own(), own(), s.gates);
      vector.activate(Activation::kSilu, s.gates, y, own());
      vector.rms_norm(s.gates, layer->out_norm.weight.data() + head * own(), nullptr, layer->out_norm.eps,
                      own(), y);
    }
  }

  template <class Copy>
  void each_part(int64_t head, Copy copy) const {
    copy(head * own(), own());
    copy(values() + head * key_dim(), key_dim());
    copy(values() + (keys() + head) * key_dim(), key_dim());
  }
};

}  // namespace

void Mamba::forward(const float* x, float* out, const Batch& batch) const {
  Session session(runtime->pool);
  Zone zone(runtime->zones, ZoneName::kRecurrentInput);
  const int64_t rows = batch.rows(), values = shape.n_value_heads * shape.value_dim;
  const int64_t most_channels = std::max(shape.channels, values);
  auto* inputs = session.allocate<float>(rows * input->rows());
  auto* mixed = session.allocate<float>(rows * values);
  auto* zeros = session.allocate<float>(shape.channels);
  auto* ones = session.allocate<float>(most_channels);
  std::fill_n(zeros, shape.channels, 0.0f);
  std::fill_n(ones, most_channels, 1.0f);
  const auto n_spans = static_cast<int64_t>(batch.spans().size());
  auto* spans = session.allocate<RecurrentSpan>(n_spans);
  const int64_t most_rows = place_spans(batch, index, spans);

  const Activations normed = pack(session, *runtime, x, rows, &norm, {input.get()});
  multiply(session, *runtime, normed, {{input.get(), inputs, input->rows()}}, false);
  zone.next(ZoneName::kRecurrentStates);
  session.run(n_spans * shape.n_key_heads, MambaJob{{runtime.get(), shape, false, spans, inputs + values,
                                                     input->rows(), zeros, mixed, most_rows},
                                                    this,
                                                    ones});
  zone.next(ZoneName::kRecurrentOutput);
  const Activations packed = pack(session, *runtime, mixed, rows, nullptr, {output.get()});
  multiply_residual(session, *runtime, packed, *output, nullptr, out);
}

}  // namespace hotset
