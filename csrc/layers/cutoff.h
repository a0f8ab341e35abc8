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

// What a row shows of a cut-off: how much of its activation reaches it, and the scores at which, as cut-offs,
// the row would lose certain shares. Where nothing has fired, it shows nothing.
struct Shown {
  static constexpr int kLevels = 7;

  bool fired = false;
  double kept = 1;
  std::array<float, kLevels> scores{};
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

  // Of each 64 neurons, the bits of those that the next audit computes besides the chosen ones.
  uint64_t looked_at() const { return uint64_t{0xffff} << 16 * (audits_.size() % kQuarters); }

  // What an audited row shows, of its neurons' scores and of the values that were computed, others being
  // zero. All were, unless `cutoff` is a number: then all those whose score reaches it, and a quarter of the
  // others.
  static Shown look(const float* scores, const float* h, int64_t neurons, float cutoff, float may_be_lost);

  // An audit of the row at `position`. Returns the share of the activation that the cut-off has kept: in a
  // lossless span, all.
  double learn(int64_t position, const Shown& shown, bool lossless);

  // Forgets what positions from `length` on have shown.
  void rewind(int64_t length);

 private:
  static constexpr int kQuarters = 4;

  struct Audit {
    int64_t position;
    std::array<float, Shown::kLevels> scores;
    int32_t gap, calm;
  };

  CutoffPlan plan_;
  std::vector<Audit> audits_;
  float value_;
  bool stale_ = false;  // value_ was found before the last audits
};

}  // namespace hotset
