#include "layers/chosen_neurons.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <new>

namespace hotset {
namespace {

// Neurons are dealt out to parts, a few neighbours at a time; each part finds out which of its own are chosen
// and adds these up in their order. So the order of additions depends neither on the threads nor on which
// other neurons are computed: leaving out zeros changes no bit of the result. As the hottest come first,
// dealing also balances the parts. Some for each core, but each part's sums cost their room in the caches: a
// part has so many neurons at least, but there are half of the runtime's parts.
constexpr int64_t kPartNeurons = 320;
constexpr int64_t kNeighbours = 64;

// Neurons of which one matrix is read before the next one is. Whole units of what is added up at once.
constexpr int64_t kGroup = 2 * kAddRows;

// Rows of a batch that share what is read of the weights; more are computed so many at a time.
constexpr int64_t kMostRows = 16;

// One part of the neurons: computes those that any row has chosen, and adds them up for the rows that have.
// The sums of two parts are added up by whichever comes second, those of two pairs likewise, and so on: in a
// fixed order, and mostly in one core's cache.
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
  int64_t sum_floats;           // of one row
  float* sums;                  // room for two of each pair, each rows x sum_floats
  std::atomic<float*>* firsts;  // of each pair, the sums of the one that came first
  float* out;
  Touched* touched;  // by each part, for each row

  static inline float nobody;  // whose address stands in `firsts` until one has come

  // What is left of a part for its commit.
  struct Result {
    int64_t listed;  // neurons that any row has chosen
    Touched touched[kMostRows];
  };

  // One row's neurons that are not zero: `count` of them, with their values, of which `added` are added up.
  struct Sum {
    float* sums;
    float* h;
    int32_t* neurons;
    int64_t count, added;
  };

  // Neurons with the rows (bit by bit) that have chosen each.
  struct Queue {
    int32_t* neurons;
    uint32_t* rows;
    int64_t end, taken;
  };

  // What a part works with. Neurons go from `listed` to `pending`, where they wait for their product with
  // `second` (with their values in h, where a row's lie `most` apart), to the rows' sums. Those of `idle` are
  // zero for all rows and are added up all the same.
  struct Work {
    Result* result;
    Sum sums[kMostRows];
    float* h;
    Queue listed, pending, idle;
    int32_t* coming;  // the first ones of the part that comes next
  };

  static constexpr int64_t kComing = kNeighbours + kGroup;

  enum class Stage { kFirst, kSecond, kDown, kIdle, kUnknown, kEnd };

  // Rows of one matrix; `at` is where their neurons stand in the stage's queue, or in that of `row`.
  struct Step {
    Stage stage;
    int64_t row, at;
    NeuronList list;
  };

  // A step's neurons, dealt out to the rows that have chosen them; `at` is their place in the step.
  struct Dealt {
    int64_t count[kMostRows];
    int32_t neurons[kMostRows][kGroup], at[kMostRows][kGroup];
    float values[kMostRows][kGroup];
  };

  // Takes the parts of a work from `memory`; returns the size of them all.
  size_t divide(void* memory, Work& w) const {
    size_t used = 0;
    const auto take = [&]<class T>(T*& to, int64_t n) {
      to = reinterpret_cast<T*>(static_cast<uint8_t*>(memory) + used);
      used += static_cast<size_t>(ceil_div(n * static_cast<int64_t>(sizeof(T)), 64)) * 64;
    };
    take(w.result, 1);
    for (int64_t t = 0; t < c.rows; ++t) take(w.sums[t].sums, sum_floats);  // one behind the other
    for (int64_t t = 0; t < c.rows; ++t) {
      take(w.sums[t].h, most);
      take(w.sums[t].neurons, most);
    }
    take(w.h, c.rows * most);
    for (Queue* queue : {&w.listed, &w.pending, &w.idle}) {
      take(queue->neurons, most);
      take(queue->rows, most);
    }
    take(w.coming, kComing);
    return used;
  }

  size_t scratch_bytes() const {
    Work w;
    alignas(64) uint8_t nothing[1];
    return divide(nothing, w);
  }

