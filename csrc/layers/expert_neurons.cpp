#include "layers/expert_neurons.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace hotset {
namespace {

// A part has so many neurons at least, as its sums cost their room in the caches.
constexpr int64_t kPartNeurons = 384;
constexpr int64_t kMostParts = 16;

// Neurons of which one matrix is read before the next one is. Whole units of what is added up at once.
constexpr int64_t kGroup = 2 * kAddRows;

// Rows that read a part of an expert one after the other: from memory the first one, from the cache others.
constexpr int64_t kMostRows = 16;

// Scores are looked at so many at a time.
constexpr int64_t kWord = 64;

// Columns of results to a chunk.
constexpr int64_t kColumns = 512;

// A part of an expert's neurons, for some of the rows that use it.
struct ExpertNeuronsJob {
  const Runtime* runtime;
  const ExpertNeurons* uses;
  const int64_t* first_chunks;  // of each use, and of one more
  int64_t n, neurons, cols, parts, part_neurons, sum_floats;
  Activation activation;
  const bool* everything;  // of each row of the batch
  RowActivations x;
  Touched* touched;  // kMostRows to a chunk

  struct Place {
    const ExpertNeurons* use;
    int64_t row0, rows, part;
  };

  // What a chunk works with.
  struct Work {
    Touched* touched;
    float* sums;      // rows x sum_floats
    int32_t* listed;  // neurons of which second is read
    int32_t* summed;  // those that are not zero, and
    float* values;    // their values
    int32_t* idle;    // the others, if everything is read
    int32_t* coming;  // of the chunk that comes next
  };

  size_t divide(void* memory, Work& w) const {
    size_t used = 0;
    const auto take = [&]<class T>(T*& to, int64_t count) {
      to = reinterpret_cast<T*>(static_cast<uint8_t*>(memory) + used);
      used += static_cast<size_t>(ceil_div(count * static_cast<int64_t>(sizeof(T)), 64)) * 64;
    };
    take(w.touched, kMostRows);
    take(w.sums, kMostRows * sum_floats);
    for (int32_t** list : {&w.listed, &w.summed, &w.idle}) take(*list, part_neurons);
    take(w.values, part_neurons);
    take(w.coming, kGroup + kWord);
    return used;
  }

  size_t scratch_bytes() const {
    Work w;
    alignas(64) uint8_t nothing[1];
    return divide(nothing, w);
  }

  Place place(int64_t chunk) const {
    const int64_t use = std::upper_bound(first_chunks, first_chunks + n, chunk) - first_chunks - 1;
    const int64_t at = chunk - first_chunks[use], row0 = at / parts * kMostRows;
    return {uses + use, row0, std::min(kMostRows, uses[use].count - row0), at % parts};
  }

  // Writes the neurons of a part whose h is not zero, until there are `enough`; returns how many.
  int64_t list(const float* h, int64_t part, bool all, int64_t enough, int32_t* to) const {
    const int64_t last = std::min((part + 1) * part_neurons, neurons);
    int64_t count = 0;
    for (int64_t first = part * part_neurons; first < last && count < enough; first += kWord) {
      const int64_t width = std::min(kWord, last - first);
      // The least number above zero.
      uint64_t chosen = all ? ~uint64_t{0} >> (kWord - width)
                            : runtime->neurons.select(h + first, nullptr, true, width,
                                                      std::numeric_limits<float>::denorm_min());
      for (; chosen != 0; chosen &= chosen - 1) {
        to[count++] = static_cast<int32_t>(first + std::countr_zero(chosen));
      }
    }
    return count;
  }

  void compute(int64_t chunk, void* memory) const {
    Work w;
    divide(memory, w);
    const Place at = place(chunk);
    std::fill_n(w.sums, at.rows * sum_floats, 0.0f);
    for (int64_t t = 0; t < at.rows; ++t) {
      NeuronList after = {nullptr, nullptr, 0, nullptr};
      if (t + 1 == at.rows) after = first_of(chunk + 1, w.coming);
      w.touched[t] = add(at, t, w, after.count > 0 ? &after : nullptr);
    }
  }

  void commit(int64_t chunk, void* memory) const {
    Work w;
    divide(memory, w);
    const Place at = place(chunk);
    std::copy_n(w.touched, at.rows, touched + chunk * kMostRows);
    float* to = at.use->results + (at.part * at.use->count + at.row0) * cols;
    for (int64_t t = 0; t < at.rows; ++t) std::copy_n(w.sums + t * sum_floats, cols, to + t * cols);
  }

 private:
  // What a chunk reads first.
  NeuronList first_of(int64_t chunk, int32_t* to) const {
    if (chunk >= first_chunks[n]) return {nullptr, to, 0, nullptr};
    const Place at = place(chunk);
    const bool all = everything[at.use->rows[at.row0]];
    const int64_t count = list(at.use->h + at.row0 * neurons, at.part, all, kGroup, to);
    return {at.use->has_second ? &at.use->second : &at.use->down, to, std::min(kGroup, count), nullptr};
  }

