// Decoding: FFNs that compute for each row of a batch the neurons chosen for it.
#pragma once

#include <atomic>
#include <vector>

#include "layers/neuron_products.h"

namespace hotset {

// Neighbours that are counted together where it is counted who fires; no two parts have some of them.
constexpr int64_t kCounted = 16;

// What was computed for rows for which neurons were chosen, of all sequences; for who looks on: no result
// depends on it, and calls at the same time may lose some of it.
struct Tally {
  explicit Tally(int64_t neurons) : fired(static_cast<size_t>(ceil_div(neurons, kCounted))) {}

  std::atomic<int64_t> rows{0}, chosen{0};  // as Touched::chosen
  std::vector<std::atomic<int64_t>> fired;  // values that were not zero, of each so many neighbours
};

// Which neurons to compute for rows of a batch, each by its own choice, and how their values come about.
struct Chosen {
  int64_t rows, neurons;

  // Those whose bits are set, ceil(neurons / 64) words to a row; where there are none, those whose score (or
  // its magnitude) times its factor reaches the row's cut-off; all, where scores (rows x neurons) are null
  // too. Factors may be.
  const uint64_t* bits;
  const float* scores;
  const float* factors;
  bool magnitude;
  const float* cutoffs;
  const uint64_t* looked_at;  // of each row: of each 64 neurons, those that are chosen whatever their score
  bool everything;            // add up zeros too

  // Values known for all neurons (rows x neurons): the activation of gate, or the neurons' values themselves.
  // Null where `first` has to be multiplied.
  const float* known;

  const NeuronRows* first;   // the activation's rows: gate, or up where there is no gate
  const NeuronRows* second;  // up's rows where there is a gate, and these are not in `known`
  Activation activation;
  RowActivations x;  // for first and second

  float* values;  // where the chosen neurons' values are written (rows x neurons), or null
  Tally* tally;   // counts who fires, or null

  // The bits of n <= 64 neurons from `first` on, a multiple of 64, that a row has chosen.
  uint64_t chosen(const NeuronKernels& kernels, int64_t row, int64_t first, int64_t n) const {
    const uint64_t all = ~uint64_t{0} >> (64 - n), looked = looked_at ? looked_at[row] & all : 0;
    if (bits) return bits[row * ceil_div(neurons, 64) + first / 64] | looked;
    if (!scores) return all;
    return looked | kernels.select(scores + row * neurons + first, factors ? factors + first : nullptr,
                                   magnitude, n, cutoffs[row]);
  }

  // Some rows' part.
  Chosen part(int64_t row, int64_t count) const {
    Chosen rows_of = *this;
    rows_of.rows = count;
    if (bits) rows_of.bits += row * ceil_div(neurons, 64);
    if (scores) {
      rows_of.scores += row * neurons;
      rows_of.cutoffs += row;
    }
    if (looked_at) rows_of.looked_at += row;
    if (known) rows_of.known += row * neurons;
    if (x.packed) rows_of.x.packed += row * x.bytes;
    if (values) rows_of.values += row * neurons;
    return rows_of;
  }
};

// What adding up has touched for one row of a batch: rows of down read, values that were not zero, and
// neurons chosen.
struct Touched {
  int64_t read, fired, chosen;
};

// out (rows x cols) += post_norm(sum of the row's chosen neurons' values times their rows of down + bias). A
// row's sum depends on what it has chosen itself, and on nothing else. Returns what each row has touched.
const Touched* add_chosen(Session& session, const Runtime& runtime, const Chosen& chosen,
                          const NeuronRows& down, const Norm* post_norm, float* out);

}  // namespace hotset
