// Attention itself, for layers whose keys and values are in their sequences.
#pragma once

#include <string>

#include "layers/batch.h"
#include "runtime/runtime.h"

namespace hotset {

// What is attended to, and how.
struct Attended {
  int64_t index;  // of the keys and values in sequences
  KvShape kept;
  int64_t n_heads, value_dim;
  int64_t window;                     // the largest integer for none
  float soft_cap;                     // scores s become soft_cap tanh(s / soft_cap); 0: they stay
  const float* sinks;                 // or null: one more logit to each head, without a value
  const float* head_gates = nullptr;  // or (rows x n_heads): results are multiplied by their softplus
};

// Why rows of the batch cannot attend to such keys; empty where they can.
std::string refuses_keys(const Batch& batch, int64_t index, const KvShape& kept);

// mixed (rows x n_heads x value_dim) = what queries (rows x n_heads x key size), already scaled, give.
// `gates` (or null) is the first head's, heads being twice value_dim apart: results are multiplied by their
// sigmoid.
void attend(Session& session, const Runtime& runtime, const Attended& of, const float* queries,
            const float* gates, const Batch& batch, float* mixed);

}  // namespace hotset
