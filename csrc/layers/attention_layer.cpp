// The attention block: projections over all rows of a batch, attention itself for each span.
#include <algorithm>
#include <cmath>

#include "layers/attend.h"
#include "layers/layers.h"

namespace hotset {
namespace {

// Tokens whose queries and keys one chunk makes ready.
constexpr int64_t kPrepareRows = 16;

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

}  // namespace

std::string Attention::refuses(const Batch& batch) const {
  return refuses_keys(batch, index, {n_kv_heads, head_dim});
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
  const Activations normed =
      pack(session, *runtime, x, rows, &norm, {q.get(), one, two, head_gate ? head_gate.get() : q.get()});
  const Output q_out{q.get(), gated ? queries_and_gates : queries, q->rows()};
  const Output k_out{k.get(), keys, kv_size}, v_out{v.get(), values, kv_size};
  if (v) {
    multiply(session, *runtime, normed, {q_out, k_out, v_out}, false);
  } else if (k) {
    multiply(session, *runtime, normed, {q_out, k_out}, false);
  } else {
    multiply(session, *runtime, normed, {q_out}, false);
  }
  auto* head_gates = head_gate ? session.allocate<float>(rows * n_heads) : nullptr;
  if (head_gate) multiply(session, *runtime, normed, {{head_gate.get(), head_gates, n_heads}}, false);
  const float* rope_rows = rope ? batch.rope_rows(*rope) : nullptr;
  session.run(ceil_div(rows, kPrepareRows),
              PrepareJob{this, queries, keys, values, queries_and_gates, &batch, rope_rows});
  zone.next(ZoneName::kAttentionScores);
  const Attended attended{index,
                          {n_kv_heads, head_dim},
                          n_heads,
                          head_dim,
                          window,
                          soft_cap,
                          sinks.empty() ? nullptr : sinks.data(),
                          head_gates};
  attend(session, *runtime, attended, queries, gated ? queries_and_gates + head_dim : nullptr, batch, mixed);
  zone.next(ZoneName::kAttentionOutput);
  const Activations heads = pack(session, *runtime, mixed, rows, nullptr, {output.get()});
  multiply_residual(session, *runtime, heads, *output, post_norm.get(), out);
}

}  // namespace hotset
