// set_codebook() for Python: both modules have kernels of their own, and so codebooks.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>

#include "kernels/kernels.h"

inline void bind_codebook(nanobind::module_& m) {
  namespace nb = nanobind;
  using Entries = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
  const auto set = [](int type, Entries entries) {
    const auto checked = static_cast<hotset::Type>(type);
    const auto bytes = static_cast<size_t>(hotset::codebook_bytes(checked));
    if (bytes == 0) throw nb::value_error("type: expected one with a codebook");
    if (entries.size() != bytes) throw nb::value_error("entries: not as many as the type has");
    if (*std::max_element(entries.data(), entries.data() + bytes) > 7) {
      throw nb::value_error("entries: expected numbers from 0 to 7");
    }
    hotset::set_codebook(checked, entries.data());
  };
  m.def("set_codebook", set, nb::arg("type"), nb::arg("entries"),
        "Make known the codebook of a tensor type (csrc/kernels/codebooks.h), which stays as first set.");
}
