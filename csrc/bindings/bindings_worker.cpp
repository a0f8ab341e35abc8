// Python's view of the host's worker: hybrid/executor.py hands a step's tasks over to it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "layers/delta_net.h"
#include "layers/experts.h"
#include "layers/latent_attention.h"
#include "layers/layers.h"
#include "layers/mamba.h"
#include "layers/neuron_ffn.h"
#include "layers/short_conv.h"
#include "worker/host_worker.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hotset;

namespace {

using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using CutOffs = nb::ndarray<float, nb::ndim<1>, nb::device::cpu>;
using Packet = nb::ndarray<Word, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename Array>
void expect_width(const char* name, const Array& rows, int64_t width) {
  if (static_cast<int64_t>(rows.shape(1)) == width) return;
  throw nb::value_error((std::string(name) + ": expected rows of " + std::to_string(width) +
                         " numbers, found " + std::to_string(rows.shape(1)))
                            .c_str());
}

template <typename Array>
void expect_rows(const Array& array, const Rows& x) {
  if (array.shape(0) == x.shape(0)) return;
  throw nb::value_error(
      ("expected " + std::to_string(x.shape(0)) + " rows, found " + std::to_string(array.shape(0))).c_str());
}

void add_take(HostWorker& worker, Packet packet, Rows x) {
  const auto width = static_cast<int64_t>(x.shape(1));
  expect_width("packet", packet, width);
  expect_rows(packet, x);
  worker.add_take(packet.data(), x.data(), width);
}

void add_answer(HostWorker& worker, Rows x, Packet packet) {
  const auto width = static_cast<int64_t>(x.shape(1));
  expect_width("packet", packet, width);
  expect_rows(packet, x);
  worker.add_answer(x.data(), packet.data(), width);
}

void add_copy(HostWorker& worker, Rows from, Rows to) {
  const auto width = static_cast<int64_t>(from.shape(1));
  expect_width("out", to, width);
  worker.add_work([from = from.data(), to = to.data(), width](const Batch* batch) {
    std::copy_n(from, batch->rows() * width, to);
  });
}

void add_zero(HostWorker& worker, Rows to) {
  worker.add_work([to = to.data(), width = static_cast<int64_t>(to.shape(1))](const Batch* batch) {
    std::fill_n(to, batch->rows() * width, 0.0f);
  });
}

void add_scale(HostWorker& worker, Rows x, float factor) {
  worker.add_work([x = x.data(), width = static_cast<int64_t>(x.shape(1)), factor](const Batch* batch) {
    std::for_each(x, x + batch->rows() * width, [factor](float& number) { number *= factor; });
  });
}

void add_ffn(HostWorker& worker, std::shared_ptr<Ffn> layer, Rows x, Rows out) {
  expect_width("x", x, layer->up->cols());
  expect_width("out", out, layer->down->rows());
  worker.use(&layer->runtime->pool);
  worker.add_work([layer = std::move(layer), x = x.data(), out = out.data()](const Batch* batch) {
    layer->forward(x, out, batch->rows());
  });
}

void add_take_chosen(HostWorker& worker, std::shared_ptr<NeuronFfn> layer, Packet packet, Rows x,
                     CutOffs cutoffs) {
  const int64_t width = Said::width(layer->neurons());
  expect_width("packet", packet, width);
  expect_width("x", x, width);
  expect_rows(packet, x);
  expect_rows(cutoffs, x);
  worker.add_take({packet.data(), x.data(), width, Said::bit_words(layer->neurons()), cutoffs.data(),
                   cutoffs.stride(0), layer->exact()});
  worker.add_preparation([layer = std::move(layer), to = cutoffs.data(), stride = cutoffs.stride(0)](
                             const Batch* batch) { layer->cut_offs(*batch, to, stride); });
}

void add_prefetch(HostWorker& worker, std::shared_ptr<NeuronFfn> layer, Packet packet, Rows x,
                  CutOffs cutoffs, Packet until) {
  const int64_t neurons = layer->neurons(), width = Said::width(neurons);
  expect_width("packet", packet, width);
  expect_width("x", x, width);
  expect_rows(packet, x);
  expect_rows(cutoffs, x);
  const Said said = {x.data(), neurons, cutoffs.data(), cutoffs.stride(0)};
  worker.use(&layer->pool());
  worker.add_take(
      {packet.data(), x.data(), width, Said::bit_words(neurons), said.cutoffs, said.stride, false, false});
  worker.add_work([&worker, layer = std::move(layer), said, until = until.data()](const Batch* batch) {
    layer->prefetch(*batch, said, [&] { return worker.comes(until); });
  });
}

void add_neuron_ffn(HostWorker& worker, std::shared_ptr<NeuronFfn> layer, Rows x, Rows out,
                    std::optional<Rows> chosen, std::optional<CutOffs> cutoffs) {
  expect_width("x", x, layer->hidden());
  expect_width("out", out, layer->hidden());
  if (chosen.has_value() != cutoffs.has_value()) throw nb::value_error("chosen, cutoffs: expected both");
  if (chosen) expect_width("chosen", *chosen, Said::width(layer->neurons()));
  if (chosen) expect_rows(*cutoffs, *chosen);
  worker.use(&layer->pool());
  if (!chosen && layer->needs_scores()) throw nb::value_error("chosen: this layer needs it");
  Said said;
  if (chosen) said = {chosen->data(), layer->neurons(), cutoffs->data(), cutoffs->stride(0)};
  worker.add_work([layer = std::move(layer), x = x.data(), out = out.data(), said](const Batch* batch) {
    if (const std::string why = layer->refuses(*batch); !why.empty()) throw std::runtime_error(why);
    layer->forward(x, out, *batch, said);
  });
}

template <typename Layer>
void add_mixer(HostWorker& worker, std::shared_ptr<Layer> layer, Rows x, Rows out) {
  expect_width("x", x, layer->norm.size());
  expect_width("out", out, layer->norm.size());
  worker.use(&layer->runtime->pool);
  worker.add_work([layer = std::move(layer), x = x.data(), out = out.data()](const Batch* batch) {
    if (const std::string why = layer->refuses(*batch); !why.empty()) throw std::runtime_error(why);
    layer->forward(x, out, *batch);
  });
}

void add_mixture(HostWorker& worker, std::shared_ptr<Experts> layer, Rows x, Rows out,
                 std::optional<Rows> weights) {
  expect_width("x", x, layer->hidden());
  expect_width("out", out, layer->hidden());
  if (weights) expect_width("weights", *weights, layer->routing.count);
  worker.use(&layer->runtime->pool);
  worker.add_work([layer = std::move(layer), x = x.data(), out = out.data(),
                   weights = weights ? weights->data() : nullptr](const Batch* batch) {
    if (weights) {
      layer->add(x, out, batch->rows(), weights, batch);
    } else {
      layer->forward(x, out, batch->rows(), nullptr, batch);
    }
  });
}

void add_select(HostWorker& worker, std::shared_ptr<Experts> layer, Rows x, Rows weights) {
  expect_width("x", x, layer->hidden());
  expect_width("weights", weights, layer->routing.count);
  worker.use(&layer->runtime->pool);
  worker.add_work([layer = std::move(layer), x = x.data(), weights = weights.data()](const Batch* batch) {
    layer->select(x, batch->rows(), nullptr, weights);
  });
}

void add_layer_input(HostWorker& worker, std::shared_ptr<LayerInput> layer, Rows x, Rows e) {
  expect_width("x", x, layer->gate->cols());
  expect_width("e", e, layer->gate->rows());
  worker.use(&layer->runtime->pool);
  worker.add_work([layer = std::move(layer), x = x.data(), e = e.data()](const Batch* batch) {
    layer->forward(x, e, x, batch->rows());
  });
}

void write_packet(Rows x, Packet packet, uint32_t number) {
  expect_width("packet", packet, static_cast<int64_t>(x.shape(1)));
  expect_rows(packet, x);
  write_words(x.data(), packet.data(), static_cast<int64_t>(x.size()), number);
}

bool take_packet(Packet packet, uint32_t number, Rows x, double seconds) {
  expect_width("packet", packet, static_cast<int64_t>(x.shape(1)));
  expect_rows(packet, x);
  const nb::gil_scoped_release release;
  const std::chrono::duration<double> most(seconds);
  return take_words(packet.data(), static_cast<int64_t>(x.size()), number, x.data(),
                    [&](auto waited) { return waited >= most; });
}

// For cudaLaunchHostFunc, where a kernel cannot wait itself: three numbers, where a packet is, its width, and
// where the present step's number and rows are.
void await_from_stream(void* what) {
  const auto* const numbers = static_cast<const int64_t*>(what);
  const auto* const words = reinterpret_cast<const Word*>(numbers[0]);
  const auto* const control = reinterpret_cast<const uint32_t*>(numbers[2]);
  await_words(words, numbers[1] * control[1], control[0]);
}

}  // namespace

