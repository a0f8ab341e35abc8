// Mamba-2: a projection over all rows of a batch, then for each span and each group of value heads, which
// share keys and queries, everything up to the output's projection. Positions are taken in chunks as gated
// delta nets take them.
#include "layers/mamba.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace hotset {
namespace {

struct MambaJob {
  const Mamba* layer;
  const RecurrentSpan* spans;
  const float* inputs;  // rows x width_in()
  const float* zeros;   // a row of channels before the first position
  const float* ones;
  float* mixed;  // rows x all values
  int64_t most_rows;

  int64_t groups() const { return layer->shape.n_key_heads; }
  int64_t key_dim() const { return layer->shape.key_dim; }
  int64_t dim() const { return layer->shape.value_dim; }
  int64_t width() const { return delta_width(dim()); }
  int64_t group() const { return layer->shape.n_value_heads / groups(); }
  int64_t own() const { return group() * dim(); }  // values of a group
  int64_t values() const { return layer->shape.n_value_heads * dim(); }
  int64_t width_in() const { return values() + layer->shape.channels + layer->shape.n_value_heads; }

  // Parts of a thread's memory, for one group.
  struct Scratch {
    float* states;   // group x key_dim x width
    float* keys;     // key_dim x kDeltaChunk
    float* updates;  // group x kDeltaChunk x width
    float* decays;   // group x kDeltaChunk
    float* queries;  // kDeltaChunk x key_dim
    float* key;      // key_dim
    float* x;        // kDeltaChunk x own
    float* results;  // kDeltaChunk x width
    float* gates;    // own
    float* more;     // for the kernels
    float* y;        // rows x own
  };
  size_t divide(void* memory, Scratch* s) const {
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
      float* part = static_cast<float*>(memory) + used;
      used += (floats + 15) / 16 * 16;
      return part;
    };
    s->states = take(group() * key_dim() * width());
    s->keys = take(key_dim() * kDeltaChunk);
    s->updates = take(group() * kDeltaChunk * width());
    s->decays = take(group() * kDeltaChunk);
    s->queries = take(kDeltaChunk * key_dim());
    s->key = take(key_dim());
    s->x = take(kDeltaChunk * own());
    s->results = take(kDeltaChunk * width());
    s->gates = take(own());
    s->more = take(std::max(delta_scratch(dim()), key_dim() * kDeltaChunk));
    s->y = take(most_rows * own());
    return static_cast<size_t>(used) * sizeof(float);
  }
  size_t scratch_bytes() const {
    alignas(64) float nothing[1];
    Scratch s;
    return divide(nothing, &s);
  }

  const float* row_of(const RecurrentSpan& span, int64_t row) const {
    return inputs + (span.row0 + row) * width_in();
  }

  // The convolution's input at a position of the span or before it.
  const float* input(const RecurrentSpan& span, int64_t position) const {
    if (position < 0) return zeros;
    if (position >= span.start) return row_of(span, position - span.start) + values();
    const int64_t at = position - span.begin + layer->shape.kernel - 1;
    return span.present.inputs + at * layer->shape.channels;
  }

  void compute(int64_t chunk, void* memory) const {
    const RecurrentSpan& span = spans[chunk / groups()];
    const int64_t head = chunk % groups();
    Scratch s;
    divide(memory, &s);
    load(span, head, s);
    const DeltaNetKernels& kernels = *layer->runtime->vector.delta_net;
    const int64_t state_floats = key_dim() * width();
    bool folded = false;
    for (int64_t row = 0; row < span.count;) {
      const int64_t first = (span.start + row) % kDeltaChunk;
      const int64_t n = std::min(kDeltaChunk - first, span.count - row);
      prepare(span, head, row, first, n, s);
      for (int64_t m = 0; m < group(); ++m) {
        const float* state = s.states + m * state_floats;
        if (!folded) {
          state = span.begin == 0 ? nullptr : span.present.states + (head * group() + m) * state_floats;
        }
        float* updates = s.updates + m * kDeltaChunk * width();
        const float* decays = s.decays + m * kDeltaChunk;
        const DeltaRows rows{key_dim(), dim(),   first,  n,       state,     s.keys, s.queries,
                             nullptr,   nullptr, decays, updates, s.results, s.more};
        kernels.attend(&rows);
        const float skip = layer->skip[static_cast<size_t>(head * group() + m)];
        for (int64_t i = 0; i < n; ++i) {
          const float* x = s.x + i * own() + m * dim();
          float* y = s.y + (row + i) * own() + m * dim();
          for (int64_t d = 0; d < dim(); ++d) y[d] = s.results[i * width() + d] + skip * x[d];
        }
        if (first + n == kDeltaChunk) {
          kernels.fold(key_dim(), dim(), state, s.keys, updates, decays, s.more, s.states + m * state_floats);
        }
      }
      for (int64_t i = 0; i < n; ++i) finish(span, head, row + i, s);
      folded = folded || first + n == kDeltaChunk;
      row += n;
    }
  }

