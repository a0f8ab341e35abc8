#include "weights/neuron_store.h"

#include <algorithm>
#include <stdexcept>

namespace hotset {
namespace {

constexpr int64_t kChunkBytes = 64 << 10, kSliceBytes = 16 << 20;

struct PackRowsJob {
  const NeuronKernels* kernels;
  Type type;
  NeuronUse use;
  int64_t rows, cols, from_bytes, to_bytes, per_chunk;
  const uint8_t* data;
  uint8_t* packed;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}
  void commit(int64_t chunk, void*) const {
    for (int64_t j = chunk * per_chunk; j < std::min((chunk + 1) * per_chunk, rows); ++j) {
      kernels->pack_row(type, use, data + j * from_bytes, cols, packed + j * to_bytes);
    }
  }
};

}  // namespace

NeuronStore::NeuronStore(std::shared_ptr<Runtime> runtime_, int64_t neurons_, int64_t cols_,
                         std::vector<Type> types)
    : runtime(std::move(runtime_)), neurons(neurons_), cols(cols_), types_(std::move(types)) {
  for (const Type type : types_) stride_ += runtime->neurons.row_bytes(type, cols);
  memory_ = runtime->buffers.allocate(static_cast<size_t>(neurons * stride_));
}

uint8_t* NeuronStore::take(Type type, int64_t rows, int64_t matrix_cols) {
  if (taken_ == types_.size() || types_[taken_] != type || rows != neurons || matrix_cols != cols) {
    throw std::invalid_argument("store: made for other rows");
  }
  uint8_t* place = memory_.get() + used_;
  used_ += runtime->neurons.row_bytes(types_[taken_++], cols);
  return place;
}

NeuronRows::NeuronRows(std::shared_ptr<NeuronStore> store, Type type, NeuronUse use, int64_t rows,
                       int64_t cols, int64_t row_bytes, const uint8_t* data, bool from_file,
                       const float* bias)
    : store_(std::move(store)) {
  uint8_t* place = store_->take(type, rows, cols);
  packed = {type, rows, cols, store_->stride(), place};
  if (bias) this->bias.assign(bias, bias + (use == kNeuronDot ? rows : cols));

  Runtime& runtime = *store_->runtime;
  const int64_t per_chunk = std::max<int64_t>(1, kChunkBytes / row_bytes);
  const int64_t per_slice = std::max<int64_t>(1, kSliceBytes / row_bytes);
  Session session(runtime.pool);
  for (int64_t row = 0; row < rows; row += per_slice) {
    const int64_t count = std::min(per_slice, rows - row);
    const uint8_t* slice = data + row * row_bytes;
    session.run(ceil_div(count, per_chunk),
                PackRowsJob{&runtime.neurons, type, use, count, cols, row_bytes, packed.stride, per_chunk,
                            slice, place + row * packed.stride});
    if (from_file) release_file_pages(slice, static_cast<size_t>(count * row_bytes));
  }
  if (from_file) release_file_pages(data, static_cast<size_t>(rows * row_bytes));
}

}  // namespace hotset
