// One layer's gated short convolution.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "layers/products.h"
#include "layers/recurrent_spans.h"

namespace hotset {

struct ShortConv {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Linear> input, output;  // rows of `input`: gates before, gates after, x
  RecurrentShape shape;                         // without heads
  std::vector<float> conv;                      // kernel x channels, the newest position's factors last
  int64_t index;                                // of its state in sequences

  // Why it cannot compute the batch; empty where it can.
  std::string refuses(const Batch& batch) const { return refuses_state(batch, index, shape); }

  // out += convolution(x); out may be x. Writes what follows in the sequences' states, but does not advance
  // them.
  void forward(const float* x, float* out, const Batch& batch) const;
};

}  // namespace hotset
