// Decoding: products with the rows of chosen neurons.
#pragma once

#include <functional>

#include "weights/neuron_store.h"

namespace hotset {

// Rows of x (contiguous), normalised where `norm` is not null, packed for single rows of this type.
struct RowActivations {
  const uint8_t* packed;
  int64_t bytes, rows;

  RowActivations row(int64_t t) const { return {packed + t * bytes, bytes, 1}; }
};
RowActivations pack_for_rows(Session& session, const Runtime& runtime, const float* x, int64_t rows,
                             const Norm* norm, Type type, int64_t cols);

// Has the neurons whose bits are set, 64 to a word, fetched into caches: all rows of each, as they lie side
// by side. Dealt out to chunks as add_chosen() does; ends early where `enough` holds.
void fetch_neurons(Session& session, const Runtime& runtime, const uint64_t* bits, const NeuronRows& rows,
                   const std::function<bool()>& enough);

// How many sums a layer of so many neurons is added up in, each a chunk for the threads.
int64_t parts_of(const Runtime& runtime, int64_t neurons);

// y[j] = row j times the one token in x, for all rows: the decode kernel.
void multiply_all_rows(Session& session, const Runtime& runtime, const RowActivations& x,
                       const NeuronRows& rows, float* y);

}  // namespace hotset
