// The attention block and its cache.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "layers/layers.h"

namespace hotset {
namespace {

// Query rows (tokens times heads of a group) that go through the keys together in prefill.
constexpr int64_t kTileRows = 64;

// Tokens whose queries and keys one chunk makes ready.
constexpr int64_t kPrepareRows = 16;

// Where one tile of rows is all there is to do, keys are split as well, to give about so many chunks in all.
// How many does not depend on the threads, so that neither do the results. Splits are whole groups of keys, a
// multiple of every key_block.
constexpr int64_t kSplitChunks = 32, kSplitGroup = 64;

// Keys and values of fewer bytes are not worth sharing among threads.
constexpr int64_t kMinSharedBytes = 64 << 10;

int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// Norms and rotates queries and keys, and writes keys and values into the cache. All in the commit, since
// these belong to the caller; it is cheap.
struct PrepareJob {
  const Attention* layer;
  float *q, *k, *v;
  int64_t rows;
  const KvCache* kv;
  int64_t layer_index;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void*) const {
    const Runtime& runtime = *layer->runtime;
    const int64_t dim = layer->head_dim;
    for (int64_t row = chunk * kPrepareRows; row < std::min((chunk + 1) * kPrepareRows, rows); ++row) {
      float* queries = q + row * layer->n_heads * dim;
      for (int64_t head = 0; head < layer->n_heads; ++head) {
        position(queries + head * dim, layer->q_norm.get(), row);
      }
      runtime.vector.scale(queries, layer->scale, layer->n_heads * dim);
      for (int64_t head = 0; head < layer->n_kv_heads; ++head) {
        float* key = k + (row * layer->n_kv_heads + head) * dim;
        position(key, layer->k_norm.get(), row);
        const float* value = v + (row * layer->n_kv_heads + head) * dim;
        runtime.attention.store_key(kv->type, key, dim, kv->length + row, kv->keys(layer_index, head));
        runtime.attention.store_value(kv->type, value, dim, kv->length + row, kv->values(layer_index, head));
      }
    }
  }

  void position(float* head, const Norm* norm, int64_t row) const {
    if (norm) norm->apply(layer->runtime->vector, head, head);
    if (layer->rope) layer->rope->apply(layer->runtime->vector, head, row);
  }
};

// Chunks by key-value head, then tile of rows, then split of the keys. Results go to `mixed` where the keys
// are not split, otherwise states and sums go to the chunk's place in `states` and `sums`.
struct AttendJob {
  const AttentionKernels* kernels;
  const VectorKernels* vector;
  AttentionTile shape;  // the caller's tile is made from it
  int64_t n_heads, tokens, tile_tokens, row_tiles;
  int64_t splits, split_keys, split_base;  // keys in a split, where the first one's begin
  const uint8_t* memory;
  int64_t head_bytes, key_bytes;
  float* mixed;
  AttentionState* states;
  float* sums;

  int64_t width() const { return round_up(shape.head_dim, kernels->key_block); }
  size_t scratch_bytes() const { return kernels->scratch_bytes(shape.head_dim, tile_tokens * shape.group); }

  struct Place {
    int64_t head, token, tokens, split;
  };
  Place place(int64_t chunk) const {
    const int64_t token = chunk / splits % row_tiles * tile_tokens;
    return {chunk / splits / row_tiles, token, std::min(tile_tokens, tokens - token), chunk % splits};
  }

  void compute(int64_t chunk, void* scratch) const {
    const Place p = place(chunk);
    AttentionTile tile = shape;
    tile.rows = p.tokens * shape.group;
    tile.position = shape.position + p.token;
    const int64_t first = std::max<int64_t>(0, tile.position + 1 - shape.window);
    const int64_t end = tile.position + p.tokens;
    tile.first_key = first / kernels->key_block * kernels->key_block;
    tile.last_key = end;
    if (splits > 1) {
      tile.first_key = split_base + p.split * split_keys;
      tile.last_key = std::min(end, tile.first_key + split_keys);
    }
    tile.keys = memory + p.head * head_bytes;
    tile.values = tile.keys + key_bytes;
    tile.queries += p.token * shape.query_stride + p.head * shape.group * shape.head_dim;
    tile.scratch = scratch;
    kernels->attend(&tile);
  }