  // Adds up one row's neurons: in their order those that are not zero, so that no bit depends on whether the
  // others are read. Each group is read from second, then from down, beside which it lies.
  Touched add(const Place& at, int64_t t, const Work& w, const NeuronList* after) const {
    const ExpertNeurons& use = *at.use;
    const float* h = use.h + (at.row0 + t) * neurons;
    const bool all = everything[use.rows[at.row0 + t]];
    const uint8_t* of_row = x.packed ? x.packed + use.rows[at.row0 + t] * x.bytes : nullptr;
    float* sums = w.sums + t * sum_floats;
    const int64_t listed = list(h, at.part, all, part_neurons, w.listed);
    int64_t count = 0, added = 0, idle = 0;
    const auto keep = [&](int32_t neuron, float value) {
      if (value == 0.0f) {
        if (all) w.idle[idle++] = neuron;
        return;
      }
      w.values[count] = value;
      w.summed[count++] = neuron;
    };
    const auto add_group = [&](const NeuronList* next) {
      const NeuronList group = {&use.down, w.summed + added, std::min(kGroup, count - added), next};
      runtime->neurons.add(&group, w.values + added, sums);
      added += group.count;
    };
    for (int64_t first = 0; use.has_second && first < listed; first += kGroup) {
      const int64_t width = std::min(kGroup, listed - first), then = first + width;
      const NeuronList rows_of_down = {&use.down, w.listed + first, width, nullptr};
      const NeuronList group = {&use.second, w.listed + first, width, &rows_of_down};
      const NeuronList next = {&use.second, w.listed + then, std::min(kGroup, listed - then), nullptr};
      float up[kGroup];
      runtime->neurons.dot(&group, of_row, up);
      for (int64_t i = 0; i < width; ++i) {
        const int32_t neuron = w.listed[first + i];
        const float value = up[i] + (use.second_bias ? use.second_bias[neuron] : 0.0f);
        keep(neuron, h[neuron] * of_up(activation, value));
      }
      if (count - added >= kGroup) add_group(next.count > 0 ? &next : after);
    }
    for (int64_t i = 0; !use.has_second && i < listed; ++i) keep(w.listed[i], h[w.listed[i]]);
    while (added < count) {
      const int64_t then = std::min(added + kGroup, count);
      const NeuronList next = {&use.down, w.summed + then, std::min(kGroup, count - then), nullptr};
      add_group(next.count > 0 ? &next : after);
    }
    constexpr float kZeros[kGroup] = {};
    for (int64_t first = 0; first < idle; first += kGroup) {
      const NeuronList group = {&use.down, w.idle + first, std::min(kGroup, idle - first), nullptr};
      runtime->neurons.add(&group, kZeros, sums);
    }
    return {all ? listed : count, count, all ? listed : count};
  }
};

// Some columns of all results.
struct AddResultsJob {
  const Runtime* runtime;
  const ExpertResult* results;
  int64_t n, rows, cols;
  float* out;

  size_t scratch_bytes() const { return static_cast<size_t>((rows + 1) * kColumns) * sizeof(float); }

  void compute(int64_t chunk, void* scratch) const {
    const int64_t first = chunk * kColumns, width = std::min(kColumns, cols - first);
    auto *sums = static_cast<float*>(scratch), *y = sums + rows * kColumns;
    std::fill_n(sums, rows * kColumns, 0.0f);
    for (const ExpertResult* of = results; of < results + n; ++of) {
      for (int64_t t = 0; t < of->count; ++t) {
        std::copy_n(of->results + t * cols + first, width, y);
        for (int64_t part = 1; part < of->parts; ++part) {
          runtime->vector.add(of->results + (part * of->count + t) * cols + first, width, y);
        }
        if (of->bias) runtime->vector.add(of->bias + first, width, y);
        runtime->vector.scale(y, of->weights[t], width);
        runtime->vector.add(y, width, sums + of->rows[t] * kColumns);
      }
    }
  }

  void commit(int64_t chunk, void* scratch) const {
    const int64_t first = chunk * kColumns, width = std::min(kColumns, cols - first);
    for (int64_t row = 0; row < rows; ++row) {
      runtime->vector.add(static_cast<const float*>(scratch) + row * kColumns, width,
                          out + row * cols + first);
    }
  }
};

}  // namespace

int64_t expert_parts(int64_t neurons) { return std::clamp<int64_t>(neurons / kPartNeurons, 1, kMostParts); }

void multiply_expert_neurons(Session& session, const Runtime& runtime, const ExpertNeurons* uses, int64_t n,
                             Activation activation, const bool* everything, const RowActivations& x,
                             Touched* touched) {
  if (n == 0) return;
  ExpertNeuronsJob job{};
  job.runtime = &runtime;
  job.uses = uses;
  job.n = n;
  job.neurons = uses[0].down.rows;
  job.cols = uses[0].down.cols;
  job.parts = expert_parts(job.neurons);
  job.part_neurons = ceil_div(ceil_div(job.neurons, kWord), job.parts) * kWord;
  job.sum_floats = runtime.neurons.sum_floats(job.cols);
  job.activation = activation;
  job.everything = everything;
  job.x = x;
  auto* first_chunks = session.allocate<int64_t>(n + 1);
  first_chunks[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    first_chunks[i + 1] = first_chunks[i] + job.parts * ceil_div(uses[i].count, kMostRows);
  }
  job.first_chunks = first_chunks;
  job.touched = session.allocate<Touched>(first_chunks[n] * kMostRows);
  session.run(first_chunks[n], job);
  for (int64_t chunk = 0; chunk < first_chunks[n]; ++chunk) {
    const ExpertNeuronsJob::Place at = job.place(chunk);
    for (int64_t t = 0; t < at.rows; ++t) {
      Touched& of_row = touched[at.use->rows[at.row0 + t]];
      const Touched& found = job.touched[chunk * kMostRows + t];
      of_row.read += found.read;
      of_row.fired += found.fired;
      of_row.chosen += found.chosen;
    }
  }
}

void add_results(Session& session, const Runtime& runtime, const ExpertResult* results, int64_t n,
                 int64_t rows, int64_t cols, float* out) {
  session.run(ceil_div(cols, kColumns), AddResultsJob{&runtime, results, n, rows, cols, out});
}

}  // namespace hotset
