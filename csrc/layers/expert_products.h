// Products of several experts' matrices with the rows that use each of them, in one region for all.
#pragma once

#include "layers/products.h"

namespace hotset {

// An expert's FFN and the rows of a batch that use it.
struct ExpertUse {
  bool gated;
  PackedMatrix gate, up, down;
  const float *gate_bias, *up_bias, *down_bias;  // or null
  int64_t count;
  const int32_t* rows;   // `count` different ones, ascending
  const float* weights;  // of the expert's result, for each of them
  const void* x[2];      // those rows of the input, packed, by ActivationFormat
  float* h;              // (count x up.rows)
  void* h_packed;        // for down

  int64_t size() const { return up.rows; }
};

struct ExpertUses {
  const ExpertUse* uses;
  int64_t n, rows;  // rows of the batch
  Activation activation;
};

// Gathers each use's rows of the whole batch's packed input. `uses` are written before they are given to
// regions.
void gather_inputs(Session& session, const Runtime& runtime, const Activations& x, int64_t cols,
                   ExpertUse* uses, int64_t n);

// Writes each use's h, the neurons' values; and what the activation is applied to where `pre` is not null:
// (count x size) of each use, one use behind the other.
void multiply_experts(Session& session, const Runtime& runtime, const ExpertUses& all, float* pre);

// Packs each use's h for its matrix down.
void pack_neurons(Session& session, const Runtime& runtime, const ExpertUses& all);

// out (rows x cols) += the sum of each row's weights times its experts' results, in the order of the uses.
void add_experts(Session& session, const Runtime& runtime, const ExpertUses& all, float* out);

}  // namespace hotset
