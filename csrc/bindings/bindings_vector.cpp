// Python's view of the vector and attention kernels, for tests: one instruction set, one thread. The model
// calls them through layers.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>

#include "bindings/attention_arrays.h"
#include "kernels/kernels.h"
#include "kernels/vector.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hotset;

namespace {

using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Heads =
    nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;  // (tokens, heads, head_dim)
using HeadsResult = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

class Vectors {
 public:
  explicit Vectors(const std::string& level) {
    for (auto kernels = available_kernels(); *kernels; ++kernels) {
      if (level == (*kernels)->name) vector_ = (*kernels)->vector;
    }
    if (!vector_) throw nb::value_error(("level: " + level + " is not in kernel_levels()").c_str());
  }

  void norm(bool layer, Floats x, Floats weight, std::optional<Floats> bias, float eps, Result out) const {
    same_size(x, weight);
    same_size(x, out);
    if (bias) same_size(x, *bias);
    const auto kernel = layer ? vector_->layer_norm : vector_->rms_norm;
    kernel(x.data(), weight.data(), bias ? bias->data() : nullptr, eps, static_cast<int64_t>(x.size()),
           out.data());
  }

  void activate(int kind, Result gate, std::optional<Floats> up) const {
    if (up) same_size(gate, *up);
    vector_->activate(static_cast<Activation>(kind), gate.data(), up ? up->data() : nullptr,
                      static_cast<int64_t>(gate.size()));
  }

  void rope(Result x, Floats cos, Floats sin, bool interleaved) const {
    same_size(cos, sin);
    const size_t rotated = (interleaved ? 1 : 2) * cos.size();
    if (x.size() < rotated || rotated % 2 != 0) throw nb::value_error("x: not what is rotated");
    const auto kernel = interleaved ? vector_->rope_interleaved : vector_->rope;
    kernel(x.data(), cos.data(), sin.data(), static_cast<int64_t>(cos.size()));
  }

  void attention(int type, Heads q, Heads k, std::optional<Heads> v, int64_t window, HeadsResult out) const {
    const HeadShapes shapes{static_cast<int64_t>(q.shape(0)), static_cast<int64_t>(k.shape(0)),
                            static_cast<int64_t>(q.shape(1)), static_cast<int64_t>(k.shape(1)),
                            static_cast<int64_t>(q.shape(2)), static_cast<int64_t>(out.shape(2))};
    attend_arrays(*vector_->attention, static_cast<KvType>(type), shapes, q.data(), k.data(),
                  v ? v->data() : nullptr, window, out.data());
  }

 private:
  template <class A, class B>
  static void same_size(const A& a, const B& b) {
    if (a.size() != b.size()) throw nb::value_error("arrays of different sizes");
  }

  const VectorKernels* vector_ = nullptr;
};

}  // namespace

void bind_vector(nb::module_& m) {
  nb::class_<Vectors>(m, "VectorKernels",
                      "Norms, activations, RoPE and attention of one instruction set; for tests.")
      .def(nb::init<const std::string&>(), "level"_a)
      .def("norm", &Vectors::norm, "layer"_a, "x"_a, "weight"_a, "bias"_a.none(), "eps"_a, "out"_a)
      .def("activate", &Vectors::activate, "kind"_a, "gate"_a, "up"_a.none())
      .def("rope", &Vectors::rope, "x"_a, "cos"_a, "sin"_a, "interleaved"_a)
      .def("attention", &Vectors::attention, "type"_a, "q"_a, "k"_a, "v"_a.none(), "window"_a, "out"_a);
}
