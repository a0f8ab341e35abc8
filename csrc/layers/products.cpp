#include "layers/products.h"

#include <algorithm>

namespace hotset {
namespace {

// pack_activations takes groups of so many rows.
constexpr int64_t kRowGroup = 16;

// Weights that a chunk reads where there are few rows of x: enough to hide what handing out a chunk costs,
// few enough that threads finish together. Small products get smaller chunks, so that each thread has some.
constexpr int64_t kMinChunkBytes = 12 << 10, kMaxChunkBytes = 256 << 10;
constexpr int64_t kChunksPerThread = 4;

// Packed weights after which the file's pages are given back.
constexpr int64_t kSliceBytes = 16 << 20;

// The kernels for few rows are fastest on so many panels at once.
constexpr int64_t kPanelGroup = 4;

// Prefill: more rows make unpacking the weights worth more, while their packed activations, and the chunk's
// part of the result, should stay in the L2 cache.
constexpr int64_t kMaxTileRows = 128;
constexpr int64_t kTileActivations = 512 << 10;
constexpr int64_t kTileFloats = 16 << 10;

// A product cut into tiles: some panels of the matrix times some rows of the activations, rows fastest.
struct Tiling {
  int64_t panels, rows;
  int64_t tile_panels, tile_rows;

  int64_t row_tiles() const { return ceil_div(rows, tile_rows); }
  int64_t tiles() const { return ceil_div(panels, tile_panels) * row_tiles(); }
};

struct Tile {
  int64_t panel0, panel1, row0, row1;

  Tile(const Tiling& t, int64_t index) {
    panel0 = index / t.row_tiles() * t.tile_panels;
    panel1 = std::min(panel0 + t.tile_panels, t.panels);
    row0 = index % t.row_tiles() * t.tile_rows;
    row1 = std::min(row0 + t.tile_rows, t.rows);
  }
};

// `bytes` is the region's whole weight, `panel_bytes` that of one panel (of all matrices that a chunk
// multiplies).
Tiling cut(const Runtime& runtime, const Linear& matrix, int64_t panel_bytes, int64_t bytes, int64_t rows) {
  Tiling t{matrix.panels(), rows, 1, 1};
  if (rows <= kFewRows) {
    t.tile_rows = rows;
    const int64_t share = bytes / (runtime.pool.threads() * kChunksPerThread);
    const int64_t panels = std::clamp(share, kMinChunkBytes, kMaxChunkBytes) / panel_bytes;
    t.tile_panels = std::min(std::max<int64_t>(1, panels / kPanelGroup) * kPanelGroup,
                             ceil_div(t.panels, runtime.pool.threads()));
  } else {
    const int64_t most = std::clamp(kTileActivations / matrix.cols(), kRowGroup, kMaxTileRows);
    t.tile_rows = std::min(rows, most / kRowGroup * kRowGroup);
    const int64_t share = t.panels * t.row_tiles() / (runtime.pool.threads() * kChunksPerThread);
    t.tile_panels = std::min(share, kTileFloats / (t.tile_rows * runtime.linear.lanes)) / 2 * 2;
  }
  t.tile_panels = std::clamp<int64_t>(t.tile_panels, 1, t.panels);
  return t;
}

// One matrix's part of a region.
struct Part {
  const PackedMatrix* matrix;
  const float* bias;
  const void* x;
  Tiling tiling;

  Part() = default;
  Part(const Runtime& runtime, const Linear& m, const Activations& x, int64_t panel_bytes, int64_t bytes)
      : matrix(&m.packed),
        bias(m.bias.empty() ? nullptr : m.bias.data()),
        x(x.packed[m.format]),
        tiling(cut(runtime, m, panel_bytes, bytes, x.rows)) {}

  size_t tile_floats(const LinearKernels& linear) const {
    return static_cast<size_t>(tiling.tile_panels * linear.lanes * tiling.tile_rows);
  }

  // The tile's product without bias, rows `width(tile)` apart.
  void multiply(const LinearKernels& linear, const Tile& tile, float* y) const {
    if (tiling.rows == 1) {
      linear.matvec(matrix, tile.panel0, tile.panel1, x, y);
    } else {
      linear.matmul(matrix, tile.panel0, tile.panel1, x, tiling.rows, tile.row0, tile.row1, y,
                    width(linear, tile));
    }
  }

