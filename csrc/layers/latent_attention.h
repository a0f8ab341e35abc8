// One layer's multi-head latent attention (arXiv 2405.04434), absorbed: queries are brought to what is kept
// of a position, and what is read there is brought back, head by head.
//
// Prompts go the same way as single tokens, though the plain way, which makes every head's keys and values of
// what is kept, has shorter products of queries and keys: it rounds otherwise, and a row's bits must not
// depend on how a prompt was cut. The products of matrices are as many in both ways.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "layers/attend.h"
#include "layers/products.h"

namespace hotset {

struct LatentAttention {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Linear> q_a;               // or null
  std::shared_ptr<const Norm> q_norm;              // null where q_a is
  std::shared_ptr<const Linear> q;                 // of what q_a gives, or of the normed input
  std::shared_ptr<const Linear> kv_a;              // rank + rope_dim rows
  Norm kv_norm;                                    // rank numbers
  std::vector<std::shared_ptr<const Linear>> k_b;  // each head's, (rank x nope_dim)
  std::vector<std::shared_ptr<const Linear>> v_b;  // (value_dim x rank)
  std::shared_ptr<const Linear> output;
  int64_t rope_dim;
  float scale;
  std::shared_ptr<const Rope> rope;
  int64_t index;  // of what it keeps in sequences

  int64_t n_heads() const { return static_cast<int64_t>(k_b.size()); }
  int64_t rank() const { return kv_norm.size(); }
  int64_t nope_dim() const { return k_b[0]->cols(); }
  int64_t query_dim() const { return nope_dim() + rope_dim; }
  int64_t value_dim() const { return v_b[0]->rows(); }
  KvShape kept() const { return {1, rank() + rope_dim, false}; }

  // Why it cannot compute the batch; empty where it can.
  std::string refuses(const Batch& batch) const { return refuses_keys(batch, index, kept()); }

  // out += attention(x), each span's rows attending to their own sequence; out may be x. Writes what is kept
  // of them, but does not advance the sequences.
  void forward(const float* x, float* out, const Batch& batch) const;
};

}  // namespace hotset
