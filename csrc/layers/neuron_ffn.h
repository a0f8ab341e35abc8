// An FFN stored by neuron, which computes only some neurons for each token.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "layers/batch.h"
#include "layers/chosen_neurons.h"
#include "layers/neuron_prompts.h"

namespace hotset {

// As in Python's hotset.core.config, by name (bindings_numbers.cpp); the copies of a gate are one kind here,
// a matrix like any other.
enum class Way : int32_t { kDense, kExact, kThreshold, kPredictor };
enum class Score : int32_t { kNone, kGate, kDown, kLowRank, kLowRankRelu, kCopy };

// `first` is what the activation is applied to: gate, or up where there is no gate; `second` is up where
// there is a gate. Each is a matrix where it is read for every neuron, or rows where only for chosen ones.
struct NeuronFfnParts {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Linear> first, second;
  std::shared_ptr<const NeuronRows> first_rows, second_rows, down;
  std::vector<std::shared_ptr<const Linear>> predictor;  // one matrix after the other
  std::vector<float> factors;                            // of scores, one to a neuron, or empty
  Activation activation;
  Way way;
  Score score;
  bool raw_input;  // the predictor reads x before the norm
  std::shared_ptr<const Norm> post_norm;
  int64_t index;  // of its chooser in sequences
};

// What somebody else says of the neurons of each row of a batch, where its neurons are chosen.
//
// With `cutoffs`, a row has bits, 32 to a word, and behind them room for as many numbers as there are
// neurons: bits of the neurons that are chosen where the row's cut-off is a number, scores where it is NaN.
// Where zeros alone are left out, the numbers are the activations of those that are chosen, each in its
// place. Without, a row is scores alone.
struct Said {
  const float* rows = nullptr;  // null: nothing
  int64_t neurons = 0;
  const float* cutoffs = nullptr;  // of rows, `stride` apart
  int64_t stride = 0;

  static int64_t bit_words(int64_t neurons) { return ceil_div(neurons, 32); }
  static int64_t width(int64_t neurons) { return bit_words(neurons) + neurons; }

  // Null where bits are said instead.
  const float* scores(int64_t row) const {
    if (!cutoffs) return rows + row * neurons;
    return std::isnan(cutoffs[row * stride]) ? numbers(row) : nullptr;
  }
  const float* bits(int64_t row) const { return rows + row * width(neurons); }
  const float* numbers(int64_t row) const { return bits(row) + bit_words(neurons); }
};

class NeuronFfn {
 public:
  explicit NeuronFfn(NeuronFfnParts parts)
      : parts_(std::move(parts)), tally_(std::make_unique<Tally>(neurons())) {}
  ~NeuronFfn() { parts_.runtime->pool.quiesce(); }

  int64_t hidden() const { return parts_.down->cols(); }
  int64_t neurons() const { return parts_.down->rows(); }
  int64_t index() const { return parts_.index; }
  const Tally& tally() const { return *tally_; }
  int64_t parts() const { return parts_of(*parts_.runtime, neurons()); }
  ThreadPool& pool() const { return parts_.runtime->pool; }

  // out += ffn(x); out may be x. In lossless spans no neurons are left out but zeros, and nothing is counted.
  // What the predictor says may be given, or what the activations are where zeros alone are left out; where
  // it has no matrices it must be, if neurons are chosen for any row.
  void forward(const float* x, float* out, const Batch& batch, const Said& said = {}) const;

  // Where each row of a batch, which it is about to compute, cuts off, to numbers `stride` apart. NaN: that
  // is not known before, or all scores are wanted, for an audit. Infinite: nothing is asked.
  void cut_offs(const Batch& batch, float* to, int64_t stride) const;

  // Has the memory of neurons that are likely to be chosen next fetched into the threads' caches, each by the
  // thread that will probably read it; for as long as `enough` does not hold.
  void prefetch(const Batch& batch, const Said& said, const std::function<bool()>& enough) const;

  // Whether zeros alone are left out.
  bool exact() const { return parts_.way == Way::kExact; }
  // Whether scores must be given where neurons are chosen, and whether they are in a batch.
  bool needs_scores() const { return parts_.way == Way::kPredictor && parts_.predictor.empty(); }
  bool wants_scores(const Batch& batch) const;

  // Why it cannot compute the batch; empty where it can.
  std::string refuses(const Batch& batch) const;

  // The activation's input and the neurons' values, both (rows x neurons).
  void neurons(const float* x, int64_t rows, float* pre, float* h) const;

 private:
  struct Input;

  // A row that neurons are chosen for, or that is audited.
  struct Row {
    int64_t row;  // of the batch, or of its lossless rows
    int64_t position;
    Chooser* chooser;
  };

  Input pack_input(Session& session, const float* x, int64_t rows) const;
  const float* predict(Session& session, const Input& input) const;
  float* values(Session& session, const Input& input) const;
  void add_lossless(Session& session, const float* x, float* out, int64_t rows, const Row* due,
                    int64_t n_due) const;
  const float* add_all_neurons(Session& session, const float* x, float* out, int64_t rows) const;
  void add_chosen_neurons(Session& session, const float* x, float* out, const Said& said, const Row* of,
                          int64_t rows) const;
  Chooser* chooser(const Span& span) const;
  void choose(const float* scores, float cutoff, uint64_t* bits) const;
  void take(const Said& said, int64_t row, float cutoff, uint64_t* bits, float* known) const;

  const NeuronFfnParts parts_;
  const std::unique_ptr<Tally> tally_;
};

}  // namespace hotset
