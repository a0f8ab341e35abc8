#include "layers/layers.h"

#include <algorithm>
#include <chrono>

namespace hotset {

namespace {

Activations pack_input(Session& session, const Ffn& ffn, const float* x, int64_t rows) {
  return ffn.gate ? pack(session, *ffn.runtime, x, rows, &ffn.norm, {ffn.gate.get(), ffn.up.get()})
                  : pack(session, *ffn.runtime, x, rows, &ffn.norm, {ffn.up.get()});
}

}  // namespace

void Ffn::forward(const float* x, float* out, int64_t rows) const {
  Session session(runtime->pool);
  add(session, x, out, rows);
}

void Ffn::add(Session& session, const float* x, float* out, int64_t rows) const {
  Zone zone(runtime->zones, ZoneName::kFfnUp);
  const Activations normed = pack_input(session, *this, x, rows);
  auto* h = session.allocate<float>(rows * up->rows());
  multiply_gated(session, *runtime, normed, gate.get(), *up, activation, h);
  zone.next(ZoneName::kFfnDown);
  const Activations neurons = pack(session, *runtime, h, rows, nullptr, {down.get()});
  multiply_residual(session, *runtime, neurons, *down, post_norm.get(), out);
}

void Ffn::neurons(const float* x, int64_t rows, float* pre, float* h) const {
  Session session(runtime->pool);
  const Activations normed = pack_input(session, *this, x, rows);
  multiply_gated_apart(session, *runtime, normed, gate.get(), *up, activation, pre, h);
}

namespace {

// Logits whose cap one chunk takes.
constexpr int64_t kCapped = 4096;

struct CapJob {
  const VectorKernels* vector;
  float* logits;
  int64_t width;
  float cap;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}
  void commit(int64_t chunk, void*) const {
    const int64_t pieces = ceil_div(width, kCapped), first = chunk % pieces * kCapped;
    vector->soft_cap(logits + chunk / pieces * width + first, cap, std::min(kCapped, width - first));
  }
};

// h = gelu(h) * e, row by row.
struct GatedJob {
  const VectorKernels* vector;
  float* h;
  const float* e;
  int64_t width;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}
  void commit(int64_t row, void*) const {
    vector->activate(Activation::kGeluTanh, h + row * width, e + row * width, width);
  }
};

}  // namespace

void Head::forward(const float* x, float* logits, int64_t rows) const {
  Session session(runtime->pool);
  const Zone zone(runtime->zones, ZoneName::kHead);
  const Activations normed = pack(session, *runtime, x, rows, &norm, {output.get()});
  multiply(session, *runtime, normed, {{output.get(), logits, output->rows()}}, false);
  if (soft_cap > 0) {
    session.run(rows * ceil_div(output->rows(), kCapped),
                CapJob{&runtime->vector, logits, output->rows(), soft_cap});
  }
}

void LayerInput::forward(const float* x, const float* e, float* out, int64_t rows) const {
  Session session(runtime->pool);
  const Zone zone(runtime->zones, ZoneName::kLayerInput);
  const int64_t width = gate->rows();
  auto* h = session.allocate<float>(rows * width);
  const Activations read = pack(session, *runtime, x, rows, nullptr, {gate.get()});
  multiply(session, *runtime, read, {{gate.get(), h, width}}, false);
  session.run(rows, GatedJob{&runtime->vector, h, e, width});
  const Activations gated = pack(session, *runtime, h, rows, nullptr, {up.get()});
  multiply_residual(session, *runtime, gated, *up, &post_norm, out);
}

namespace {

// Touches every cache line once. Several streams with prefetches keep the most requests to memory in flight.
struct ReadJob {
  static constexpr int64_t kLineWords = 8, kStreams = 4, kAheadWords = 64;

  const uint64_t* data;
  int64_t words;  // to a chunk
  uint64_t* digest;

  size_t scratch_bytes() const { return sizeof(uint64_t); }

  void compute(int64_t chunk, void* scratch) const {
    const uint64_t* p = data + chunk * words;
    const int64_t stream = words / kStreams;
    uint64_t sums[kStreams] = {};
    for (int64_t i = 0; i < stream; i += kLineWords) {
      for (int64_t s = 0; s < kStreams; ++s) {
        __builtin_prefetch(p + s * stream + i + kAheadWords);
        sums[s] += p[s * stream + i];
      }
    }
    *static_cast<uint64_t*>(scratch) = sums[0] + sums[1] + sums[2] + sums[3];
  }

  void commit(int64_t chunk, void* scratch) const { digest[chunk] = *static_cast<uint64_t*>(scratch); }
};

struct WriteJob {
  uint64_t* data;
  int64_t words;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}
  void commit(int64_t chunk, void*) const {
    for (int64_t i = 0; i < words; ++i) data[chunk * words + i] = static_cast<uint64_t>(i);
  }
};

}  // namespace

double memory_bandwidth(Runtime& runtime, size_t bytes, int repeats) {
  constexpr int64_t kWords = 128 << 10;
  const auto chunks = static_cast<int64_t>(bytes / sizeof(uint64_t) / kWords);
  const Buffer buffer(bytes, Pages::kHuge);
  auto* data = reinterpret_cast<uint64_t*>(buffer.data());
  std::vector<uint64_t> digest(static_cast<size_t>(chunks));
  double best = 0;
  {
    Session session(runtime.pool);
    session.run(chunks, WriteJob{data, kWords});
    for (int i = 0; i < repeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      session.run(chunks, ReadJob{data, kWords, digest.data()});
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      best = std::max(best, static_cast<double>(chunks * kWords) * sizeof(uint64_t) / seconds.count());
    }
  }
  runtime.pool.quiesce();
  return best;
}

}  // namespace hotset