  int64_t width(const LinearKernels& linear, const Tile& tile) const {
    return (tile.panel1 - tile.panel0) * linear.lanes;
  }

  // How many of the tile's columns are rows of the matrix, the others being padding.
  int64_t valid(const LinearKernels& linear, const Tile& tile) const {
    return std::min(matrix->rows - tile.panel0 * linear.lanes, width(linear, tile));
  }

  void add_bias(const Runtime& runtime, const Tile& tile, float* y) const {
    if (!bias) return;
    const LinearKernels& linear = runtime.linear;
    for (int64_t row = tile.row0; row < tile.row1; ++row, y += width(linear, tile)) {
      runtime.vector.add(bias + tile.panel0 * linear.lanes, valid(linear, tile), y);
    }
  }
};

struct ProductJob {
  const Runtime* runtime;
  int n_parts;
  bool add;
  struct {
    Part part;
    int64_t first_chunk;
    float* y;
    int64_t stride;
  } parts[4];

  size_t scratch_bytes() const {
    size_t floats = 0;
    for (int i = 0; i < n_parts; ++i) floats = std::max(floats, parts[i].part.tile_floats(runtime->linear));
    return floats * sizeof(float);
  }

  int part_of(int64_t chunk) const {
    int i = n_parts - 1;
    while (chunk < parts[i].first_chunk) --i;
    return i;
  }

  void compute(int64_t chunk, void* scratch) const {
    const auto& p = parts[part_of(chunk)];
    const Tile tile(p.part.tiling, chunk - p.first_chunk);
    p.part.multiply(runtime->linear, tile, static_cast<float*>(scratch));
    p.part.add_bias(*runtime, tile, static_cast<float*>(scratch));
  }

  void commit(int64_t chunk, void* scratch) const {
    const auto& p = parts[part_of(chunk)];
    const Tile tile(p.part.tiling, chunk - p.first_chunk);
    const int64_t n = p.part.valid(runtime->linear, tile);
    const auto* from = static_cast<const float*>(scratch);
    float* y = p.y + tile.row0 * p.stride + tile.panel0 * runtime->linear.lanes;
    for (int64_t row = tile.row0; row < tile.row1; ++row) {
      if (add) {
        runtime->vector.add(from, n, y);
      } else {
        std::copy_n(from, n, y);
      }
      from += p.part.width(runtime->linear, tile);
      y += p.stride;
    }
  }
};

struct GatedJob {
  const Runtime* runtime;
  bool gated;
  Part gate, up;
  Activation activation;
  float* h;

  size_t scratch_bytes() const { return 2 * up.tile_floats(runtime->linear) * sizeof(float); }

  void compute(int64_t chunk, void* scratch) const {
    const Tile tile(up.tiling, chunk);
    auto* y = static_cast<float*>(scratch);
    const int64_t n = (tile.row1 - tile.row0) * up.width(runtime->linear, tile);
    float* factor = gated ? y + n : nullptr;
    float* ups = gated ? factor : y;
    if (gated) {
      gate.multiply(runtime->linear, tile, y);
      gate.add_bias(*runtime, tile, y);
    }
    up.multiply(runtime->linear, tile, ups);
    up.add_bias(*runtime, tile, ups);
    runtime->vector.activate(activation, y, factor, n);
  }

