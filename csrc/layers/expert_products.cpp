#include "layers/expert_products.h"

#include <algorithm>

namespace hotset {
namespace {

// pack_activations takes groups of so many rows.
constexpr int64_t kRowGroup = 16;

// Weights that a chunk reads where few rows use an expert, as in products.cpp; more at most, as they are two
// matrices' and each has streams of its own.
constexpr int64_t kMinChunkBytes = 12 << 10, kMaxChunkBytes = 512 << 10;
constexpr int64_t kChunksPerThread = 4;
constexpr int64_t kPanelGroup = 4;

// What each of the kernels' streams reads at least of an expert's rows of down, which are short.
constexpr int64_t kRunBytes = 24 << 10;

// Results of a chunk where many do.
constexpr int64_t kChunkFloats = 16 << 10;

int64_t panels_of(const Runtime& runtime, const PackedMatrix& matrix) {
  return ceil_div(matrix.rows, runtime.linear.lanes);
}

// A chunk's place: a use and its part of it.
struct Place {
  int64_t use, part;
};
Place find(const int64_t* first_chunks, int64_t n, int64_t chunk) {
  const int64_t use = std::upper_bound(first_chunks, first_chunks + n, chunk) - first_chunks - 1;
  return {use, chunk - first_chunks[use]};
}

struct GatherJob {
  const Runtime* runtime;
  Activations x;
  int64_t cols;
  const ExpertUse* uses;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void*) const {
    const ExpertUse& use = uses[chunk];
    for (int format = 0; format < 2; ++format) {
      if (!use.x[format] || use.x[format] == x.packed[format]) continue;
      runtime->linear.gather_activations(static_cast<ActivationFormat>(format), cols, x.packed[format],
                                         x.rows, use.rows, use.count, const_cast<void*>(use.x[format]));
    }
  }
};

// Some panels of gate and up of one expert.
struct HiddenJob {
  const Runtime* runtime;
  ExpertUses all;
  const int64_t *first_chunks, *chunk_panels;  // of each use
  const int64_t* first_pairs;                  // rows of the uses before
  int64_t most_floats;                         // of a chunk's result
  float* pre;

  size_t scratch_bytes() const { return static_cast<size_t>((pre ? 3 : 2) * most_floats) * sizeof(float); }

  int64_t last_panel(const ExpertUse& use, const Place& at) const {
    return std::min((at.part + 1) * chunk_panels[at.use], panels_of(*runtime, use.up));
  }

  void compute(int64_t chunk, void* scratch) const {
    const Place at = find(first_chunks, all.n, chunk);
    const ExpertUse& use = all.uses[at.use];
    const int64_t panel0 = at.part * chunk_panels[at.use], panel1 = last_panel(use, at);
    const int64_t n = (panel1 - panel0) * runtime->linear.lanes * use.count;
    auto* y = static_cast<float*>(scratch);
    float* up = use.gated ? y + most_floats : y;
    const auto multiply = [&](const PackedMatrix& matrix, const float* bias, float* to) {
      const void* x = use.x[runtime->linear.activation_format(matrix.type)];
      multiply_panels(*runtime, matrix, bias, panel0, panel1, x, use.count, to);
    };
    if (use.gated) multiply(use.gate, use.gate_bias, y);
    multiply(use.up, use.up_bias, up);
    if (pre) std::copy_n(y, n, y + 2 * most_floats);
    runtime->vector.activate(all.activation, y, use.gated ? up : nullptr, n);
  }

  void commit(int64_t chunk, void* scratch) const {
    const Place at = find(first_chunks, all.n, chunk);
    const ExpertUse& use = all.uses[at.use];
    const int64_t panel0 = at.part * chunk_panels[at.use], panel1 = last_panel(use, at);
    const auto* y = static_cast<const float*>(scratch);
    write(use, panel0, panel1, y, use.h);
    if (pre) write(use, panel0, panel1, y + 2 * most_floats, pre + first_pairs[at.use] * use.size());
  }

  void write(const ExpertUse& use, int64_t panel0, int64_t panel1, const float* y, float* to) const {
    const int64_t lanes = runtime->linear.lanes, width = (panel1 - panel0) * lanes, first = panel0 * lanes;
    const int64_t n = std::min(use.size() - first, width);
    for (int64_t t = 0; t < use.count; ++t) std::copy_n(y + t * width, n, to + t * use.size() + first);
  }
};

struct PackNeuronsJob {
  const Runtime* runtime;
  const ExpertUse* uses;
  const int64_t* first_chunks;
  int64_t n;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void*) const {
    const Place at = find(first_chunks, n, chunk);
    const ExpertUse& use = uses[at.use];
    const int64_t first = at.part * kRowGroup, last = std::min(first + kRowGroup, use.count);
    const ActivationFormat format = runtime->linear.activation_format(use.down.type);
    runtime->linear.pack_activations(format, use.h, use.size(), use.count, use.size(), first, last,
                                     use.h_packed);
  }
};

// Some panels of down of all experts: so each row's sum is taken in the order of the uses, in scratch memory.
struct SumJob {
  const Runtime* runtime;
  ExpertUses all;
  int64_t panels, chunk_panels, cols;
  int64_t most_count;  // rows of a use
  float* out;

  int64_t chunk_floats() const { return chunk_panels * runtime->linear.lanes; }
  size_t scratch_bytes() const {
    return static_cast<size_t>((all.rows + most_count) * chunk_floats()) * sizeof(float);
  }

