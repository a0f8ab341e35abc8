// Which experts compute a row, and with what weights.
#pragma once

#include <cstdint>
#include <vector>

namespace hotset {

// As in Python's hotset.core.config, by name (bindings_numbers.cpp).
enum class Gating : int32_t { kSoftmax, kSigmoid, kSelected };

// A router's rule: what follows from its logits (hotset.backends.maths.route says the same).
struct Routing {
  int64_t count, used;
  Gating gating;
  bool normalised;
  float scale;
  int64_t groups, groups_used;
  std::vector<float> bias;     // added to probabilities when experts are selected, or empty
  std::vector<float> factors;  // on the weights of selected experts, or empty

  int64_t scratch_floats() const { return 2 * count + groups; }

  // Writes `used` experts in the order of their numbers, and their weights, of `count` logits. Where these
  // are not numbers, so are the weights.
  void select(const float* logits, float* scratch, int32_t* experts, float* weights) const;
};

}  // namespace hotset
