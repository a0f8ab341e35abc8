// One layer of Mamba-2.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "layers/products.h"
#include "layers/recurrent_spans.h"

namespace hotset {

struct Mamba {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Linear> input, output;  // rows of `input`: gates, values, keys, queries, steps
  RecurrentShape shape;
  std::vector<float> conv;  // (kernel + 1) x channels: the newest position's factors, then biases
  std::vector<float> dt_bias, decay, skip;  // of each value head
  Norm out_norm;                            // its weights are those of all value heads
  int64_t index;                            // of its state in sequences

  // Why it cannot compute the batch; empty where it can.
  std::string refuses(const Batch& batch) const { return refuses_state(batch, index, shape); }

  // out += mamba(x); out may be x. Writes what follows in the sequences' states, but does not advance them.
  void forward(const float* x, float* out, const Batch& batch) const;
};

}  // namespace hotset
