// An FFN stored by neuron, which computes only some neurons for each token.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "layers/neuron_products.h"
#include "layers/neuron_prompts.h"

namespace hotset {

// As in Python's hotset.config; the copies of a gate are one kind here, a matrix like any other.
enum class Way : int32_t { kDense, kExact, kThreshold, kPredictor };
enum class Score : int32_t { kNone, kGate, kDown, kLowRank, kLowRankRelu, kCopy };

// `first` is what the activation is applied to: gate, or up where there is no gate; `second` is up where
// there is a gate. Each is a matrix where it is read for every neuron, or rows where only for chosen ones.
struct NeuronFfnParts {
  std::shared_ptr<Runtime> runtime;
  Norm norm;
  std::shared_ptr<const Matrix> first, second;
  std::shared_ptr<const NeuronRows> first_rows, second_rows, down;
  std::vector<std::shared_ptr<const Matrix>> predictor;  // one matrix after the other
  std::vector<float> factors;                            // of scores, one to a neuron, or empty
  Activation activation;
  Way way;
  Score score;
  bool raw_input;  // the predictor reads x before the norm
  std::shared_ptr<const Norm> post_norm;
  float recall;  // of the neurons that fire, the share to be predicted; 0: no audits
  int64_t audit_period, audit_offset;
};

class NeuronFfn {
 public:
  // In calls of more tokens, all neurons are computed.
  static constexpr int64_t kMostChosen = kMostListed;

  NeuronFfn(NeuronFfnParts parts, float cutoff);
  ~NeuronFfn() { parts_.runtime->pool.quiesce(); }

  int64_t hidden() const { return parts_.down->cols(); }
  int64_t neurons() const { return parts_.down->rows(); }
  ThreadPool& pool() const { return parts_.runtime->pool; }

  // out += ffn(x); out may be x. With `dense` no neurons are left out but zeros, and nothing is counted where
  // the way would have left out others. The predictor's scores (rows x neurons) may be given; where it has no
  // matrices they must be, if neurons are chosen.
  void forward(const float* x, float* out, int64_t rows, bool dense, const float* scores = nullptr);

  bool wants_scores(int64_t rows, bool dense) const {
    return rows <= kMostChosen && !dense && parts_.way == Way::kPredictor && parts_.predictor.empty();
  }

  // The activation's input and the neurons' values, both (rows x neurons).
  void neurons(const float* x, int64_t rows, float* pre, float* h) const;

  float cutoff() const { return cutoff_.load(std::memory_order_relaxed); }
  void set_cutoff(float cutoff) { cutoff_.store(cutoff, std::memory_order_relaxed); }
  float recall_seen() const { return recall_seen_.load(std::memory_order_relaxed); }

  int64_t tokens() const { return tokens_.load(std::memory_order_relaxed); }
  int64_t read() const { return read_.load(std::memory_order_relaxed); }
  int64_t fired() const { return fired_.load(std::memory_order_relaxed); }

 private:
  struct Input;

  Input pack_input(Session& session, const float* x, int64_t rows) const;
  const float* predict(Session& session, const Input& input) const;
  float* values(Session& session, const Input& input) const;
  void forward_chosen(Session& session, const float* x, float* out, int64_t rows, bool dense,
                      const float* scores);
  void audit(Session& session, const Chosen& chosen);

  const NeuronFfnParts parts_;
  std::atomic<float> cutoff_, recall_seen_;
  std::atomic<int64_t> tokens_{0}, calls_{0};
  std::atomic<int64_t> read_{0}, fired_{0};
};

}  // namespace hotset
