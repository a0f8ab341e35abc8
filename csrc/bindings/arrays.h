// Arrays of Python as arguments of layers. They are taken by the buffer protocol where calls are frequent,
// which costs a tenth of nanobind's own array type.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>

namespace hotset {

namespace nb = nanobind;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

[[noreturn]] inline void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

inline void expect(const char* name, const char* what, int64_t found, int64_t expected) {
  if (found == expected) return;
  refuse(std::string(name) + ": expected " + std::to_string(expected) + " " + what + ", found " +
         std::to_string(found));
}

// A C-contiguous float32 array (rows, cols), borrowed from Python for the length of a call.
class Rows {
 public:
  Rows(const char* name, nb::handle array, int64_t cols, bool writable) {
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(array.ptr(), &view_, flags) != 0) throw nb::python_error();
    const bool floats = view_.format && view_.format[0] == 'f' && view_.format[1] == 0;
    if (!floats || view_.ndim != 2 || view_.shape[1] != cols) {
      PyBuffer_Release(&view_);
      refuse(std::string(name) + ": expected a C-contiguous float32 array (T, " + std::to_string(cols) + ")");
    }
  }
  ~Rows() { PyBuffer_Release(&view_); }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

  float* data() const { return static_cast<float*>(view_.buf); }
  int64_t rows() const { return view_.shape[0]; }

 private:
  Py_buffer view_;
};

}  // namespace hotset
