// The Python module hotset._native: what each part binds is in the file of its name.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_linear(nb::module_& m);
void bind_vector(nb::module_& m);
void bind_layers(nb::module_& m);
void bind_batch(nb::module_& m);
void bind_quantise(nb::module_& m);
void bind_worker(nb::module_& m);
void bind_files(nb::module_& m);

NB_MODULE(_native, m) {
  m.doc() = "Hotset's CPU kernels.";
  bind_linear(m);
  bind_vector(m);
  bind_batch(m);
  bind_layers(m);
  bind_quantise(m);
  bind_worker(m);
  bind_files(m);
}
