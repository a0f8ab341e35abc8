#include "layers/batch.h"

#include <cmath>

namespace hotset {

void Rope::write_row(const Sequence& sequence, int64_t position, float* row) const {
  const bool is_long = !long_frequencies_.empty() && sequence.capacity > long_from_;
  for (const bool sine : {false, true}) {
    for (const double frequency : is_long ? long_frequencies_ : inverse_frequencies_) {
      const double angle = static_cast<double>(position) * frequency;
      const auto value = static_cast<float>(magnitude_ * (sine ? std::sin(angle) : std::cos(angle)));
      if (interleaved_) *row++ = sine ? -value : value;
      *row++ = value;
    }
  }
}

const float* Batch::rope_rows(const Rope& rope) const {
  for (const auto& [known, table] : ropes_) {
    if (known == &rope) return table.data();
  }
  const int64_t floats = rope.row_floats();
  std::vector<float> table(static_cast<size_t>(rows() * floats));
  for (int64_t row = 0; row < rows(); ++row) {
    rope.write_row(*span_of(row).sequence, position(row), table.data() + row * floats);
  }
  return ropes_.emplace_back(&rope, std::move(table)).second.data();
}

}  // namespace hotset
