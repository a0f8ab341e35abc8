// The Python module hotset._kernels: single kernels, for tests and benchmarks. Wheels leave it out.
#include <nanobind/nanobind.h>

#include "bindings/codebook_binding.h"

namespace nb = nanobind;

void bind_linear(nb::module_& m);
void bind_vector(nb::module_& m);

NB_MODULE(_kernels, m) {
  m.doc() = "Single kernels of one instruction set, for tests and benchmarks.";
  bind_codebook(m);
  bind_linear(m);
  bind_vector(m);
}
