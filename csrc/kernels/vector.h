// Kernels over float vectors: norms, activations, RoPE (vector.cpp) and attention (attention.cpp).
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace hotset {

enum class Activation : int32_t { kRelu, kDrelu, kRelu2, kSilu, kGelu, kGeluTanh, kSwigluClamped };

// Whether many neurons become zero.
inline bool leaves_zeros(Activation activation) {
  return activation == Activation::kRelu || activation == Activation::kRelu2 ||
         activation == Activation::kDrelu;
}

// The activation without up's part in it: dReLU's other half comes with up.
inline Activation alone(Activation activation) {
  return activation == Activation::kDrelu ? Activation::kRelu : activation;
}

// What the activated gate is multiplied with: the other half of activations of gate and up together.
inline float of_up(Activation activation, float up) {
  if (activation == Activation::kDrelu && up < 0) return 0.0f;
  if (activation == Activation::kSwigluClamped) return (up < -7 ? -7 : up > 7 ? 7 : up) + 1;
  return up;
}

// Elements of the key-value cache. kQ8: int8 with one half-precision scale to kKvBlock numbers of a head.
enum class KvType : int32_t { kF32, kF16, kQ8 };
constexpr int64_t kKvBlock = 32;

// Some rows of queries against a range of keys of one key-value head. Row r is query head r % group of token
// r / group; that token stands at `position` + r / group and sees keys up to itself, at most `window` of
// them.
struct AttentionTile {
  KvType type;
  int64_t head_dim, value_dim;  // of keys and queries; of values
  int64_t group, rows;
  int64_t position, window;
  float soft_cap;                // scores s become soft_cap tanh(s / soft_cap); 0: they stay
  int64_t first_key, last_key;   // [first, last); first is a multiple of `split`
  const uint8_t *keys, *values;  // of this head, from position 0; values may be null: keys begin with them
  const float* queries;  // row r at (r / group) * query_stride + (r % group) * head_dim, already scaled
  int64_t query_stride;
  void* scratch;  // scratch_bytes(head_dim, value_dim, rows), 64-byte aligned
};

// Unfinished attention of one row: the sum of exp(score - max) times the values, and of these weights alone.
struct AttentionState {
  float max, sum;
};

struct AttentionKernels {
  // Keys lie in blocks of so many positions, within a block by dimension and then position, so that one
  // register holds one dimension of several keys; values lie by position, each row padded to a multiple of
  // key_block numbers.
  int64_t key_block;

  // Keys are walked in splits of so many positions, at multiples of it: a multiple of key_block.
  int64_t split;

  int64_t (*key_block_bytes)(KvType type, int64_t head_dim);
  int64_t (*value_row_bytes)(KvType type, int64_t head_dim);

  // Write one head's key or value at `position` of the head's memory.
  void (*store_key)(KvType type, const float* key, int64_t head_dim, int64_t position, uint8_t* keys);
  void (*store_value)(KvType type, const float* value, int64_t head_dim, int64_t position, uint8_t* values);

  size_t (*scratch_bytes)(int64_t head_dim, int64_t value_dim, int64_t rows);

  // Leaves the states at the start of the scratch memory and after them, 64-byte aligned, the weighted sums:
  // rows of value_dim numbers rounded up to key_block. As if each split were attended to alone, and joined to
  // those before. Keys after last_key, or outside a row's window, may hold anything.
  void (*attend)(const AttentionTile* tile);

  // Joins one row's state and sums of the split that follows to those of all splits before; what has seen no
  // key has the sum zero.
  void (*join)(int64_t value_dim, const AttentionState* part, const float* part_sums, AttentionState* state,
               float* sums);
};

struct DeltaNetKernels;  // delta_net.h

struct VectorKernels {
  // y = x / sqrt(mean(x^2) + eps) * weight + bias; bias may be null, y may be x.
  void (*rms_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y);

  // The same of x - mean(x).
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y);

  // gate = act(gate) * up, or act(gate) where up is null.
  void (*activate)(Activation kind, float* gate, const float* up, int64_t n);

  // Rotates pairs (x[i], x[i + half]), i < half, by angles whose cosine and sine are given.
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);

  // The same for pairs (x[2i], x[2i + 1]); cos and sin have an entry to each number, sin's even ones negated.
  void (*rope_interleaved)(float* x, const float* cos, const float* sin, int64_t n);

  // x *= factor; out += x.
  void (*scale)(float* x, float factor, int64_t n);
  void (*add)(const float* x, int64_t n, float* out);

  // x = cap tanh(x / cap).
  void (*soft_cap)(float* x, float cap, int64_t n);

  // x *= the logistic function of gates.
  void (*gate)(const float* gates, int64_t n, float* x);

  const AttentionKernels* attention;
  const DeltaNetKernels* delta_net;
};

}  // namespace hotset
