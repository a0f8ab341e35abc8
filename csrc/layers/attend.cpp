// Attention itself: each span's queries against the keys and values of its sequence.
#include "layers/attend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <new>

namespace hotset {
namespace {

// Query rows (tokens times heads of a group) that go through the keys together.
constexpr int64_t kTileRows = 64;

// Where there would be fewer chunks to a thread, keys are shared among chunks as well.
constexpr int64_t kChunksPerThread = 8;

// Keys and values of fewer bytes are not worth sharing among threads.
constexpr int64_t kMinSharedBytes = 64 << 10;

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// A span's chunks: by key-value head, then tile of rows, then, where keys are shared among chunks, split.
struct SpanPlan {
  AttentionTile shape;  // the chunks' tiles are made from it
  int64_t first_chunk;
  int64_t tokens, tile_tokens, row_tiles;
  int64_t splits;      // 0: each chunk goes through all keys
  int64_t split_base;  // the first key of the first split
  int64_t head_bytes;
  int64_t row0;        // the span's first row in the batch
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
  const float* sinks;       // or null
  const float* head_gates;  // or null

  int64_t value_dim() const { return spans[0].shape.value_dim; }
  int64_t width() const { return round_up(value_dim(), kernels->key_block); }
  size_t scratch_bytes() const {
    return kernels->scratch_bytes(spans[0].shape.head_dim, value_dim(), most_rows);
  }

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
    if (tile.values) tile.values += p.head * span.head_bytes;
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
        kernels->join(value_dim(), first_state + at, first_sums + at * width(), first_state + row,
                      first_sums + row * width());
      }
    }
    finish(p, first_state, first_sums);
  }

  void finish(const Place& p, const AttentionState* state, float* sums) const {
    const int64_t dim = value_dim(), group = p.span->shape.group;
    for (int64_t row = 0; row < p.rows(); ++row, sums += width()) {
      const int64_t token = p.token + row / group, head = p.head * group + row % group;
      const float sink = sinks ? std::exp(sinks[head] - state[row].max) : 0.0f;
      float factor = 1.0f / (state[row].sum + sink);
      if (head_gates) factor *= softplus(head_gates[(p.span->row0 + token) * n_heads + head]);
      vector->scale(sums, factor, dim);
      if (p.span->gates) vector->gate(p.span->gates + 2 * (token * n_heads + head) * dim, dim, sums);
      std::copy_n(sums, dim, p.span->mixed + (token * n_heads + head) * dim);
    }
  }

  static int64_t first_split(const AttentionKernels& kernels, int64_t position, int64_t window) {
    return std::max<int64_t>(0, position + 1 - window) / kernels.split * kernels.split;
  }
};

}  // namespace

std::string refuses_keys(const Batch& batch, int64_t index, const KvShape& kept) {
  for (const Span& span : batch.spans()) {
    const Sequence* sequence = span.sequence;
    if (!sequence || index < 0 || index >= sequence->n_layers() || sequence->layers[index] != kept) {
      return "the sequence is another model's";
    }
    if (span.position != sequence->length) return "the sequence has gone on since the batch was made";
    if (span.count > sequence->capacity - sequence->length) {
      return "the sequence has no room for " + std::to_string(span.count) + " more tokens";
    }
  }
  return {};
}

void attend(Session& session, const Runtime& runtime, const Attended& of, const float* queries,
            const float* gates, const Batch& batch, float* mixed) {
  const AttentionKernels& kernels = runtime.attention;
  const auto n_spans = static_cast<int64_t>(batch.spans().size());
  const int64_t n_heads = of.n_heads, n_kv_heads = of.kept.heads, group = n_heads / n_kv_heads;
  const int64_t index = of.index, window = of.window, head_dim = of.kept.dim, value_dim = of.value_dim;
  auto* plans = session.allocate<SpanPlan>(n_spans);
  int64_t chunks = 0, most_rows = 0, bytes = 0;
  for (int64_t i = 0; i < n_spans; ++i) {
    const Span& span = batch.spans()[i];
    const Sequence& sequence = *span.sequence;
    SpanPlan& plan = *new (plans + i) SpanPlan{};
    plan.shape.type = sequence.type;
    plan.shape.head_dim = head_dim;
    plan.shape.value_dim = value_dim;
    plan.shape.group = group;
    plan.shape.position = span.position;
    plan.shape.window = window;
    plan.shape.soft_cap = of.soft_cap;
    plan.shape.keys = sequence.keys(index, 0);
    plan.shape.values = sequence.values(index, 0);
    plan.shape.queries = queries + span.row0 * n_heads * head_dim;
    plan.shape.query_stride = n_heads * head_dim;
    plan.tokens = span.count;
    plan.tile_tokens = std::clamp<int64_t>(kTileRows / group, 1, span.count);
    plan.row_tiles = ceil_div(span.count, plan.tile_tokens);
    plan.head_bytes = sequence.head_bytes(index);
    plan.row0 = span.row0;
    plan.mixed = mixed + span.row0 * n_heads * value_dim;
    plan.gates = gates ? gates + 2 * span.row0 * n_heads * value_dim : nullptr;
    chunks += n_kv_heads * plan.row_tiles;
    most_rows = std::max(most_rows, plan.tile_tokens * group);
    bytes += span.count * std::min(span.position + span.count, window) * 2 * n_kv_heads *
             kernels.value_row_bytes(sequence.type, head_dim);
  }
  const bool share_keys = chunks < kChunksPerThread * runtime.pool.threads();
  AttendJob job{&kernels, &runtime.vector, plans, n_spans, n_heads, most_rows, of.sinks, of.head_gates};
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
