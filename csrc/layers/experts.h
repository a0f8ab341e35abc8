// A mixture of experts: of many FFNs, each row computes those that a router selects for it.
#pragma once

#include <memory>
#include <utility>

#include "layers/expert_products.h"
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
  Activation activation;
  std::shared_ptr<const SharedExpert> shared;  // or null
  std::shared_ptr<const Norm> post_norm;       // or null

  int64_t hidden() const { return norm.size(); }
  int64_t size() const { return bank->matrix(gated).rows; }

  // logits (rows x experts) of the router for x, without the norm.
  void route(const float* x, int64_t rows, float* logits) const;

  // out += experts(x); out may be x. The router's logits may be given.
  void forward(const float* x, float* out, int64_t rows, const float* logits) const;

  // Each row's weights (rows x experts), zero for the experts that it does not select: of x, or of the
  // router's logits where they are given.
  void select(const float* x, int64_t rows, const float* logits, float* weights) const;

  // As forward, of the experts whose weights (rows x experts) are positive, or not a number.
  void add(const float* x, float* out, int64_t rows, const float* weights) const;

  // What the activation is applied to and the neurons' values, both (rows x experts x size): zeros for
  // experts that a row does not use.
  void neurons(const float* x, int64_t rows, float* pre, float* h) const;

 private:
  struct Selected;

  // What need not be computed, or null.
  struct Given {
    const float *logits = nullptr, *weights = nullptr;  // (rows x experts)
  };

  Activations pack_input(Session& session, const float* x, int64_t rows) const;
  Selected selected(Session& session, const Activations& x, const Given& given) const;
  ExpertUses uses(Session& session, const Activations& x, const Selected& selected) const;
  void add_some(const float* x, float* out, int64_t rows, const Given& given) const;
  void add_all(const float* x, float* out, int64_t rows, const Given& given) const;
};

}  // namespace hotset
