// What layers with a recurrent state have in common: where each span of a batch reads and writes it.
#pragma once

#include <string>

#include "layers/batch.h"

namespace hotset {

// What one span reads and writes of one layer's state.
struct RecurrentSpan {
  int64_t row0, count, start;  // `start`: the first row's position
  int64_t begin;               // of the present chunk
  RecurrentPlace present, target;
  int64_t target_begin;  // of the chunk that is written to
  bool leaves() const { return target_begin != begin; }
};

// Why a layer of that shape, whose state has that number, cannot compute the batch; empty where it can.
std::string refuses_state(const Batch& batch, int64_t index, const RecurrentShape& shape);

// Fills in one entry for each span of the batch; returns the most rows of any.
int64_t place_spans(const Batch& batch, int64_t index, RecurrentSpan* spans);

}  // namespace hotset
