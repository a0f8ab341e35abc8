// Python's view of the cold worker: hybrid/worker.py describes a step's tasks to it.
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

#include "layers/layers.h"
#include "layers/neuron_ffn.h"
#include "worker/cold_worker.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hotset;

namespace {

using Vector = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Flag = nb::ndarray<uint32_t, nb::c_contig, nb::device::cpu>;

void expect_size(const char* name, const Vector& vector, int64_t size) {
  if (static_cast<int64_t>(vector.size()) == size) return;
  throw nb::value_error((std::string(name) + ": expected " + std::to_string(size) + " numbers, found " +
                         std::to_string(vector.size()))
                            .c_str());
}

uint32_t* address(const Flag& flag) {
  if (flag.size() < 1) throw nb::value_error("flag: an empty array");
  return flag.data();
}

void add_copy(ColdWorker& worker, Vector from, Vector to) {
  expect_size("to", to, static_cast<int64_t>(from.size()));
  worker.add_work(
      [from = from.data(), to = to.data(), n = from.size()](KvCache*) { std::copy_n(from, n, to); });
}

void add_zero(ColdWorker& worker, Vector to) {
  worker.add_work([to = to.data(), n = to.size()](KvCache*) { std::fill_n(to, n, 0.0f); });
}

void add_attention(ColdWorker& worker, std::shared_ptr<Attention> layer, Vector x, Vector out,
                   int64_t index) {
  expect_size("x", x, layer->q->cols());
  expect_size("out", out, layer->output->rows());
  worker.use(&layer->runtime->pool);
  worker.add_work([layer = std::move(layer), x = x.data(), out = out.data(), index](KvCache* kv) {
    if (kv == nullptr || index < 0 || index >= kv->n_layers || kv->n_heads != layer->n_kv_heads ||
        kv->head_dim != layer->head_dim) {
      throw std::runtime_error("the KV cache is another model's");
    }
    if (kv->length >= kv->capacity) throw std::runtime_error("the KV cache is full");
    layer->forward(x, out, 1, *kv, index);
  });
}

void add_ffn(ColdWorker& worker, std::shared_ptr<Ffn> layer, Vector x, Vector out) {
  expect_size("x", x, layer->up->cols());
  expect_size("out", out, layer->down->rows());
  worker.use(&layer->runtime->pool);
  worker.add_work(
      [layer = std::move(layer), x = x.data(), out = out.data()](KvCache*) { layer->forward(x, out, 1); });
}

void add_neuron_ffn(ColdWorker& worker, std::shared_ptr<NeuronFfn> layer, Vector x, Vector out,
                    std::optional<Vector> scores) {
  expect_size("x", x, layer->hidden());
  expect_size("out", out, layer->hidden());
  if (scores) expect_size("scores", *scores, layer->neurons());
  worker.use(&layer->pool());
  if (!scores && layer->wants_scores(1, false)) throw nb::value_error("scores: this layer needs them");
  worker.add_work(
      [layer = std::move(layer), x = x.data(), out = out.data(),
       scores = scores ? scores->data() : nullptr](KvCache*) { layer->forward(x, out, 1, false, scores); });
}

// For cudaLaunchHostFunc, where a stream cannot write and await memory itself.
void raise_from_stream(void* flag) { set_flag(static_cast<uint32_t*>(flag), 1); }
void take_from_stream(void* flag) {
  while (!take_flag(static_cast<uint32_t*>(flag), 1.0)) {
  }
}

}  // namespace

void bind_worker(nb::module_& m) {
  nb::class_<ColdWorker>(m, "ColdWorker", "A thread that does the host's part of decoding steps.")
      .def(nb::init<>())
      .def(
          "task",
          [](ColdWorker& worker, Flag ready, Flag done) { worker.add_task(address(ready), address(done)); },
          "ready"_a, "done"_a, "Begin the next task of a step; what follows adds to it.")
      .def("copy", &add_copy, "x"_a, "out"_a, "Copy x to out.")
      .def("zero", &add_zero, "out"_a, "Set out to zero.")
      .def("attention", &add_attention, "attention"_a, "x"_a, "out"_a, "layer"_a,
           "Add the attention of x (1, D) to out (1, D).")
      .def("ffn", &add_ffn, "ffn"_a, "x"_a, "out"_a, "Add the FFN of x (1, D) to out (1, D).")
      .def("neuron_ffn", &add_neuron_ffn, "ffn"_a, "x"_a, "out"_a, "scores"_a.none(),
           "The same for an FFN stored by neuron; with predicted scores (1, F) where given.")
      .def("begin", &ColdWorker::begin, "kv"_a.none(), nb::call_guard<nb::gil_scoped_release>(),
           "Start a step with the host's KV cache, which must live until its end.")
      .def(
          "finish",
          [](ColdWorker& worker) {
            const nb::gil_scoped_release release;
            return worker.finish();
          },
          "Wait for the end of the step: why it failed, or an empty text.")
      .def("abort", &ColdWorker::abort, nb::call_guard<nb::gil_scoped_release>(),
           "Give the step up, and wait until nothing of it is being done.")
      .def("lower_flags", &ColdWorker::lower_flags, "Lower all flags, once nobody uses them.")
      .def("stop", &ColdWorker::stop, nb::call_guard<nb::gil_scoped_release>(),
           "End the thread; the next step starts another.");

  m.def(
      "raise_flag", [](Flag flag) { set_flag(address(flag), 1); }, "flag"_a,
      "Set the flag, after all that was written before.");
  m.def(
      "take_flag",
      [](Flag flag, double seconds) {
        uint32_t* const raised = address(flag);
        const nb::gil_scoped_release release;
        return take_flag(raised, seconds);
      },
      "flag"_a, "seconds"_a, "Wait so long at most for the flag to be raised and lower it; whether it was.");
  m.def(
      "stream_functions",
      [] {
        return nb::make_tuple(reinterpret_cast<uintptr_t>(&raise_from_stream),
                              reinterpret_cast<uintptr_t>(&take_from_stream));
      },
      "Addresses of `void f(void* flag)` that raise a flag, and that await and lower it.");
}