  void commit(int64_t chunk, void* scratch) const {
    const Tile tile(up.tiling, chunk);
    const int64_t n = up.valid(runtime->linear, tile), stride = up.matrix->rows;
    const auto* from = static_cast<const float*>(scratch);
    for (int64_t row = tile.row0; row < tile.row1; ++row, from += up.width(runtime->linear, tile)) {
      std::copy_n(from, n, h + row * stride + tile.panel0 * runtime->linear.lanes);
    }
  }
};

// The cheap jobs below do all in their commit, since they read what belongs to the caller.

struct PackJob {
  const Runtime* runtime;
  const Norm* norm;
  const float* x;
  float* normed;
  int64_t rows, cols;
  void* packed[2];

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void*) const {
    const int64_t first = chunk * kRowGroup, last = std::min(first + kRowGroup, rows);
    const float* from = x;
    if (norm) {
      for (int64_t row = first; row < last; ++row)
        norm->apply(runtime->vector, x + row * cols, normed + row * cols);
      from = normed;
    }
    for (int format = 0; format < 2; ++format) {
      if (!packed[format]) continue;
      runtime->linear.pack_activations(static_cast<ActivationFormat>(format), from, cols, rows, cols, first,
                                       last, packed[format]);
    }
  }
};

struct AddNormedJob {
  const VectorKernels* vector;
  const Norm* norm;
  float* y;
  int64_t rows;
  float* out;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void*) const {
    const int64_t n = norm->size();
    for (int64_t row = chunk * kRowGroup; row < std::min((chunk + 1) * kRowGroup, rows); ++row) {
      norm->apply(*vector, y + row * n, y + row * n);
      vector->add(y + row * n, n, out + row * n);
    }
  }
};

// h = act(pre) * h, or act(pre) where there is no gate.
struct ActivateJob {
  static constexpr int64_t kChunk = 4096;

  const VectorKernels* vector;
  Activation activation;
  bool gated;
  const float* pre;
  float* h;
  int64_t count;

  size_t scratch_bytes() const { return kChunk * sizeof(float); }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void* scratch) const {
    const int64_t first = chunk * kChunk, n = std::min(kChunk, count - first);
    auto* y = static_cast<float*>(scratch);
    std::copy_n(pre + first, n, y);
    vector->activate(activation, y, gated ? h + first : nullptr, n);
    std::copy_n(y, n, h + first);
  }
};

struct PackWeightsJob {
  const LinearKernels* linear;
  Type type;
  int64_t rows, cols, row_bytes, panels, panels_per_chunk, panel_bytes;
  const uint8_t* data;
  uint8_t* packed;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void*) const {
    const int64_t first = chunk * panels_per_chunk;
    for (int64_t panel = first; panel < std::min(first + panels_per_chunk, panels); ++panel) {
      const int64_t row = panel * linear->lanes;
      linear->pack_panel(type, data + row * row_bytes, std::min(linear->lanes, rows - row), cols,
                         packed + panel * panel_bytes);
    }
  }
};

}  // namespace

Linear::Linear(std::shared_ptr<Runtime> runtime, Type type, int64_t rows, int64_t cols, int64_t row_bytes,
               const uint8_t* data, bool from_file, const float* bias, float scale)
    : runtime_(std::move(runtime)) {
  const LinearKernels& linear = runtime_->linear;
  const int64_t panel_bytes = linear.panel_bytes(type, cols);
  packed = {type, rows, cols, panel_bytes, nullptr, scale};
  format = linear.activation_format(type);
  if (bias) this->bias.assign(bias, bias + rows);
  memory_ = runtime_->buffers.allocate(static_cast<size_t>(panels() * panel_bytes));
  packed.data = memory_.get();

  const int64_t per_chunk = std::max<int64_t>(1, kMaxChunkBytes / panel_bytes);
  const int64_t per_slice = std::max<int64_t>(1, kSliceBytes / panel_bytes);
  Session session(runtime_->pool);
  for (int64_t panel = 0; panel < panels(); panel += per_slice) {
    const int64_t count = std::min(per_slice, panels() - panel), row = panel * linear.lanes;
    const int64_t slice_rows = std::min(rows - row, count * linear.lanes);
    const uint8_t* slice = data + row * row_bytes;
    session.run(ceil_div(count, per_chunk),
                PackWeightsJob{&linear, type, slice_rows, cols, row_bytes, count, per_chunk, panel_bytes,
                               slice, memory_.get() + panel * panel_bytes});
    if (from_file) release_file_pages(slice, static_cast<size_t>(slice_rows * row_bytes));
  }
  if (from_file) release_file_pages(data, static_cast<size_t>(rows * row_bytes));
}

Activations pack(Session& session, const Runtime& runtime, const float* x, int64_t rows, const Norm* norm,
                 std::initializer_list<const Linear*> matrices) {
  unsigned formats = 0;
  for (const Linear* matrix : matrices) formats |= 1u << matrix->format;
  return pack_formats(session, runtime, x, rows, (*matrices.begin())->cols(), norm, formats);
}

