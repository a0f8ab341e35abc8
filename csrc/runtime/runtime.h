// What all parts of a model share: the threads, the kernels and the memory of the weights.
#pragma once

#include "kernels/kernels.h"
#include "kernels/vector.h"
#include "runtime/memory.h"
#include "runtime/thread_pool.h"

namespace hotset {

struct Runtime {
  Runtime(int threads, const Kernels& kernels)
      : pool(threads),
        linear(*kernels.linear),
        vector(*kernels.vector),
        attention(*kernels.vector->attention),
        neurons(*kernels.neurons) {}

  ThreadPool pool;
  const LinearKernels& linear;
  const VectorKernels& vector;
  const AttentionKernels& attention;
  const NeuronKernels& neurons;
  SharedBuffers buffers;
};

inline int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

}  // namespace hotset
