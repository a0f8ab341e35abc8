// A call of a layer that mixes positions.
#pragma once

#include <string>

#include "bindings/arrays.h"
#include "layers/batch.h"

namespace hotset {

template <typename Layer>
void mixer_forward(const Layer& layer, nb::handle x, nb::handle out, const Batch& batch) {
  const Rows from("x", x, layer.norm.size(), false), to("out", out, layer.output->rows(), true);
  expect("x", "rows", from.rows(), batch.rows());
  expect("out", "rows", to.rows(), batch.rows());
  if (const std::string why = layer.refuses(batch); !why.empty()) refuse("batch: " + why);
  if (batch.rows() == 0) return;
  const nb::gil_scoped_release release;
  layer.forward(from.data(), to.data(), batch);
}

}  // namespace hotset
