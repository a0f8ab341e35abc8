// Python's view of sequences and batches.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "layers/batch.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hotset;

namespace {

using SequencePtr = std::shared_ptr<Sequence>;

// A sequence's chooser by its number, as others may be added.
struct ChooserOf {
  SequencePtr sequence;
  size_t index;
  Chooser& get() const { return sequence->choosers[index]; }
};

SequencePtr new_sequence(std::shared_ptr<Runtime> runtime, int type,
                         const std::vector<std::array<int64_t, 3>>& layers, int64_t capacity,
                         const std::vector<std::optional<float>>& starts, const std::vector<float>& kept,
                         const std::vector<std::array<int64_t, 6>>& recurrent) {
  std::vector<CutoffPlan> cutoffs;
  for (size_t i = 0; i < starts.size(); ++i) {
    cutoffs.push_back({starts[i].value_or(std::numeric_limits<float>::quiet_NaN()),
                       i < kept.size() ? kept[i] : 0, static_cast<int64_t>(i)});
  }
  std::vector<RecurrentShape> shapes;
  for (const auto& [key_heads, value_heads, key_dim, value_dim, kernel, channels] : recurrent) {
    const bool heads = key_heads > 0 && value_heads > 0 && value_heads % key_heads == 0;
    const bool none = key_heads == 0 && value_heads == 0;
    if (!(heads || none) || key_dim < 1 || value_dim < 1 || kernel < 2 || kernel > 64 || channels < 1) {
      throw nb::value_error("recurrent: heads that cannot be");
    }
    shapes.push_back({key_heads, value_heads, key_dim, value_dim, kernel, channels});
  }
  std::vector<KvShape> heads;
  for (const auto& [count, dim, values] : layers) {
    if (count < 1 || dim < 1) throw nb::value_error("layers: heads that cannot be");
    heads.push_back({count, dim, values != 0});
  }
  return std::make_shared<Sequence>(std::move(runtime), static_cast<KvType>(type), std::move(heads), capacity,
                                    cutoffs, std::move(shapes));
}

void advance_sequence(Sequence& sequence, int64_t count) {
  if (count < 0 || count > sequence.capacity - sequence.length) {
    throw nb::value_error("count: there is no room for so many positions");
  }
  sequence.advance(count);
}

void rewind_sequence(Sequence& sequence, int64_t length) {
  if (length < 0 || sequence.reusable(length) != length) {
    throw nb::value_error("length: expected one that the sequence can go back to");
  }
  const nb::gil_scoped_release release;
  sequence.rewind(length);
}

std::vector<std::optional<ChooserOf>> choosers(const SequencePtr& sequence) {
  std::vector<std::optional<ChooserOf>> all;
  for (size_t i = 0; i < sequence->choosers.size(); ++i) {
    const bool none = std::isnan(sequence->choosers[i].cutoff.plan().start);
    all.push_back(none ? std::nullopt : std::optional(ChooserOf{sequence, i}));
  }
  return all;
}

void new_batch(Batch* batch, const std::vector<Sequence*>& sequences, const std::vector<int64_t>& counts,
               const std::vector<bool>& lossless) {
  if (counts.size() != sequences.size() || lossless.size() != sequences.size()) {
    throw nb::value_error("counts, lossless: expected one for each sequence");
  }
  new (batch) Batch();
  for (size_t i = 0; i < sequences.size(); ++i) batch->add(sequences[i], counts[i], lossless[i]);
}

}  // namespace

void bind_batch(nb::module_& m) {
  nb::class_<ChooserOf>(m, "Chooser", "What one layer has learnt of one sequence.")
      .def_prop_rw(
          "cutoff", [](const ChooserOf& c) { return c.get().cutoff.value(); },
          [](const ChooserOf& c, float cutoff) { c.get().cutoff.set(cutoff); },
          "The score that a neuron must reach.")
      .def_prop_ro(
          "work",
          [](const ChooserOf& c) {
            const Chooser& of = c.get();
            return nb::make_tuple(of.rows, of.read, of.fired, of.chosen, of.audits, of.kept);
          },
          "Of rows that were not lossless: how many, rows of down read, values that were not zero, neurons "
          "chosen, rows audited, shares of the activation kept of these.");
  nb::class_<Sequence>(m, "Sequence", nb::is_weak_referenceable(),
                       "Keys and values of one conversation, and what its layers have learnt of it.")
      .def(nb::new_(&new_sequence), "runtime"_a, "kv_type"_a, "layers"_a, "capacity"_a, "cutoffs"_a, "kept"_a,
           "recurrent"_a)
      .def_ro("length", &Sequence::length, "Positions filled so far.")
      .def_ro("capacity", &Sequence::capacity, "Positions there is room for.")
      .def("advance", &advance_sequence, "count"_a, "Count `count` more positions as filled.")
      .def("reusable", &Sequence::reusable, "at_most"_a,
           "The longest prefix of at most so many positions that all layers can go back to.")
      .def_prop_ro("undoable", &Sequence::undoable,
                   "How many more positions may be filled and yet all be gone back to.")
      .def(
          "save", [](Sequence& sequence) { return sequence.recurrent.save(sequence.length); },
          "Keep the present length's recurrent states, to come back to; false: they are kept anyway.")
      .def(
          "forget",
          [](Sequence& sequence, int64_t length) {
            sequence.quiesce();
            sequence.recurrent.forget(length);
          },
          "length"_a, "Keep no more what was saved at a length.")
      .def(
          "limit_saved", [](Sequence& sequence, int64_t bytes) { sequence.limit_saved(bytes); }, "bytes"_a,
          "Drop saved states until they take at most so many bytes.")
      .def_prop_ro(
          "saved_bytes", [](const Sequence& sequence) { return sequence.recurrent.saved_bytes(); },
          "Bytes of saved states.")
      .def("rewind", &rewind_sequence, "length"_a, "Forget every position from `length` on.")
      .def("fork", &Sequence::fork, nb::call_guard<nb::gil_scoped_release>(),
           "The same past, a future of its own.")
      .def_prop_ro("choosers", &choosers, "Each layer's; None where it has none.");
  nb::class_<Batch>(m, "Batch", "Rows of several sequences, from their present lengths on, for one call.")
      .def("__init__", &new_batch, "sequences"_a, "counts"_a, "lossless"_a, nb::keep_alive<1, 2>());
}
