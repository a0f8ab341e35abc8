#include "layers/audit.h"

#include <algorithm>
#include <cmath>

namespace hotset {
namespace {

// How fast an audit moves the cut-off, and the recall that is shown.
constexpr float kRate = 0.1f;

}  // namespace

void audit(Session& session, const Runtime& runtime, const AuditPlan& plan, const NeuronRows& first,
           const RowActivations& x, const float* scores, Chooser& chooser) {
  if (chooser.calls++ % plan.period != plan.offset) return;
  const int64_t neurons = first.rows();
  auto* truth = session.allocate<float>(neurons);
  multiply_all_rows(session, runtime, x, first, truth);
  auto* of_fired = session.allocate<float>(neurons);
  int64_t fired = 0, found = 0;
  for (int64_t j = 0; j < neurons; ++j) {
    if (!(truth[j] > 0)) continue;
    of_fired[fired++] = scores[j];
    found += scores[j] >= chooser.cutoff;
  }
  if (fired == 0) return;
  const auto missed = static_cast<int64_t>((1 - plan.recall) * static_cast<float>(fired));
  std::nth_element(of_fired, of_fired + missed, of_fired + fired);
  chooser.cutoff += kRate * (of_fired[missed] - chooser.cutoff);
  const float recall = static_cast<float>(found) / static_cast<float>(fired), before = chooser.recall_seen;
  chooser.recall_seen = std::isnan(before) ? recall : before + kRate * (recall - before);
}

}  // namespace hotset