  // Writes which neurons of a part any row has chosen, until there are `enough`, and which rows have (or
  // nullptr); returns how many. Counts them for each row (or not: nullptr).
  int64_t choose(int64_t part, int64_t enough, int32_t* to, uint32_t* rows, Touched* of_rows) const {
    int64_t count = 0;
    for (int64_t first = part * kNeighbours; first < c.neurons && count < enough;
         first += parts * kNeighbours) {
      const int64_t n = std::min(kNeighbours, c.neurons - first);
      uint64_t chosen[kMostRows], any = 0;
      for (int64_t t = 0; t < c.rows; ++t) {
        chosen[t] = c.chosen(runtime->neurons, t, first, n);
        any |= chosen[t];
        if (of_rows) of_rows[t].chosen += std::popcount(chosen[t]);
      }
      for (; any != 0; any &= any - 1, ++count) {
        const int j = std::countr_zero(any);
        to[count] = static_cast<int32_t>(first + j);
        if (!rows) continue;
        uint32_t of = 0;
        for (int64_t t = 0; t < c.rows; ++t) of |= static_cast<uint32_t>(chosen[t] >> j & 1) << t;
        rows[count] = of;
      }
    }
    return count;
  }

  // The neurons go in groups from matrix to matrix. Which rows are read next is settled before a step has its
  // result, so that they are on their way meanwhile. A row's groups of down have its own neurons that are not
  // zero only, in their order, so that no bit depends on which others are computed.
  void compute(int64_t part, void* memory) const {
    Work w;
    divide(memory, w);
    for (Queue* queue : {&w.listed, &w.pending, &w.idle}) queue->end = queue->taken = 0;
    *w.result = {};
    w.listed.end = choose(part, most, w.listed.neurons, w.listed.rows, w.result->touched);
    w.result->listed = w.listed.end;
    if (w.listed.end == 0) return;
    std::fill_n(w.sums[0].sums, c.rows * sum_floats, 0.0f);
    for (int64_t t = 0; t < c.rows; ++t) w.sums[t].count = w.sums[t].added = 0;
    if (!has_first) take_known(w);
    const Step none = {Stage::kEnd, 0, 0, {}};
    Step now = take(w, none);
    while (now.stage != Stage::kEnd) {
      Step ahead = take(w, now);
      if (ahead.stage == Stage::kEnd) ahead.list = first_of(part + 1, w.coming);
      now.list.next = &ahead.list;
      run(now, w);
      now = ahead.stage == Stage::kUnknown ? take(w, none) : ahead;
    }
    for (int64_t t = 0; t < c.rows; ++t) {
      Touched& of_row = w.result->touched[t];
      of_row.fired = w.sums[t].count;
      of_row.read = c.everything ? w.listed.end : of_row.fired;
    }
  }

  void commit(int64_t part, void* memory) const {
    Work w;
    divide(memory, w);
    std::copy_n(w.result->touched, c.rows, touched + part * c.rows);
    for (int64_t t = 0; c.tally && t < c.rows; ++t) count(w.sums[t].neurons, w.result->touched[t].fired);
    for (int64_t t = 0; c.values && t < c.rows; ++t) {
      const Sum& sum = w.sums[t];
      const int64_t count = w.result->touched[t].fired;
      for (int64_t k = 0; k < count; ++k) c.values[t * c.neurons + sum.neurons[k]] = sum.h[k];
    }
    float* total = w.result->listed > 0 ? w.sums[0].sums : nullptr;
    if (!add_up(part, w.sums[0].sums, total)) return;
    for (int64_t t = 0; t < c.rows; ++t) {
      if (bias) runtime->vector.add(bias, down.cols, out + t * down.cols);
      if (total) runtime->vector.add(total + t * sum_floats, down.cols, out + t * down.cols);
    }
  }

 private:
  // Counts neurons that have fired; neighbours are all one part's, so that nobody else counts them now.
  void count(const int32_t* fired, int64_t n) const {
    constexpr auto kRelaxed = std::memory_order_relaxed;
    for (int64_t k = 0; k < n; ++k) {
      std::atomic<int64_t>& of = c.tally->fired[static_cast<size_t>(fired[k] / kCounted)];
      of.store(of.load(kRelaxed) + 1, kRelaxed);
    }
  }

