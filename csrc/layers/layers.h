// The decoder's parts, each one native call: attention with its cache, FFN, head, embedding.
//
// Vectors come and go as contiguous rows of floats that belong to the caller. Arguments are checked by
// whoever calls (bindings_layers.cpp); parts are built of matrices whose shapes fit together.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "layers/batch.h"
#include "layers/products.h"

namespace hotset {

struct Attention {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  // k and v are null where another layer's keys and values are read; v alone is where values are the keys,
  // before their norm and the rotation.
  std::shared_ptr<const Linear> q, k, v, output;
  int64_t n_heads, n_kv_heads, head_dim;
  float scale;
  int64_t window;                                                 // the largest integer for none
  std::shared_ptr<const Rope> rope;                               // or null
  std::shared_ptr<const Norm> q_norm, k_norm, v_norm, post_norm;  // or null
  float soft_cap = 0;  // scores s become soft_cap tanh(s / soft_cap); 0: they stay
  float growth = 0;    // queries are multiplied by 1 + growth ln(1 + position / growth_context), rounded down
  int64_t growth_context = 1;
  bool gated = false;                       // each head's query in q is followed by its gate
  std::shared_ptr<const Linear> head_gate;  // or null: a row a head, whose softplus multiplies its result
  std::vector<float> sinks;                 // empty, or one more logit to each head, without a value
  int64_t index;                            // of its keys and values in sequences

  // Why it cannot compute the batch; empty where it can.
  std::string refuses(const Batch& batch) const;

  // out += attention(x), each span's rows attending to their own sequence; out may be x. Writes their keys
  // and values, but does not advance the sequences.
  void forward(const float* x, float* out, const Batch& batch) const;
};

struct Ffn {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Linear> gate, up, down;  // gate may be null
  Activation activation;
  std::shared_ptr<const Norm> post_norm;  // or null

  void forward(const float* x, float* out, int64_t rows) const;  // out += ffn(x); out may be x

  // The same in a session that has begun.
  void add(Session& session, const float* x, float* out, int64_t rows) const;

  // What the neurons do with x: `gate` (rows x F) gets the pre-activations of the gate (of up, where there is
  // none), h (rows x F) the neurons' values.
  void neurons(const float* x, int64_t rows, float* gate, float* h) const;
};

// What a layer's own embedding of the token adds at its end (Gemma 3n): out += post_norm(up (gelu(gate x) *
// e)).
struct LayerInput {
  std::shared_ptr<Runtime> runtime;
  std::shared_ptr<const Linear> gate, up;
  Norm post_norm;

  // e is (rows x gate's rows); out may be x.
  void forward(const float* x, const float* e, float* out, int64_t rows) const;
};

struct Head {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Linear> output;
  float soft_cap = 0;  // of logits; 0: they stay

  void forward(const float* x, float* logits, int64_t rows) const;
};

// Turns `count` numbers of a tensor into floats, exactly as GGUF defines them; whole blocks.
void dequantise(Type type, const uint8_t* data, int64_t count, float* out);

// The rate in bytes a second at which the pool's threads together read `bytes` of memory: the best of
// `repeats`.
double memory_bandwidth(Runtime& runtime, size_t bytes, int repeats);

}  // namespace hotset
