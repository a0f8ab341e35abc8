// The gated delta net: projections over all rows of a batch, then for each span and each key head, with the
// value heads that read it, everything up to the output's projection.
#include "layers/delta_net.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

namespace hotset {
namespace {

struct DeltaJob {
  const DeltaNet* layer;
  const RecurrentSpan* spans;
  const float *qkv, *z, *beta, *alpha;
  const float* zeros;  // a row of inputs before the first position
  float* mixed;
  int64_t most_rows;

  int64_t keys() const { return layer->shape.n_key_heads; }
  int64_t dim() const { return layer->shape.key_dim; }
  int64_t width() const { return delta_width(dim()); }
  int64_t group() const { return layer->shape.n_value_heads / keys(); }
  int64_t value_head(int64_t key_head, int64_t member) const {
    return layer->tiled ? member * keys() + key_head : key_head * group() + member;
  }

  // Parts of a thread's memory, for one key head and the `group` value heads that read it.
  struct Scratch {
    float* states;   // group x dim x width
    float* keys;     // dim x kDeltaChunk
    float* updates;  // group x kDeltaChunk x width
    float* decays;   // group x kDeltaChunk
    float* both;     // 2 kDeltaChunk x dim
    float* values;   // group x kDeltaChunk x width
    float* beta;     // group x kDeltaChunk
    float* results;  // kDeltaChunk x width
    float* gates;    // dim
    float* more;     // for the kernels
    float* y;        // rows x group x dim
  };
  size_t divide(void* memory, Scratch* s) const {
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
      float* part = static_cast<float*>(memory) + used;
      used += (floats + 15) / 16 * 16;
      return part;
    };
    s->states = take(group() * dim() * width());
    s->keys = take(dim() * kDeltaChunk);
    s->updates = take(group() * kDeltaChunk * width());
    s->decays = take(group() * kDeltaChunk);
    s->both = take(2 * kDeltaChunk * dim());
    s->values = take(group() * kDeltaChunk * width());
    s->beta = take(group() * kDeltaChunk);
    s->results = take(kDeltaChunk * width());
    s->gates = take(dim());
    s->more = take(std::max(delta_scratch(dim()), dim() * kDeltaChunk));
    s->y = take(most_rows * group() * dim());
    return static_cast<size_t>(used) * sizeof(float);
  }
  size_t scratch_bytes() const {
    alignas(64) float nothing[1];
    Scratch s;
    return divide(nothing, &s);
  }

  // The convolution's input at a position of the span or before it.
  const float* input(const RecurrentSpan& span, int64_t position) const {
    const int64_t channels = layer->shape.channels;
    if (position < 0) return zeros;
    if (position >= span.start) return qkv + (span.row0 + position - span.start) * channels;
    return span.present.inputs + (position - span.begin + layer->shape.kernel - 1) * channels;
  }

  void compute(int64_t chunk, void* memory) const {
    const RecurrentSpan& span = spans[chunk / keys()];
    const int64_t head = chunk % keys();
    Scratch s;
    divide(memory, &s);
    load(span, head, s);
    const DeltaNetKernels& kernels = *layer->runtime->vector.delta_net;
    bool folded = false;
    for (int64_t row = 0; row < span.count;) {
      const int64_t first = (span.start + row) % kDeltaChunk;
      const int64_t n = std::min(kDeltaChunk - first, span.count - row);
      prepare(span, head, row, first, n, s);
      for (int64_t m = 0; m < group(); ++m) {
        const float* state = s.states + m * dim() * width();
        if (!folded) {
          const int64_t own = value_head(head, m) * dim() * width();
          state = span.begin == 0 ? nullptr : span.present.states + own;
        }
        float* updates = s.updates + m * kDeltaChunk * width();
        const float* decays = s.decays + m * kDeltaChunk;
        const DeltaRows rows{dim(),
                             dim(),
                             first,
                             n,
                             state,
                             s.keys,
                             s.both,
                             s.values + m * kDeltaChunk * width(),
                             s.beta + m * kDeltaChunk,
                             decays,
                             updates,
                             s.results,
                             s.more};
        kernels.attend(&rows);
        finish(span, value_head(head, m), row, n, s, s.y + (row * group() + m) * dim());
        if (first + n == kDeltaChunk) {
          kernels.fold(dim(), dim(), state, s.keys, updates, decays, s.more, s.states + m * dim() * width());
        }
      }
      folded = folded || first + n == kDeltaChunk;
      row += n;
    }
  }

  // What there is of the present chunk: rows that follow are being written, where another thread was faster.
  void load(const RecurrentSpan& span, int64_t head, const Scratch& s) const {
    const int64_t first = span.start - span.begin;
    std::memset(s.values, 0, static_cast<size_t>(group() * kDeltaChunk * width()) * sizeof(float));
    for (int64_t d = 0; d < dim(); ++d) {
      std::copy_n(span.present.keys + (head * dim() + d) * kDeltaChunk, first, s.keys + d * kDeltaChunk);
    }
    for (int64_t m = 0; m < group(); ++m) {
      const int64_t own = value_head(head, m) * kDeltaChunk;
      std::copy_n(span.present.updates + own * width(), first * width(),
                  s.updates + m * kDeltaChunk * width());
      std::copy_n(span.present.decays + own, first, s.decays + m * kDeltaChunk);
    }
  }

