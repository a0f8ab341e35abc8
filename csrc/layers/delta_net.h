// One layer's gated delta net.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "layers/products.h"
#include "layers/recurrent_spans.h"

namespace hotset {

struct DeltaNet {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Linear> qkv, z, beta, alpha, output;
  RecurrentShape shape;
  bool tiled;                         // value head h reads key head h mod n_key_heads
  std::vector<float> conv;            // kernel x channels, the newest position's factors last
  std::vector<float> dt_bias, decay;  // of each value head
  Norm out_norm;
  int64_t index;  // of its state in sequences

  // Why it cannot compute the batch; empty where it can.
  std::string refuses(const Batch& batch) const { return refuses_state(batch, index, shape); }

  // out += delta_net(x); out may be x. Writes what follows in the sequences' states, but does not advance
  // them.
  void forward(const float* x, float* out, const Batch& batch) const;
};

}  // namespace hotset
