// Products of packed matrices with one token's or several tokens' vectors, as regions of the thread pool.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <vector>

#include "runtime/runtime.h"

namespace hotset {

// y = W x + b, the weights packed for the kernels.
class Linear {
 public:
  // `data` holds `rows` rows of `row_bytes` bytes as in GGUF; `bias` has `rows` numbers or is null. Both are
  // copied. All weights are multiplied with `scale`. With `from_file`, `data` is a read-only file mapping,
  // whose pages are given back to the system as they are copied, so that the weights are never in memory
  // twice.
  Linear(std::shared_ptr<Runtime> runtime, Type type, int64_t rows, int64_t cols, int64_t row_bytes,
         const uint8_t* data, bool from_file, const float* bias, float scale);
  ~Linear() { runtime_->pool.quiesce(); }

  int64_t rows() const { return packed.rows; }
  int64_t cols() const { return packed.cols; }
  int64_t panels() const { return (packed.rows + runtime_->linear.lanes - 1) / runtime_->linear.lanes; }

  PackedMatrix packed;
  ActivationFormat format;
  std::vector<float> bias;  // empty or one to a row

 private:
  std::shared_ptr<Runtime> runtime_;
  std::shared_ptr<uint8_t> memory_;
};

enum class NormKind : int32_t { kRms, kLayer, kNone };

struct Norm {
  NormKind kind;  // kNone leaves vectors as they are
  float eps;
  std::vector<float> weight, bias;  // bias may be empty

  int64_t size() const { return static_cast<int64_t>(weight.size()); }

  void apply(const VectorKernels& vector, const float* x, float* y) const {
    if (kind == NormKind::kNone) {
      if (x != y) std::copy_n(x, size(), y);
      return;
    }
    const auto kernel = kind == NormKind::kLayer ? vector.layer_norm : vector.rms_norm;
    kernel(x, weight.data(), bias.empty() ? nullptr : bias.data(), eps, size(), y);
  }
};

// Rows of vectors, packed in the formats that the matrices to be multiplied want.
struct Activations {
  const void* packed[2];  // by ActivationFormat; null where no matrix wants it
  int64_t rows;
};

// Where a product goes: row t to y + t * stride.
struct Output {
  const Linear* matrix;
  float* y;
  int64_t stride;
};

// Packs rows of x (contiguous) for these matrices, normalised where `norm` is not null.
Activations pack(Session& session, const Runtime& runtime, const float* x, int64_t rows, const Norm* norm,
                 std::initializer_list<const Linear*> matrices);

// The same in the formats named by bit 1 << ActivationFormat.
Activations pack_formats(Session& session, const Runtime& runtime, const float* x, int64_t rows, int64_t cols,
                         const Norm* norm, unsigned formats);

// The product of some panels with `rows` packed rows, (panel1 - panel0) * lanes numbers a row; and the bias,
// where it is not null.
void multiply_panels(const Runtime& runtime, const PackedMatrix& matrix, const float* bias, int64_t panel0,
                     int64_t panel1, const void* x, int64_t rows, float* y);

// y = W x + b, or y += W x + b with `add`, for up to four matrices in one region.
void multiply(Session& session, const Runtime& runtime, const Activations& x,
              std::initializer_list<Output> outputs, bool add);

// h (rows x F, contiguous) = act(gate x) * (up x), or act(up x) where gate is null.
void multiply_gated(Session& session, const Runtime& runtime, const Activations& x, const Linear* gate,
                    const Linear& up, Activation activation, float* h);

// The same in two results, of which a caller wants to see the first: pre-activations of the gate (of up,
// where gate is null) and h.
void multiply_gated_apart(Session& session, const Runtime& runtime, const Activations& x, const Linear* gate,
                          const Linear& up, Activation activation, float* pre, float* h);

// out += norm(y) for rows of y (contiguous), which is overwritten.
void add_normed(Session& session, const Runtime& runtime, const Norm& norm, float* y, int64_t rows,
                float* out);

// out += post_norm(W x + b); without post_norm where it is null.
void multiply_residual(Session& session, const Runtime& runtime, const Activations& x, const Linear& matrix,
                       const Norm* post_norm, float* out);

}  // namespace hotset
