// Prompts: products of whole matrices that are stored by neuron with many tokens.
#pragma once

#include "weights/neuron_store.h"

namespace hotset {

// What to do with a product: write it, write the activation of it, or multiply with it what is there (with
// ReLU of it where the activation is dReLU).
enum class Apply { kWrite, kActivate, kTimes };

// y (tokens x neurons, contiguous) from the product of all rows with x, which is packed for matrices of the
// same type: a few rows at a time are re-laid as a panel.
void multiply_rows(Session& session, const Runtime& runtime, const Activations& x, const NeuronRows& rows,
                   Apply apply, Activation activation, float* y);

void multiply_rows(Session& session, const Runtime& runtime, const Activations& x, const NeuronMatrix& rows,
                   const float* bias, Apply apply, Activation activation, float* y);

// Rows of x (contiguous), normalised and packed for multiply_rows(), and for a matrix too where not null.
Activations pack_as(Session& session, const Runtime& runtime, const float* x, int64_t tokens,
                    const Norm& norm, const NeuronRows& rows, const Linear* matrix);

// out (tokens x cols) += post_norm(h times down + bias) for the values h (tokens x neurons) of all neurons.
void add_all(Session& session, const Runtime& runtime, const float* h, int64_t tokens, const NeuronRows& down,
             const Norm* post_norm, float* out);

}  // namespace hotset
