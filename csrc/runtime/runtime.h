// What all parts of a model share: the threads, the kernels and the memory of the weights.
#pragma once

#include "kernels/kernels.h"
#include "kernels/vector.h"
#include "runtime/memory.h"
#include "runtime/thread_pool.h"
#include "runtime/zones.h"

namespace hotset {

struct Runtime {
  Runtime(int threads, const Kernels& kernels, int64_t parts)
      : pool(threads),
        parts(parts),
        linear(*kernels.linear),
        vector(*kernels.vector),
        attention(*kernels.vector->attention),
        neurons(*kernels.neurons) {}

  ThreadPool pool;
  // In how many sums a sparse layer's neurons are added up at most. Results depend on it, so that it follows
  // from the machine, not from the threads.
  const int64_t parts;
  const LinearKernels& linear;
  const VectorKernels& vector;
  const AttentionKernels& attention;
  const NeuronKernels& neurons;
  SharedBuffers buffers;
  mutable Zones zones;  // of the thread that has a session
};

inline int64_t ceil_div(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

}  // namespace hotset
