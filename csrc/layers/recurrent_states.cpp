#include "layers/recurrent_states.h"

#include <algorithm>
#include <cstring>

namespace hotset {
namespace {

int64_t lines(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

RecurrentStates::RecurrentStates(std::vector<RecurrentShape> shapes) : shapes_(std::move(shapes)) {
  for (const RecurrentShape& shape : shapes_) {
    starts_.push_back(floats_);
    const int64_t width = delta_width(shape.value_dim);
    floats_ += shape.n_value_heads * (shape.key_dim + kDeltaChunk) * width;
    floats_ += lines(shape.n_key_heads * shape.key_dim * kDeltaChunk) + shape.n_value_heads * kDeltaChunk;
    floats_ += lines((kDeltaChunk + shape.kernel - 1) * shape.channels);
  }
  if (any()) present_ = make(0);
}

RecurrentPlace RecurrentStates::place(const RecurrentChunk& chunk, int64_t layer) const {
  const RecurrentShape& shape = shapes_[static_cast<size_t>(layer)];
  const int64_t width = delta_width(shape.value_dim);
  RecurrentPlace p;
  p.states = reinterpret_cast<float*>(chunk.memory.data()) + starts_[static_cast<size_t>(layer)];
  p.updates = p.states + shape.n_value_heads * shape.key_dim * width;
  p.keys = p.updates + shape.n_value_heads * kDeltaChunk * width;
  p.decays = p.keys + lines(shape.n_key_heads * shape.key_dim * kDeltaChunk);
  p.inputs = p.decays + shape.n_value_heads * kDeltaChunk;
  return p;
}

std::shared_ptr<RecurrentChunk> RecurrentStates::make(int64_t begin) const {
  auto chunk = std::make_shared<RecurrentChunk>();
  chunk->begin = begin;
  chunk->memory = Buffer(static_cast<size_t>(chunk_bytes()), Pages::kHuge);
  return chunk;
}

std::shared_ptr<RecurrentChunk> RecurrentStates::copy(const RecurrentChunk& chunk) const {
  auto copied = make(chunk.begin);
  std::memcpy(copied->memory.data(), chunk.memory.data(), static_cast<size_t>(chunk_bytes()));
  return copied;
}

RecurrentPlace RecurrentStates::next(int64_t layer, int64_t begin) {
  if (!next_) next_ = make(begin);
  next_->begin = begin;
  return place(*next_, layer);
}

void RecurrentStates::advance(int64_t length) {
  if (!next_) next_ = make(0);
  next_->begin = length / kDeltaChunk * kDeltaChunk;
  std::swap(present_, next_);
  if (next_.use_count() > 1) next_.reset();
}

void RecurrentStates::forget(int64_t length) {
  std::erase_if(saved_, [&](const Saved& saved) { return saved.length == length; });
}

bool RecurrentStates::save(int64_t length) {
  if (!any() || length == 0) return false;
  if (!saved_.empty() && saved_.back().chunk == present_) {
    saved_.back().length = length;
    return false;
  }
  saved_.push_back({present_, length});
  return true;
}

int64_t RecurrentStates::reusable(int64_t length, int64_t filled) const {
  if (!any() || length >= filled) return std::min(length, filled);
  if (length >= present_->begin) return length;
  int64_t best = 0;
  for (const Saved& saved : saved_) {
    if (saved.chunk->begin <= length) best = std::max(best, std::min(length, saved.length));
  }
  return best;
}

void RecurrentStates::rewind(int64_t length, int64_t filled) {
  if (!any() || length >= filled) return;
  if (length < present_->begin) {
    std::shared_ptr<RecurrentChunk> found;
    for (const Saved& saved : saved_) {
      if (length > 0 && saved.chunk->begin <= length && length <= saved.length) found = saved.chunk;
    }
    if (next_ && next_.use_count() > 1) next_.reset();
    if (!found) {
      if (present_.use_count() > 1) present_ = next_ ? std::move(next_) : make(0);
      present_->begin = 0;
    } else {
      if (!next_ && present_.use_count() == 1) next_ = present_;
      present_ = found;
    }
  }
  std::erase_if(saved_, [&](const Saved& saved) { return saved.chunk->begin > length; });
  for (Saved& saved : saved_) saved.length = std::min(saved.length, length);
  if (length == 0) saved_.clear();
  // Others may keep the chunk that this sequence goes on in: besides this one and what it has saved.
  const bool kept =
      std::any_of(saved_.begin(), saved_.end(), [&](const Saved& s) { return s.chunk == present_; });
  if (present_.use_count() > 1 + kept) {
    auto own = copy(*present_);
    for (Saved& saved : saved_) {
      if (saved.chunk == present_) saved.chunk = own;
    }
    present_ = std::move(own);
  }
}

void RecurrentStates::limit(int64_t chunks) {
  while (static_cast<int64_t>(saved_.size()) > chunks) {
    // The one whose neighbours are nearest is missed least. A chat goes on near the last two.
    size_t least = 0;
    int64_t gap = -1;
    for (size_t i = 0; i + 2 < saved_.size(); ++i) {
      const int64_t between = saved_[i + 1].length - (i ? saved_[i - 1].length : 0);
      if (gap < 0 || between < gap) {
        gap = between;
        least = i;
      }
    }
    saved_.erase(saved_.begin() + static_cast<std::ptrdiff_t>(least));
  }
}

RecurrentStates RecurrentStates::fork() const {
  RecurrentStates forked(*this);
  forked.next_.reset();
  if (!any()) return forked;
  forked.present_ = copy(*present_);
  for (Saved& saved : forked.saved_) {
    if (saved.chunk == present_) saved.chunk = forked.present_;
  }
  return forked;
}

}  // namespace hotset
