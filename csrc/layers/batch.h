// What one call of a model computes: rows of several sequences, one span a sequence.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "layers/sequence.h"

namespace hotset {

// Cosines and sines of the rotary embedding.
class Rope {
 public:
  // `long_frequencies`, if any, are those of sequences with room for more than `long_from` positions.
  Rope(std::vector<double> inverse_frequencies, double magnitude, bool interleaved,
       std::vector<double> long_frequencies, int64_t long_from)
      : inverse_frequencies_(std::move(inverse_frequencies)),
        long_frequencies_(std::move(long_frequencies)),
        long_from_(long_from),
        magnitude_(magnitude),
        interleaved_(interleaved),
        width_(static_cast<int64_t>(inverse_frequencies_.size()) * (interleaved ? 2 : 1)) {}

  // A position's numbers: cosines, then sines, as the kernels want them.
  int64_t row_floats() const { return 2 * width_; }
  void write_row(const Sequence& sequence, int64_t position, float* row) const;

  // Rotates one head of the token that `row` was written for.
  void apply(const VectorKernels& vector, const float* row, float* head) const {
    const auto kernel = interleaved_ ? vector.rope_interleaved : vector.rope;
    kernel(head, row, row + width_, width_);
  }

 private:
  std::vector<double> inverse_frequencies_, long_frequencies_;
  int64_t long_from_;
  double magnitude_;
  bool interleaved_;
  int64_t width_;
};

// Rows of one sequence, at positions `position` + 0 .. count - 1.
struct Span {
  Sequence* sequence;
  int64_t row0, count, position;
  bool lossless;  // neurons are left out only where they are exactly zero
};

// Made for one call of each layer, and used by one thread. Sequences must outlive it.
class Batch {
 public:
  Batch() = default;
  Batch(Sequence* sequence, int64_t count, bool lossless) { add(sequence, count, lossless); }

  // Adds rows after those that there are, from the sequence's length on. Lossless rows of no sequence are for
  // FFNs only.
  void add(Sequence* sequence, int64_t count, bool lossless) {
    spans_.push_back({sequence, rows(), count, sequence ? sequence->length : 0, lossless});
    span_of_.insert(span_of_.end(), static_cast<size_t>(count), static_cast<int32_t>(spans_.size() - 1));
  }

  int64_t rows() const { return static_cast<int64_t>(span_of_.size()); }
  const std::vector<Span>& spans() const { return spans_; }
  const Span& span_of(int64_t row) const { return spans_[span_of_[row]]; }
  int64_t position(int64_t row) const { return span_of(row).position + row - span_of(row).row0; }

  // Each row's numbers for the rotary embedding, which most layers share. To be read in commits only.
  const float* rope_rows(const Rope& rope) const;

 private:
  std::vector<Span> spans_;
  std::vector<int32_t> span_of_;  // each row's
  mutable std::vector<std::pair<const Rope*, std::vector<float>>> ropes_;
};

}  // namespace hotset
