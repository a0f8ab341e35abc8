// What gated delta nets and Mamba-2 compute between their projections: chunks of positions
// (kernels/delta_net.h), and what they read and write of a sequence's state.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "layers/products.h"
#include "layers/recurrent_spans.h"

namespace hotset {

// Parts of a thread's memory, for one key head and the `group` value heads that read it.
struct RecurrentScratch {
  float* states;   // group x key_dim x width
  float* keys;     // key_dim x kDeltaChunk
  float* updates;  // group x kDeltaChunk x width
  float* decays;   // group x kDeltaChunk
  float* both;     // rows' keys, then their queries: 2 kDeltaChunk x key_dim
  float* values;   // group x kDeltaChunk x width
  float* results;  // kDeltaChunk x width
  float* gates;    // group x value_dim
  float* beta;     // group x kDeltaChunk
  float* kernels;  // for the kernels
  float* y;        // rows x group x value_dim
};

// A region's chunk is one span and one key head. `Job`, which is derived from this, has
//   clear(scratch)                               zeros behind rows of values or updates that `prepare` writes
//   prepare(span, head, row, first, n, scratch)  keys, values and decays of n rows, the chunk's from `first`
//   on rows_of(m, n, scratch)                       what the kernel reads of them take(span, head, m, row, n,
//   scratch)         puts a value head's results into y finish(span, head, row, n, scratch)          all its
//   value heads' results are in y each_part(head, copy)                        copy(first, count) of its
//   channels of the convolution's input
template <class Job>
struct RecurrentJob {
  const Runtime* runtime;
  RecurrentShape shape;
  bool tiled;  // value head h reads key head h mod n_key_heads
  const RecurrentSpan* spans;
  const float* inputs;  // of the convolution, a row at each `stride`
  int64_t stride;
  const float* zeros;  // a row of them, before the first position
  float* mixed;        // rows x value heads x value_dim
  int64_t most_rows;

  int64_t keys() const { return shape.n_key_heads; }
  int64_t key_dim() const { return shape.key_dim; }
  int64_t dim() const { return shape.value_dim; }
  int64_t width() const { return delta_width(dim()); }
  int64_t group() const { return shape.n_value_heads / keys(); }
  int64_t state_floats() const { return key_dim() * width(); }
  int64_t value_head(int64_t key_head, int64_t member) const {
    return tiled ? member * keys() + key_head : key_head * group() + member;
  }
  const DeltaNetKernels& kernels() const { return *runtime->vector.delta_net; }

  size_t divide(void* memory, RecurrentScratch* s) const {
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
      float* part = static_cast<float*>(memory) + used;
      used += (floats + 15) / 16 * 16;
      return part;
    };
    s->states = take(group() * state_floats());
    s->keys = take(key_dim() * kDeltaChunk);
    s->updates = take(group() * kDeltaChunk * width());
    s->decays = take(group() * kDeltaChunk);
    s->both = take(2 * kDeltaChunk * key_dim());
    s->values = take(group() * kDeltaChunk * width());
    s->results = take(kDeltaChunk * width());
    s->gates = take(group() * dim());
    s->beta = take(group() * kDeltaChunk);
    s->kernels = take(std::max(delta_scratch(dim()), key_dim() * kDeltaChunk));
    s->y = take(most_rows * group() * dim());
    return static_cast<size_t>(used) * sizeof(float);
  }
  size_t scratch_bytes() const {
    alignas(64) float nothing[1];
    RecurrentScratch s;
    return divide(nothing, &s);
  }

  // The convolution's input at a position of the span or before it.
  const float* input(const RecurrentSpan& span, int64_t position) const {
    if (position < 0) return zeros;
    if (position >= span.start) return inputs + (span.row0 + position - span.start) * stride;
    return span.present.inputs + (position - span.begin + shape.kernel - 1) * shape.channels;
  }

  void clear_rows(float* rows) const {
    std::memset(rows, 0, static_cast<size_t>(group() * kDeltaChunk * width()) * sizeof(float));
  }

  // How far softplus(step + bias) of row `at` of the chunk decays the state, after the rows before it.
  static float decay(float step, float rate, int64_t at, float* decays) {
    const float softplus = std::max(step, 0.0f) + std::log1p(std::exp(-std::fabs(step)));
    decays[at] = (at > 0 ? decays[at - 1] : 0.0f) + rate * softplus;
    return softplus;
  }

