// What a model keeps of one conversation: keys and values, and what its layers have learnt of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "layers/cutoff.h"
#include "layers/recurrent_states.h"
#include "runtime/runtime.h"

namespace hotset {

// One layer's chooser of neurons: where it cuts off in this sequence, and what it has done there. Rows of
// lossless spans are not counted.
struct Chooser {
  Cutoff cutoff;
  // Rows; rows of down read for them; values that were not zero; neurons of which any row that could be left
  // out was read; rows audited.
  int64_t rows = 0, read = 0, fired = 0, chosen = 0, audits = 0;
  double kept = 0;  // shares of the activation that the cut-off has kept of audited rows, summed
};

// The heads whose keys and values one layer keeps; without `values`, keys begin with them.
struct KvShape {
  int64_t heads, dim;
  bool values = true;
  bool operator==(const KvShape&) const = default;
};

// Memory is reserved for the capacity, but used only as positions are filled. One call at a time.
class Sequence {
 public:
  // `cutoffs` has each chooser's, by its number. Throws std::bad_alloc.
  Sequence(std::shared_ptr<Runtime> runtime, KvType type, std::vector<KvShape> layers, int64_t capacity,
           const std::vector<CutoffPlan>& cutoffs = {}, std::vector<RecurrentShape> recurrent = {});
  ~Sequence() { runtime_->pool.quiesce(); }

  uint8_t* keys(int64_t layer, int64_t head) const {
    return memory_.data() + rooms_[layer].offset + head * head_bytes(layer);
  }
  uint8_t* values(int64_t layer, int64_t head) const {
    return layers[layer].values ? keys(layer, head) + rooms_[layer].key_bytes : nullptr;
  }
  int64_t head_bytes(int64_t layer) const { return rooms_[layer].key_bytes + rooms_[layer].value_bytes; }
  int64_t n_layers() const { return static_cast<int64_t>(layers.size()); }

  // Counts `count` more positions as filled.
  void advance(int64_t count);

  // The longest prefix of at most so many positions that all layers can go back to.
  int64_t reusable(int64_t at_most) const { return recurrent.reusable(at_most, length); }

  // How many more positions may be filled so that one can come back to every length from the present one on.
  int64_t undoable() const { return std::min(capacity - length, recurrent.undoable(length)); }

  // Forgets every position from `new_length` on, which `reusable` gave; with all of them, what choosers have
  // learnt.
  void rewind(int64_t new_length);

  // Waits until nobody reads what it holds.
  void quiesce() { runtime_->pool.quiesce(); }

  // Drops saved states until they take at most so many bytes.
  void limit_saved(int64_t bytes);

  // The same past, a future of its own: what is filled is copied.
  std::shared_ptr<Sequence> fork() const;

  const KvType type;
  const std::vector<KvShape> layers;  // those with keys and values, by their number
  const int64_t capacity;
  int64_t length = 0;
  std::vector<Chooser> choosers;
  RecurrentStates recurrent;

 private:
  std::shared_ptr<Runtime> runtime_;
  struct Room {
    int64_t offset, key_bytes, value_bytes;  // of the layer's first head; of one head
  };
  std::vector<Room> rooms_;
  Buffer memory_;
};

}  // namespace hotset
