// Weights stored by neuron: where their rows lie in memory.
#pragma once

#include <memory>
#include <vector>

#include "layers/products.h"

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
  const uint8_t* memory() const { return memory_.get(); }

 private:
  std::vector<Type> types_;
  size_t taken_ = 0;
  int64_t stride_ = 0, used_ = 0;
  std::shared_ptr<uint8_t> memory_;
};

// A matrix (neurons x cols) of which single rows are read.
class NeuronRows {
 public:
  // `data` as in `Linear`; `type` is one of NeuronMatrix's. The bias belongs to the rows where they are
  // multiplied with x, and to the columns where they are added up.
  NeuronRows(std::shared_ptr<NeuronStore> store, Type type, NeuronUse use, int64_t rows, int64_t cols,
             int64_t row_bytes, const uint8_t* data, bool from_file, const float* bias);
  ~NeuronRows() { store_->runtime->pool.quiesce(); }

  int64_t rows() const { return packed.rows; }
  int64_t cols() const { return packed.cols; }
  const uint8_t* neuron() const { return store_->memory(); }  // the first, with its rows of other matrices
  const float* bias_data() const { return bias.empty() ? nullptr : bias.data(); }

  NeuronMatrix packed;
  std::vector<float> bias;  // empty, or as above

 private:
  std::shared_ptr<NeuronStore> store_;
};

}  // namespace hotset
