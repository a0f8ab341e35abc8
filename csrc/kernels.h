// The tables of kernels that every instruction set fills in. Raw pointers only: nothing here knows of
// models, threads or Python. A kernel never allocates and never checks its arguments; callers do.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace hotset {

// Tensor element types, numbered as in GGUF.
enum Type : int32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

// How a matrix of some type wants the activations it is multiplied with.
enum ActivationFormat : int32_t { kActF32 = 0, kActInt8 = 1 };

// Weights (rows x cols), re-laid once at load: `lanes` rows (the 32-bit lanes of one vector register) form a
// panel, and panels follow one another. The last panel is padded with zero rows.
struct PackedMatrix {
  Type type;
  int64_t rows, cols;
  int64_t panel_bytes;
  const uint8_t* data;  // 64-byte aligned
};

// Products of packed weights with activations: linear.cpp.
struct LinearKernels {
  int64_t lanes;  // rows in a panel

  ActivationFormat (*activation_format)(Type type);

  // Bytes of one panel of a matrix with `cols` columns, every panel a multiple of 64.
  int64_t (*panel_bytes)(Type type, int64_t cols);

  // Re-lays rows [panel * lanes, min(rows, (panel + 1) * lanes)) of a GGUF tensor. `src` points at the first
  // of these rows, `rows` says how many are valid (1 to lanes).
  void (*pack_panel)(Type type, const uint8_t* src, int64_t rows, int64_t cols, uint8_t* panel);

  // Bytes of a packed activation buffer for `rows` rows.
  int64_t (*activation_bytes)(ActivationFormat format, int64_t rows, int64_t cols);

  // Packs rows [first, last) of x (float, row stride ldx) into `out`, a buffer for `rows` rows in all.
  // `first` is a multiple of 16, `last` is too or equals `rows`.
  void (*pack_activations)(ActivationFormat format, const float* x, int64_t ldx, int64_t rows, int64_t cols,
                           int64_t first, int64_t last, void* out);

  // Decode: y[r] = sum_k w[r, k] x[k] for the rows of panels [panel0, panel1). `x` is a packed buffer of one
  // row, y[0] is row panel0 * lanes, and whole panels are written ((panel1 - panel0) * lanes floats).
  void (*matvec)(const PackedMatrix* w, int64_t panel0, int64_t panel1, const void* x, float* y);

  // Prefill: the same for rows [row0, row1) of a packed buffer of `rows` rows, row0 a multiple of 16. Token t
  // and matrix row r go to y[(t - row0) * ldy + r - panel0 * lanes]; whole panels are written.
  void (*matmul)(const PackedMatrix* w, int64_t panel0, int64_t panel1, const void* x, int64_t rows,
                 int64_t row0, int64_t row1, float* y, int64_t ldy);
};

// Everything else that runs over vectors (norms, RoPE, activations, attention): vector.cpp.
struct VectorKernels;

struct Kernels {
  const char* name;
  const LinearKernels* linear;
  const VectorKernels* vector;
};

// The kernel sets that this build has and this CPU runs, best first; ends with nullptr.
const Kernels* const* available_kernels();

}  // namespace hotset
