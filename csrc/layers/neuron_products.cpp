#include "layers/neuron_products.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <numeric>

namespace hotset {
namespace {

// Neurons are dealt out to parts, a few neighbours at a time; each part finds out which of its own are chosen
// and adds these up in their order. So the order of additions depends neither on the threads nor on which
// other neurons are computed: leaving out zeros changes no bit of the result. As the hottest come first,
// dealing also balances the parts. Some for each thread, but each part's sums cost their room in the caches.
constexpr int64_t kMinParts = 8, kMaxParts = 16;
constexpr int64_t kPartNeurons = 320;
constexpr int64_t kNeighbours = 64;

// Neurons of which one matrix is read before the next one is. Whole units of what is added up at once.
constexpr int64_t kGroup = 2 * kAddRows;

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
    const auto group = [&](int64_t from) {
      return NeuronList{&rows, indices + from, std::clamp<int64_t>(count - from, 0, kGroup), nullptr};
    };
    for (int64_t j = 0; j < count; j += kGroup) {
      NeuronList now = group(j);
      const NeuronList next = group(std::min(j + kGroup, count));
      now.next = &next;
      kernels->dot(&now, x, 0, 1, product + j, count);
    }
    for (int64_t j = 0; bias && j < count; ++j) product[j] += bias[first + j];
  }

  void commit(int64_t chunk, void* scratch) const {
    const int64_t first = chunk * per_chunk;
    std::copy_n(static_cast<const float*>(scratch), std::min(per_chunk, rows.rows - first), y + first);
  }
};

// One part of the neurons: computes the chosen ones and adds up their rows of down. The sums of two parts are
// added up by whichever comes second, those of two pairs likewise, and so on: in a fixed order, and mostly in
// one core's cache.
struct ChosenJob {
  const Runtime* runtime;
  Chosen c;
  NeuronMatrix down;
  const float *first_bias, *second_bias;
  NeuronMatrix first, second;
  bool has_first, has_second;
  const float* bias;  // of down
  int64_t parts;
  int64_t most;                 // neurons that a part can have
  int64_t sum_floats;           // of one token
  float* sums;                  // room for two of each pair, each tokens x sum_floats
  std::atomic<float*>* firsts;  // of each pair, the sums of the one that came first
  float* out;
  Touched* touched;  // by each part

  static inline float nobody;  // whose address stands in `firsts` until one has come

  struct Counts {
    int64_t listed;
    Touched touched;
  };

  // What a part works with, and how far it is: of its neurons (`listed`), those before `begun` have been
  // taken. The first `alive` of `kept` (with their values in `h`, where a token's lie `most` apart) have
  // their values, and the first `added` of these are added up. From `multiplied` to `pending` they wait for
  // their product with `second`. `idle` have the value zero and are added up all the same.
  struct Work {
    Counts* counts;
    float *sums, *h, *up;
    int32_t *listed, *kept, *idle;
    int32_t* coming;  // the first ones of the part that comes next
    int64_t count, begun, pending, multiplied, alive, added, idle_count, idle_added;
  };

  static constexpr int64_t kComing = kNeighbours + kGroup;

  enum class Stage { kFirst, kSecond, kDown, kIdle, kUnknown, kEnd };

  // Rows of one matrix; `at` is where their neurons stand in the stage's queue.
  struct Step {
    Stage stage;
    int64_t at;
    NeuronList list;
  };

  size_t scratch_bytes() const {
    const int64_t floats = c.tokens * (sum_floats + most + kGroup);
    return 64 + static_cast<size_t>(floats) * sizeof(float) + (3 * most + kComing) * sizeof(int32_t);
  }

  Work work_in(void* memory) const {
    static_assert(sizeof(Counts) <= 64);
    Work w{};
    w.counts = static_cast<Counts*>(memory);
    w.sums = reinterpret_cast<float*>(static_cast<uint8_t*>(memory) + 64);
    w.h = w.sums + c.tokens * sum_floats;
    w.up = w.h + c.tokens * most;
    w.listed = reinterpret_cast<int32_t*>(w.up + c.tokens * kGroup);
    w.kept = w.listed + most;
    w.idle = w.kept + most;
    w.coming = w.idle + most;
    return w;
  }

  // Writes which neurons of a part are chosen, until there are `enough`; returns how many.
  int64_t choose(int64_t part, int64_t enough, int32_t* to) const {
    int64_t count = 0;
    for (int64_t first = part * kNeighbours; first < c.neurons && count < enough;
         first += parts * kNeighbours) {
      const int64_t n = std::min(kNeighbours, c.neurons - first);
      if (c.scores) {
        count += runtime->neurons.select(c.scores + first, c.neurons, c.factors ? c.factors + first : nullptr,
                                         c.magnitude, n, c.tokens, c.cutoff, static_cast<int32_t>(first),
                                         to + count);
      } else {
        std::iota(to + count, to + count + n, static_cast<int32_t>(first));
        count += n;
      }
    }
    return count;
  }

