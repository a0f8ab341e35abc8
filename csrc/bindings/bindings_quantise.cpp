// Python's view of the quantiser.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <limits>
#include <optional>
#include <string>

#include "weights/quantise.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hotset;

namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Slab = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

void check_finite(const char* name, const float* data, size_t count, float low) {
  if (!all_finite(data, static_cast<int64_t>(count), low))
    refuse(std::string(name) + ": expected finite numbers");
}

Type check(int type, size_t rows, size_t cols, const Bytes& out, int threads) {
  const auto bytes = static_cast<size_t>(quantised_block_bytes(static_cast<Type>(type)));
  if (!bytes) refuse("type: expected Q4_0, Q4_1, Q8_0, IQ4_NL or MXFP4");
  if (cols % kQuantBlock) refuse("weights: expected columns in a multiple of 32");
  if (out.size() != rows * cols / kQuantBlock * bytes) {
    refuse("out: expected " + std::to_string(rows * cols / kQuantBlock * bytes) + " bytes, found " +
           std::to_string(out.size()));
  }
  if (threads < 1) refuse("threads: expected at least 1");
  return static_cast<Type>(type);
}

void round_matrix(int type, Matrix weights, Bytes out, int threads) {
  const size_t rows = weights.shape(0), cols = weights.shape(1);
  const Type checked = check(type, rows, cols, out, threads);
  if (checked == kIQ4_NL || checked == kMXFP4) refuse("type: these codes need a search");
  const nb::gil_scoped_release release;
  check_finite("weights", weights.data(), weights.size(), std::numeric_limits<float>::lowest());
  round_to_nearest(checked, weights.data(), static_cast<int64_t>(rows), static_cast<int64_t>(cols),
                   out.data(), threads);
}

void quantise_matrix(int type, Matrix weights, std::optional<Vector> importance, Bytes out, int threads) {
  const size_t rows = weights.shape(0), cols = weights.shape(1);
  const Type checked = check(type, rows, cols, out, threads);
  if (importance && importance->size() != cols) refuse("importance: expected a number for each column");
  const nb::gil_scoped_release release;
  const float lowest = std::numeric_limits<float>::lowest();
  check_finite("weights", weights.data(), weights.size(), lowest);
  if (importance) check_finite("importance", importance->data(), cols, 0);
  quantise(checked, weights.data(), static_cast<int64_t>(rows), static_cast<int64_t>(cols),
           importance ? importance->data() : nullptr, out.data(), threads);
}

void quantise_slab(int type, Slab slab, Matrix factor, Bytes out, int threads) {
  const size_t rows = slab.shape(0), cols = slab.shape(1);
  const Type checked = check(type, rows, cols, out, threads);
  if (cols != kQuantBlock || factor.shape(0) != cols || factor.shape(1) != cols) {
    refuse("expected a slab (rows, 32) and a factor (32, 32)");
  }
  const nb::gil_scoped_release release;
  check_finite("slab", slab.data(), slab.size(), std::numeric_limits<float>::lowest());
  check_finite("factor", factor.data(), factor.size(), std::numeric_limits<float>::lowest());
  for (size_t k = 0; k < cols; ++k) {
    if (factor.data()[k * cols + k] <= 0) refuse("factor: expected a positive diagonal");
  }
  quantise_with_feedback(checked, slab.data(), static_cast<int64_t>(rows), factor.data(), out.data(),
                         threads);
}

}  // namespace

void bind_quantise(nb::module_& m) {
  m.def("round_to_nearest", &round_matrix, "type"_a, "weights"_a, "out"_a, "threads"_a,
        "Quantise a matrix (rows, cols) as GGUF's reference does into the bytes `out`.");
  m.def("quantise", &quantise_matrix, "type"_a, "weights"_a, "importance"_a.none(), "out"_a, "threads"_a,
        "Quantise a matrix (rows, cols), weighing errors by `importance` (cols,), into the bytes `out`.");
  m.def("quantise_slab", &quantise_slab, "type"_a, "slab"_a, "factor"_a, "out"_a, "threads"_a,
        "Quantise 32 columns with feedback of errors; the slab (rows, 32) is replaced by the errors to push "
        "on.");
}
