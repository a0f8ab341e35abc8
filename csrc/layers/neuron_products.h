// Decoding: products with the rows of chosen neurons, for a few tokens.
#pragma once

#include <atomic>

#include "weights/neuron_store.h"

namespace hotset {

// Rows of x (contiguous), normalised where `norm` is not null, packed for single rows of this type.
struct RowActivations {
  const uint8_t* packed;
  int64_t bytes, rows;
};
RowActivations pack_for_rows(Session& session, const Runtime& runtime, const float* x, int64_t rows,
                             const Norm* norm, const NeuronRows& matrix);

// y[j] = row j times the one token in x, for all rows: the decode kernel.
void multiply_all_rows(Session& session, const Runtime& runtime, const RowActivations& x,
                       const NeuronRows& rows, float* y);

// Which neurons to compute for a few tokens, and how their values come about.
struct Chosen {
  int64_t tokens, neurons;

  // Those whose score (or its magnitude) times its factor reaches the cut-off for any token; all, where
  // scores (tokens x neurons) are null. Factors may be.
  const float* scores;
  const float* factors;
  bool magnitude;
  float cutoff;
  bool by_token;    // a neuron counts only for tokens whose own score reaches the cut-off
  bool everything;  // add up zeros too

  // Values known for all neurons (tokens x neurons): the activation of gate, or the neurons' values
  // themselves. Null where `first` has to be multiplied.
  const float* known;

  const NeuronRows* first;   // the activation's rows: gate, or up where there is no gate
  const NeuronRows* second;  // up's rows where there is a gate, and these are not in `known`
  Activation activation;
  RowActivations x;  // for first and second
};

// What adding up has touched, summed over tokens: rows of down read, and values that were not zero.
struct Touched {
  int64_t read, fired;
};

// out (tokens x cols) += post_norm(sum of the chosen neurons' values times their rows of down + bias).
// Returns what that has touched.
Touched add_chosen(Session& session, const Runtime& runtime, const Chosen& chosen, const NeuronRows& down,
                   const Norm* post_norm, float* out);

}  // namespace hotset