Activations pack_formats(Session& session, const Runtime& runtime, const float* x, int64_t rows, int64_t cols,
                         const Norm* norm, unsigned formats) {
  PackJob job{&runtime, norm, x, norm ? session.allocate<float>(rows * cols) : nullptr, rows, cols, {}};
  for (const ActivationFormat format : {kActF32, kActInt8}) {
    if (!(formats >> format & 1)) continue;
    job.packed[format] = session.allocate<uint8_t>(runtime.linear.activation_bytes(format, rows, cols));
  }
  session.run(ceil_div(rows, kRowGroup), job);
  return {{job.packed[0], job.packed[1]}, rows};
}

void multiply_panels(const Runtime& runtime, const PackedMatrix& matrix, const float* bias, int64_t panel0,
                     int64_t panel1, const void* x, int64_t rows, float* y) {
  const LinearKernels& linear = runtime.linear;
  const int64_t width = (panel1 - panel0) * linear.lanes, first = panel0 * linear.lanes;
  if (rows == 1) {
    linear.matvec(&matrix, panel0, panel1, x, y);
  } else {
    linear.matmul(&matrix, panel0, panel1, x, rows, 0, rows, y, width);
  }
  const int64_t valid = std::min(matrix.rows - first, width);
  for (int64_t t = 0; bias && t < rows; ++t) runtime.vector.add(bias + first, valid, y + t * width);
}

void multiply(Session& session, const Runtime& runtime, const Activations& x,
              std::initializer_list<Output> outputs, bool add) {
  int64_t bytes = 0;
  for (const Output& output : outputs) bytes += output.matrix->panels() * output.matrix->packed.panel_bytes;
  ProductJob job{};
  job.runtime = &runtime;
  job.add = add;
  int64_t chunks = 0;
  for (const Output& output : outputs) {
    const Part part(runtime, *output.matrix, x, output.matrix->packed.panel_bytes, bytes);
    job.parts[job.n_parts++] = {part, chunks, output.y, output.stride};
    chunks += part.tiling.tiles();
  }
  session.run(chunks, job);
}

void multiply_gated(Session& session, const Runtime& runtime, const Activations& x, const Linear* gate,
                    const Linear& up, Activation activation, float* h) {
  const int64_t panel_bytes = up.packed.panel_bytes + (gate ? gate->packed.panel_bytes : 0);
  const int64_t bytes = up.panels() * panel_bytes;
  GatedJob job{};
  job.runtime = &runtime;
  job.gated = gate != nullptr;
  if (gate) job.gate = Part(runtime, *gate, x, panel_bytes, bytes);
  job.up = Part(runtime, up, x, panel_bytes, bytes);
  job.activation = activation;
  job.h = h;
  session.run(job.up.tiling.tiles(), job);
}

void multiply_gated_apart(Session& session, const Runtime& runtime, const Activations& x, const Linear* gate,
                          const Linear& up, Activation activation, float* pre, float* h) {
  const int64_t size = up.rows(), count = x.rows * size;
  if (gate) {
    multiply(session, runtime, x, {{gate, pre, size}, {&up, h, size}}, false);
  } else {
    multiply(session, runtime, x, {{&up, pre, size}}, false);
  }
  session.run(ceil_div(count, ActivateJob::kChunk),
              ActivateJob{&runtime.vector, activation, gate != nullptr, pre, h, count});
}

void add_normed(Session& session, const Runtime& runtime, const Norm& norm, float* y, int64_t rows,
                float* out) {
  session.run(ceil_div(rows, kRowGroup), AddNormedJob{&runtime.vector, &norm, y, rows, out});
}

void multiply_residual(Session& session, const Runtime& runtime, const Activations& x, const Linear& matrix,
                       const Norm* post_norm, float* out) {
  const int64_t n = matrix.rows();
  if (!post_norm) return multiply(session, runtime, x, {{&matrix, out, n}}, true);
  auto* y = session.allocate<float>(x.rows * n);
  multiply(session, runtime, x, {{&matrix, y, n}}, false);
  add_normed(session, runtime, *post_norm, y, x.rows, out);
}

}  // namespace hotset
