// The Python module hotset._native: what each part binds is in the file of its name.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "bindings/codebook_binding.h"
#include "kernels/kernels.h"

namespace nb = nanobind;

void bind_layers(nb::module_& m);
void bind_batch(nb::module_& m);
void bind_latent(nb::module_& m);
void bind_recurrent(nb::module_& m);
void bind_experts(nb::module_& m);
void bind_chain(nb::module_& m);
void bind_quantise(nb::module_& m);
void bind_worker(nb::module_& m);
void bind_files(nb::module_& m);
void bind_numbers(nb::module_& m);

namespace {

std::vector<std::string> kernel_levels() {
  std::vector<std::string> names;
  for (auto kernels = hotset::available_kernels(); *kernels; kernels++) names.push_back((*kernels)->name);
  return names;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Hotset's CPU kernels.";
#ifdef NDEBUG
  // A script that ends with its model still loaded has leaked nothing.
  nanobind::set_leak_warnings(false);
#endif
  m.def("kernel_levels", &kernel_levels, "Instruction sets with kernels that this CPU runs, best first.");
  bind_codebook(m);
  bind_batch(m);
  bind_layers(m);
  bind_latent(m);
  bind_recurrent(m);
  bind_experts(m);
  bind_chain(m);
  bind_quantise(m);
  bind_worker(m);
  bind_files(m);
  bind_numbers(m);
}
