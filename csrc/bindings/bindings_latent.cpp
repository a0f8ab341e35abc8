// Python's view of multi-head latent attention.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings/mixer.h"
#include "layers/latent_attention.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hotset;

namespace {

using MatrixPtr = std::shared_ptr<Linear>;
using NormPtr = std::shared_ptr<Norm>;

// One matrix for each head, all of one shape and type.
std::vector<std::shared_ptr<const Linear>> of_heads(const char* name, const std::vector<MatrixPtr>& matrices,
                                                    int64_t rows, int64_t cols) {
  for (const MatrixPtr& matrix : matrices) {
    expect(name, "rows", matrix->rows(), rows);
    expect(name, "columns", matrix->cols(), cols);
    expect(name, "as type", matrix->packed.type, matrices[0]->packed.type);
  }
  return {matrices.begin(), matrices.end()};
}

std::shared_ptr<LatentAttention> new_latent_attention(
    std::shared_ptr<Runtime> runtime, NormPtr norm, MatrixPtr q_a, NormPtr q_norm, MatrixPtr q,
    MatrixPtr kv_a, NormPtr kv_norm, const std::vector<MatrixPtr>& k_b, const std::vector<MatrixPtr>& v_b,
    MatrixPtr output, float scale, std::shared_ptr<Rope> rope, int64_t index) {
  const auto heads = static_cast<int64_t>(k_b.size());
  if (heads < 1) refuse("k_b: expected a matrix for each head");
  expect("v_b", "matrices", static_cast<int64_t>(v_b.size()), heads);
  const int64_t rank = kv_norm->size(), rope_dim = kv_a->rows() - rank;
  if (rope_dim < 2) refuse("kv_a: expected rows for what RoPE turns");
  if ((q_a == nullptr) != (q_norm == nullptr)) refuse("q_norm: expected with q_a, and only then");
  auto layer = std::make_shared<LatentAttention>();
  layer->k_b = of_heads("k_b", k_b, rank, k_b[0]->cols());
  layer->v_b = of_heads("v_b", v_b, v_b[0]->rows(), rank);
  layer->rope_dim = rope_dim;
  expect("q", "rows", q->rows(), heads * layer->query_dim());
  expect("q", "columns", q->cols(), q_a ? q_a->rows() : norm->size());
  if (q_a) expect("q_norm", "numbers", q_norm->size(), q_a->rows());
  expect("output", "columns", output->cols(), heads * layer->value_dim());
  layer->runtime = std::move(runtime);
  layer->norm = *norm;
  layer->q_a = std::move(q_a);
  layer->q_norm = std::move(q_norm);
  layer->q = std::move(q);
  layer->kv_a = std::move(kv_a);
  layer->kv_norm = *kv_norm;
  layer->output = std::move(output);
  layer->scale = scale;
  layer->rope = std::move(rope);
  layer->index = index;
  return layer;
}

}  // namespace

void bind_latent(nb::module_& m) {
  nb::class_<LatentAttention>(m, "LatentAttention", nb::is_weak_referenceable(),
                              "One layer's multi-head latent attention.")
      .def(nb::new_(&new_latent_attention), nb::kw_only(), "runtime"_a, "norm"_a, "q_a"_a.none(),
           "q_norm"_a.none(), "q"_a, "kv_a"_a, "kv_norm"_a, "k_b"_a, "v_b"_a, "output"_a, "scale"_a, "rope"_a,
           "index"_a)
      .def("forward", &mixer_forward<LatentAttention>, "x"_a, "out"_a, "batch"_a,
           "Add the attention of x (T, D) to out (T, D), which may be x itself.");
}
