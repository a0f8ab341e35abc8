#include "neuron_products.h"

#include <algorithm>

namespace hotset {
namespace {

// Neurons are dealt out to parts, a few neighbours at a time, and each part adds up its own in their order.
// So the order of additions depends neither on the threads nor on which other neurons are computed: leaving
// out zeros changes no bit of the result. As the hottest come first, dealing also balances the parts.
// Some for each thread, but each part's sums cost their room in the caches.
constexpr int64_t kMinParts = 8, kMaxParts = 24;
constexpr int64_t kPartNeurons = 320;
constexpr int64_t kNeighbours = 64;

// Neurons of which one matrix is read before the next one is: those that the kernels take at once.
constexpr int64_t kGroup = 4;

// Rows to a chunk where all are read.
constexpr int64_t kChunkBytes = 64 << 10;

struct AllRowsJob {
  const NeuronKernels* kernels;
  NeuronMatrix rows;
  const float* bias;
  const uint8_t* x;
  int64_t per_chunk;
  float* y;

  size_t scratch_bytes() const { return per_chunk * (sizeof(float) + sizeof(int32_t)); }

  void compute(int64_t chunk, void* scratch) const {
    const int64_t first = chunk * per_chunk, count = std::min(per_chunk, rows.rows - first);
    auto* product = static_cast<float*>(scratch);
    auto* indices = reinterpret_cast<int32_t*>(product + per_chunk);
    for (int64_t j = 0; j < count; ++j) indices[j] = static_cast<int32_t>(first + j);
    const NeuronList list = {&rows, indices, count, nullptr};
    kernels->dot(&list, x, 0, 1, product, count);
    for (int64_t j = 0; bias && j < count; ++j) product[j] += bias[first + j];
  }

  void commit(int64_t chunk, void* scratch) const {
    const int64_t first = chunk * per_chunk;
    std::copy_n(static_cast<const float*>(scratch), std::min(per_chunk, rows.rows - first), y + first);
  }
};

// One part of a list: computes its neurons, adds up their rows of down, and hands the sums over.
struct ChosenJob {
  const Runtime* runtime;
  Chosen c;
  NeuronMatrix down;
  const float *first_bias, *second_bias;
  NeuronMatrix first, second;
  bool has_first, has_second;
  const int32_t *indices, *starts;  // of each part's neurons, and where it starts
  int64_t parts;
  int64_t most;        // neurons that a part can have
  int64_t sum_floats;  // of one token
  float* sums;         // parts x tokens x sum_floats
  Touched* touched;

  struct Counts {
    int64_t read, fired;
  };

  // What a part works with; a row of numbers has one of each of its neurons, a token's rows lie `most` apart.
  struct Scratch {
    Counts* counts;
    float *sums, *h, *up;
    int32_t* kept;
  };

  size_t scratch_bytes() const {
    const int64_t floats = c.tokens * (sum_floats + most + kGroup);
    return 64 + static_cast<size_t>(floats) * sizeof(float) + most * sizeof(int32_t);
  }

  Scratch scratch_at(void* memory) const {
    static_assert(sizeof(Counts) <= 64);
    auto* sum = reinterpret_cast<float*>(static_cast<uint8_t*>(memory) + 64);
    float* h = sum + c.tokens * sum_floats;
    float* up = h + c.tokens * most;
    return {static_cast<Counts*>(memory), sum, h, up, reinterpret_cast<int32_t*>(up + c.tokens * kGroup)};
  }

  bool counts(int64_t t, int32_t j) const {
    if (!c.scores) return true;
    const float score = c.scores[t * c.neurons + j] * (c.factors ? c.factors[j] : 1.0f);
    return (c.magnitude ? std::max(score, -score) : score) >= c.cutoff;
  }

  // The neurons go by in groups; while one matrix's rows of a group are multiplied, those that are wanted
  // next are fetched, at the end the next part's, which the same thread will mostly take. Down waits until
  // all values are known, since they set the units in which it is added up.
  void compute(int64_t part, void* memory) const {
    const Scratch s = scratch_at(memory);
    const int32_t* listed = indices + starts[part];
    const int64_t count = starts[part + 1] - starts[part];
    int64_t begun = 0, kept = 0, done = 0;  // neurons of the list; of these, not zero so far; and multiplied
    if (!has_first) {
      kept = take_known(listed, count, s);
      begun = count;
    }
    const auto firsts = [&](int64_t from) {
      return NeuronList{&first, listed + from, std::min(kGroup, count - from), nullptr};
    };
    const auto seconds = [&](int64_t from) {
      return NeuronList{&second, s.kept + from, std::min(kGroup, kept - from), nullptr};
    };
    const auto or_down = [&](const NeuronList& list) {
      return list.count > 0 ? list : NeuronList{&down, s.kept, std::min(kGroup, kept), nullptr};
    };
    while (begun < count || (has_second && done < kept)) {
      if (begun < count) {
        NeuronList now = firsts(begun);
        const bool waiting = has_second && done < kept;
        begun += now.count;
        const NeuronList next = or_down(waiting ? seconds(done) : firsts(begun));
        now.next = &next;
        kept += multiply_first(now, s, kept);
      }
      if (has_second && (kept - done >= kGroup || (begun == count && done < kept))) {
        NeuronList now = seconds(done);
        const int64_t after = done + now.count;
        const NeuronList next = or_down(begun < count ? firsts(begun) : seconds(after));
        now.next = &next;
        multiply_second(now, s, done);
        done = after;
      }
    }
    if (has_second) kept = squeeze(s.kept, kept, s.h, s.kept);
    const NeuronList next = first_of(part + 1);
    const NeuronList downs = {&down, s.kept, kept, &next};
    runtime->neurons.add(&downs, s.h, most, c.tokens, most, s.sums);
    *s.counts = {kept * c.tokens, 0};
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t k = 0; k < kept; ++k) s.counts->fired += s.h[t * most + k] != 0.0f;
    }
  }