  void commit(int64_t chunk, void* scratch) const {
    const Place p = place(chunk);
    const int64_t rows = p.tokens * shape.group, dim = shape.head_dim;
    const auto* state = static_cast<const AttentionState*>(scratch);
    float* sum = reinterpret_cast<float*>(static_cast<uint8_t*>(scratch) +
                                          round_up(rows * sizeof(AttentionState), 64));
    if (splits > 1) {
      std::copy_n(state, rows, states + chunk * rows);
      std::copy_n(sum, rows * width(), sums + chunk * rows * width());
      return;
    }
    for (int64_t row = 0; row < rows; ++row, sum += width()) {
      vector->scale(sum, 1.0f / state[row].sum, dim);
      std::copy_n(sum, dim, output(p.head, p.token * shape.group + row));
    }
  }

  // Where row `row` of a key-value head's queries goes.
  float* output(int64_t head, int64_t row) const {
    const int64_t token = row / shape.group, query_head = head * shape.group + row % shape.group;
    return mixed + (token * n_heads + query_head) * shape.head_dim;
  }

  // Joins the splits of every row, on the calling thread.
  void join() const {
    const int64_t rows = tokens * shape.group, dim = shape.head_dim;
    for (int64_t head = 0; head < n_heads / shape.group; ++head) {
      for (int64_t row = 0; row < rows; ++row) {
        float max = states[head * splits * rows + row].max;
        for (int64_t split = 1; split < splits; ++split) {
          max = std::max(max, states[(head * splits + split) * rows + row].max);
        }
        float total = 0;
        for (int64_t split = 0; split < splits; ++split) {
          const AttentionState& state = states[(head * splits + split) * rows + row];
          total += std::exp(state.max - max) * state.sum;
        }
        float* out = output(head, row);
        std::fill_n(out, dim, 0.0f);
        for (int64_t split = 0; split < splits; ++split) {
          const int64_t at = (head * splits + split) * rows + row;
          vector->scale(sums + at * width(), std::exp(states[at].max - max) / total, dim);
          vector->add(sums + at * width(), dim, out);
        }
      }
    }
  }
};

}  // namespace

void Rope::prepare(int64_t position, int64_t count) {
  if (position == position_ && count == count_) return;
  position_ = position;
  count_ = count;
  table_.clear();
  for (int64_t row = position; row < position + count; ++row) {
    for (const bool sine : {false, true}) {
      for (const double frequency : inverse_frequencies_) {
        const double angle = static_cast<double>(row) * frequency;
        const auto value = static_cast<float>(magnitude_ * (sine ? std::sin(angle) : std::cos(angle)));
        if (interleaved_) table_.push_back(sine ? -value : value);
        table_.push_back(value);
      }
    }
  }
}

KvCache::KvCache(std::shared_ptr<Runtime> runtime, KvType type, int64_t n_layers, int64_t n_heads,
                 int64_t head_dim, int64_t capacity)
    : type(type),
      n_layers(n_layers),
      n_heads(n_heads),
      head_dim(head_dim),
      capacity(capacity),
      runtime_(std::move(runtime)) {
  const AttentionKernels& kernels = runtime_->attention;
  const int64_t room = round_up(capacity, kernels.key_block);
  key_bytes_ = round_up(room / kernels.key_block * kernels.key_block_bytes(type, head_dim), 64);
  value_bytes_ = round_up(room * kernels.value_row_bytes(type, head_dim), 64);
  const double bytes =
      static_cast<double>(key_bytes_ + value_bytes_) * static_cast<double>(n_layers * n_heads);
  if (bytes > 1e15) throw std::bad_alloc();
  memory_ = Buffer(static_cast<size_t>((key_bytes_ + value_bytes_) * n_layers * n_heads), Pages::kSmall);
}

void KvCache::truncate(int64_t new_length) {
  // Positions after it will be written again, which nobody may be reading then.
  if (new_length < length) runtime_->pool.quiesce();
  length = new_length;
}

