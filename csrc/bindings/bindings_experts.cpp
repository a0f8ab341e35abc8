// Python's view of mixtures of experts.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <optional>

#include "bindings/arrays.h"
#include "layers/experts.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hotset;

namespace {

using RuntimePtr = std::shared_ptr<Runtime>;
using CachePtr = std::shared_ptr<ExpertCache>;
using MatrixPtr = std::shared_ptr<Linear>;
using NormPtr = std::shared_ptr<Norm>;
using ExpertMatrixPtr = std::shared_ptr<ExpertMatrix>;

CachePtr new_cache(RuntimePtr runtime, std::optional<int64_t> budget) {
  if (budget && *budget < 1) refuse("budget: expected at least one byte");
  return std::make_shared<ExpertCache>(std::move(runtime), budget.value_or(ExpertCache::kNoBudget));
}

ExpertMatrixPtr new_matrix(int type, int64_t experts, int64_t rows, int64_t cols, Bytes data, bool from_file,
                           std::optional<Numbers> bias, std::optional<int> use,
                           std::optional<Numbers> scale) {
  if (experts < 1 || rows < 1 || cols < 1 || data.size() % static_cast<size_t>(experts * rows) != 0) {
    refuse("data: not whole rows");
  }
  auto matrix = std::make_shared<ExpertMatrix>();
  matrix->by_neuron = use.has_value();
  matrix->use = static_cast<NeuronUse>(use.value_or(0));
  matrix->type = static_cast<Type>(type);
  matrix->experts = experts;
  matrix->rows = rows;
  matrix->cols = cols;
  matrix->row_bytes = static_cast<int64_t>(data.size()) / (experts * rows);
  matrix->data = data.data();
  matrix->from_file = from_file;
  if (bias) expect("bias", "numbers", static_cast<int64_t>(bias->size()), experts * matrix->biases());
  if (bias) matrix->bias.assign(bias->data(), bias->data() + bias->size());
  if (scale) expect("scale", "numbers", static_cast<int64_t>(scale->size()), experts);
  if (scale) matrix->scale.assign(scale->data(), scale->data() + scale->size());
  matrix->owner = std::make_shared<Bytes>(data);
  return matrix;
}

std::shared_ptr<Routing> new_routing(int64_t count, int64_t used, int gating, bool normalised, float scale,
                                     int64_t groups, int64_t groups_used, std::optional<Numbers> bias,
                                     std::optional<Numbers> factors) {
  if (used < 1 || used > count || count > std::numeric_limits<int32_t>::max())
    refuse("used: expected 1 to count");
  if (groups < 1 || count % groups != 0 || groups_used < 1 || groups_used > groups) {
    refuse("groups: expected a divisor of count, and as many to be used at most");
  }
  auto routing = std::make_shared<Routing>(
      Routing{count, used, static_cast<Gating>(gating), normalised, scale, groups, groups_used, {}, {}});
  if (bias) {
    expect("bias", "numbers", static_cast<int64_t>(bias->size()), count);
    routing->bias.assign(bias->data(), bias->data() + bias->size());
  }
  if (factors) {
    expect("factors", "numbers", static_cast<int64_t>(factors->size()), count);
    routing->factors.assign(factors->data(), factors->data() + factors->size());
  }
  return routing;
}

std::shared_ptr<SharedExpert> new_shared(MatrixPtr gate, MatrixPtr up, MatrixPtr down, MatrixPtr gate_of) {
  return std::make_shared<SharedExpert>(
      SharedExpert{std::move(gate), std::move(up), std::move(down), std::move(gate_of)});
}

std::shared_ptr<Experts> new_experts(RuntimePtr runtime, CachePtr cache, NormPtr norm, MatrixPtr router,
                                     std::shared_ptr<Routing> routing, ExpertMatrixPtr gate,
                                     ExpertMatrixPtr up, ExpertMatrixPtr down, int activation,
                                     std::shared_ptr<SharedExpert> shared, NormPtr post_norm,
                                     NormPtr router_norm, std::shared_ptr<Ffn> beside, NormPtr joined_norm,
                                     bool everything, int64_t index) {
  if ((beside == nullptr) != (joined_norm == nullptr)) refuse("beside: expected with joined_norm");
  std::vector<ExpertMatrix> matrices;
  if (gate) matrices.push_back(*gate);
  matrices.push_back(*up);
  matrices.push_back(*down);
  for (const ExpertMatrix& matrix : matrices) expect("experts", "of each", matrix.experts, routing->count);
  auto layer = std::make_shared<Experts>();
  layer->runtime = std::move(runtime);
  layer->norm = *norm;
  layer->router = std::move(router);
  layer->routing = *routing;
  layer->by_neuron = down->by_neuron;
  layer->everything = everything;
  layer->index = index;
  layer->bank = std::make_shared<ExpertBank>(std::move(cache), std::move(matrices));
  layer->gated = gate != nullptr;
  layer->activation = static_cast<Activation>(activation);
  layer->shared = std::move(shared);
  layer->post_norm = std::move(post_norm);
  layer->router_norm = std::move(router_norm);
  layer->beside = std::move(beside);
  layer->joined_norm = std::move(joined_norm);
  return layer;
}

void experts_route(const Experts& layer, nb::handle x, nb::handle logits) {
  const Rows from("x", x, layer.hidden(), false), to("logits", logits, layer.routing.count, true);
  expect("logits", "rows", to.rows(), from.rows());
  if (from.rows() == 0) return;
  const nb::gil_scoped_release release;
  layer.route(from.data(), from.rows(), to.data());
}

// The batch's rows are x's, and its sequences have what the layer counts in.
void check_batch(const Experts& layer, const Batch* batch, int64_t rows) {
  if (!batch || !layer.by_neuron) return;
  expect("batch", "rows", batch->rows(), rows);
}

void experts_forward(const Experts& layer, nb::handle x, nb::handle out, nb::handle logits,
                     const Batch* batch) {
  const Rows from("x", x, layer.hidden(), false), to("out", out, layer.hidden(), true);
  expect("out", "rows", to.rows(), from.rows());
  std::optional<Rows> given;
  if (!logits.is_none()) {
    given.emplace("logits", logits, layer.routing.count, false);
    expect("logits", "rows", given->rows(), from.rows());
  }
  check_batch(layer, batch, from.rows());
  const nb::gil_scoped_release release;
  layer.forward(from.data(), to.data(), from.rows(), given ? given->data() : nullptr, batch);
}

void experts_select(const Experts& layer, nb::handle x, nb::handle logits, nb::handle weights) {
  const int64_t count = layer.routing.count;
  const Rows from("x", x, layer.hidden(), false), to("weights", weights, count, true);
  expect("weights", "rows", to.rows(), from.rows());
  std::optional<Rows> given;
  if (!logits.is_none()) {
    given.emplace("logits", logits, count, false);
    expect("logits", "rows", given->rows(), from.rows());
  }
  if (from.rows() == 0) return;
  const nb::gil_scoped_release release;
  layer.select(from.data(), from.rows(), given ? given->data() : nullptr, to.data());
}

void experts_add(const Experts& layer, nb::handle x, nb::handle out, nb::handle weights, const Batch* batch) {
  const Rows from("x", x, layer.hidden(), false), to("out", out, layer.hidden(), true),
      of("weights", weights, layer.routing.count, false);
  expect("out", "rows", to.rows(), from.rows());
  expect("weights", "rows", of.rows(), from.rows());
  check_batch(layer, batch, from.rows());
  const nb::gil_scoped_release release;
  layer.add(from.data(), to.data(), from.rows(), of.data(), batch);
}

void experts_neurons(const Experts& layer, nb::handle x, nb::handle gate, nb::handle h) {
  const int64_t width = layer.routing.count * layer.size();
  const Rows from("x", x, layer.hidden(), false), pre("gate", gate, width, true), values("h", h, width, true);
  expect("gate", "rows", pre.rows(), from.rows());
  expect("h", "rows", values.rows(), from.rows());
  const nb::gil_scoped_release release;
  layer.neurons(from.data(), from.rows(), pre.data(), values.data());
}

void experts_fired(const Experts& layer, nb::handle x, nb::handle weights, nb::handle counts) {
  const int64_t count = layer.routing.count;
  const Rows from("x", x, layer.hidden(), false), of("weights", weights, count, false),
      to("counts", counts, count, true);
  expect("weights", "rows", of.rows(), from.rows());
  expect("counts", "rows", to.rows(), from.rows());
  const nb::gil_scoped_release release;
  layer.fired(from.data(), from.rows(), of.data(), to.data());
}

}  // namespace

