// Python's view of the linear kernels, for tests and benchmarks: one matrix, one instruction set, one thread.
// The model calls them through layers.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/memory.h"

namespace nb = nanobind;
using namespace hotset;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<nb::numpy, float>;

const LinearKernels& linear_kernels(const std::string& level) {
  for (auto kernels = available_kernels(); *kernels; kernels++) {
    if (level == (*kernels)->name) return *(*kernels)->linear;
  }
  throw nb::value_error(("level: " + level + " is not in kernel_levels()").c_str());
}

// Columns and bytes of a block in a GGUF file.
struct Block {
  int64_t cols, bytes;
};
Block block_of(int type) {
  switch (type) {
    case kF32:
      return {1, 4};
    case kF16:
    case kBF16:
      return {1, 2};
    case kQ4_0:
    case kIQ4_NL:
      return {32, 18};
    case kQ4_1:
      return {32, 20};
    case kQ5_0:
      return {32, 22};
    case kQ5_1:
      return {32, 24};
    case kQ8_0:
      return {32, 34};
    case kMXFP4:
      return {32, 17};
    case kNVFP4:
      return {64, 36};
    case kQ2_K:
      return {256, 84};
    case kIQ1_S:
      return {256, 50};
    case kIQ1_M:
      return {256, 56};
    case kIQ2_XXS:
      return {256, 66};
    case kIQ2_XS:
      return {256, 74};
    case kIQ2_S:
      return {256, 82};
    case kIQ3_XXS:
      return {256, 98};
    case kIQ3_S:
      return {256, 110};
    case kTQ1_0:
      return {256, 54};
    case kTQ2_0:
      return {256, 66};
    case kQ3_K:
      return {256, 110};
    case kIQ4_XS:
      return {256, 136};
    case kQ4_K:
      return {256, 144};
    case kQ5_K:
      return {256, 176};
    case kQ6_K:
      return {256, 210};
  }
  throw nb::value_error(("type: " + std::to_string(type) + " is not a type that Hotset reads").c_str());
}

Result new_array(int64_t rows, int64_t cols, bool matrix) {
  float* data = new float[rows * cols];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  if (matrix) return Result(data, {size_t(rows), size_t(cols)}, owner);
  return Result(data, {size_t(cols)}, owner);
}

class Matrix {
 public:
  Matrix(const std::string& level, int type, Bytes data, int64_t rows, int64_t cols, float scale)
      : kernels_(linear_kernels(level)) {
    const Block block = block_of(type);
    if (codebook_bytes(static_cast<Type>(type)) && !codebook_of(static_cast<Type>(type))) {
      throw nb::value_error("type: its codebook is not known");
    }
    constexpr int64_t kLimit = int64_t{1} << 31;
    if (rows < 1 || rows >= kLimit) throw nb::value_error("rows: expected 1 to 2^31 - 1");
    if (cols < 1 || cols >= kLimit || cols % block.cols != 0) {
      throw nb::value_error(("cols: expected a positive multiple of " + std::to_string(block.cols)).c_str());
    }
    const int64_t row_bytes = cols / block.cols * block.bytes;
    if (int64_t(data.size()) != rows * row_bytes) {
      throw nb::value_error(("data: expected " + std::to_string(rows * row_bytes) + " bytes, found " +
                             std::to_string(data.size()))
                                .c_str());
    }
    nb::gil_scoped_release release;
    const Type weight_type = static_cast<Type>(type);
    const int64_t panel_bytes = kernels_.panel_bytes(weight_type, cols);
    buffer_ = Buffer(panels(rows) * panel_bytes, Pages::kHuge);
    for (int64_t panel = 0; panel < panels(rows); panel++) {
      const int64_t row = panel * kernels_.lanes;
      const int64_t count = rows - row < kernels_.lanes ? rows - row : kernels_.lanes;
      kernels_.pack_panel(weight_type, data.data() + row * row_bytes, count, cols,
                          buffer_.data() + panel * panel_bytes);
    }
    weights_ = {weight_type, rows, cols, panel_bytes, buffer_.data(), scale};
  }

  Result matvec(Floats1 x) const {
    check(x.shape(0));
    Buffer out;
    {
      nb::gil_scoped_release release;
      Buffer packed = pack(x.data(), 1);
      out = Buffer(panels(weights_.rows) * kernels_.lanes * sizeof(float), Pages::kSmall);
      kernels_.matvec(&weights_, 0, panels(weights_.rows), packed.data(), floats(out));
    }
    Result result = new_array(1, weights_.rows, false);
    memcpy(result.data(), out.data(), weights_.rows * sizeof(float));
    return result;
  }

  Result matmul(Floats2 x) const {
    const int64_t tokens = x.shape(0);
    check(x.shape(1));
    if (tokens < 1) throw nb::value_error("x: expected at least one row");
    const int64_t ldy = panels(weights_.rows) * kernels_.lanes;
    Buffer out;
    {
      nb::gil_scoped_release release;
      Buffer packed = pack(x.data(), tokens);
      out = Buffer(tokens * ldy * sizeof(float), Pages::kSmall);
      kernels_.matmul(&weights_, 0, panels(weights_.rows), packed.data(), tokens, 0, tokens, floats(out),
                      ldy);
    }
    Result result = new_array(tokens, weights_.rows, true);
    for (int64_t t = 0; t < tokens; t++) {
      memcpy(result.data() + t * weights_.rows, floats(out) + t * ldy, weights_.rows * sizeof(float));
    }
    return result;
  }

  int64_t nbytes() const { return buffer_.size(); }

 private:
  static float* floats(const Buffer& buffer) { return reinterpret_cast<float*>(buffer.data()); }
  int64_t panels(int64_t rows) const { return (rows + kernels_.lanes - 1) / kernels_.lanes; }

  void check(size_t cols) const {
    if (int64_t(cols) == weights_.cols) return;
    throw nb::value_error(
        ("x: expected rows of " + std::to_string(weights_.cols) + " numbers, found " + std::to_string(cols))
            .c_str());
  }

  Buffer pack(const float* x, int64_t tokens) const {
    const ActivationFormat format = kernels_.activation_format(weights_.type);
    Buffer packed(kernels_.activation_bytes(format, tokens, weights_.cols), Pages::kSmall);
    kernels_.pack_activations(format, x, weights_.cols, tokens, weights_.cols, 0, tokens, packed.data());
    return packed;
  }

  const LinearKernels& kernels_;
  Buffer buffer_;
  PackedMatrix weights_;
};

}  // namespace

void bind_linear(nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix", "A weight matrix packed for one instruction set; for tests and benchmarks.")
      .def(nb::init<const std::string&, int, Bytes, int64_t, int64_t, float>(), nb::arg("level"),
           nb::arg("type"), nb::arg("data"), nb::arg("rows"), nb::arg("cols"), nb::arg("scale") = 1.0f,
           "Packs (rows, cols) weights of a GGUF type number from their bytes.")
      .def("matvec", &Matrix::matvec, nb::arg("x"),
           "The product with x (cols,): (rows,), by the decode kernel.")
      .def("matmul", &Matrix::matmul, nb::arg("x"),
           "The products with the rows of x (T, cols): (T, rows), by the prefill kernel.")
      .def_prop_ro("nbytes", &Matrix::nbytes, "Bytes of the packed weights.");
}