  // What there is of the present chunk: rows that follow are being written, where another thread was faster.
  void load(const RecurrentSpan& span, int64_t head, const Scratch& s) const {
    const int64_t first = span.start - span.begin;
    for (int64_t d = 0; d < key_dim(); ++d) {
      std::copy_n(span.present.keys + (head * key_dim() + d) * kDeltaChunk, first, s.keys + d * kDeltaChunk);
    }
    std::memset(s.updates, 0, static_cast<size_t>(group() * kDeltaChunk * width()) * sizeof(float));
    for (int64_t m = 0; m < group(); ++m) {
      const int64_t line = (head * group() + m) * kDeltaChunk;
      std::copy_n(span.present.updates + line * width(), first * width(),
                  s.updates + m * kDeltaChunk * width());
      std::copy_n(span.present.decays + line, first, s.decays + m * kDeltaChunk);
    }
  }

  // Keys, queries, values, updates and decays of n rows, which are the chunk's from `first` on.
  void prepare(const RecurrentSpan& span, int64_t head, int64_t row, int64_t first, int64_t n,
               const Scratch& s) const {
    const DeltaNetKernels& kernels = *layer->runtime->vector.delta_net;
    const RecurrentShape& shape = layer->shape;
    for (int64_t i = 0; i < n; ++i) {
      const float* taps[65];
      const auto convolve = [&](int64_t channel, int64_t count, float* to) {
        for (int64_t t = 0; t < shape.kernel; ++t) {
          taps[t] = input(span, span.start + row + i - shape.kernel + 1 + t) + channel;
        }
        taps[shape.kernel] = ones;
        kernels.convolve(taps, layer->conv.data() + channel, shape.channels, shape.kernel + 1, count, to);
      };
      float* x = s.x + i * own();
      convolve(head * own(), own(), x);
      convolve(values() + head * key_dim(), key_dim(), s.key);
      convolve(values() + (groups() + head) * key_dim(), key_dim(), s.queries + i * key_dim());
      for (int64_t d = 0; d < key_dim(); ++d) s.keys[d * kDeltaChunk + first + i] = s.key[d];
      const float* steps = row_of(span, row + i) + values() + shape.channels + head * group();
      for (int64_t m = 0; m < group(); ++m) {
        const auto at = static_cast<size_t>(head * group() + m);
        const float a = steps[m] + layer->dt_bias[at];
        const float dt = std::max(a, 0.0f) + std::log1p(std::exp(-std::fabs(a)));
        float* decays = s.decays + m * kDeltaChunk + first + i;
        *decays = (first + i > 0 ? decays[-1] : 0.0f) + layer->decay[at] * dt;
        float* update = s.updates + (m * kDeltaChunk + first + i) * width();
        for (int64_t d = 0; d < dim(); ++d) update[d] = dt * x[m * dim() + d];
      }
    }
  }

  // Multiplies a row's results by silu(z) and norms them, all of the group together.
  void finish(const RecurrentSpan& span, int64_t head, int64_t row, const Scratch& s) const {
    const VectorKernels& vector = layer->runtime->vector;
    float* y = s.y + row * own();
    std::copy_n(row_of(span, row) + head * own(), own(), s.gates);
    vector.activate(Activation::kSilu, s.gates, y, own());
    vector.rms_norm(s.gates, layer->out_norm.weight.data() + head * own(), nullptr, layer->out_norm.eps,
                    own(), y);
  }

  void commit(int64_t chunk, void* memory) const {
    const RecurrentSpan& span = spans[chunk / groups()];
    const int64_t head = chunk % groups(), end = span.start + span.count;
    Scratch s;
    divide(memory, &s);
    const bool leaves = span.leaves();
    const int64_t first = leaves ? 0 : span.start - span.begin, last = end - span.target_begin;
    for (int64_t d = 0; d < key_dim(); ++d) {
      const int64_t line = d * kDeltaChunk;
      std::copy(s.keys + line + first, s.keys + line + last,
                span.target.keys + head * key_dim() * kDeltaChunk + line + first);
    }
    for (int64_t m = 0; m < group(); ++m) {
      const int64_t at = head * group() + m, line = m * kDeltaChunk;
      std::copy(s.updates + (line + first) * width(), s.updates + (line + last) * width(),
                span.target.updates + (at * kDeltaChunk + first) * width());
      std::copy(s.decays + line + first, s.decays + line + last,
                span.target.decays + at * kDeltaChunk + first);
    }
    if (leaves) {
      const int64_t floats = group() * key_dim() * width();
      std::copy_n(s.states, floats, span.target.states + head * floats);
    }
    for (int64_t row = 0; row < span.count; ++row) {
      std::copy_n(s.y + row * own(), own(), mixed + (span.row0 + row) * values() + head * own());
    }
    const int64_t before = layer->shape.kernel - 1;
    for (int64_t position = leaves ? span.target_begin - before : span.start; position < end; ++position) {
      const float* from = input(span, position);
      float* to = span.target.inputs + (position - span.target_begin + before) * layer->shape.channels;
      std::copy_n(from + head * own(), own(), to + head * own());
      for (const int64_t part : {values() + head * key_dim(), values() + (groups() + head) * key_dim()}) {
        std::copy_n(from + part, key_dim(), to + part);
      }
    }
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
  session.run(n_spans * shape.n_key_heads, MambaJob{this, spans, inputs, zeros, ones, mixed, most_rows});
  zone.next(ZoneName::kRecurrentOutput);
  const Activations packed = pack(session, *runtime, mixed, rows, nullptr, {output.get()});
  multiply_residual(session, *runtime, packed, *output, nullptr, out);
}

}  // namespace hotset