void bind_experts(nb::module_& m) {
  nb::class_<ExpertCache>(m, "ExpertCache", "The memory of all layers' packed experts.")
      .def(nb::new_(&new_cache), "runtime"_a, "budget"_a.none())
      .def_prop_ro(
          "counts",
          [](const ExpertCache& cache) {
            const ExpertCache::Counts n = cache.counts();
            return nb::make_tuple(n.bytes, n.experts, n.packs, n.evictions);
          },
          "Bytes and experts that are packed, and how often one was packed and given back so far.");
  nb::class_<ExpertMatrix>(m, "ExpertMatrix", "One matrix of each expert, as it lies in a file.")
      .def(nb::new_(&new_matrix), "type"_a, "experts"_a, "rows"_a, "cols"_a, "data"_a, "from_file"_a,
           "bias"_a.none(), "use"_a = nb::none(), "scale"_a = nb::none(),
           "`use`: single rows are read, to be multiplied with x (0) or added up (1); `scale`: of each "
           "expert's "
           "weights, where no single rows are read.");
  nb::class_<Routing>(m, "Routing", "A router's rule.")
      .def(nb::new_(&new_routing), nb::kw_only(), "count"_a, "used"_a, "gating"_a, "normalised"_a, "scale"_a,
           "groups"_a, "groups_used"_a, "bias"_a.none(), "factors"_a.none() = nb::none());
  nb::class_<SharedExpert>(m, "SharedExpert", "The expert that every row uses.")
      .def(nb::new_(&new_shared), "gate"_a.none(), "up"_a, "down"_a, "gate_of"_a.none());
  nb::class_<Experts>(m, "Experts", nb::is_weak_referenceable(), "One layer's mixture of experts.")
      .def(nb::new_(&new_experts), nb::kw_only(), "runtime"_a, "cache"_a, "norm"_a, "router"_a, "routing"_a,
           "gate"_a.none(), "up"_a, "down"_a, "activation"_a, "shared"_a.none(), "post_norm"_a.none(),
           "router_norm"_a.none() = nb::none(), "beside"_a.none() = nb::none(),
           "joined_norm"_a.none() = nb::none(), "everything"_a = false, "index"_a = 0)
      .def("route", &experts_route, "x"_a, "logits"_a,
           "Write the router's logits of x (T, D) to logits (T, E).")
      .def("forward", &experts_forward, "x"_a, "out"_a, "logits"_a = nb::none(), "batch"_a = nb::none(),
           "Add the mixture of x (T, D) to out (T, D), which may be x itself, by the router's logits (T, E) "
           "where they are given.")
      .def("select", &experts_select, "x"_a, "logits"_a.none(), "weights"_a,
           "Write each row's weights, zero for experts that it does not select, to weights (T, E): of x (T, "
           "D), or of the router's logits (T, E) where they are given.")
      .def_prop_ro(
          "uses",
          [](const Experts& layer) {
            const ExpertBank::Uses uses = layer.bank->uses();
            return nb::make_tuple(uses.rows, uses.of, uses.packed);
          },
          "Rows so far, how many of them used each expert, and whether each is packed.")
      .def("add", &experts_add, "x"_a, "out"_a, "weights"_a, "batch"_a = nb::none(),
           "Add to out (T, D) what forward does, of the experts whose weights (T, E) are positive, or NaN.")
      .def(
          "fired", &experts_fired, "x"_a, "weights"_a, "counts"_a,
          "Write to counts (T, E) how many neurons of each expert are not zero, of x (T, D), for the experts "
          "whose weights (T, E) are positive, or NaN.")
      .def(
          "neurons", &experts_neurons, "x"_a, "gate"_a, "h"_a,
          "Write the activation's input of x (T, D) to gate (T, E F) and the neurons' values to h (T, E F).");
}
