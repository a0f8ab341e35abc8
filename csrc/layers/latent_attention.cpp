#include "layers/latent_attention.h"

#include <algorithm>
#include <limits>

namespace hotset {
namespace {

// Tokens whose queries, and what is kept of them, one chunk makes ready.
constexpr int64_t kPrepareRows = 16;

// A chunk of a head's product: rows of activations, and weights that it reads where these are few.
constexpr int64_t kTileRows = 64, kChunkBytes = 64 << 10;

// Rotates queries and keys, and writes what is kept into the sequences. All in the commit, since these belong
// to the caller; it is cheap.
struct PrepareJob {
  const LatentAttention* layer;
  float *q, *kv;   // rows x heads x query_dim, rows x kept
  float* queries;  // rows x heads x kept: the rotated parts, behind room for the others
  const Batch* batch;
  const float* rope_rows;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void*) const {
    const Runtime& runtime = *layer->runtime;
    const int64_t kept = layer->kept().dim, rank = layer->rank(), dim = layer->query_dim();
    const int64_t last = std::min((chunk + 1) * kPrepareRows, batch->rows());
    for (int64_t row = chunk * kPrepareRows; row < last; ++row) {
      const float* angles = rope_rows + row * layer->rope->row_floats();
      for (int64_t head = row * layer->n_heads(); head < (row + 1) * layer->n_heads(); ++head) {
        float *query = q + head * dim, *turned = query + layer->nope_dim();
        layer->rope->apply(runtime.vector, angles, turned);
        runtime.vector.scale(query, layer->scale, dim);
        std::copy_n(turned, layer->rope_dim, queries + head * kept + rank);
      }
      float* key = kv + row * kept;
      layer->kv_norm.apply(runtime.vector, key, key);
      layer->rope->apply(runtime.vector, angles, key + rank);
      const Sequence& sequence = *batch->span_of(row).sequence;
      runtime.attention.store_key(sequence.type, key, kept, batch->position(row),
                                  sequence.keys(layer->index, 0));
    }
  }
};

// y = W x of each head's own matrix and vectors: head h of row t is at x + t * x_row + h * x_head.
struct HeadsJob {
  const Runtime* runtime;
  const std::shared_ptr<const Linear>* matrices;  // all of one shape and type
  int64_t heads, rows;
  const float* x;
  int64_t x_row, x_head;
  float* y;
  int64_t y_row, y_head;

  const Linear& first() const { return *matrices[0]; }
  int64_t tile_rows() const { return std::min(rows, kTileRows); }
  int64_t row_tiles() const { return ceil_div(rows, kTileRows); }
  int64_t chunk_panels() const {
    const int64_t panels = first().panels();
    return rows > kFewRows ? panels
                           : std::clamp(kChunkBytes / first().packed.panel_bytes, int64_t{1}, panels);
  }
  int64_t panel_chunks() const { return ceil_div(first().panels(), chunk_panels()); }
  int64_t chunks() const { return heads * row_tiles() * panel_chunks(); }

  int64_t packed_bytes() const {
    return ceil_div(runtime->linear.activation_bytes(first().format, tile_rows(), first().cols()), 64) * 64;
  }
  size_t scratch_bytes() const {
    const int64_t floats = chunk_panels() * runtime->linear.lanes * tile_rows();
    return static_cast<size_t>(packed_bytes()) + static_cast<size_t>(floats) * sizeof(float);
  }

  struct Place {
    int64_t head, row0, rows, panel0, panel1;
  };
  Place place(int64_t chunk) const {
    const int64_t tile = chunk / panel_chunks(), row0 = tile % row_tiles() * kTileRows;
    const int64_t panel0 = chunk % panel_chunks() * chunk_panels();
    return {tile / row_tiles(), row0, std::min(kTileRows, rows - row0), panel0,
            std::min(panel0 + chunk_panels(), first().panels())};
  }

  void compute(int64_t chunk, void* scratch) const {
    const Place p = place(chunk);
    const Linear& matrix = *matrices[p.head];
    const LinearKernels& linear = runtime->linear;
    const float* from = x + p.row0 * x_row + p.head * x_head;
    linear.pack_activations(matrix.format, from, x_row, p.rows, matrix.cols(), 0, p.rows, scratch);
    multiply_panels(*runtime, matrix.packed, nullptr, p.panel0, p.panel1, scratch, p.rows, result(scratch));
  }

  void commit(int64_t chunk, void* scratch) const {
    const Place p = place(chunk);
    const int64_t lanes = runtime->linear.lanes, width = (p.panel1 - p.panel0) * lanes;
    const int64_t begin = p.panel0 * lanes, n = std::min(first().rows() - begin, width);
    const float* from = result(scratch);
    for (int64_t row = 0; row < p.rows; ++row, from += width) {
      std::copy_n(from, n, y + (p.row0 + row) * y_row + p.head * y_head + begin);
    }
  }

  float* result(void* scratch) const {
    return reinterpret_cast<float*>(static_cast<uint8_t*>(scratch) + packed_bytes());
  }
};

}  // namespace

void LatentAttention::forward(const float* x, float* out, const Batch& batch) const {
  Session session(runtime->pool);
  Zone zone(runtime->zones, ZoneName::kAttentionInput);
  const int64_t rows = batch.rows(), heads = n_heads(), kept_dim = kept().dim;
  auto* queries = session.allocate<float>(rows * heads * query_dim());
  auto* kv = session.allocate<float>(rows * kept_dim);
  auto* absorbed = session.allocate<float>(rows * heads * kept_dim);
  auto* mixed = session.allocate<float>(rows * heads * rank());
  auto* values = session.allocate<float>(rows * heads * value_dim());

  const Linear& of_input = q_a ? *q_a : *q;
  const Activations normed = pack(session, *runtime, x, rows, &norm, {&of_input, kv_a.get()});
  auto* few = q_a ? session.allocate<float>(rows * q_a->rows()) : queries;
  multiply(session, *runtime, normed, {{&of_input, few, of_input.rows()}, {kv_a.get(), kv, kept_dim}}, false);
  if (q_a) {
    const Activations of_queries = pack(session, *runtime, few, rows, q_norm.get(), {q.get()});
    multiply(session, *runtime, of_queries, {{q.get(), queries, q->rows()}}, false);
  }
  session.run(ceil_div(rows, kPrepareRows),
              PrepareJob{this, queries, kv, absorbed, &batch, batch.rope_rows(*rope)});
  const HeadsJob absorb{
      runtime.get(), k_b.data(),       heads,   rows, queries, heads * query_dim(), query_dim(),
      absorbed,      heads * kept_dim, kept_dim};
  session.run(absorb.chunks(), absorb);
  zone.next(ZoneName::kAttentionScores);
  const Attended attended{index, kept(), heads, rank(), std::numeric_limits<int64_t>::max(), 0, nullptr};
  attend(session, *runtime, attended, absorbed, nullptr, batch, mixed);
  zone.next(ZoneName::kAttentionOutput);
  const HeadsJob bring_back{
      runtime.get(), v_b.data(),          heads,      rows, mixed, heads * rank(), rank(),
      values,        heads * value_dim(), value_dim()};
  session.run(bring_back.chunks(), bring_back);
  const Activations packed = pack(session, *runtime, values, rows, nullptr, {output.get()});
  multiply_residual(session, *runtime, packed, *output, nullptr, out);
}

}  // namespace hotset
