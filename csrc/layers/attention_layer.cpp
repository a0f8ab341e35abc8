// The attention block: projections over all rows of a batch, attention itself for each span.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>

#include "layers/layers.h"

namespace hotset {
namespace {

// Query rows (tokens times heads of a group) that go through the keys together.
constexpr int64_t kTileRows = 64;

// Tokens whose queries and keys one chunk makes ready.
constexpr int64_t kPrepareRows = 16;

// Where there would be fewer chunks to a thread, keys are shared among chunks as well.
constexpr int64_t kChunksPerThread = 8;

// Keys and values of fewer bytes are not worth sharing among threads.
constexpr int64_t kMinSharedBytes = 64 << 10;

int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// Norms and rotates queries and keys, and writes keys and values into the sequences. All in the commit, since
// these belong to the caller; it is cheap.
struct PrepareJob {
  const Attention* layer;
  float *q, *k, *v;    // k and v may be null
  const float* gated;  // queries, each followed by its gate, which go to q; or null
  const Batch* batch;
  const float* rope_rows;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void*) const {
    const Runtime& runtime = *layer->runtime;
    const int64_t dim = layer->head_dim;
    for (int64_t row = chunk * kPrepareRows; row < std::min((chunk + 1) * kPrepareRows, batch->rows());
         ++row) {
      const Sequence& sequence = *batch->span_of(row).sequence;
      const int64_t position = batch->position(row);
      float* queries = q + row * layer->n_heads * dim;
      for (int64_t head = 0; gated && head < layer->n_heads; ++head) {
        std::copy_n(gated + 2 * (row * layer->n_heads + head) * dim, dim, queries + head * dim);
      }
      const Norm* q_norm = norm_of_heads(layer->q_norm.get(), queries);
      for (int64_t head = 0; head < layer->n_heads; ++head) rotate(queries + head * dim, q_norm, row);
      runtime.vector.scale(queries, layer->scale * growth(position), layer->n_heads * dim);
      if (!k) continue;
      float* keys = k + row * layer->n_kv_heads * dim;
      float* values = v + row * layer->n_kv_heads * dim;
      if (!layer->v) std::copy_n(keys, layer->n_kv_heads * dim, values);
      const Norm* k_norm = norm_of_heads(layer->k_norm.get(), keys);
      for (int64_t head = 0; head < layer->n_kv_heads; ++head) {
        float* key = keys + head * dim;
        rotate(key, k_norm, row);
        float* value = values + head * dim;
        if (layer->v_norm) layer->v_norm->apply(runtime.vector, value, value);
        runtime.attention.store_key(sequence.type, key, dim, position, sequence.keys(layer->index, head));
        runtime.attention.store_value(sequence.type, value, dim, position,
                                      sequence.values(layer->index, head));
      }
    }
  }

  float growth(int64_t position) const {
    if (layer->growth == 0) return 1.0f;
    return 1.0f + layer->growth * std::log1p(static_cast<float>(position / layer->growth_context));
  }

  // The norm of single heads, or null; one that is as long as all heads together is applied here.
  const Norm* norm_of_heads(const Norm* norm, float* heads) const {
    if (!norm || norm->size() == layer->head_dim) return norm;
    norm->apply(layer->runtime->vector, heads, heads);
    return nullptr;
  }

  void rotate(float* head, const Norm* norm, int64_t row) const {
    const VectorKernels& vector = layer->runtime->vector;
    if (norm) norm->apply(vector, head, head);
    if (layer->rope) layer->rope->apply(vector, rope_rows + row * layer->rope->row_floats(), head);
  }
};

// A span's chunks: by key-value head, then tile of rows, then, where keys are shared among chunks, split.
struct SpanPlan {
  AttentionTile shape;  // the chunks' tiles are made from it
  int64_t first_chunk;
  int64_t tokens, tile_tokens, row_tiles;
  int64_t splits;      // 0: each chunk goes through all keys
  int64_t split_base;  // the first key of the first split
  int64_t head_bytes;
  float* mixed;        // of the span's first row
  const float* gates;  // the same, or null
  // Of each chunk that has one split: states and sums of its rows. Whoever commits a tile's last one joins
  // them, in their order.
  AttentionState* states;
  float* sums;
  std::atomic<int64_t>* left;  // of each tile, splits to be committed
};

struct AttendJob {
  const AttentionKernels* kernels;
  const VectorKernels* vector;
  const SpanPlan* spans;
  int64_t n_spans, n_heads, most_rows;
  const float* sinks;  // or null

  int64_t head_dim() const { return spans[0].shape.head_dim; }
  int64_t width() const { return round_up(head_dim(), kernels->key_block); }
  size_t scratch_bytes() const { return kernels->scratch_bytes(head_dim(), most_rows); }

