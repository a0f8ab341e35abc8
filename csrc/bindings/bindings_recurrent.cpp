// Python's view of layers with a recurrent state.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "bindings/mixer.h"
#include "layers/delta_net.h"
#include "layers/mamba.h"
#include "layers/short_conv.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hotset;

namespace {

using MatrixPtr = std::shared_ptr<Linear>;
using NormPtr = std::shared_ptr<Norm>;

std::vector<float> vector_of(const char* name, const Numbers& numbers, int64_t count) {
  expect(name, "numbers", static_cast<int64_t>(numbers.size()), count);
  return {numbers.data(), numbers.data() + numbers.size()};
}

std::shared_ptr<DeltaNet> new_delta_net(std::shared_ptr<Runtime> runtime, NormPtr norm, MatrixPtr qkv,
                                        MatrixPtr z, MatrixPtr beta, MatrixPtr alpha, MatrixPtr output,
                                        Numbers conv, Numbers dt_bias, Numbers decay, NormPtr out_norm,
                                        int64_t n_key_heads, int64_t n_value_heads, int64_t head_dim,
                                        int64_t kernel, bool tiled, int64_t index) {
  auto layer = std::make_shared<DeltaNet>();
  layer->runtime = std::move(runtime);
  layer->norm = *norm;
  layer->shape = {n_key_heads, n_value_heads, head_dim,
                  head_dim,    kernel,        (2 * n_key_heads + n_value_heads) * head_dim};
  layer->tiled = tiled;
  layer->conv = vector_of("conv", conv, kernel * layer->shape.channels);
  layer->dt_bias = vector_of("dt_bias", dt_bias, n_value_heads);
  layer->decay = vector_of("decay", decay, n_value_heads);
  layer->out_norm = *out_norm;
  layer->qkv = std::move(qkv);
  layer->z = std::move(z);
  layer->beta = std::move(beta);
  layer->alpha = std::move(alpha);
  layer->output = std::move(output);
  layer->index = index;
  return layer;
}

std::shared_ptr<ShortConv> new_short_conv(std::shared_ptr<Runtime> runtime, NormPtr norm, MatrixPtr input,
                                          MatrixPtr output, Numbers conv, int64_t kernel, int64_t index) {
  auto layer = std::make_shared<ShortConv>();
  const int64_t channels = output->cols();
  expect("input", "rows", input->rows(), 3 * channels);
  layer->runtime = std::move(runtime);
  layer->norm = *norm;
  layer->shape = {0, 0, 1, 1, kernel, channels};
  layer->conv = vector_of("conv", conv, kernel * channels);
  layer->input = std::move(input);
  layer->output = std::move(output);
  layer->index = index;
  return layer;
}

std::shared_ptr<Mamba> new_mamba(std::shared_ptr<Runtime> runtime, NormPtr norm, MatrixPtr input,
                                 MatrixPtr output, Numbers conv, Numbers dt_bias, Numbers decay, Numbers skip,
                                 NormPtr out_norm, int64_t n_groups, int64_t n_heads, int64_t state_dim,
                                 int64_t head_dim, int64_t kernel, int64_t index) {
  auto layer = std::make_shared<Mamba>();
  const int64_t values = n_heads * head_dim, channels = values + 2 * n_groups * state_dim;
  if (n_groups < 1 || n_heads % n_groups) refuse("n_heads: expected a multiple of n_groups");
  expect("input", "rows", input->rows(), values + channels + n_heads);
  expect("out_norm", "numbers", out_norm->size(), values);
  layer->runtime = std::move(runtime);
  layer->norm = *norm;
  layer->shape = {n_groups, n_heads, state_dim, head_dim, kernel, channels};
  layer->conv = vector_of("conv", conv, (kernel + 1) * channels);
  layer->dt_bias = vector_of("dt_bias", dt_bias, n_heads);
  layer->decay = vector_of("decay", decay, n_heads);
  layer->skip = vector_of("skip", skip, n_heads);
  layer->out_norm = *out_norm;
  layer->input = std::move(input);
  layer->output = std::move(output);
  layer->index = index;
  return layer;
}

}  // namespace

void bind_recurrent(nb::module_& m) {
  nb::class_<DeltaNet>(m, "DeltaNet", nb::is_weak_referenceable(), "One layer's gated delta net.")
      .def(nb::new_(&new_delta_net), nb::kw_only(), "runtime"_a, "norm"_a, "qkv"_a, "z"_a, "beta"_a,
           "alpha"_a, "output"_a, "conv"_a, "dt_bias"_a, "decay"_a, "out_norm"_a, "n_key_heads"_a,
           "n_value_heads"_a, "head_dim"_a, "kernel"_a, "tiled"_a, "index"_a)
      .def("forward", &mixer_forward<DeltaNet>, "x"_a, "out"_a, "batch"_a,
           "Add the delta net of x (T, D) to out (T, D), which may be x itself.");
  nb::class_<ShortConv>(m, "ShortConv", nb::is_weak_referenceable(), "One layer's gated short convolution.")
      .def(nb::new_(&new_short_conv), nb::kw_only(), "runtime"_a, "norm"_a, "input"_a, "output"_a, "conv"_a,
           "kernel"_a, "index"_a)
      .def("forward", &mixer_forward<ShortConv>, "x"_a, "out"_a, "batch"_a,
           "Add the convolution of x (T, D) to out (T, D), which may be x itself.");
  nb::class_<Mamba>(m, "Mamba", nb::is_weak_referenceable(), "One layer of Mamba-2.")
      .def(nb::new_(&new_mamba), nb::kw_only(), "runtime"_a, "norm"_a, "input"_a, "output"_a, "conv"_a,
           "dt_bias"_a, "decay"_a, "skip"_a, "out_norm"_a, "n_groups"_a, "n_heads"_a, "state_dim"_a,
           "head_dim"_a, "kernel"_a, "index"_a)
      .def("forward", &mixer_forward<Mamba>, "x"_a, "out"_a, "batch"_a,
           "Add the layer's result of x (T, D) to out (T, D), which may be x itself.");
}