  // Keys, queries, values, betas and decays of n rows, which are the chunk's from `first` on.
  void prepare(const RecurrentSpan& span, int64_t head, int64_t row, int64_t first, int64_t n,
               const Scratch& s) const {
    const DeltaNetKernels& kernels = *layer->runtime->vector.delta_net;
    const RecurrentShape& shape = layer->shape;
    const int64_t channels = shape.channels;
    for (int64_t i = 0; i < n; ++i) {
      const float* taps[64];
      const auto convolve = [&](int64_t channel, float* to) {
        for (int64_t t = 0; t < shape.kernel; ++t) {
          taps[t] = input(span, span.start + row + i - shape.kernel + 1 + t) + channel;
        }
        kernels.convolve(taps, layer->conv.data() + channel, channels, shape.kernel, dim(), to);
      };
      float* key = s.both + i * dim();
      float* query = s.both + (n + i) * dim();
      convolve(head * dim(), query);
      convolve((keys() + head) * dim(), key);
      kernels.unit(query, 1.0f / std::sqrt(static_cast<float>(dim())), dim());
      kernels.unit(key, 1.0f, dim());
      for (int64_t d = 0; d < dim(); ++d) s.keys[d * kDeltaChunk + first + i] = key[d];
      for (int64_t m = 0; m < group(); ++m) {
        const int64_t own = value_head(head, m), at = (span.row0 + row + i) * shape.n_value_heads + own;
        convolve((2 * keys() + own) * dim(), s.values + (m * kDeltaChunk + i) * width());
        s.beta[m * kDeltaChunk + i] = 1.0f / (1.0f + std::exp(-beta[at]));
        const float a = alpha[at] + layer->dt_bias[static_cast<size_t>(own)];
        const float softplus = std::max(a, 0.0f) + std::log1p(std::exp(-std::fabs(a)));
        float* decays = s.decays + m * kDeltaChunk + first + i;
        *decays = (first + i > 0 ? decays[-1] : 0.0f) + layer->decay[static_cast<size_t>(own)] * softplus;
      }
    }
  }

  // Norms n rows of results and multiplies them by silu(z).
  void finish(const RecurrentSpan& span, int64_t head, int64_t row, int64_t n, const Scratch& s,
              float* y) const {
    const VectorKernels& vector = layer->runtime->vector;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = (span.row0 + row + i) * layer->shape.n_value_heads + head;
      float* out = y + i * group() * dim();
      std::copy_n(z + at * dim(), dim(), out);
      float* result = s.results + i * width();
      layer->out_norm.apply(vector, result, result);
      vector.activate(Activation::kSilu, out, result, dim());
    }
  }

  void commit(int64_t chunk, void* memory) const {
    const RecurrentSpan& span = spans[chunk / keys()];
    const int64_t head = chunk % keys(), end = span.start + span.count;
    Scratch s;
    divide(memory, &s);
    const bool leaves = span.leaves();
    const int64_t first = leaves ? 0 : span.start - span.begin, last = end - span.target_begin;
    for (int64_t d = 0; d < dim(); ++d) {
      const int64_t line = d * kDeltaChunk;
      std::copy(s.keys + line + first, s.keys + line + last,
                span.target.keys + head * dim() * kDeltaChunk + line + first);
    }
    for (int64_t m = 0; m < group(); ++m) {
      const int64_t own = value_head(head, m), line = m * kDeltaChunk;
      std::copy(s.updates + (line + first) * width(), s.updates + (line + last) * width(),
                span.target.updates + (own * kDeltaChunk + first) * width());
      std::copy(s.decays + line + first, s.decays + line + last,
                span.target.decays + own * kDeltaChunk + first);
      if (leaves) {
        std::copy_n(s.states + m * dim() * width(), dim() * width(),
                    span.target.states + own * dim() * width());
      }
      for (int64_t row = 0; row < span.count; ++row) {
        std::copy_n(s.y + (row * group() + m) * dim(), dim(),
                    mixed + ((span.row0 + row) * layer->shape.n_value_heads + own) * dim());
      }
    }
    const int64_t before = layer->shape.kernel - 1, channels = layer->shape.channels;
    for (int64_t position = leaves ? span.target_begin - before : span.start; position < end; ++position) {
      const float* from = input(span, position);
      float* to = span.target.inputs + (position - span.target_begin + before) * channels;
      const auto copy = [&](int64_t part) { std::copy_n(from + part * dim(), dim(), to + part * dim()); };
      copy(head);
      copy(keys() + head);
      for (int64_t m = 0; m < group(); ++m) copy(2 * keys() + value_head(head, m));
    }
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
              DeltaJob{this, plans, inputs, gates, betas, alphas, zeros, mixed, most_rows});
  zone.next(ZoneName::kRecurrentOutput);
  const Activations heads = pack(session, *runtime, mixed, rows, nullptr, {output.get()});
  multiply_residual(session, *runtime, heads, *output, nullptr, out);
}

}  // namespace hotset