void bind_worker(nb::module_& m) {
  nb::class_<HostWorker>(m, "HostWorker", "A thread that does the host's part of decoding steps.")
      .def(nb::init<>())
      .def("task", &HostWorker::add_task, "Begin the next task of a step; what follows adds to it.")
      .def("take", &add_take, "packet"_a, "x"_a, "Before its work: take x (T, D) from the device's packet.")
      .def("answer", &add_answer, "x"_a, "packet"_a, "After its work: answer the device with x (T, D).")
      .def("copy", &add_copy, "x"_a, "out"_a, "Copy x to out.")
      .def("scale", &add_scale, "x"_a, "factor"_a, "Multiply x by a number.")
      .def("zero", &add_zero, "out"_a, "Set out to zero.")
      .def("attention", &add_mixer<Attention>, "attention"_a, "x"_a, "out"_a,
           "Add the attention of x (T, D) to out (T, D).")
      .def("attention", &add_mixer<LatentAttention>, "attention"_a, "x"_a, "out"_a)
      .def("ffn", &add_ffn, "ffn"_a, "x"_a, "out"_a, "Add the FFN of x (T, D) to out (T, D).")
      .def("take_chosen", &add_take_chosen, "ffn"_a, "packet"_a, "x"_a, "cutoffs"_a,
           "Before its work: take x (T, ceil(F / 32) + F) from the device's packet. That is bits of the "
           "neurons that it chooses at the cut-offs (T,), which the worker writes when a step begins, or all "
           "scores where that is NaN; where a layer leaves out zeros alone, bits and activations.")
      .def("prefetch", &add_prefetch, "ffn"_a, "packet"_a, "x"_a, "cutoffs"_a, "until"_a,
           "Take bits as `take_chosen` does, no scores, and have these neurons fetched into caches until "
           "another packet comes.")
      .def("neuron_ffn", &add_neuron_ffn, "ffn"_a, "x"_a, "out"_a, "chosen"_a.none() = nb::none(),
           "cutoffs"_a.none() = nb::none(),
           "The same for an FFN stored by neuron; with what `take_chosen` takes where given.")
      .def("recurrent", &add_mixer<DeltaNet>, "layer"_a, "x"_a, "out"_a,
           "Add a layer with a recurrent state of x (T, D) to out (T, D).")
      .def("recurrent", &add_mixer<ShortConv>, "layer"_a, "x"_a, "out"_a)
      .def("recurrent", &add_mixer<Mamba>, "layer"_a, "x"_a, "out"_a)
      .def("experts", &add_mixture, "experts"_a, "x"_a, "out"_a, "weights"_a.none(),
           "Add the experts of x (T, D) to out (T, D): those of positive weights (T, E), if given.")
      .def("select", &add_select, "experts"_a, "x"_a, "weights"_a,
           "Write the weights (T, E) of experts to be selected for x (T, D).")
      .def("layer_input", &add_layer_input, "layer"_a, "x"_a, "e"_a,
           "Add to x (T, D) what a layer's own embedding e (T, P) of the tokens gives.")
      .def(
          "begin",
          [](HostWorker& worker, std::shared_ptr<Batch> batch, uint32_t number) {
            const nb::gil_scoped_release release;
            const int64_t rows = batch->rows();
            worker.begin(std::move(batch), rows, number);
          },
          "batch"_a, "number"_a,
          "Start a step of this number with the host's batch, whose sequences must live until its end.")
      .def(
          "finish",
          [](HostWorker& worker) {
            const nb::gil_scoped_release release;
            return worker.finish();
          },
          "Wait for the end of the step: why it failed, or an empty text.")
      .def("abort", &HostWorker::abort, nb::call_guard<nb::gil_scoped_release>(),
           "Give the step up, and wait until nothing of it is being done.")
      .def("stop", &HostWorker::stop, nb::call_guard<nb::gil_scoped_release>(),
           "End the thread; the next step starts another.");

  m.def("write_packet", &write_packet, "x"_a, "packet"_a, "number"_a, "Write x (T, D) with a step's number.");
  m.def("take_packet", &take_packet, "packet"_a, "number"_a, "x"_a, "seconds"_a,
        "Take x (T, D) of a step's number, waiting so long at most for each of its words; whether all came.");
  m.def(
      "await_function", [] { return reinterpret_cast<uintptr_t>(&await_from_stream); },
      "Address of `void f(int64_t what[3])` that waits for a packet: its address, its width, the address of "
      "the step's number and rows.");
}
