// Mapped files: what happens when one becomes shorter.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <utility>

#include "runtime/cut_files.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

PyObject* on_cut = nullptr;  // lives as long as the process

// Runs in the main thread, between two instructions of Python's; what it raises is raised there.
int tell_python(void*) {
  PyObject* result = PyObject_CallNoArgs(on_cut);
  Py_XDECREF(result);
  return result ? 0 : -1;
}

void survive_cut_files(nb::callable tell) {
  PyObject* old = std::exchange(on_cut, tell.release().ptr());
  Py_XDECREF(old);
  // Needs a lock that a thread which reads a mapped file never holds.
  hotset::survive_cut_files([] { Py_AddPendingCall(tell_python, nullptr); });
}

void watch_mapping(nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> data) {
  hotset::watch_mapping(data.data(), data.size());
}

}  // namespace

void bind_files(nb::module_& m) {
  m.def("survive_cut_files", &survive_cut_files, "tell"_a,
        "Let reads behind the end of a watched file find zeros; `tell` is then called in the main thread.");
  m.def("watch_mapping", &watch_mapping, "data"_a, "Watch a file's read-only mapping.");
}
