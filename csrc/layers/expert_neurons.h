// Experts stored by neuron: of the experts that rows have selected, the neurons that are not zero.
#pragma once

#include "layers/chosen_neurons.h"
#include "layers/expert_products.h"

namespace hotset {

// An expert's neurons and the rows of a batch that use it. The activation's input is known for all of them.
struct ExpertNeurons {
  bool has_second;  // up, where there is a gate
  NeuronMatrix second, down;
  const float* second_bias;  // or null
  int64_t count;
  const int32_t* rows;  // of the batch
  float* h;             // (count x neurons): activations of the gate, or the neurons' values
  float* results;       // (parts x count x cols), whose sum is the expert's result without down's bias
};

// How many sums an expert of so many neurons is added up in: of its size only, so that a row's bits depend on
// nothing else.
int64_t expert_parts(int64_t neurons);

// Writes each use's results: of each row, the neurons whose h is not zero; all, where `everything` says so of
// the batch's row. `x` has the batch's rows, packed for second. Adds up what each row of the batch has
// touched.
void multiply_expert_neurons(Session& session, const Runtime& runtime, const ExpertNeurons* uses, int64_t n,
                             Activation activation, const bool* everything, const RowActivations& x,
                             Touched* touched);

// What an expert adds to rows of a batch: weight times (sum of its parts + bias).
struct ExpertResult {
  const float* results;  // (parts x count x cols)
  int64_t parts, count;
  const int32_t* rows;
  const float* weights;
  const float* bias;  // (cols), or null
};

// out (rows x cols) += each row's results, summed in their order.
void add_results(Session& session, const Runtime& runtime, const ExpertResult* results, int64_t n,
                 int64_t rows, int64_t cols, float* out);

}  // namespace hotset
