// Python's view of the layers. Calls check their arguments, let go of the interpreter and run;
// backends/cpu builds the parts.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "bindings/mixer.h"
#include "layers/layers.h"
#include "layers/neuron_ffn.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hotset;

namespace {

using RuntimePtr = std::shared_ptr<Runtime>;
using MatrixPtr = std::shared_ptr<Linear>;
using NormPtr = std::shared_ptr<Norm>;
using RowsPtr = std::shared_ptr<NeuronRows>;
using StorePtr = std::shared_ptr<NeuronStore>;

RuntimePtr new_runtime(int threads, const std::string& level, int64_t parts) {
  if (parts < 1) refuse("parts: expected at least 1, found " + std::to_string(parts));
  for (auto kernels = available_kernels(); *kernels; ++kernels) {
    if (level == (*kernels)->name) return std::make_shared<Runtime>(threads, **kernels, parts);
  }
  refuse("level: " + level + " is not in kernel_levels()");
}

Type known_type(int type) {
  const auto checked = static_cast<Type>(type);
  if (codebook_bytes(checked) && !codebook_of(checked)) refuse("type: its codebook is not known");
  return checked;
}

MatrixPtr new_matrix(RuntimePtr runtime, int type, int64_t rows, int64_t cols, Bytes data, bool from_file,
                     std::optional<Numbers> bias, float scale) {
  if (rows < 1 || cols < 1 || data.size() % static_cast<size_t>(rows) != 0) refuse("data: not whole rows");
  if (bias) expect("bias", "numbers", static_cast<int64_t>(bias->size()), rows);
  const Type checked = known_type(type);
  const nb::gil_scoped_release release;
  return std::make_shared<Linear>(std::move(runtime), checked, rows, cols,
                                  static_cast<int64_t>(data.size()) / rows, data.data(), from_file,
                                  bias ? bias->data() : nullptr, scale);
}

NormPtr new_norm(int kind, float eps, Numbers weight, std::optional<Numbers> bias) {
  if (kind < 0 || kind > static_cast<int>(NormKind::kNone)) refuse("kind: there is no such norm");
  auto norm = std::make_shared<Norm>(Norm{static_cast<NormKind>(kind), eps, {}, {}});
  norm->weight.assign(weight.data(), weight.data() + weight.size());
  if (bias) {
    expect("bias", "numbers", static_cast<int64_t>(bias->size()), norm->size());
    norm->bias.assign(bias->data(), bias->data() + bias->size());
  }
  return norm;
}

std::shared_ptr<Attention> new_attention(RuntimePtr runtime, NormPtr norm, MatrixPtr q, MatrixPtr k,
                                         MatrixPtr v, MatrixPtr output, int64_t n_heads, int64_t n_kv_heads,
                                         int64_t head_dim, float scale, std::optional<int64_t> window,
                                         std::shared_ptr<Rope> rope, NormPtr q_norm, NormPtr k_norm,
                                         NormPtr v_norm, NormPtr post_norm, bool gated, MatrixPtr head_gate,
                                         std::optional<Numbers> sinks, float soft_cap, float growth,
                                         int64_t growth_context, int64_t index) {
  auto layer = std::make_shared<Attention>();
  if (growth_context < 1) refuse("growth_context: expected at least 1");
  if (sinks) expect("sinks", "numbers", static_cast<int64_t>(sinks->size()), n_heads);
  layer->runtime = std::move(runtime);
  layer->norm = *norm;
  layer->q = std::move(q);
  layer->k = std::move(k);
  layer->v = std::move(v);
  layer->output = std::move(output);
  layer->n_heads = n_heads;
  layer->n_kv_heads = n_kv_heads;
  layer->head_dim = head_dim;
  layer->scale = scale;
  layer->window = window.value_or(std::numeric_limits<int64_t>::max());
  layer->rope = std::move(rope);
  layer->q_norm = std::move(q_norm);
  layer->k_norm = std::move(k_norm);
  layer->v_norm = std::move(v_norm);
  layer->post_norm = std::move(post_norm);
  layer->soft_cap = soft_cap;
  layer->growth = growth;
  layer->growth_context = growth_context;
  layer->gated = gated;
  if (head_gate) expect("head_gate", "rows", head_gate->rows(), n_heads);
  layer->head_gate = std::move(head_gate);
  if (sinks) layer->sinks.assign(sinks->data(), sinks->data() + sinks->size());
  layer->index = index;
  return layer;
}

std::shared_ptr<Ffn> new_ffn(RuntimePtr runtime, NormPtr norm, MatrixPtr gate, MatrixPtr up, MatrixPtr down,
                             int activation, NormPtr post_norm) {
  auto layer = std::make_shared<Ffn>();
  layer->runtime = std::move(runtime);
  layer->norm = *norm;
  layer->gate = std::move(gate);
  layer->up = std::move(up);
  layer->down = std::move(down);
  layer->activation = static_cast<Activation>(activation);
  layer->post_norm = std::move(post_norm);
  return layer;
}

void ffn_forward(const Ffn& layer, nb::handle x, nb::handle out, nb::handle /*batch*/) {
  const Rows from("x", x, layer.up->cols(), false), to("out", out, layer.down->rows(), true);
  expect("out", "rows", to.rows(), from.rows());
  if (from.rows() == 0) return;
  const nb::gil_scoped_release release;
  layer.forward(from.data(), to.data(), from.rows());
}

void ffn_neurons(const Ffn& layer, nb::handle x, nb::handle gate, nb::handle h) {
  const Rows from("x", x, layer.up->cols(), false);
  const Rows pre("gate", gate, layer.up->rows(), true), values("h", h, layer.up->rows(), true);
  expect("gate", "rows", pre.rows(), from.rows());
  expect("h", "rows", values.rows(), from.rows());
  if (from.rows() == 0) return;
  const nb::gil_scoped_release release;
  layer.neurons(from.data(), from.rows(), pre.data(), values.data());
}

Type row_type(int type) {
  if (type != kF16 && type != kQ8_0 && type != kQ4_0 && type != kQ4_1) refuse("type: no rows of this type");
  return static_cast<Type>(type);
}

StorePtr new_neuron_store(RuntimePtr runtime, int64_t neurons, int64_t cols, const std::vector<int>& types) {
  if (neurons < 1 || cols < 1) refuse("neurons, cols: expected at least one");
  std::vector<Type> row_types;
  for (const int type : types) row_types.push_back(row_type(type));
  return std::make_shared<NeuronStore>(std::move(runtime), neurons, cols, std::move(row_types));
}

std::shared_ptr<NeuronRows> new_neuron_rows(StorePtr store, int type, bool added, int64_t rows, int64_t cols,
                                            Bytes data, bool from_file, std::optional<Numbers> bias) {
  if (rows < 1 || cols < 1 || data.size() % static_cast<size_t>(rows) != 0) refuse("data: not whole rows");
  if (bias) expect("bias", "numbers", static_cast<int64_t>(bias->size()), added ? cols : rows);
  const nb::gil_scoped_release release;
  return std::make_shared<NeuronRows>(std::move(store), row_type(type), added ? kNeuronAdd : kNeuronDot, rows,
                                      cols, static_cast<int64_t>(data.size()) / rows, data.data(), from_file,
                                      bias ? bias->data() : nullptr);
}

std::shared_ptr<NeuronFfn> new_neuron_ffn(RuntimePtr runtime, NormPtr norm, MatrixPtr first,
                                          RowsPtr first_rows, MatrixPtr second, RowsPtr second_rows,
                                          RowsPtr down, int activation, int way, int score,
                                          std::vector<MatrixPtr> predictor, bool raw_input,
                                          std::optional<Numbers> factors, NormPtr post_norm, int64_t index) {
  NeuronFfnParts parts;
  parts.runtime = std::move(runtime);
  parts.norm = *norm;
  parts.first = std::move(first);
  parts.first_rows = std::move(first_rows);
  parts.second = std::move(second);
  parts.second_rows = std::move(second_rows);
  parts.down = std::move(down);
  parts.activation = static_cast<Activation>(activation);
  parts.way = static_cast<Way>(way);
  parts.score = static_cast<Score>(score);
  parts.predictor.assign(predictor.begin(), predictor.end());
  parts.raw_input = raw_input;
  if (factors) parts.factors.assign(factors->data(), factors->data() + factors->size());
  parts.post_norm = std::move(post_norm);
  parts.index = index;
  return std::make_shared<NeuronFfn>(std::move(parts));
}

void neuron_ffn_forward(const NeuronFfn& layer, nb::handle x, nb::handle out, const Batch* batch,
                        nb::handle scores) {
  const Rows from("x", x, layer.hidden(), false), to("out", out, layer.hidden(), true);
  const Batch lossless(nullptr, batch ? 0 : from.rows(), true);
  const Batch& rows = batch ? *batch : lossless;
  expect("x", "rows", from.rows(), rows.rows());
  expect("out", "rows", to.rows(), rows.rows());
  std::optional<Rows> given;
  if (!scores.is_none()) {
    given.emplace("scores", scores, layer.neurons(), false);
    expect("scores", "rows", given->rows(), rows.rows());
  } else if (layer.wants_scores(rows)) {
    refuse("scores: this layer needs them");
  }
  if (const std::string why = layer.refuses(rows); !why.empty()) refuse("batch: " + why);
  if (rows.rows() == 0) return;
  const nb::gil_scoped_release release;
  layer.forward(from.data(), to.data(), rows, {given ? given->data() : nullptr, layer.neurons()});
}

void neuron_ffn_neurons(const NeuronFfn& layer, nb::handle x, nb::handle gate, nb::handle h) {
  const Rows from("x", x, layer.hidden(), false), pre("gate", gate, layer.neurons(), true),
      values("h", h, layer.neurons(), true);
  expect("gate", "rows", pre.rows(), from.rows());
  expect("h", "rows", values.rows(), from.rows());
  if (from.rows() == 0) return;
  const nb::gil_scoped_release release;
  layer.neurons(from.data(), from.rows(), pre.data(), values.data());
}

std::shared_ptr<Head> new_head(RuntimePtr runtime, NormPtr norm, MatrixPtr output, float soft_cap) {
  return std::make_shared<Head>(Head{std::move(runtime), *norm, std::move(output), soft_cap});
}

std::shared_ptr<LayerInput> new_layer_input(RuntimePtr runtime, MatrixPtr gate, MatrixPtr up,
                                            NormPtr post_norm) {
  expect("up", "columns", up->cols(), gate->rows());
  return std::make_shared<LayerInput>(
      LayerInput{std::move(runtime), std::move(gate), std::move(up), *post_norm});
}

void layer_input_forward(const LayerInput& layer, nb::handle x, nb::handle e, nb::handle out) {
  const Rows from("x", x, layer.gate->cols(), false), own("e", e, layer.gate->rows(), false);
  const Rows to("out", out, layer.up->rows(), true);
  expect("e", "rows", own.rows(), from.rows());
  expect("out", "rows", to.rows(), from.rows());
  if (from.rows() == 0) return;
  const nb::gil_scoped_release release;
  layer.forward(from.data(), own.data(), to.data(), from.rows());
}

void head_forward(const Head& layer, nb::handle x, nb::handle logits) {
  const Rows from("x", x, layer.output->cols(), false), to("logits", logits, layer.output->rows(), true);
  expect("logits", "rows", to.rows(), from.rows());
  if (from.rows() == 0) return;
  const nb::gil_scoped_release release;
  layer.forward(from.data(), to.data(), from.rows());
}

void gather(int type, Bytes data, int64_t rows, Indices indices, nb::handle out, int64_t cols) {
  const Rows to("out", out, cols, true);
  expect("out", "rows", to.rows(), static_cast<int64_t>(indices.size()));
  for (size_t i = 0; i < indices.size(); ++i) {
    const int64_t row = indices.data()[i];
    if (row < 0 || row >= rows) throw nb::index_error(std::to_string(row).c_str());
  }
  const Type checked = known_type(type);
  const nb::gil_scoped_release release;
  const int64_t row_bytes = static_cast<int64_t>(data.size()) / rows;
  for (size_t i = 0; i < indices.size(); ++i) {
    dequantise(checked, data.data() + indices.data()[i] * row_bytes, cols,
               to.data() + static_cast<int64_t>(i) * cols);
  }
}

}  // namespace

