// The gated short convolution: two products with some numbers of each channel between them.
#include "layers/short_conv.h"

#include <algorithm>

namespace hotset {
namespace {

constexpr int64_t kBlock = 256;  // channels that a thread takes at a time

struct ConvJob {
  const ShortConv* layer;
  const RecurrentSpan* spans;
  const float* inputs;  // rows x 3 channels
  float* mixed;         // rows x channels
  int64_t most_rows;

  int64_t channels() const { return layer->shape.channels; }
  int64_t before() const { return layer->shape.kernel - 1; }
  int64_t blocks() const { return ceil_div(channels(), kBlock); }
  size_t scratch_bytes() const {
    return static_cast<size_t>((2 * most_rows + before()) * kBlock) * sizeof(float);
  }

  // Scratch: what the convolution reads, from `before` positions before the span on; then its results.
  void compute(int64_t chunk, void* memory) const {
    const RecurrentSpan& span = spans[chunk / blocks()];
    const int64_t begin = chunk % blocks() * kBlock, n = std::min(kBlock, channels() - begin);
    auto* taps = static_cast<float*>(memory);
    float* y = taps + (most_rows + before()) * kBlock;
    for (int64_t t = 0; t < before(); ++t) {
      const int64_t position = span.start - before() + t;
      if (position < 0) {
        std::fill_n(taps + t * kBlock, n, 0.0f);
      } else {
        std::copy_n(span.present.inputs + (position - span.begin + before()) * channels() + begin, n,
                    taps + t * kBlock);
      }
    }
    for (int64_t row = 0; row < span.count; ++row) {
      const float* gates = inputs + (span.row0 + row) * 3 * channels() + begin;
      const float *after = gates + channels(), *x = after + channels();
      float* newest = taps + (row + before()) * kBlock;
      for (int64_t i = 0; i < n; ++i) newest[i] = gates[i] * x[i];
      float* out = y + row * kBlock;
      std::fill_n(out, n, 0.0f);
      for (int64_t t = 0; t <= before(); ++t) {
        const float* factors = layer->conv.data() + t * channels() + begin;
        const float* tap = taps + (row + t) * kBlock;
        for (int64_t i = 0; i < n; ++i) out[i] += factors[i] * tap[i];
      }
      for (int64_t i = 0; i < n; ++i) out[i] *= after[i];
    }
  }

  void commit(int64_t chunk, void* memory) const {
    const RecurrentSpan& span = spans[chunk / blocks()];
    const int64_t begin = chunk % blocks() * kBlock, n = std::min(kBlock, channels() - begin);
    const auto* taps = static_cast<const float*>(memory);
    const float* y = taps + (most_rows + before()) * kBlock;
    for (int64_t row = 0; row < span.count; ++row) {
      std::copy_n(y + row * kBlock, n, mixed + (span.row0 + row) * channels() + begin);
    }
    // What reaches back over the chunk's beginning is written with it.
    const int64_t first = span.leaves() ? span.target_begin - before() : span.start;
    for (int64_t position = first; position < span.start + span.count; ++position) {
      const int64_t tap = position - span.start + before();
      float* to = span.target.inputs + (position - span.target_begin + before()) * channels() + begin;
      if (tap >= 0) {
        std::copy_n(taps + tap * kBlock, n, to);
      } else if (position >= 0) {
        std::copy_n(span.present.inputs + (position - span.begin + before()) * channels() + begin, n, to);
      }
    }
  }
};

}  // namespace

void ShortConv::forward(const float* x, float* out, const Batch& batch) const {
  Session session(runtime->pool);
  Zone zone(runtime->zones, ZoneName::kRecurrentInput);
  const int64_t rows = batch.rows(), channels = shape.channels;
  auto* inputs = session.allocate<float>(rows * 3 * channels);
  auto* mixed = session.allocate<float>(rows * channels);
  const auto n_spans = static_cast<int64_t>(batch.spans().size());
  auto* spans = session.allocate<RecurrentSpan>(n_spans);
  const int64_t most_rows = place_spans(batch, index, spans);

  const Activations normed = pack(session, *runtime, x, rows, &norm, {input.get()});
  multiply(session, *runtime, normed, {{input.get(), inputs, 3 * channels}}, false);
  zone.next(ZoneName::kRecurrentStates);
  const ConvJob job{this, spans, inputs, mixed, most_rows};
  session.run(n_spans * job.blocks(), job);
  zone.next(ZoneName::kRecurrentOutput);
  const Activations packed = pack(session, *runtime, mixed, rows, nullptr, {output.get()});
  multiply_residual(session, *runtime, packed, *output, nullptr, out);
}

}  // namespace hotset
