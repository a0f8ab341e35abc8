// Looking after a predictor: now and then the truth is computed, and the cut-off moves after it.
#pragma once

#include "layers/neuron_products.h"
#include "layers/sequence.h"

namespace hotset {

// How often, and what for. A layer's neighbours are audited at other rows.
struct AuditPlan {
  float recall = 0;  // of the neurons that fire, the share to be predicted; 0: no audits
  int64_t period = 1, offset = 0;
};

// Counts one row of a sequence that neurons are chosen for, whose packed x and scores these are. Where an
// audit is due, computes which neurons truly fire, and moves the cut-off towards the one that would have kept
// the share `recall` of them.
void audit(Session& session, const Runtime& runtime, const AuditPlan& plan, const NeuronRows& first,
           const RowActivations& x, const float* scores, Chooser& chooser);

}  // namespace hotset
