#include "layers/neuron_prompts.h"

#include <algorithm>

namespace hotset {
namespace {

// Tokens whose sums of some columns stay in the second-level cache.
constexpr int64_t kTokenBlock = 128;

int64_t row_bytes_in_file(Type type, int64_t cols) {
  switch (type) {
    case kQ4_0:
      return cols / 32 * 18;
    case kQ4_1:
      return cols / 32 * 20;
    case kQ8_0:
      return cols / 32 * 34;
    default:
      return cols * 2;
  }
}

// Some rows, re-laid as panels, times all tokens.
struct RowsJob {
  const Runtime* runtime;
  NeuronMatrix rows;
  const float* bias;
  const void* x;
  int64_t tokens;
  Apply apply;
  Activation activation;
  float* y;

  static constexpr int64_t kPanels = 2;

  int64_t chunk_rows() const { return kPanels * runtime->linear.lanes; }
  int64_t panel_bytes() const { return runtime->linear.panel_bytes(rows.type, rows.cols); }
  int64_t file_bytes() const { return row_bytes_in_file(rows.type, rows.cols); }
  int64_t product_floats() const { return tokens * chunk_rows(); }
  size_t scratch_bytes() const {
    const int64_t floats = product_floats() * sizeof(float);
    return static_cast<size_t>(ceil_div(floats, 64) * 64 + kPanels * panel_bytes() +
                               chunk_rows() * file_bytes());
  }

  void compute(int64_t chunk, void* scratch) const {
    const LinearKernels& linear = runtime->linear;
    auto* product = static_cast<float*>(scratch);
    auto* panels = static_cast<uint8_t*>(scratch) + ceil_div(product_floats() * sizeof(float), 64) * 64;
    uint8_t* file_rows = panels + kPanels * panel_bytes();
    const int64_t first = chunk * chunk_rows(), count = std::min(chunk_rows(), rows.rows - first);
    for (int64_t j = 0; j < count; ++j) {
      runtime->neurons.unpack_row(rows.type, rows.data + (first + j) * rows.stride, rows.cols,
                                  file_rows + j * file_bytes());
    }
    const int64_t n_panels = ceil_div(count, linear.lanes);
    for (int64_t p = 0; p < n_panels; ++p) {
      const int64_t valid = std::min(linear.lanes, count - p * linear.lanes);
      linear.pack_panel(rows.type, file_rows + p * linear.lanes * file_bytes(), valid, rows.cols,
                        panels + p * panel_bytes());
    }
    const PackedMatrix matrix = {rows.type, count, rows.cols, panel_bytes(), panels};
    linear.matmul(&matrix, 0, n_panels, x, tokens, 0, tokens, product, n_panels * linear.lanes);
    for (int64_t t = 0; t < tokens; ++t) {
      float* row = product + t * n_panels * linear.lanes;
      if (bias) runtime->vector.add(bias + first, count, row);
      if (apply == Apply::kActivate) runtime->vector.activate(activation, row, nullptr, count);
    }
  }

  void commit(int64_t chunk, void* scratch) const {
    const int64_t first = chunk * chunk_rows(), count = std::min(chunk_rows(), rows.rows - first);
    const int64_t stride = ceil_div(count, runtime->linear.lanes) * runtime->linear.lanes;
    const auto* product = static_cast<const float*>(scratch);
    for (int64_t t = 0; t < tokens; ++t) {
      const float* from = product + t * stride;
      float* to = y + t * rows.rows + first;
      if (apply != Apply::kTimes) {
        std::copy_n(from, count, to);
        continue;
      }
      for (int64_t j = 0; j < count; ++j) to[j] *= of_up(activation, from[j]);
    }
  }
};

// A group of columns for a block of tokens.
struct AllJob {
  const Runtime* runtime;
  NeuronMatrix down;
  const float *h, *bias;
  int64_t tokens;
  bool add;
  float* out;

  int64_t groups() const { return ceil_div(down.cols, runtime->neurons.group_cols); }
  size_t scratch_bytes() const {
    return std::min(kTokenBlock, tokens) * runtime->neurons.group_cols * sizeof(float);
  }

  void compute(int64_t chunk, void* scratch) const {
    const int64_t width = runtime->neurons.group_cols, group = chunk % groups();
    const int64_t first = chunk / groups() * kTokenBlock, count = std::min(kTokenBlock, tokens - first);
    auto* y = static_cast<float*>(scratch);
    std::fill_n(y, count * width, 0.0f);
    if (bias) {
      const int64_t n = std::min(width, down.cols - group * width);
      for (int64_t t = 0; t < count; ++t) std::copy_n(bias + group * width, n, y + t * width);
    }
    runtime->neurons.multiply(&down, group, h + first * down.rows, down.rows, count, y, width);
  }

  void commit(int64_t chunk, void* scratch) const {
    const int64_t width = runtime->neurons.group_cols, col0 = chunk % groups() * width;
    const int64_t first = chunk / groups() * kTokenBlock, count = std::min(kTokenBlock, tokens - first);
    const int64_t n = std::min(width, down.cols - col0);
    const auto* y = static_cast<const float*>(scratch);
    for (int64_t t = 0; t < count; ++t, y += width) {
      float* to = out + (first + t) * down.cols + col0;
      if (add) {
        runtime->vector.add(y, n, to);
      } else {
        std::copy_n(y, n, to);
      }
    }
  }
};

}  // namespace

void multiply_rows(Session& session, const Runtime& runtime, const Activations& x, const NeuronMatrix& rows,
                   const float* bias, Apply apply, Activation activation, float* y) {
  const ActivationFormat format = runtime.linear.activation_format(rows.type);
  const RowsJob job{&runtime, rows, bias, x.packed[format], x.rows, apply, activation, y};
  session.run(ceil_div(rows.rows, job.chunk_rows()), job);
}

void multiply_rows(Session& session, const Runtime& runtime, const Activations& x, const NeuronRows& rows,
                   Apply apply, Activation activation, float* y) {
  multiply_rows(session, runtime, x, rows.packed, rows.bias_data(), apply, activation, y);
}

Activations pack_as(Session& session, const Runtime& runtime, const float* x, int64_t tokens,
                    const Norm& norm, const NeuronRows& rows, const Linear* matrix) {
  unsigned formats = 1u << runtime.linear.activation_format(rows.packed.type);
  if (matrix) formats |= 1u << matrix->format;
  return pack_formats(session, runtime, x, tokens, rows.cols(), &norm, formats);
}

void add_all(Session& session, const Runtime& runtime, const float* h, int64_t tokens, const NeuronRows& down,
             const Norm* post_norm, float* out) {
  const int64_t cols = down.cols();
  float* y = post_norm ? session.allocate<float>(tokens * cols) : out;
  const AllJob job{&runtime, down.packed, h, down.bias_data(), tokens, !post_norm, y};
  session.run(job.groups() * ceil_div(tokens, kTokenBlock), job);
  if (post_norm) add_normed(session, runtime, *post_norm, y, tokens, out);
}

}  // namespace hotset