  // Adds a part's sums (`mine`, which becomes the result; nullptr: none) to its neighbour's, those of both to
  // their neighbours', and so on. Where the neighbour has not come yet they are left to it (as a copy, if
  // they are in `scratch`), and the result is false; true: `mine` are the sums of all parts.
  bool add_up(int64_t part, const float* scratch, float*& mine) const {
    const int64_t floats = c.rows * sum_floats;
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
    const Step unknown = {Stage::kUnknown, 0, 0, {&then, running.list.indices, running.list.count, nullptr}};
    if ((first_runs && !leaves_zeros(c.activation)) || (second_runs && c.activation != Activation::kDrelu)) {
      return unknown;  // but as good as known
    }
    const bool begun = left(w.listed) == 0 && !first_runs;
    const bool multiplied = begun && left(w.pending) == 0 && !second_runs;
    for (int64_t t = 0; t < c.rows; ++t) {
      Sum& sum = w.sums[t];
      const int64_t n = sum.count - sum.added;
      if (n < kGroup && (!multiplied || n == 0)) continue;
      return step(Stage::kDown, t, down, sum.neurons, sum.added, sum.count);
    }
    if (const int64_t n = left(w.pending); n >= kGroup || (begun && n > 0)) {
      return step(Stage::kSecond, 0, second, w.pending.neurons, w.pending.taken, w.pending.end);
    }
    if (left(w.listed) > 0) {
      return step(Stage::kFirst, 0, first, w.listed.neurons, w.listed.taken, w.listed.end);
    }
    if (first_runs || second_runs) return unknown;
    if (left(w.idle) > 0) return step(Stage::kIdle, 0, down, w.idle.neurons, w.idle.taken, w.idle.end);
    return {Stage::kEnd, 0, 0, {}};
  }

  static int64_t left(const Queue& queue) { return queue.end - queue.taken; }

  static Step step(Stage stage, int64_t row, const NeuronMatrix& matrix, const int32_t* queue, int64_t& from,
                   int64_t to) {
    const int64_t at = from, n = std::min(kGroup, to - from);
    from += n;
    return {stage, row, at, {&matrix, queue + at, n, nullptr}};
  }

  void run(const Step& now, Work& w) const {
    constexpr float kZeros[kGroup] = {};
    if (now.stage == Stage::kFirst) {
      multiply_first(now, w);
    } else if (now.stage == Stage::kSecond) {
      multiply_second(now, w);
    } else if (now.stage == Stage::kDown) {
      const Sum& sum = w.sums[now.row];
      runtime->neurons.add(&now.list, sum.h + now.at, sum.sums);
    } else {
      runtime->neurons.add(&now.list, kZeros, w.sums[0].sums);
    }
  }

  // What a part reads first, with room for its indices; nothing of a part that there is not.
  NeuronList first_of(int64_t part, int32_t* to) const {
    const NeuronMatrix* matrix = has_first ? &first : has_second ? &second : &down;
    const int64_t count = part < parts ? choose(part, kGroup, to, nullptr, nullptr) : 0;
    return {matrix, to, std::min(kGroup, count), nullptr};
  }

  // Values known from elsewhere.
  void take_known(Work& w) const {
    w.listed.taken = w.listed.end;
    for (int64_t k = 0; k < w.listed.end; ++k) {
      const int32_t j = w.listed.neurons[k];
      pass(j, w.listed.rows[k], w, [&](int64_t t) { return c.known[t * c.neurons + j]; });
    }
  }

  // Multiplies a step's neurons with the x of the rows that have chosen them, one row after the other:
  // weights are read from memory for the first one, from the cache for the others.
  void multiply(const Step& now, const uint32_t* rows, const float* biases, Dealt& d) const {
    std::fill_n(d.count, c.rows, 0);
    for (int64_t k = 0; k < now.list.count; ++k) {
      for (uint32_t of = rows[k]; of != 0; of &= of - 1) {
        const int t = std::countr_zero(of);
        d.at[t][d.count[t]] = static_cast<int32_t>(k);
        d.neurons[t][d.count[t]++] = now.list.indices[k];
      }
    }
    NeuronList lists[kMostRows];
    const NeuronList* next = now.list.next;
    for (int64_t t = c.rows; t-- > 0;) {
      if (d.count[t] == 0) continue;
      lists[t] = {now.list.matrix, d.neurons[t], d.count[t], next};
      next = lists + t;
    }
    for (int64_t t = 0; t < c.rows; ++t) {
      if (d.count[t] == 0) continue;
      runtime->neurons.dot(lists + t, c.x.packed + t * c.x.bytes, d.values[t]);
      for (int64_t i = 0; biases && i < d.count[t]; ++i) d.values[t][i] += biases[d.neurons[t][i]];
    }
  }

  void multiply_first(const Step& now, Work& w) const {
    Dealt d;
    float h[kMostRows][kGroup];
    multiply(now, w.listed.rows + now.at, first_bias, d);
    for (int64_t t = 0; t < c.rows; ++t) {
      runtime->vector.activate(alone(c.activation), d.values[t], nullptr, d.count[t]);
      for (int64_t i = 0; i < d.count[t]; ++i) h[t][d.at[t][i]] = d.values[t][i];
    }
    for (int64_t k = 0; k < now.list.count; ++k) {
      pass(now.list.indices[k], w.listed.rows[now.at + k], w, [&](int64_t t) { return h[t][k]; });
    }
  }