void bind_layers(nb::module_& m) {
  nb::class_<Runtime>(m, "Runtime", "The threads, kernels and weight memory that a model's parts share.")
      .def(nb::new_(&new_runtime), "threads"_a, "level"_a, "parts"_a)
      .def(
          "memory_bandwidth",
          [](Runtime& runtime, int64_t bytes, int repeats) {
            const nb::gil_scoped_release release;
            return memory_bandwidth(runtime, static_cast<size_t>(bytes), repeats);
          },
          "bytes"_a, "repeats"_a, "Bytes a second at which all threads together read memory.")
      .def(
          "measure_zones", [](Runtime& runtime, bool on) { runtime.zones.measure(on); }, "on"_a,
          "Start to time the zones again, or stop.")
      .def(
          "zone_seconds",
          [](Runtime& runtime) {
            nb::dict seconds;
            const Zones::Seconds& of = runtime.zones.seconds();
            for (size_t i = 0; i < kZoneNames.size(); ++i) seconds[kZoneNames[i]] = of[i];
            return seconds;
          },
          "Seconds in each zone since they are timed.");

  nb::class_<Linear>(m, "Linear", "A packed weight matrix with its bias.")
      .def(nb::new_(&new_matrix), "runtime"_a, "type"_a, "rows"_a, "cols"_a, "data"_a, "from_file"_a,
           "bias"_a.none(), "scale"_a = 1.0f);
  nb::class_<Norm>(m, "Norm", "A normalisation.")
      .def(nb::new_(&new_norm), "kind"_a, "eps"_a, "weight"_a, "bias"_a.none());
  nb::class_<Rope>(m, "Rope", "A rotary embedding; layers share one to share its table.")
      .def(nb::init<std::vector<double>, double, bool, std::vector<double>, int64_t>(),
           "inverse_frequencies"_a, "magnitude"_a, "interleaved"_a, "long_frequencies"_a, "long_from"_a);

  nb::class_<Attention>(m, "Attention", nb::is_weak_referenceable(), "One layer's attention.")
      .def(nb::new_(&new_attention), nb::kw_only(), "runtime"_a, "norm"_a, "q"_a, "k"_a.none(), "v"_a.none(),
           "output"_a, "n_heads"_a, "n_kv_heads"_a, "head_dim"_a, "scale"_a, "window"_a.none(),
           "rope"_a.none(), "q_norm"_a.none(), "k_norm"_a.none(), "v_norm"_a.none(), "post_norm"_a.none(),
           "gated"_a, "head_gate"_a.none(), "sinks"_a.none(), "soft_cap"_a, "growth"_a, "growth_context"_a,
           "index"_a)
      .def("forward", &mixer_forward<Attention>, "x"_a, "out"_a, "batch"_a,
           "Add the attention of x (T, D) to out (T, D), which may be x itself.");
  nb::class_<Ffn>(m, "FFN", nb::is_weak_referenceable(), "One layer's feed-forward network.")
      .def(nb::new_(&new_ffn), nb::kw_only(), "runtime"_a, "norm"_a, "gate"_a.none(), "up"_a, "down"_a,
           "activation"_a, "post_norm"_a.none())
      .def("forward", &ffn_forward, "x"_a, "out"_a, "batch"_a = nb::none(),
           "Add the FFN of x (T, D) to out (T, D), which may be x itself: all rows alike.")
      .def("neurons", &ffn_neurons, "x"_a, "gate"_a, "h"_a,
           "Write the gate's pre-activations (up's, where there is no gate) of x (T, D) to gate (T, F), the "
           "neurons' values to h (T, F).");
  nb::class_<NeuronStore>(m, "NeuronStore", "Memory for a neuron's rows of several matrices, side by side.")
      .def(nb::new_(&new_neuron_store), "runtime"_a, "neurons"_a, "cols"_a, "types"_a);
  nb::class_<NeuronRows>(m, "NeuronRows", "A matrix stored by neuron, of which single rows are read.")
      .def(nb::new_(&new_neuron_rows), "store"_a, "type"_a, "added"_a, "rows"_a, "cols"_a, "data"_a,
           "from_file"_a, "bias"_a.none());
  nb::class_<NeuronFfn>(m, "NeuronFFN", "One layer's feed-forward network, stored by neuron.")
      .def(nb::new_(&new_neuron_ffn), nb::kw_only(), "runtime"_a, "norm"_a, "first"_a.none(),
           "first_rows"_a.none(), "second"_a.none(), "second_rows"_a.none(), "down"_a, "activation"_a,
           "way"_a, "score"_a, "predictor"_a, "raw_input"_a, "factors"_a.none(), "post_norm"_a.none(),
           "index"_a)
      .def_prop_ro("parts", &NeuronFfn::parts, "Sums that its neurons are added up in, a chunk each.")
      .def_prop_ro(
          "tally",
          [](const NeuronFfn& ffn) {
            const Tally& tally = ffn.tally();
            const std::vector<int64_t> fired(tally.fired.begin(), tally.fired.end());
            return nb::make_tuple(tally.rows.load(), tally.chosen.load(), fired);
          },
          "Rows so far for which neurons were chosen, neurons chosen for them, and values that were not zero "
          "of each COUNTED neighbours.")
      .def("forward", &neuron_ffn_forward, "x"_a, "out"_a, "batch"_a = nb::none(), "scores"_a = nb::none(),
           "Add the FFN of x (T, D) to out (T, D), which may be x itself. Each row's neurons are chosen by "
           "its "
           "own sequence, by scores (T, F) where they are given; without a batch all rows are lossless.")
      .def("neurons", &neuron_ffn_neurons, "x"_a, "gate"_a, "h"_a,
           "Write the activation's input of x (T, D) to gate (T, F) and the neurons' values to h (T, F).");
  nb::class_<Head>(m, "Head", "The final norm and the output projection.")
      .def(nb::new_(&new_head), "runtime"_a, "norm"_a, "output"_a, "soft_cap"_a)
      .def("forward", &head_forward, "x"_a, "logits"_a, "Write the logits of x (T, D) to logits (T, V).");

  nb::class_<LayerInput>(m, "LayerInput", "What a layer's own embedding of the token adds at its end.")
      .def(nb::new_(&new_layer_input), "runtime"_a, "gate"_a, "up"_a, "post_norm"_a)
      .def("forward", &layer_input_forward, "x"_a, "e"_a, "out"_a,
           "Add post_norm(up (gelu(gate x) * e)) of x (T, D) and e (T, P) to out (T, D), which may be x.");

  m.def("gather", &gather, "type"_a, "data"_a, "rows"_a, "indices"_a, "out"_a, "cols"_a,
        "Write the rows of a tensor (rows, cols) that `indices` (T,) name to out (T, cols); IndexError if "
        "there is none.");
}
