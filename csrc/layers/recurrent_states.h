// What layers with a recurrent state keep of a sequence.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/delta_net.h"
#include "runtime/memory.h"

namespace hotset {

// One layer's shape. A short convolution has no heads.
struct RecurrentShape {
  int64_t n_key_heads, n_value_heads, key_dim, value_dim;
  int64_t kernel, channels;  // of the convolution

  bool operator==(const RecurrentShape&) const = default;
};

// All layers' states at one chunk's beginning, and that chunk's rows as far as they are there. It is like a
// cache of keys and values of one chunk: rows that follow are written behind those before, which stay.
struct RecurrentChunk {
  int64_t begin = 0;  // at 0 the states are zero, whatever the memory holds
  Buffer memory;
};

// One layer's part of a chunk.
struct RecurrentPlace {
  float* states;   // value heads x key_dim x width
  float* keys;     // key heads x key_dim x kDeltaChunk
  float* updates;  // value heads x kDeltaChunk x width
  float* decays;   // value heads x kDeltaChunk
  float* inputs;   // of the convolution: positions begin - (kernel - 1) to the chunk's last, x channels
};

// A sequence is at some length in the present chunk. A call whose rows reach into another chunk writes the
// one that they end in beside the present one, and `advance` makes it the present one. Saving a length keeps
// its chunk, from whose beginning on every length up to that one can be come back to.
//
// Chunks are shared by whoever keeps them; only the one in which a sequence writes is its own.
class RecurrentStates {
 public:
  explicit RecurrentStates(std::vector<RecurrentShape> shapes);

  bool any() const { return !shapes_.empty(); }
  const std::vector<RecurrentShape>& shapes() const { return shapes_; }

  RecurrentPlace present(int64_t layer) const { return place(*present_, layer); }
  int64_t begin() const { return present_->begin; }

  // Where to write the chunk that begins there. Throws std::bad_alloc.
  RecurrentPlace next(int64_t layer, int64_t begin);

  // Whether `length` is beyond the present chunk; then `next` has been written.
  bool leaves(int64_t length) const { return any() && length >= present_->begin + kDeltaChunk; }
  void advance(int64_t length);

  bool save(int64_t length);  // false: its chunk is kept already
  void forget(int64_t length);
  int64_t reusable(int64_t length, int64_t filled) const;

  // How many more positions the present chunk has room for, and is still present.
  int64_t undoable(int64_t filled) const {
    return any() ? present_->begin + kDeltaChunk - 1 - filled : std::numeric_limits<int64_t>::max();
  }

  // To a length that `reusable` gave.
  void rewind(int64_t length, int64_t filled);

  // Keeps at most so many chunks: those go first whose neighbours are
  // nearest, but the last two stay.
  void limit(int64_t chunks);

  // The present chunk is copied.
  RecurrentStates fork() const;

  int64_t chunk_bytes() const { return static_cast<int64_t>(floats_) * 4; }
  // Of what is saved; the present chunk counts, as it is soon another.
  int64_t saved_bytes() const { return static_cast<int64_t>(saved_.size()) * chunk_bytes(); }

 private:
  struct Saved {
    std::shared_ptr<RecurrentChunk> chunk;
    int64_t length;  // so many positions of it are as they were
  };

  RecurrentPlace place(const RecurrentChunk& chunk, int64_t layer) const;
  std::shared_ptr<RecurrentChunk> make(int64_t begin) const;
  std::shared_ptr<RecurrentChunk> copy(const RecurrentChunk& chunk) const;

  std::vector<RecurrentShape> shapes_;
  std::vector<int64_t> starts_;  // of each layer's part
  int64_t floats_ = 0;
  std::shared_ptr<RecurrentChunk> present_, next_;
  std::vector<Saved> saved_;  // by length
};

}  // namespace hotset
