#include "layers/recurrent_spans.h"

#include <algorithm>
#include <new>

namespace hotset {

std::string refuses_state(const Batch& batch, int64_t index, const RecurrentShape& shape) {
  for (const Span& span : batch.spans()) {
    const Sequence* sequence = span.sequence;
    if (!sequence || index < 0 || index >= static_cast<int64_t>(sequence->recurrent.shapes().size()) ||
        sequence->recurrent.shapes()[static_cast<size_t>(index)] != shape) {
      return "the sequence is another model's";
    }
    if (span.position != sequence->length) return "the sequence has gone on since the batch was made";
    if (span.count > sequence->capacity - sequence->length) {
      return "the sequence has no room for " + std::to_string(span.count) + " more tokens";
    }
  }
  return {};
}

int64_t place_spans(const Batch& batch, int64_t index, RecurrentSpan* spans) {
  int64_t most_rows = 0;
  for (const Span& span : batch.spans()) {
    RecurrentStates& states = span.sequence->recurrent;
    RecurrentSpan& place =
        *new (spans++) RecurrentSpan{span.row0, span.count, span.position, states.begin(), {}, {}, 0};
    const int64_t end = span.position + span.count;
    place.present = place.target = states.present(index);
    place.target_begin = states.begin();
    if (states.leaves(end)) {
      place.target_begin = end / kDeltaChunk * kDeltaChunk;
      place.target = states.next(index, place.target_begin);
    }
    most_rows = std::max(most_rows, span.count);
  }
  return most_rows;
}

}  // namespace hotset