  void commit(int64_t part, void* memory) const {
    const Scratch s = scratch_at(memory);
    std::copy_n(s.sums, c.tokens * sum_floats, sums + part * c.tokens * sum_floats);
    touched->read.fetch_add(s.counts->read, std::memory_order_relaxed);
    touched->fired.fetch_add(s.counts->fired, std::memory_order_relaxed);
  }

 private:
  // What a part reads first; nothing of a part that there is not.
  NeuronList first_of(int64_t part) const {
    const NeuronMatrix* matrix = has_first ? &first : has_second ? &second : &down;
    if (part >= parts) return {matrix, indices, 0, nullptr};
    const int64_t count = starts[part + 1] - starts[part];
    return {matrix, indices + starts[part], std::min(kGroup, count), nullptr};
  }

  // Those of the list whose values, which are known, are not all zero.
  int64_t take_known(const int32_t* listed, int64_t count, const Scratch& s) const {
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t k = 0; k < count; ++k) s.h[t * most + k] = c.known[t * c.neurons + listed[k]];
    }
    return squeeze(listed, count, s.h, s.kept);
  }

  // Activations of a group, of which those that are not zero go to `kept` and `h` from number `at` on.
  int64_t multiply_first(const NeuronList& group, const Scratch& s, int64_t at) const {
    float* h = s.h + at;
    runtime->neurons.dot(&group, c.x.packed, c.x.bytes, c.tokens, h, most);
    for (int64_t t = 0; t < c.tokens; ++t) {
      float* row = h + t * most;
      for (int64_t k = 0; first_bias && k < group.count; ++k) row[k] += first_bias[group.indices[k]];
      // dReLU's other half comes with up.
      runtime->vector.activate(c.activation == Activation::kDrelu ? Activation::kRelu : c.activation, row,
                               nullptr, group.count);
    }
    return squeeze(group.indices, group.count, h, s.kept + at);
  }

  // h *= the rows of up, from number `at` on.
  void multiply_second(const NeuronList& group, const Scratch& s, int64_t at) const {
    runtime->neurons.dot(&group, c.x.packed, c.x.bytes, c.tokens, s.up, kGroup);
    for (int64_t t = 0; t < c.tokens; ++t) {
      float *values = s.h + t * most + at, *factors = s.up + t * kGroup;
      for (int64_t k = 0; k < group.count; ++k) {
        if (second_bias) factors[k] += second_bias[group.indices[k]];
        values[k] *= c.activation == Activation::kDrelu ? std::max(factors[k], 0.0f) : factors[k];
      }
    }
  }

  // Leaves those out whose values are zero for all tokens; `kept` may be `listed`.
  int64_t squeeze(const int32_t* listed, int64_t n, float* h, int32_t* kept) const {
    int64_t count = 0;
    for (int64_t k = 0; k < n; ++k) {
      bool any = false;
      for (int64_t t = 0; t < c.tokens; ++t) {
        float& value = h[t * most + k];
        if (c.tokens > 1 && !counts(t, listed[k])) value = 0.0f;
        any |= value != 0.0f || c.everything;
        h[t * most + count] = value;
      }
      kept[count] = listed[k];
      count += any;
    }
    return count;
  }
};

// Adds the parts' sums up, some columns at a time.
struct FinishJob {
  const Runtime* runtime;
  int64_t cols, tokens, parts, sum_floats;
  const float *sums, *bias;
  bool add;
  float* out;

  size_t scratch_bytes() const { return tokens * runtime->neurons.group_cols * sizeof(float); }

  void compute(int64_t group, void* scratch) const {
    auto* y = static_cast<float*>(scratch);
    const int64_t col0 = group * runtime->neurons.group_cols;
    const int64_t col1 = std::min(col0 + runtime->neurons.group_cols, cols);
    for (int64_t t = 0; t < tokens; ++t, y += runtime->neurons.group_cols) {
      const int64_t n = col1 - col0;
      if (bias) {
        std::copy_n(bias + col0, n, y);
      } else {
        std::fill_n(y, n, 0.0f);
      }
      for (int64_t part = 0; part < parts; ++part) {
        runtime->vector.add(sums + (part * tokens + t) * sum_floats + col0, n, y);
      }
    }
  }

