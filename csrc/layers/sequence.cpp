#include "layers/sequence.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace hotset {
namespace {

int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// Copies what is filled of the keys and values of one layer's heads.
struct CopyJob {
  const Sequence *from, *to;
  int64_t layer;
  size_t key_bytes, value_bytes;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}
  void commit(int64_t head, void*) const {
    std::memcpy(to->keys(layer, head), from->keys(layer, head), key_bytes);
    if (value_bytes > 0) std::memcpy(to->values(layer, head), from->values(layer, head), value_bytes);
  }
};

}  // namespace

Sequence::Sequence(std::shared_ptr<Runtime> runtime, KvType type, std::vector<KvShape> layers,
                   int64_t capacity, const std::vector<CutoffPlan>& cutoffs,
                   std::vector<RecurrentShape> recurrent)
    : type(type),
      layers(std::move(layers)),
      capacity(capacity),
      choosers(cutoffs.size()),
      recurrent(std::move(recurrent)),
      runtime_(std::move(runtime)) {
  for (size_t i = 0; i < cutoffs.size(); ++i) choosers[i].cutoff = Cutoff(cutoffs[i]);
  const AttentionKernels& kernels = runtime_->attention;
  const int64_t room = round_up(capacity, kernels.key_block);
  int64_t bytes = 0;
  for (const KvShape& layer : this->layers) {
    rooms_.push_back({bytes,
                      round_up(room / kernels.key_block * kernels.key_block_bytes(type, layer.dim), 64),
                      layer.values ? round_up(room * kernels.value_row_bytes(type, layer.dim), 64) : 0});
    const double more = static_cast<double>(rooms_.back().key_bytes + rooms_.back().value_bytes) *
                        static_cast<double>(layer.heads);
    if (static_cast<double>(bytes) + more > 1e15) throw std::bad_alloc();
    bytes += static_cast<int64_t>(more);
  }
  memory_ = Buffer(static_cast<size_t>(bytes), Pages::kSmall);
}

void Sequence::advance(int64_t count) {
  length += count;
  if (!recurrent.leaves(length)) return;
  runtime_->pool.quiesce();  // what others may be reading is written again
  recurrent.advance(length);
}

void Sequence::rewind(int64_t new_length) {
  // Positions after it will be written again, which nobody may be reading then.
  if (new_length < length) runtime_->pool.quiesce();
  recurrent.rewind(new_length, length);
  length = new_length;
  for (Chooser& chooser : choosers) chooser.cutoff.rewind(length);
}

void Sequence::limit_saved(int64_t bytes) {
  if (recurrent.saved_bytes() <= bytes) return;
  runtime_->pool.quiesce();
  recurrent.limit(bytes / recurrent.chunk_bytes());
}

std::shared_ptr<Sequence> Sequence::fork() const {
  auto copy = std::make_shared<Sequence>(runtime_, type, layers, capacity);
  const AttentionKernels& kernels = runtime_->attention;
  Session session(runtime_->pool);
  for (int64_t layer = 0; layer < n_layers(); ++layer) {
    const auto [heads, dim, values] = layers[layer];
    const int64_t key_bytes = ceil_div(length, kernels.key_block) * kernels.key_block_bytes(type, dim);
    const int64_t value_bytes = values ? length * kernels.value_row_bytes(type, dim) : 0;
    session.run(heads, CopyJob{this, copy.get(), layer, static_cast<size_t>(key_bytes),
                               static_cast<size_t>(value_bytes)});
  }
  copy->length = length;
  copy->recurrent = recurrent.fork();
  for (const Chooser& chooser : choosers) copy->choosers.push_back({.cutoff = chooser.cutoff});
  return copy;
}

}  // namespace hotset
