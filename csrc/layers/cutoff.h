// Where a predictor cuts off in one layer of one sequence, and how audits move it.
//
// The definition, with the words, is hotset/backends/cutoff.py; this does the same.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace hotset {

// What a layer wants of its cut-offs: `kept` is the share of the activation to be kept, 0 for no audits.
struct CutoffPlan {
  float start = 0, kept = 0;
  int64_t layer = 0;
};

class Cutoff {
 public:
  explicit Cutoff(CutoffPlan plan = {}) : plan_(plan), value_(plan.start) {}

  const CutoffPlan& plan() const { return plan_; }

  // A neuron is computed where its score is at least this.
  float value();

  // Sets it until the next audit, or until all is forgotten.
  void set(float value) {
    value_ = value;
    stale_ = false;
  }

  // Whether the row at this position is audited: one whose neurons are chosen, or one of a lossless span.
  bool due(int64_t position, bool lossless) const;

  // An audit: all neurons' scores and values for the row at `position`. Returns the share of the activation
  // that the cut-off has kept: in a lossless span, all.
  double learn(int64_t position, const float* scores, const float* h, int64_t neurons, bool lossless);

  // Forgets what positions from `length` on have shown.
  void rewind(int64_t length);

 private:
  static constexpr int kLevels = 7;

  struct Audit {
    int64_t position;
    std::array<float, kLevels> scores;
    int32_t gap, calm;
  };

  CutoffPlan plan_;
  std::vector<Audit> audits_;
  float value_;
  bool stale_ = false;  // value_ was found before the last audits
};

}  // namespace hotset
