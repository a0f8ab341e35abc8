#include "layers/cutoff.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace hotset {
namespace {

// As in hotset/backends/cutoff.py.
constexpr float kLevelsOf[] = {0.125f, 0.25f, 0.5f, 1, 2, 4, 8};
constexpr size_t kMemory = 16;
constexpr float kHalfLife = 128, kStartWeight = 1, kSurprise = 3;
constexpr int32_t kFirstGap = 8, kLeastGap = 4, kMostGap = 64, kCalm = 3;
constexpr int64_t kFirst = 8;
constexpr int kHalvings = 30;

// What a token loses at a cut-off, as a multiple of what may be lost.
double interpolated(double cutoff, const float* scores, int n) {
  const auto k = static_cast<int>(std::upper_bound(scores, scores + n, cutoff) - scores);
  if (k == 0) return 0;
  if (k == n) return kLevelsOf[n - 1];
  const double part = (cutoff - scores[k - 1]) / (static_cast<double>(scores[k]) - scores[k - 1]);
  return kLevelsOf[k - 1] + part * (kLevelsOf[k] - kLevelsOf[k - 1]);
}

}  // namespace

float Cutoff::value() {
  if (!stale_) return value_;
  stale_ = false;
  if (audits_.empty()) return value_ = plan_.start;
  const size_t n = std::min(kMemory, audits_.size());
  const Audit* recent = audits_.data() + audits_.size() - n;
  double weights[kMemory], total = 0, low = recent->scores[0], high = low;
  for (size_t i = 0; i < n; ++i) {
    const auto age = static_cast<double>(audits_.back().position - recent[i].position);
    total += weights[i] = std::exp2(-age / kHalfLife);
    low = std::min<double>(low, recent[i].scores[0]);
    high = std::max<double>(high, recent[i].scores[Shown::kLevels - 1]);
  }
  for (int step = 0; step < kHalvings; ++step) {
    const double middle = (low + high) / 2;
    double lost = 0;
    for (size_t i = 0; i < n; ++i) {
      lost += weights[i] * interpolated(middle, recent[i].scores.data(), Shown::kLevels);
    }
    (lost > total ? high : low) = middle;
  }
  const double start = kStartWeight * std::exp2(-static_cast<double>(audits_.back().position) / kHalfLife);
  return value_ = static_cast<float>((total * low + start * plan_.start) / (total + start));
}

bool Cutoff::due(int64_t position, bool lossless) const {
  if (plan_.kept <= 0 || position < kFirst) return false;
  if (lossless) return position % 16 == 15 || (position < 128 && position % 8 == 7);
  return (position + 7 * plan_.layer) % (audits_.empty() ? kFirstGap : audits_.back().gap) == 0;
}

Shown Cutoff::look(const float* scores, const float* h, int64_t neurons, float cutoff, float may_be_lost) {
  std::vector<std::pair<float, float>> fired;  // scores and shares
  double total = 0, lost = 0;
  for (int64_t j = 0; j < neurons; ++j) {
    if (h[j] == 0) continue;
    const bool chosen = !(scores[j] < cutoff);
    const float share = std::abs(h[j]) * (chosen ? 1 : kQuarters);
    fired.emplace_back(scores[j], share);
    total += share;
    if (!chosen) lost += share;
  }
  if (!(total > 0)) return {};
  Shown shown = {true, 1 - lost / total, {}};
  // The lowest scores one after the other; few are needed.
  const auto higher = [](const auto& a, const auto& b) { return a.first > b.first; };
  std::make_heap(fired.begin(), fired.end(), higher);
  int level = 0;
  float score = 0;
  for (lost = 0; level < Shown::kLevels && !fired.empty(); fired.pop_back()) {
    std::pop_heap(fired.begin(), fired.end(), higher);
    score = fired.back().first;
    lost += fired.back().second;
    for (; level < Shown::kLevels && lost > kLevelsOf[level] * may_be_lost * total; ++level) {
      shown.scores[level] = score;
    }
  }
  for (; level < Shown::kLevels; ++level) shown.scores[level] = score;
  return shown;
}

double Cutoff::learn(int64_t position, const Shown& shown, bool lossless) {
  if (!shown.fired) return 1;
  Audit audit = {position, shown.scores, kFirstGap, 0};
  if (!lossless) {
    if (!audits_.empty()) audit.gap = audits_.back().gap, audit.calm = audits_.back().calm;
    if (1 - shown.kept > kSurprise * (1 - plan_.kept)) {
      audit.gap = std::max(kLeastGap, audit.gap / 2);
      audit.calm = 0;
    } else if (++audit.calm % kCalm == 0) {
      audit.gap = std::min(kMostGap, 2 * audit.gap);
    }
  }
  audits_.push_back(audit);
  stale_ = true;
  return shown.kept;
}

void Cutoff::rewind(int64_t length) {
  for (; !audits_.empty() && audits_.back().position >= length; audits_.pop_back()) stale_ = true;
  stale_ = stale_ || length == 0;
}

}  // namespace hotset
