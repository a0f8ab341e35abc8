// Parts of layers that run one after another in one call. Weights push all else out of the caches, so each
// return to the interpreter between two parts costs microseconds, which count where a token takes few.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "layers/delta_net.h"
#include "layers/experts.h"
#include "layers/latent_attention.h"
#include "layers/layers.h"
#include "layers/mamba.h"
#include "layers/neuron_ffn.h"
#include "layers/short_conv.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hotset;

namespace {

// Each part adds to the vectors that the next one reads.
struct Chain {
  struct Part {
    std::function<std::string(const Batch&)> refuses;  // why it cannot compute the batch, or nothing
    std::function<void(float* x, const Batch&)> add;
  };

  int64_t hidden;
  std::vector<Part> parts;
};

std::string never(const Batch&) { return {}; }

template <typename Layer>
void append_mixer(Chain& chain, std::shared_ptr<const Layer> layer) {
  expect("part", "numbers a row", layer->norm.size(), chain.hidden);
  chain.parts.push_back({[layer](const Batch& batch) { return layer->refuses(batch); },
                         [layer](float* x, const Batch& batch) { layer->forward(x, x, batch); }});
}

void append_ffn(Chain& chain, std::shared_ptr<const Ffn> layer) {
  expect("part", "numbers a row", layer->norm.size(), chain.hidden);
  chain.parts.push_back(
      {never, [layer](float* x, const Batch& batch) { layer->forward(x, x, batch.rows()); }});
}

void append_neuron_ffn(Chain& chain, std::shared_ptr<const NeuronFfn> layer) {
  expect("part", "numbers a row", layer->hidden(), chain.hidden);
  if (layer->needs_scores()) refuse("part: it needs scores");
  chain.parts.push_back(
      {[layer](const Batch& batch) { return layer->refuses(batch); },
       [layer](float* x, const Batch& batch) { layer->forward(x, x, batch, {nullptr, layer->neurons()}); }});
}

void append_experts(Chain& chain, std::shared_ptr<const Experts> layer) {
  expect("part", "numbers a row", layer->hidden(), chain.hidden);
  chain.parts.push_back({never, [layer](float* x, const Batch& batch) {
                           layer->forward(x, x, batch.rows(), nullptr, &batch);
                         }});
}

void chain_forward(const Chain& chain, nb::handle x, const Batch& batch) {
  const Rows rows("x", x, chain.hidden, true);
  expect("x", "rows", rows.rows(), batch.rows());
  for (const Chain::Part& part : chain.parts) {
    if (const std::string why = part.refuses(batch); !why.empty()) refuse("batch: " + why);
  }
  if (batch.rows() == 0) return;
  const nb::gil_scoped_release release;
  for (const Chain::Part& part : chain.parts) part.add(rows.data(), batch);
}

}  // namespace

void bind_chain(nb::module_& m) {
  nb::class_<Chain>(m, "Chain", "Parts of layers that run one after another in one call.")
      .def(nb::new_([](int64_t hidden) { return std::make_shared<Chain>(Chain{hidden, {}}); }), "hidden"_a)
      .def("add", &append_mixer<Attention>, "part"_a)
      .def("add", &append_mixer<LatentAttention>, "part"_a)
      .def("add", &append_mixer<DeltaNet>, "part"_a)
      .def("add", &append_mixer<ShortConv>, "part"_a)
      .def("add", &append_mixer<Mamba>, "part"_a)
      .def("add", &append_ffn, "part"_a)
      .def("add", &append_neuron_ffn, "part"_a)
      .def("add", &append_experts, "part"_a, "Let a part run after those that are there.")
      .def("forward", &chain_forward, "x"_a, "batch"_a,
           "Each part adds to x (T, D), in their order. Refused as the first part that refuses the batch "
           "would.");
}
