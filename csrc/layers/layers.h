// The decoder's parts, each one native call: attention with its cache, FFN, head, embedding.
//
// Vectors come and go as contiguous rows of floats that belong to the caller. Arguments are checked by
// whoever calls (bindings_layers.cpp); parts are built of matrices whose shapes fit together.
#pragma once

#include <memory>
#include <vector>

#include "layers/products.h"

namespace hotset {

// Cosines and sines of the rotary embedding. Its table is kept from one layer's call to the next's.
class Rope {
 public:
  Rope(std::vector<double> inverse_frequencies, double magnitude, bool interleaved)
      : inverse_frequencies_(std::move(inverse_frequencies)),
        magnitude_(magnitude),
        interleaved_(interleaved),
        width_(static_cast<int64_t>(inverse_frequencies_.size()) * (interleaved ? 2 : 1)) {}

  // Fills the table for `count` positions from `position` on. Only within a session, like apply().
  void prepare(int64_t position, int64_t count);

  // Rotates one head of the token at position + `row`.
  void apply(const VectorKernels& vector, float* head, int64_t row) const {
    const float* cosines = table_.data() + row * 2 * width_;
    const auto kernel = interleaved_ ? vector.rope_interleaved : vector.rope;
    kernel(head, cosines, cosines + width_, width_);
  }

 private:
  std::vector<double> inverse_frequencies_;
  double magnitude_;
  bool interleaved_;
  int64_t width_;  // entries for cosines and for sines, as the kernels want them
  int64_t position_ = 0, count_ = 0;
  std::vector<float> table_;  // a row to a position: cosines, sines
};

// Keys and values of one sequence. Memory is reserved for the capacity, but used only as positions are
// filled.
class KvCache {
 public:
  KvCache(std::shared_ptr<Runtime> runtime, KvType type, int64_t n_layers, int64_t n_heads, int64_t head_dim,
          int64_t capacity);
  ~KvCache() { runtime_->pool.quiesce(); }

  uint8_t* keys(int64_t layer, int64_t head) const {
    return memory_.data() + (layer * n_heads + head) * (key_bytes_ + value_bytes_);
  }
  uint8_t* values(int64_t layer, int64_t head) const { return keys(layer, head) + key_bytes_; }

  void truncate(int64_t new_length);

  // A copy of what is filled, with room for as much.
  std::shared_ptr<KvCache> fork() const;

  const KvType type;
  const int64_t n_layers, n_heads, head_dim, capacity;
  int64_t length = 0;

 private:
  std::shared_ptr<Runtime> runtime_;
  int64_t key_bytes_, value_bytes_;  // of one head in one layer
  Buffer memory_;
};

struct Attention {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Matrix> q, k, v, output;
  int64_t n_heads, n_kv_heads, head_dim;
  float scale;
  int64_t window;  // the largest integer for none
  std::shared_ptr<Rope> rope;
  std::shared_ptr<const Norm> q_norm, k_norm, post_norm;  // or null

  // out += attention(x); writes keys and values at kv.length and after, but does not advance it. out may be
  // x.
  void forward(const float* x, float* out, int64_t rows, KvCache& kv, int64_t layer) const;

 private:
  void attend(Session& session, const float* q, int64_t rows, const KvCache& kv, int64_t layer,
              float* mixed) const;
};

struct Ffn {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Matrix> gate, up, down;  // gate may be null
  Activation activation;
  std::shared_ptr<const Norm> post_norm;  // or null

  void forward(const float* x, float* out, int64_t rows) const;  // out += ffn(x); out may be x

  // What the neurons do with x: `gate` (rows x F) gets the pre-activations of the gate (of up, where there is
  // none), h (rows x F) the neurons' values.
  void neurons(const float* x, int64_t rows, float* gate, float* h) const;
};

struct Head {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Matrix> output;

  void forward(const float* x, float* logits, int64_t rows) const;
};

// Turns `count` numbers of a tensor into floats, exactly as GGUF defines them; a whole number of blocks.
void dequantise(Type type, const uint8_t* data, int64_t count, float* out);

// The rate in bytes a second at which the pool's threads together read `bytes` of memory: the best of
// `repeats`.
double memory_bandwidth(Runtime& runtime, size_t bytes, int repeats);

}  // namespace hotset