  void compute(int64_t chunk, void* scratch) const {
    const int64_t panel0 = chunk * chunk_panels, panel1 = std::min(panel0 + chunk_panels, panels);
    const int64_t width = (panel1 - panel0) * runtime->linear.lanes;
    auto *sums = static_cast<float*>(scratch), *y = sums + all.rows * chunk_floats();
    std::fill_n(sums, all.rows * width, 0.0f);
    for (const ExpertUse* use = all.uses; use < all.uses + all.n; ++use) {
      multiply_panels(*runtime, use->down, use->down_bias, panel0, panel1, use->h_packed, use->count, y);
      for (int64_t t = 0; t < use->count; ++t) {
        runtime->vector.scale(y + t * width, use->weights[t], width);
        runtime->vector.add(y + t * width, width, sums + use->rows[t] * width);
      }
    }
  }

  void commit(int64_t chunk, void* scratch) const {
    const int64_t lanes = runtime->linear.lanes, panel0 = chunk * chunk_panels, first = panel0 * lanes;
    const int64_t width = (std::min(panel0 + chunk_panels, panels) - panel0) * lanes;
    const int64_t n = std::min(cols - first, width);
    const auto* sums = static_cast<const float*>(scratch);
    for (int64_t row = 0; row < all.rows; ++row) {
      runtime->vector.add(sums + row * width, n, out + row * cols + first);
    }
  }
};

// Panels to a chunk where a chunk reads `panel_bytes` for each; `bytes` is the region's whole weight.
int64_t chunk_panels_of(const Runtime& runtime, int64_t panels, int64_t panel_bytes, int64_t bytes) {
  const int64_t share = bytes / (runtime.pool.threads() * kChunksPerThread);
  const int64_t wanted = std::clamp(share, kMinChunkBytes, kMaxChunkBytes) / panel_bytes;
  const int64_t most = std::max<int64_t>(1, ceil_div(panels, runtime.pool.threads()));
  return std::min(std::max<int64_t>(1, wanted / kPanelGroup) * kPanelGroup, most);
}

}  // namespace

void gather_inputs(Session& session, const Runtime& runtime, const Activations& x, int64_t cols,
                   ExpertUse* uses, int64_t n) {
  bool any = false;
  for (ExpertUse* use = uses; use < uses + n; ++use) {
    for (const ActivationFormat format : {kActF32, kActInt8}) {
      const auto wants = [&](const PackedMatrix& m) {
        return runtime.linear.activation_format(m.type) == format;
      };
      if (!wants(use->up) && !(use->gated && wants(use->gate))) {
        use->x[format] = nullptr;
      } else if (use->count == x.rows) {
        use->x[format] = x.packed[format];
      } else {
        use->x[format] = session.allocate<uint8_t>(runtime.linear.activation_bytes(format, use->count, cols));
        any = true;
      }
    }
  }
  if (any) session.run(n, GatherJob{&runtime, x, cols, uses});
}

void multiply_experts(Session& session, const Runtime& runtime, const ExpertUses& all, float* pre) {
  auto *first_chunks = session.allocate<int64_t>(all.n), *chunk_panels = session.allocate<int64_t>(all.n),
       *first_pairs = session.allocate<int64_t>(all.n);
  const auto panel_bytes = [](const ExpertUse& use) {
    return use.up.panel_bytes + (use.gated ? use.gate.panel_bytes : 0);
  };
  int64_t bytes = 0, chunks = 0, pairs = 0;
  for (int64_t i = 0; i < all.n; ++i) {
    bytes += panels_of(runtime, all.uses[i].up) * panel_bytes(all.uses[i]);
  }
  HiddenJob job{&runtime, all, first_chunks, chunk_panels, first_pairs, 0, pre};
  for (int64_t i = 0; i < all.n; ++i) {
    const ExpertUse& use = all.uses[i];
    const int64_t panels = panels_of(runtime, use.up);
    int64_t wanted = chunk_panels_of(runtime, panels, panel_bytes(use), bytes);
    if (use.count > kFewRows) {
      const int64_t share = ceil_div(panels * all.n, runtime.pool.threads() * kChunksPerThread);
      wanted = std::min(share, kChunkFloats / (use.count * runtime.linear.lanes)) / 2 * 2;
      wanted = std::clamp<int64_t>(wanted, 1, panels);
    }
    first_chunks[i] = chunks;
    first_pairs[i] = pairs;
    chunk_panels[i] = wanted;
    chunks += ceil_div(panels, wanted);
    pairs += use.count;
    job.most_floats = std::max(job.most_floats, wanted * runtime.linear.lanes * use.count);
  }
  session.run(chunks, job);
}

void pack_neurons(Session& session, const Runtime& runtime, const ExpertUses& all) {
  auto* first_chunks = session.allocate<int64_t>(all.n);
  int64_t chunks = 0;
  for (int64_t i = 0; i < all.n; ++i) {
    first_chunks[i] = chunks;
    chunks += ceil_div(all.uses[i].count, kRowGroup);
  }
  session.run(chunks, PackNeuronsJob{&runtime, all.uses, first_chunks, all.n});
}

void add_experts(Session& session, const Runtime& runtime, const ExpertUses& all, float* out) {
  const PackedMatrix& down = all.uses[0].down;
  SumJob job{&runtime, all, panels_of(runtime, down), 1, down.rows, 0, out};
  int64_t panel_bytes = 1;
  for (int64_t i = 0; i < all.n; ++i) {
    panel_bytes = std::max(panel_bytes, all.uses[i].down.panel_bytes);
    job.most_count = std::max(job.most_count, all.uses[i].count);
  }
  const int64_t run = all.rows <= kFewRows ? ceil_div(kRunBytes, panel_bytes) : 1;
  job.chunk_panels = std::min(kPanelGroup * run, ceil_div(job.panels, runtime.pool.threads()));
  session.run(ceil_div(job.panels, job.chunk_panels), job);
}

}  // namespace hotset