  bool counts_for(int64_t t, int32_t j) const {
    const float score = c.scores[t * c.neurons + j] * (c.factors ? c.factors[j] : 1.0f);
    return !((c.magnitude ? std::max(score, -score) : score) < c.cutoff);
  }

  // The neurons go in groups from matrix to matrix. Which rows are read next is settled before a step has its
  // result, so that they are on their way meanwhile. Groups of down have neurons that are not zero only, in
  // their order, so that no bit depends on which others are computed.
  void compute(int64_t part, void* memory) const {
    Work w = work_in(memory);
    w.count = choose(part, most, w.listed);
    *w.counts = {w.count, {}};
    if (w.count == 0) return;
    std::fill_n(w.sums, c.tokens * sum_floats, 0.0f);
    if (!has_first) take_known(w);
    const Step none = {Stage::kEnd, 0, {}};
    Step now = take(w, none);
    while (now.stage != Stage::kEnd) {
      Step ahead = take(w, now);
      if (ahead.stage == Stage::kEnd) ahead.list = first_of(part + 1, w.coming);
      now.list.next = &ahead.list;
      run(now, w);
      now = ahead.stage == Stage::kUnknown ? take(w, none) : ahead;
    }
    Touched& found = w.counts->touched;
    found.read = (w.alive + w.idle_count) * c.tokens;
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t k = 0; k < w.alive; ++k) found.fired += w.h[t * most + k] != 0.0f;
    }
  }

  void commit(int64_t part, void* memory) const {
    const Work w = work_in(memory);
    touched[part] = w.counts->touched;
    float* total = w.counts->listed > 0 ? w.sums : nullptr;
    if (!add_up(part, w.sums, total)) return;
    for (int64_t t = 0; t < c.tokens; ++t) {
      if (bias) runtime->vector.add(bias, down.cols, out + t * down.cols);
      if (total) runtime->vector.add(total + t * sum_floats, down.cols, out + t * down.cols);
    }
  }

 private:
  // Adds a part's sums (`mine`, which becomes the result; nullptr: none) to its neighbour's, those of both to
  // their neighbours', and so on. Where the neighbour has not come yet they are left to it (as a copy, if
  // they are in `scratch`), and the result is false; true: `mine` are the sums of all parts.
  bool add_up(int64_t part, const float* scratch, float*& mine) const {
    const int64_t floats = c.tokens * sum_floats;
    int64_t before = 0;  // pairs of smaller units
    for (int64_t at = part, n = parts; n > 1; before += n / 2, at /= 2, n = ceil_div(n, 2)) {
      if ((at ^ 1) == n) continue;  // the last one, without a neighbour
      std::atomic<float*>& first = firsts[before + at / 2];
      float* theirs = first.load(std::memory_order_acquire);
      if (theirs == &nobody) {
        if (mine == scratch) {
          mine = sums + (2 * before + at) * floats;
          std::copy_n(scratch, floats, mine);
        }
        if (first.compare_exchange_strong(theirs, mine, std::memory_order_acq_rel)) return false;
      }
      if (mine && theirs) {
        runtime->vector.add(theirs, floats, mine);
      } else if (theirs) {
        mine = theirs;
      }
    }
    return true;
  }

  // Takes the step that follows `running`, before this has its result: whole groups and later stages first.
  // Where that depends on the result, `stage` is unknown, and the list what is likely.
  Step take(Work& w, const Step& running) const {
    const bool first_runs = running.stage == Stage::kFirst, second_runs = running.stage == Stage::kSecond;
    const NeuronMatrix& then = first_runs && has_second ? second : down;
    const Step unknown = {Stage::kUnknown, 0, {&then, running.list.indices, running.list.count, nullptr}};
    if ((first_runs && !leaves_zeros(c.activation)) || (second_runs && c.activation != Activation::kDrelu)) {
      return unknown;  // but as good as known
    }
    const bool begun = w.begun == w.count && !first_runs;
    const bool multiplied = begun && w.multiplied == w.pending && !second_runs;
    if (const int64_t n = w.alive - w.added; n >= kGroup || (multiplied && n > 0)) {
      return step(Stage::kDown, down, w.kept, w.added, w.alive);
    }
    if (const int64_t n = w.pending - w.multiplied; n >= kGroup || (begun && n > 0)) {
      return step(Stage::kSecond, second, w.kept, w.multiplied, w.pending);
    }
    if (w.begun < w.count) return step(Stage::kFirst, first, w.listed, w.begun, w.count);
    if (first_runs || second_runs) return unknown;
    if (w.idle_added < w.idle_count) return step(Stage::kIdle, down, w.idle, w.idle_added, w.idle_count);
    return {Stage::kEnd, 0, {}};
  }

  static Step step(Stage stage, const NeuronMatrix& matrix, const int32_t* queue, int64_t& from, int64_t to) {
    const int64_t at = from, n = std::min(kGroup, to - from);
    from += n;
    return {stage, at, {&matrix, queue + at, n, nullptr}};
  }

  void run(const Step& now, Work& w) const {
    constexpr float kZeros[kGroup] = {};
    if (now.stage == Stage::kFirst) {
      multiply_first(now, w);
    } else if (now.stage == Stage::kSecond) {
      multiply_second(now, w);
    } else if (now.stage == Stage::kDown) {
      runtime->neurons.add(&now.list, w.h + now.at, most, c.tokens, w.sums);
    } else {
      runtime->neurons.add(&now.list, kZeros, 0, c.tokens, w.sums);
    }
  }

  // What a part reads first, with room for its indices; nothing of a part that there is not.
  NeuronList first_of(int64_t part, int32_t* to) const {
    const NeuronMatrix* matrix = has_first ? &first : has_second ? &second : &down;
    const int64_t count = part < parts ? choose(part, kGroup, to) : 0;
    return {matrix, to, std::min(kGroup, count), nullptr};
  }

  // Values known from elsewhere.
  void take_known(Work& w) const {
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t k = 0; k < w.count; ++k) w.h[t * most + k] = c.known[t * c.neurons + w.listed[k]];
    }
    w.begun = w.count;
    pass_firsts(w.listed, w.count, w.h, w);
  }

  void multiply_first(const Step& now, Work& w) const {
    const int32_t* listed = now.list.indices;
    const int64_t count = now.list.count;
    float* h = w.h + (has_second ? w.pending : w.alive);
    runtime->neurons.dot(&now.list, c.x.packed, c.x.bytes, c.tokens, h, most);
    for (int64_t t = 0; t < c.tokens; ++t) {
      float* row = h + t * most;
      for (int64_t k = 0; first_bias && k < count; ++k) row[k] += first_bias[listed[k]];
      runtime->vector.activate(alone(c.activation), row, nullptr, count);
    }
    pass_firsts(listed, count, h, w);
  }

  void pass_firsts(const int32_t* listed, int64_t n, float* h, Work& w) const {
    for (int64_t t = 0; c.by_token && c.tokens > 1 && t < c.tokens; ++t) {
      for (int64_t k = 0; k < n; ++k) {
        if (!counts_for(t, listed[k])) h[t * most + k] = 0.0f;
      }
    }
    pass(listed, n, h, !has_second, w);
  }

  void multiply_second(const Step& now, Work& w) const {
    const int32_t* listed = now.list.indices;
    const int64_t count = now.list.count;
    float* h = w.h + now.at;
    runtime->neurons.dot(&now.list, c.x.packed, c.x.bytes, c.tokens, w.up, kGroup);
    for (int64_t t = 0; t < c.tokens; ++t) {
      float *values = h + t * most, *factors = w.up + t * kGroup;
      for (int64_t k = 0; k < count; ++k) {
        if (second_bias) factors[k] += second_bias[listed[k]];
        values[k] *= of_up(c.activation, factors[k]);
      }
    }
    pass(listed, count, h, true, w);
  }

  // Passes n neurons with their values on, to be added up or to be multiplied by `second`, but for those that
  // are zero for all tokens. Where they lie already may be where they go, or after it.
  void pass(const int32_t* listed, int64_t n, const float* h, bool add_up, Work& w) const {
    int64_t& end = add_up ? w.alive : w.pending;
    for (int64_t k = 0; k < n; ++k) {
      bool any = c.everything && !add_up;
      for (int64_t t = 0; t < c.tokens; ++t) any |= h[t * most + k] != 0.0f;
      if (any) {
        for (int64_t t = 0; t < c.tokens; ++t) w.h[t * most + end] = h[t * most + k];
        w.kept[end++] = listed[k];
      } else if (c.everything) {
        w.idle[w.idle_count++] = listed[k];
      }
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

Touched add_chosen(Session& session, const Runtime& runtime, const Chosen& chosen, const NeuronRows& down,
                   const Norm* post_norm, float* out) {
  const int64_t cols = down.cols(), sum_floats = runtime.neurons.sum_floats(cols);
  const int64_t blocks = ceil_div(chosen.neurons, kNeighbours);
  const int64_t parts =
      std::min(blocks, std::clamp<int64_t>(chosen.neurons / kPartNeurons, kMinParts, kMaxParts));
  float* y = out;
  if (post_norm) {
    y = session.allocate<float>(chosen.tokens * cols);
    std::fill_n(y, chosen.tokens * cols, 0.0f);
  }
  auto* firsts = session.allocate<std::atomic<float*>>(parts);
  for (int64_t pair = 0; pair < parts; ++pair) new (&firsts[pair]) std::atomic<float*>(&ChosenJob::nobody);
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
  job.parts = parts;
  job.most = ceil_div(blocks, parts) * kNeighbours;
  job.sum_floats = sum_floats;
  job.bias = down.bias_data();
  job.sums = session.allocate<float>(2 * parts * chosen.tokens * sum_floats);
  job.firsts = firsts;
  job.out = y;
  job.touched = session.allocate<Touched>(parts);
  session.run(parts, job);
  if (post_norm) add_normed(session, runtime, *post_norm, y, chosen.tokens, out);
  Touched all{};
  for (int64_t part = 0; part < parts; ++part) {
    all.read += job.touched[part].read;
    all.fired += job.touched[part].fired;
  }
  return all;
}

}  // namespace hotset
