#include "layers/sequence.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace hotset {
namespace {

int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// Copies what is filled of each head's keys and values, head by head.
struct CopyJob {
  const Sequence *from, *to;
  size_t key_bytes, value_bytes;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}
  void commit(int64_t chunk, void*) const {
    const int64_t layer = chunk / from->n_heads, head = chunk % from->n_heads;
    std::memcpy(to->keys(layer, head), from->keys(layer, head), key_bytes);
    std::memcpy(to->values(layer, head), from->values(layer, head), value_bytes);
  }
};

}  // namespace

Sequence::Sequence(std::shared_ptr<Runtime> runtime, KvType type, int64_t n_layers, int64_t n_heads,
                   int64_t head_dim, int64_t capacity, const std::vector<CutoffPlan>& cutoffs,
                   std::vector<RecurrentShape> recurrent)
    : type(type),
      n_layers(n_layers),
      n_heads(n_heads),
      head_dim(head_dim),
      capacity(capacity),
      choosers(cutoffs.size()),
      recurrent(std::move(recurrent)),
      runtime_(std::move(runtime)) {
  for (size_t i = 0; i < cutoffs.size(); ++i) choosers[i].cutoff = Cutoff(cutoffs[i]);
  const AttentionKernels& kernels = runtime_->attention;
  const int64_t room = round_up(capacity, kernels.key_block);
  key_bytes_ = round_up(room / kernels.key_block * kernels.key_block_bytes(type, head_dim), 64);
  value_bytes_ = round_up(room * kernels.value_row_bytes(type, head_dim), 64);
  const double bytes = static_cast<double>(head_bytes()) * static_cast<double>(n_layers * n_heads);
  if (bytes > 1e15) throw std::bad_alloc();
  memory_ = Buffer(static_cast<size_t>(head_bytes() * n_layers * n_heads), Pages::kSmall);
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
  auto copy = std::make_shared<Sequence>(runtime_, type, n_layers, n_heads, head_dim, capacity);
  const AttentionKernels& kernels = runtime_->attention;
  const int64_t key_bytes = ceil_div(length, kernels.key_block) * kernels.key_block_bytes(type, head_dim);
  const int64_t value_bytes = length * kernels.value_row_bytes(type, head_dim);
  Session(runtime_->pool)
      .run(n_layers * n_heads,
           CopyJob{this, copy.get(), static_cast<size_t>(key_bytes), static_cast<size_t>(value_bytes)});
  copy->length = length;
  copy->recurrent = recurrent.fork();
  for (const Chooser& chooser : choosers) copy->choosers.push_back({.cutoff = chooser.cutoff});
  return copy;
}

}  // namespace hotset
