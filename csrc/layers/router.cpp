#include "layers/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hotset {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

// Weights are divided by no less than the smallest normal half.
constexpr float kLeastSum = 6.1e-5f;

// In place; `n` numbers.
void softmax(float* x, int64_t n) {
  const float most = *std::max_element(x, x + n);
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - most);
  for (int64_t i = 0; i < n; ++i) x[i] /= sum;
}

// Writes the places of the `wanted` largest of n scores, largest first; of equal ones the first.
void largest(const float* scores, int64_t n, int64_t wanted, int32_t* places) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (found == wanted && !(scores[i] > scores[places[found - 1]])) continue;
    int64_t at = found < wanted ? found++ : found - 1;
    for (; at > 0 && scores[i] > scores[places[at - 1]]; --at) places[at] = places[at - 1];
    places[at] = static_cast<int32_t>(i);
  }
}

// The sum of a group's two best scores.
float best_two(const float* scores, int64_t n) {
  float best = kNone, second = kNone;
  for (int64_t i = 0; i < n; ++i) {
    second = std::max(second, std::min(best, scores[i]));
    best = std::max(best, scores[i]);
  }
  return n > 1 ? best + second : best;
}

}  // namespace

void Routing::select(const float* logits, float* scratch, int32_t* experts, float* weights) const {
  float *p = scratch, *scores = scratch + count, *of_groups = scratch + 2 * count;
  std::copy_n(logits, count, p);
  if (gating == Gating::kSoftmax) softmax(p, count);
  if (gating == Gating::kSigmoid) {
    for (int64_t i = 0; i < count; ++i) p[i] = 0.5f * (1 + std::tanh(0.5f * p[i]));
  }
  for (int64_t i = 0; i < count; ++i) {
    const float score = bias.empty() ? p[i] : p[i] + bias[i];
    scores[i] = std::isnan(score) ? kNone : score;
  }
  if (groups > 1) {
    const int64_t size = count / groups;
    for (int64_t g = 0; g < groups; ++g) of_groups[g] = best_two(scores + g * size, size);
    for (int64_t left = groups - groups_used; left > 0; --left) {
      // The worst goes; of equal ones the last.
      int64_t worst = 0;
      for (int64_t g = 1; g < groups; ++g) {
        if (!(of_groups[g] > of_groups[worst])) worst = g;
      }
      std::fill_n(scores + worst * size, size, kNone);
      of_groups[worst] = std::numeric_limits<float>::infinity();
    }
  }
  largest(scores, count, used, experts);
  std::sort(experts, experts + used);
  for (int64_t i = 0; i < used; ++i) weights[i] = p[experts[i]];
  if (gating == Gating::kSelected) softmax(weights, used);
  float divisor = 1;
  if (normalised) {
    divisor = 0;
    for (int64_t i = 0; i < used; ++i) divisor += weights[i];
    divisor = std::max(divisor, kLeastSum);
  }
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += logits[i];
  // Not a number where one of the logits is none, if it was selected or not.
  const float valid = std::isnan(sum) ? sum : 1.0f;
  for (int64_t i = 0; i < used; ++i) {
    const float factor = factors.empty() ? 1.0f : factors[experts[i]];
    weights[i] = weights[i] / divisor * scale * factor * valid;
  }
}

}  // namespace hotset
