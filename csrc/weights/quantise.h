// Floats to GGUF's blocks of 32 columns: Q4_0, Q4_1 and Q8_0.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace hotset {

constexpr int kQuantBlock = 32;

// Bytes of a block, 0 for types that are not written.
int64_t quantised_block_bytes(Type type);

// Whether all numbers are finite and at least `low`.
bool all_finite(const float* data, int64_t count, float low);

// Rounds a matrix (rows, cols) of finite numbers, cols a multiple of 32, as GGUF's reference does, to the
// byte: the scale (and minimum) of a block by its largest numbers, each code the nearest. A scale beyond
// f16's range is its largest number. `out` is (rows, cols / 32, block bytes).
void round_to_nearest(Type type, const float* weights, int64_t rows, int64_t cols, uint8_t* out, int threads);

// Rounds a matrix so that for each block the sum of importance[k] * (w[k] - rounded[k])^2 is least over a
// search of scales (and minima), in the type's own f16. `importance` (cols), not negative, may be null: ones.
void quantise(Type type, const float* weights, int64_t rows, int64_t cols, const float* importance,
              uint8_t* out, int threads);

// The step of GPTQ (arXiv 2210.17323) for 32 columns: each column's error is pushed on to the columns after
// it. `factor` (32, 32) is the diagonal block of the upper factor U of the inverse second moments, U^T U.
// `slab` (rows, 32) holds the weights and then the errors e, by which e * U[slab's rows, columns after it] is
// to be subtracted from the later columns. Blocks are searched to make the sum of e^2 least. `out` is (rows,
// block bytes).
void quantise_with_feedback(Type type, float* slab, int64_t rows, const float* factor, uint8_t* out,
                            int threads);

}  // namespace hotset
