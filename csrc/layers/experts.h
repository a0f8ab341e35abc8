// A mixture of experts: of many FFNs, each row computes those that a router selects for it.
#pragma once

#include <memory>
#include <utility>

#include "layers/batch.h"
#include "layers/expert_products.h"
#include "layers/layers.h"
#include "layers/router.h"
#include "weights/expert_cache.h"

namespace hotset {

// The expert that every row uses; its result is multiplied with the sigmoid of `gate_of`, if any.
struct SharedExpert {
  std::shared_ptr<const Linear> gate, up, down;  // gate may be null
  std::shared_ptr<const Linear> gate_of;         // (1 x D), or null
};

struct Experts {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Linear> router;  // of floats
  Routing routing;
  std::shared_ptr<ExpertBank> bank;  // gate where there is one, up, down
  bool gated;
  bool by_neuron;   // the last ones but the first are read by row: up where there is a gate, and down
  bool everything;  // even neurons that are zero, but for lossless rows
  int64_t index;    // of its chooser in sequences
  Activation activation;
  std::shared_ptr<const SharedExpert> shared;  // or null
  std::shared_ptr<const Norm> post_norm;       // or null
  std::shared_ptr<const Norm> router_norm;     // of what the router reads, where it is not norm; or null
  // An ordinary FFN of the same x, whose result and the experts' are normed together; both or none.
  std::shared_ptr<const Ffn> beside;
  std::shared_ptr<const Norm> joined_norm;

  int64_t hidden() const { return norm.size(); }
  int64_t size() const { return bank->matrix(gated).rows; }

  // logits (rows x experts) of the router for x, without the norm.
  void route(const float* x, int64_t rows, float* logits) const;

  // out += experts(x); out may be x. The router's logits may be given. Experts stored by neuron read only
  // what is not zero, or `everything` for rows that are not lossless; such rows are counted in their
  // sequences. Without a batch all rows are lossless.
  void forward(const float* x, float* out, int64_t rows, const float* logits, const Batch* batch) const;

  // Each row's weights (rows x experts), zero for the experts that it does not select: of x, or of the
  // router's logits where they are given.
  void select(const float* x, int64_t rows, const float* logits, float* weights) const;

  // As forward, of the experts whose weights (rows x experts) are positive, or not a number.
  void add(const float* x, float* out, int64_t rows, const float* weights, const Batch* batch) const;

  // What the activation is applied to and the neurons' values, both (rows x experts x size): zeros for
  // experts that a row does not use.
  void neurons(const float* x, int64_t rows, float* pre, float* h) const;

  // How many neurons of each expert are not zero, for the experts whose weights are positive, or not a
  // number; both are (rows x experts).
  void fired(const float* x, int64_t rows, const float* weights, float* counts) const;

 private:
  struct Selected;

  // What need not be computed, or null.
  struct Given {
    const float *logits = nullptr, *weights = nullptr;  // (rows x experts)
  };

  Activations pack_input(Session& session, const float* x, int64_t rows) const;
  Selected selected(Session& session, const Activations& x, const Given& given) const;
  ExpertUses hidden_of(Session& session, const Activations& x, const Selected& selected, float* pre) const;
  ExpertUses uses(Session& session, const Activations& x, const Selected& selected) const;
  ExpertUses uses_of_first(Session& session, const Activations& x, const Selected& selected,
                           bool second_too) const;
  void multiply_second(Session& session, const ExpertUse& use, int64_t expert) const;
  const float* add_shared(Session& session, const Activations& x) const;
  const float* router_logits(Session& session, const float* x, int64_t rows, const Norm& norm_of_x) const;
  void add_some(Session& session, const float* x, float* out, int64_t rows, const Given& given) const;
  void add_by_neuron(Session& session, const float* x, float* out, int64_t rows, const Given& given,
                     const Batch* batch, int64_t row0) const;
  void add_all(const float* x, float* out, int64_t rows, const Given& given, const Batch* batch) const;
};

}  // namespace hotset