  void compute(int64_t chunk, void* memory) const {
    const Job& job = static_cast<const Job&>(*this);
    const RecurrentSpan& span = spans[chunk / keys()];
    const int64_t head = chunk % keys();
    RecurrentScratch s;
    divide(memory, &s);
    load(span, head, s);
    bool folded = false;
    for (int64_t row = 0; row < span.count;) {
      const int64_t first = (span.start + row) % kDeltaChunk;
      const int64_t n = std::min(kDeltaChunk - first, span.count - row);
      job.prepare(span, head, row, first, n, s);
      for (int64_t m = 0; m < group(); ++m) {
        const float* state = s.states + m * state_floats();
        if (!folded) {
          state = span.begin == 0 ? nullptr : span.present.states + value_head(head, m) * state_floats();
        }
        DeltaRows rows = job.rows_of(m, n, s);
        rows.key_dim = key_dim();
        rows.value_dim = dim();
        rows.first = first;
        rows.rows = n;
        rows.state = state;
        rows.keys = s.keys;
        rows.decays = s.decays + m * kDeltaChunk;
        rows.updates = s.updates + m * kDeltaChunk * width();
        rows.results = s.results;
        rows.scratch = s.kernels;
        kernels().attend(&rows);
        job.take(span, head, m, row, n, s);
        if (first + n == kDeltaChunk) {
          kernels().fold(key_dim(), dim(), state, s.keys, rows.updates, rows.decays, s.kernels,
                         s.states + m * state_floats());
        }
      }
      job.finish(span, head, row, n, s);
      folded = folded || first + n == kDeltaChunk;
      row += n;
    }
  }

  // What there is of the present chunk: rows that follow are being written, where another thread was faster.
  void load(const RecurrentSpan& span, int64_t head, const RecurrentScratch& s) const {
    const int64_t first = span.start - span.begin;
    static_cast<const Job*>(this)->clear(s);
    for (int64_t d = 0; d < key_dim(); ++d) {
      std::copy_n(span.present.keys + (head * key_dim() + d) * kDeltaChunk, first, s.keys + d * kDeltaChunk);
    }
    for (int64_t m = 0; m < group(); ++m) {
      const int64_t line = value_head(head, m) * kDeltaChunk;
      std::copy_n(span.present.updates + line * width(), first * width(),
                  s.updates + m * kDeltaChunk * width());
      std::copy_n(span.present.decays + line, first, s.decays + m * kDeltaChunk);
    }
  }

  void commit(int64_t chunk, void* memory) const {
    const Job& job = static_cast<const Job&>(*this);
    const RecurrentSpan& span = spans[chunk / keys()];
    const int64_t head = chunk % keys(), end = span.start + span.count;
    RecurrentScratch s;
    divide(memory, &s);
    const bool leaves = span.leaves();
    const int64_t first = leaves ? 0 : span.start - span.begin, last = end - span.target_begin;
    for (int64_t d = 0; d < key_dim(); ++d) {
      const int64_t line = d * kDeltaChunk;
      std::copy(s.keys + line + first, s.keys + line + last,
                span.target.keys + head * key_dim() * kDeltaChunk + line + first);
    }
    for (int64_t m = 0; m < group(); ++m) {
      const int64_t own = value_head(head, m), line = m * kDeltaChunk;
      std::copy(s.updates + (line + first) * width(), s.updates + (line + last) * width(),
                span.target.updates + (own * kDeltaChunk + first) * width());
      std::copy(s.decays + line + first, s.decays + line + last,
                span.target.decays + own * kDeltaChunk + first);
      if (leaves) {
        std::copy_n(s.states + m * state_floats(), state_floats(), span.target.states + own * state_floats());
      }
      for (int64_t row = 0; row < span.count; ++row) {
        std::copy_n(s.y + (row * group() + m) * dim(), dim(),
                    mixed + ((span.row0 + row) * shape.n_value_heads + own) * dim());
      }
    }
    const int64_t before = shape.kernel - 1;
    for (int64_t position = leaves ? span.target_begin - before : span.start; position < end; ++position) {
      const float* from = input(span, position);
      float* to = span.target.inputs + (position - span.target_begin + before) * shape.channels;
      job.each_part(head, [&](int64_t part, int64_t count) { std::copy_n(from + part, count, to + part); });
    }
  }
};

}  // namespace hotset