std::shared_ptr<KvCache> KvCache::fork() const {
  auto copy = std::make_shared<KvCache>(runtime_, type, n_layers, n_heads, head_dim, capacity);
  const AttentionKernels& kernels = runtime_->attention;
  const auto key_bytes =
      static_cast<size_t>(ceil_div(length, kernels.key_block) * kernels.key_block_bytes(type, head_dim));
  const auto value_bytes = static_cast<size_t>(length * kernels.value_row_bytes(type, head_dim));
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    for (int64_t head = 0; head < n_heads; ++head) {
      std::memcpy(copy->keys(layer, head), keys(layer, head), key_bytes);
      std::memcpy(copy->values(layer, head), values(layer, head), value_bytes);
    }
  }
  copy->length = length;
  return copy;
}

void Attention::forward(const float* x, float* out, int64_t rows, KvCache& kv, int64_t layer) const {
  Session session(runtime->pool);
  const int64_t q_size = n_heads * head_dim, kv_size = n_kv_heads * head_dim;
  auto* queries = session.allocate<float>(rows * q_size);
  auto* keys = session.allocate<float>(rows * kv_size);
  auto* values = session.allocate<float>(rows * kv_size);
  auto* mixed = session.allocate<float>(rows * q_size);

  const Activations normed = pack(session, *runtime, x, rows, &norm, {q.get(), k.get(), v.get()});
  multiply(session, *runtime, normed,
           {{q.get(), queries, q_size}, {k.get(), keys, kv_size}, {v.get(), values, kv_size}}, false);
  if (rope) rope->prepare(kv.length, rows);
  session.run(ceil_div(rows, kPrepareRows), PrepareJob{this, queries, keys, values, rows, &kv, layer});
  attend(session, queries, rows, kv, layer, mixed);
  const Activations heads = pack(session, *runtime, mixed, rows, nullptr, {output.get()});
  multiply_residual(session, *runtime, heads, *output, post_norm.get(), out);
}

void Attention::attend(Session& session, const float* queries, int64_t rows, const KvCache& kv, int64_t layer,
                       float* mixed) const {
  AttendJob job{};
  job.kernels = &runtime->attention;
  job.vector = &runtime->vector;
  const int64_t group = n_heads / n_kv_heads, end = kv.length + rows;
  job.shape.type = kv.type;
  job.shape.head_dim = head_dim;
  job.shape.group = group;
  job.shape.position = kv.length;
  job.shape.window = window;
  job.shape.queries = queries;
  job.shape.query_stride = n_heads * head_dim;
  job.n_heads = n_heads;
  job.tokens = rows;
  job.tile_tokens = std::clamp<int64_t>(kTileRows / group, 1, rows);
  job.row_tiles = ceil_div(rows, job.tile_tokens);
  job.splits = 1;
  if (job.row_tiles == 1) {
    job.split_base = std::max<int64_t>(0, kv.length + 1 - window) / kSplitGroup * kSplitGroup;
    const int64_t keys = end - job.split_base, wanted = ceil_div(kSplitChunks, n_kv_heads);
    job.split_keys = round_up(ceil_div(keys, wanted), kSplitGroup);
    job.splits = ceil_div(keys, job.split_keys);
  }
  job.memory = kv.keys(layer, 0);
  job.head_bytes = kv.keys(layer, 1) - job.memory;
  job.key_bytes = kv.values(layer, 0) - job.memory;
  job.mixed = mixed;
  const int64_t chunks = n_kv_heads * job.row_tiles * job.splits;
  if (job.splits > 1) {
    job.states = session.allocate<AttentionState>(chunks * rows * group);
    job.sums = session.allocate<float>(chunks * rows * group * job.width());
  }
  const int64_t key_bytes = 2 * n_kv_heads * runtime->attention.value_row_bytes(kv.type, head_dim);
  if (rows == 1 && std::min(end, window) * key_bytes < kMinSharedBytes) {
    session.run_here(chunks, job);
  } else {
    session.run(chunks, job);
  }
  if (job.splits > 1) job.join();
}

}  // namespace hotset