  void multiply_second(const Step& now, Work& w) const {
    Dealt d;
    multiply(now, w.pending.rows + now.at, second_bias, d);
    for (int64_t t = 0; t < c.rows; ++t) {
      for (int64_t i = 0; i < d.count[t]; ++i) {
        float& h = w.h[t * most + now.at + d.at[t][i]];
        h *= of_up(c.activation, d.values[t][i]);
      }
    }
    for (int64_t k = 0; k < now.list.count; ++k) {
      pass_to_sums(now.list.indices[k], w.pending.rows[now.at + k], w,
                   [&](int64_t t) { return w.h[t * most + now.at + k]; });
    }
  }

  // Passes a neuron of these rows, with its value for each, on to `second`, or to the rows' sums where there
  // is none; but for the rows for which it is zero.
  template <class F>
  void pass(int32_t j, uint32_t rows, Work& w, F value) const {
    if (!has_second) return pass_to_sums(j, rows, w, value);
    uint32_t kept = 0;
    for (uint32_t of = rows; of != 0; of &= of - 1) {
      const int t = std::countr_zero(of);
      const float h = value(t);
      if (h == 0.0f && !c.everything) continue;
      w.h[t * most + w.pending.end] = h;
      kept |= 1u << t;
    }
    if (kept != 0) put(w.pending, j, kept);
  }

  template <class F>
  void pass_to_sums(int32_t j, uint32_t rows, Work& w, F value) const {
    bool any = false;
    for (uint32_t of = rows; of != 0; of &= of - 1) {
      const int t = std::countr_zero(of);
      const float h = value(t);
      if (h == 0.0f) continue;
      Sum& sum = w.sums[t];
      sum.h[sum.count] = h;
      sum.neurons[sum.count++] = j;
      any = true;
    }
    if (!any && c.everything) put(w.idle, j, rows);
  }

  static void put(Queue& queue, int32_t j, uint32_t rows) {
    queue.neurons[queue.end] = j;
    queue.rows[queue.end++] = rows;
  }
};

}  // namespace

int64_t parts_of(const Runtime& runtime, int64_t neurons) {
  const int64_t wanted = std::clamp(neurons / kPartNeurons, ceil_div(runtime.parts, 2), runtime.parts);
  return std::min(ceil_div(neurons, kNeighbours), wanted);
}

const Touched* add_chosen(Session& session, const Runtime& runtime, const Chosen& chosen,
                          const NeuronRows& down, const Norm* post_norm, float* out) {
  const int64_t cols = down.cols();
  float* y = out;
  if (post_norm) {
    y = session.allocate<float>(chosen.rows * cols);
    std::fill_n(y, chosen.rows * cols, 0.0f);
  }
  ChosenJob job{};
  job.runtime = &runtime;
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
  job.parts = parts_of(runtime, chosen.neurons);
  job.most = ceil_div(ceil_div(chosen.neurons, kNeighbours), job.parts) * kNeighbours;
  job.sum_floats = runtime.neurons.sum_floats(cols);
  job.bias = down.bias_data();
  auto* touched = session.allocate<Touched>(chosen.rows);
  for (int64_t row = 0; row < chosen.rows; row += kMostRows) {
    const int64_t rows = std::min(kMostRows, chosen.rows - row);
    job.c = chosen.part(row, rows);
    job.sums = session.allocate<float>(2 * job.parts * rows * job.sum_floats);
    job.firsts = session.allocate<std::atomic<float*>>(job.parts);
    for (int64_t pair = 0; pair < job.parts; ++pair) {
      new (&job.firsts[pair]) std::atomic<float*>(&ChosenJob::nobody);
    }
    job.touched = session.allocate<Touched>(job.parts * rows);
    job.out = y + row * cols;
    session.run(job.parts, job);
    for (int64_t t = 0; t < rows; ++t) {
      Touched& all = touched[row + t] = {};
      for (int64_t part = 0; part < job.parts; ++part) {
        all.read += job.touched[part * rows + t].read;
        all.fired += job.touched[part * rows + t].fired;
        all.chosen += job.touched[part * rows + t].chosen;
      }
    }
  }
  if (post_norm) add_normed(session, runtime, *post_norm, y, chosen.rows, out);
  return touched;
}

}  // namespace hotset
