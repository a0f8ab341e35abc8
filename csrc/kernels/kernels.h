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
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
  kNVFP4 = 40,
  kQ2 = 1000,  // no file has it: copies of gates, as (f16 scale, 32 codes of two bits)
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
  float scale = 1;      // of all weights
};

// Rows of x that are multiplied with weights as these are read from memory.
constexpr int64_t kFewRows = 16;

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

  // Copies the n rows of a packed buffer of `rows` rows that `which` names to `out`, a buffer for n rows.
  void (*gather_activations)(ActivationFormat format, int64_t cols, const void* x, int64_t rows,
                             const int32_t* which, int64_t n, void* out);

  // Decode: y[r] = sum_k w[r, k] x[k] for the rows of panels [panel0, panel1). `x` is a packed buffer of one
  // row, y[0] is row panel0 * lanes, and whole panels are written ((panel1 - panel0) * lanes floats).
  void (*matvec)(const PackedMatrix* w, int64_t panel0, int64_t panel1, const void* x, float* y);

  // Prefill: the same for rows [row0, row1) of a packed buffer of `rows` rows, row0 a multiple of 16. Token t
  // and matrix row r go to y[(t - row0) * ldy + r - panel0 * lanes]; whole panels are written.
  void (*matmul)(const PackedMatrix* w, int64_t panel0, int64_t panel1, const void* x, int64_t rows,
                 int64_t row0, int64_t row1, float* y, int64_t ldy);

  // Where a type's codebook lies (codebooks.h), as long as anything runs. It must be known before a matrix of
  // the type is packed; for other types this does nothing.
  void (*set_codebook)(Type type, const uint8_t* entries);
};

// What rows of a NeuronMatrix are for: to be multiplied with x (gate, up), or to be added up (down, stored by
// neuron).
enum NeuronUse : int32_t { kNeuronDot, kNeuronAdd };

// Weights (neurons x cols) of which only some rows are read: every row on its own, padded to 64 bytes.
struct NeuronMatrix {
  Type type;  // kF16, kQ8_0, kQ4_0 or kQ4_1
  int64_t rows, cols;
  int64_t stride;       // bytes from one row to the next; other rows of the neuron may lie between
  const uint8_t* data;  // 64-byte aligned
};

// Rows that are added up at once. Where a list has more, its order and these units decide every bit.
constexpr int64_t kAddRows = 8;

// Rows to be read; and those that are read next (or nullptr), which begin to be fetched meanwhile.
struct NeuronList {
  const NeuronMatrix* matrix;
  const int32_t* indices;
  int64_t count;
  const NeuronList* next;
};

// Sums over the rows of lists of neurons: neurons.cpp.
struct NeuronKernels {
  int64_t (*row_bytes)(Type type, int64_t cols);

  // Re-lays one row of a GGUF tensor; and back, where it is of use kNeuronDot.
  void (*pack_row)(Type type, NeuronUse use, const uint8_t* src, int64_t cols, uint8_t* row);
  void (*unpack_row)(Type type, const uint8_t* row, int64_t cols, uint8_t* dst);

  // One token's x as rows of `type` want it, to the same precision as LinearKernels'.
  int64_t (*activation_bytes)(Type type, int64_t cols);
  void (*pack_activations)(Type type, const float* x, int64_t cols, uint8_t* out);

  // y[i] = row i of the list times one token's packed x.
  void (*dot)(const NeuronList* list, const uint8_t* x, float* y);

  // sums (sum_floats(cols) of them) += the sum over i of h[i] times row i of the list. Rows whose h is zero
  // change no bit.
  int64_t (*sum_floats)(int64_t cols);
  void (*add)(const NeuronList* list, const float* h, float* sums);

  int64_t group_cols;

  // Prefill: y[t * ldy + c] += sum over all rows j of h[t * ldh + j] w[j, group * group_cols + c], for a
  // whole group of columns c.
  void (*multiply)(const NeuronMatrix* w, int64_t group, const float* h, int64_t ldh, int64_t tokens,
                   float* y, int64_t ldy);

  // Bit j: neuron j of n (at most 64) has a score that reaches `cutoff`: scores[j], or its magnitude, times
  // factors[j] (where it is not null).
  uint64_t (*select)(const float* scores, const float* factors, bool magnitude, int64_t n, float cutoff);
};

// Everything else that runs over vectors (norms, RoPE, activations, attention): vector.cpp.
struct VectorKernels;

struct Kernels {
  const char* name;
  const LinearKernels* linear;
  const VectorKernels* vector;
  const NeuronKernels* neurons;
};

// The kernel sets that this build has and this CPU runs, best first; ends with nullptr.
const Kernels* const* available_kernels();

// Bytes of a type's codebook; 0 where it has none.
int64_t codebook_bytes(Type type);

// Copies a type's codebook and makes it known to all kernels, and to dequantise(); call it once a type.
void set_codebook(Type type, const uint8_t* entries);

// A type's codebook as set, or nullptr.
const uint8_t* codebook_of(Type type);

}  // namespace hotset