  struct Place {
    const SpanPlan* span;
    int64_t local, tile, head, token, tokens, split;  // `local`: the chunk, `tile`: the tile, in the span
    int64_t rows() const { return tokens * span->shape.group; }
  };
  Place place(int64_t chunk) const {
    const SpanPlan* span = spans + n_spans - 1;
    while (chunk < span->first_chunk) --span;
    const int64_t local = chunk - span->first_chunk, splits = std::max<int64_t>(1, span->splits);
    const int64_t tile = local / splits, token = tile % span->row_tiles * span->tile_tokens;
    return {span,          local,
            tile,          tile / span->row_tiles,
            token,         std::min(span->tile_tokens, span->tokens - token),
            local % splits};
  }

  void compute(int64_t chunk, void* scratch) const {
    const Place p = place(chunk);
    const SpanPlan& span = *p.span;
    AttentionTile tile = span.shape;
    tile.rows = p.rows();
    tile.position += p.token;
    tile.last_key = tile.position + p.tokens;
    if (span.splits > 0) {
      tile.first_key = span.split_base + p.split * kernels->split;
      tile.last_key = std::min(tile.last_key, tile.first_key + kernels->split);
    } else {
      tile.first_key = first_split(*kernels, tile.position, tile.window);
    }
    tile.keys += p.head * span.head_bytes;
    tile.values += p.head * span.head_bytes;
    tile.queries += p.token * tile.query_stride + p.head * tile.group * tile.head_dim;
    tile.scratch = scratch;
    kernels->attend(&tile);
  }

  void commit(int64_t chunk, void* scratch) const {
    const Place p = place(chunk);
    const SpanPlan& span = *p.span;
    const int64_t rows = p.rows();
    auto* state = static_cast<AttentionState*>(scratch);
    auto* sums = reinterpret_cast<float*>(static_cast<uint8_t*>(scratch) +
                                          round_up(rows * sizeof(AttentionState), 64));
    if (span.splits == 0) return finish(p, state, sums);
    const int64_t tile_rows = span.tile_tokens * span.shape.group;
    std::copy_n(state, rows, span.states + p.local * tile_rows);
    std::copy_n(sums, rows * width(), span.sums + p.local * tile_rows * width());
    if (span.left[p.tile].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    AttentionState* first_state = span.states + p.tile * span.splits * tile_rows;
    float* first_sums = span.sums + p.tile * span.splits * tile_rows * width();
    for (int64_t split = 1; split < span.splits; ++split) {
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = split * tile_rows + row;
        kernels->join(head_dim(), first_state + at, first_sums + at * width(), first_state + row,
                      first_sums + row * width());
      }
    }
    finish(p, first_state, first_sums);
  }

  void finish(const Place& p, const AttentionState* state, float* sums) const {
    const int64_t dim = head_dim(), group = p.span->shape.group;
    for (int64_t row = 0; row < p.rows(); ++row, sums += width()) {
      const int64_t token = p.token + row / group, head = p.head * group + row % group;
      const float sink = sinks ? std::exp(sinks[head] - state[row].max) : 0.0f;
      vector->scale(sums, 1.0f / (state[row].sum + sink), dim);
      if (p.span->gates) vector->gate(p.span->gates + 2 * (token * n_heads + head) * dim, dim, sums);
      std::copy_n(sums, dim, p.span->mixed + (token * n_heads + head) * dim);
    }
  }

  static int64_t first_split(const AttentionKernels& kernels, int64_t position, int64_t window) {
    return std::max<int64_t>(0, position + 1 - window) / kernels.split * kernels.split;
  }
};

}  // namespace

std::string Attention::refuses(const Batch& batch) const {
  for (const Span& span : batch.spans()) {
    const Sequence* sequence = span.sequence;
    if (!sequence || index < 0 || index >= sequence->n_layers() ||
        sequence->layers[index] != KvShape{n_kv_heads, head_dim}) {
      return "the sequence is another model's";
    }
    if (span.position != sequence->length) return "the sequence has gone on since the batch was made";
    if (span.count > sequence->capacity - sequence->length) {
      return "the sequence has no room for " + std::to_string(span.count) + " more tokens";
    }
  }
  return {};
}