  void commit(int64_t group, void* scratch) const {
    const auto* y = static_cast<const float*>(scratch);
    const int64_t col0 = group * runtime->neurons.group_cols;
    const int64_t n = std::min(runtime->neurons.group_cols, cols - col0);
    for (int64_t t = 0; t < tokens; ++t, y += runtime->neurons.group_cols) {
      float* to = out + t * cols + col0;
      if (add) {
        runtime->vector.add(y, n, to);
      } else {
        std::copy_n(y, n, to);
      }
    }
  }
};

// The list dealt out: parts that have neurons, one after the other.
struct Dealt {
  int32_t *indices, *starts;
  int64_t parts, most;  // of a part's neurons, were all in the list

  Dealt(Session& session, const Chosen& chosen) {
    const int64_t blocks = ceil_div(chosen.neurons, kNeighbours);
    const int64_t most_parts =
        std::min(blocks, std::clamp<int64_t>(chosen.neurons / kPartNeurons, kMinParts, kMaxParts));
    const auto part_of = [&](int32_t j) { return j / kNeighbours % most_parts; };
    most = ceil_div(blocks, most_parts) * kNeighbours;
    int32_t counts[kMaxParts + 1] = {};
    for (int64_t i = 0; i < chosen.count; ++i) ++counts[part_of(chosen.indices[i])];
    indices = session.allocate<int32_t>(chosen.count);
    starts = session.allocate<int32_t>(kMaxParts + 1);
    parts = 0;
    int32_t next[kMaxParts], start = 0;
    for (int64_t p = 0; p < most_parts; ++p) {
      next[p] = start;
      if (counts[p] > 0) starts[parts++] = start;
      start += counts[p];
    }
    starts[parts] = start;
    for (int64_t i = 0; i < chosen.count; ++i) {
      indices[next[part_of(chosen.indices[i])]++] = chosen.indices[i];
    }
  }
};

}  // namespace

RowActivations pack_for_rows(Session& session, const Runtime& runtime, const float* x, int64_t rows,
                             const Norm* norm, const NeuronRows& matrix) {
  const int64_t cols = matrix.cols(), bytes = runtime.neurons.activation_bytes(matrix.packed.type, cols);
  auto* normed = session.allocate<float>(cols);
  auto* packed = session.allocate<uint8_t>(rows * bytes);
  for (int64_t t = 0; t < rows; ++t) {
    const float* row = x + t * cols;
    if (norm) norm->apply(runtime.vector, row, normed);
    runtime.neurons.pack_activations(matrix.packed.type, norm ? normed : row, cols, packed + t * bytes);
  }
  return {packed, bytes, rows};
}

void multiply_all_rows(Session& session, const Runtime& runtime, const RowActivations& x,
                       const NeuronRows& rows, float* y) {
  const int64_t per_chunk = std::max<int64_t>(4, kChunkBytes / rows.packed.stride / 4 * 4);
  session.run(ceil_div(rows.rows(), per_chunk),
              AllRowsJob{&runtime.neurons, rows.packed, rows.bias_data(), x.packed, per_chunk, y});
}

void add_chosen(Session& session, const Runtime& runtime, const Chosen& chosen, const NeuronRows& down,
                const Norm* post_norm, float* out, Touched& touched) {
  const int64_t cols = down.cols(), sum_floats = runtime.neurons.sum_floats(cols);
  const Dealt dealt(session, chosen);
  const int64_t parts = dealt.parts;
  auto* sums = session.allocate<float>(parts * chosen.tokens * sum_floats);
  ChosenJob job{};
  job.runtime = &runtime;
  job.c = chosen;
  job.down = down.packed;
  job.has_first = chosen.first != nullptr;
  job.has_second = chosen.second != nullptr;
  if (chosen.first) {
    job.first = chosen.first->packed;
    job.first_bias = chosen.first->bias_data();
  }
  if (chosen.second) {
    job.second = chosen.second->packed;
    job.second_bias = chosen.second->bias_data();
  }
  job.indices = dealt.indices;
  job.starts = dealt.starts;
  job.parts = parts;
  job.most = dealt.most;
  job.sum_floats = sum_floats;
  job.sums = sums;
  job.touched = &touched;
  session.run(parts, job);

  float* y = post_norm ? session.allocate<float>(chosen.tokens * cols) : out;
  session.run(
      ceil_div(cols, runtime.neurons.group_cols),
      FinishJob{&runtime, cols, chosen.tokens, parts, sum_floats, sums, down.bias_data(), !post_norm, y});
  if (post_norm) add_normed(session, runtime, *post_norm, y, chosen.tokens, out);
}

}  // namespace hotset
