// Regions of the thread pool over weights stored by neuron.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "products.h"

namespace hotset {

// Memory in which a neuron's rows of several matrices lie one behind the other: memory is read faster in long
// runs. The matrices take their places in the order in which they are read.
class NeuronStore {
 public:
  NeuronStore(std::shared_ptr<Runtime> runtime, int64_t neurons, int64_t cols, std::vector<Type> types);

  // The first row of the next matrix, which is of that type. Throws std::invalid_argument if there is none.
  uint8_t* take(Type type, int64_t rows, int64_t cols);

  const std::shared_ptr<Runtime> runtime;
  const int64_t neurons, cols;
  int64_t stride() const { return stride_; }

 private:
  std::vector<Type> types_;
  size_t taken_ = 0;
  int64_t stride_ = 0, used_ = 0;
  std::shared_ptr<uint8_t> memory_;
};

// A matrix (neurons x cols) of which single rows are read.
class NeuronRows {
 public:
  // `data` as in `Matrix`; `type` is one of NeuronMatrix's. The bias belongs to the rows where they are
  // multiplied with x, and to the columns where they are added up.
  NeuronRows(std::shared_ptr<NeuronStore> store, Type type, NeuronUse use, int64_t rows, int64_t cols,
             int64_t row_bytes, const uint8_t* data, bool from_file, const float* bias);
  ~NeuronRows() { store_->runtime->pool.quiesce(); }

  int64_t rows() const { return packed.rows; }
  int64_t cols() const { return packed.cols; }

  NeuronMatrix packed;
  std::vector<float> bias;  // empty, or as above

 private:
  std::shared_ptr<NeuronStore> store_;
  std::vector<float> largest_scales_;
};

// What to do with a product: write it, write the activation of it, or multiply with it what is there (with
// ReLU of it where the activation is dReLU).
enum class Apply { kWrite, kActivate, kTimes };

// y (tokens x neurons, contiguous) from the product of all rows with x, which is packed for matrices of the
// same type: a few rows at a time are re-laid as a panel.
void multiply_rows(Session& session, const Runtime& runtime, const Activations& x, const NeuronRows& rows,
                   Apply apply, Activation activation, float* y);

// Rows of x (contiguous), normalised and packed for multiply_rows(), and for a matrix too where not null.
Activations pack_as(Session& session, const Runtime& runtime, const float* x, int64_t tokens,
                    const Norm& norm, const NeuronRows& rows, const Matrix* matrix);

// Rows of x (contiguous), normalised where `norm` is not null, packed for single rows of this type.
struct RowActivations {
  const uint8_t* packed;
  int64_t bytes, rows;
};
RowActivations pack_for_rows(Session& session, const Runtime& runtime, const float* x, int64_t rows,
                             const Norm* norm, const NeuronRows& matrix);

// y[j] = row j times the one token in x, for all rows: the decode kernel.
void multiply_all_rows(Session& session, const Runtime& runtime, const RowActivations& x,
                       const NeuronRows& rows, float* y);

// Which neurons to compute for a few tokens, and how their values come about.
struct Chosen {
  const int32_t* indices;  // ascending
  int64_t count;
  int64_t tokens, neurons;
  bool everything;  // add up zeros too

  // Values known for all neurons (tokens x neurons): the activation of gate, or the neurons' values
  // themselves. Null where `first` has to be multiplied.
  const float* known;
  // Where not null (tokens x neurons): a token's neuron counts only where scores (or their magnitudes) times
  // factors reach the cut-off.
  const float* scores;
  const float* factors;
  bool magnitude;
  float cutoff;

  const NeuronRows* first;   // the activation's rows: gate, or up where there is no gate
  const NeuronRows* second;  // up's rows where there is a gate, and these are not in `known`
  Activation activation;
  RowActivations x;  // for first and second
};

// What adding up has touched, summed over tokens: rows of down read, and values that were not zero.
struct Touched {
  std::atomic<int64_t> read{0}, fired{0};
};

// out (tokens x cols) += post_norm(sum of the chosen neurons' values times their rows of down + bias).
void add_chosen(Session& session, const Runtime& runtime, const Chosen& chosen, const NeuronRows& down,
                const Norm* post_norm, float* out, Touched& touched);

// The same for all neurons of many tokens, whose values are h (tokens x neurons).
void add_all(Session& session, const Runtime& runtime, const float* h, int64_t tokens, const NeuronRows& down,
             const Norm* post_norm, float* out);

}  // namespace hotset