void Attention::forward(const float* x, float* out, const Batch& batch) const {
  Session session(runtime->pool);
  Zone zone(runtime->zones, ZoneName::kAttentionInput);
  const int64_t rows = batch.rows(), q_size = n_heads * head_dim, kv_size = n_kv_heads * head_dim;
  auto* queries = session.allocate<float>(rows * q_size);
  auto* queries_and_gates = gated ? session.allocate<float>(rows * 2 * q_size) : nullptr;
  auto* keys = k ? session.allocate<float>(rows * kv_size) : nullptr;
  auto* values = k ? session.allocate<float>(rows * kv_size) : nullptr;
  auto* mixed = session.allocate<float>(rows * q_size);

  const Linear *one = k ? k.get() : q.get(), *two = v ? v.get() : one;
  const Activations normed = pack(session, *runtime, x, rows, &norm, {q.get(), one, two});
  const Output q_out{q.get(), gated ? queries_and_gates : queries, q->rows()};
  const Output k_out{k.get(), keys, kv_size}, v_out{v.get(), values, kv_size};
  if (v) {
    multiply(session, *runtime, normed, {q_out, k_out, v_out}, false);
  } else if (k) {
    multiply(session, *runtime, normed, {q_out, k_out}, false);
  } else {
    multiply(session, *runtime, normed, {q_out}, false);
  }
  const float* rope_rows = rope ? batch.rope_rows(*rope) : nullptr;
  session.run(ceil_div(rows, kPrepareRows),
              PrepareJob{this, queries, keys, values, queries_and_gates, &batch, rope_rows});
  zone.next(ZoneName::kAttentionScores);
  attend(session, queries, gated ? queries_and_gates + head_dim : nullptr, batch, mixed);
  zone.next(ZoneName::kAttentionOutput);
  const Activations heads = pack(session, *runtime, mixed, rows, nullptr, {output.get()});
  multiply_residual(session, *runtime, heads, *output, post_norm.get(), out);
}

void Attention::attend(Session& session, const float* queries, const float* gates, const Batch& batch,
                       float* mixed) const {
  const AttentionKernels& kernels = runtime->attention;
  const auto n_spans = static_cast<int64_t>(batch.spans().size());
  const int64_t group = n_heads / n_kv_heads;
  auto* plans = session.allocate<SpanPlan>(n_spans);
  int64_t chunks = 0, most_rows = 0, bytes = 0;
  for (int64_t i = 0; i < n_spans; ++i) {
    const Span& span = batch.spans()[i];
    const Sequence& sequence = *span.sequence;
    SpanPlan& plan = *new (plans + i) SpanPlan{};
    plan.shape.type = sequence.type;
    plan.shape.head_dim = head_dim;
    plan.shape.group = group;
    plan.shape.position = span.position;
    plan.shape.window = window;
    plan.shape.soft_cap = soft_cap;
    plan.shape.keys = sequence.keys(index, 0);
    plan.shape.values = sequence.values(index, 0);
    plan.shape.queries = queries + span.row0 * n_heads * head_dim;
    plan.shape.query_stride = n_heads * head_dim;
    plan.tokens = span.count;
    plan.tile_tokens = std::clamp<int64_t>(kTileRows / group, 1, span.count);
    plan.row_tiles = ceil_div(span.count, plan.tile_tokens);
    plan.head_bytes = sequence.head_bytes(index);
    plan.mixed = mixed + span.row0 * n_heads * head_dim;
    plan.gates = gates ? gates + 2 * span.row0 * n_heads * head_dim : nullptr;
    chunks += n_kv_heads * plan.row_tiles;
    most_rows = std::max(most_rows, plan.tile_tokens * group);
    bytes += span.count * std::min(span.position + span.count, window) * 2 * n_kv_heads *
             kernels.value_row_bytes(sequence.type, head_dim);
  }
  const bool share_keys = chunks < kChunksPerThread * runtime->pool.threads();
  AttendJob job{
      &kernels, &runtime->vector, plans, n_spans, n_heads, most_rows, sinks.empty() ? nullptr : sinks.data()};
  chunks = 0;
  for (int64_t i = 0; i < n_spans; ++i) {
    SpanPlan& plan = plans[i];
    plan.first_chunk = chunks;
    const int64_t tiles = n_kv_heads * plan.row_tiles;
    plan.split_base = AttendJob::first_split(kernels, plan.shape.position, window);
    const int64_t splits = ceil_div(plan.shape.position + plan.tokens - plan.split_base, kernels.split);
    if (share_keys && plan.row_tiles == 1 && splits > 1) {
      plan.splits = splits;
      const int64_t tile_rows = plan.tile_tokens * group;
      plan.states = session.allocate<AttentionState>(tiles * splits * tile_rows);
      plan.sums = session.allocate<float>(tiles * splits * tile_rows * job.width());
      plan.left = session.allocate<std::atomic<int64_t>>(tiles);
      for (int64_t tile = 0; tile < tiles; ++tile) new (plan.left + tile) std::atomic<int64_t>(splits);
    }
    chunks += tiles * std::max<int64_t>(1, plan.splits);
  }
  if (bytes < kMinSharedBytes) {
    session.run_here(chunks, job);
  } else {
    session.run(chunks, job);
  }
}

}  // namespace hotset
