#include "layers/neuron_ffn.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace hotset {
namespace {

// How fast an audit moves the cut-off, and the recall that is shown.
constexpr float kAuditRate = 0.1f;

const Matrix* or_else(const std::shared_ptr<const Matrix>& a, const std::shared_ptr<const Matrix>& b) {
  return a ? a.get() : b.get();
}

// A copy for regions to read (see thread_pool.h).
const float* keep(Session& session, const float* values, int64_t n) {
  auto* copy = session.allocate<float>(n);
  std::copy_n(values, n, copy);
  return copy;
}

}  // namespace

// One call's input, packed for whoever reads it.
struct NeuronFfn::Input {
  int64_t rows;
  Activations normed;  // for first, second and a predictor that reads what they read
  Activations raw;     // for a predictor that does not
};

NeuronFfn::NeuronFfn(NeuronFfnParts parts, float cutoff)
    : parts_(std::move(parts)), cutoff_(cutoff), recall_seen_(std::numeric_limits<float>::quiet_NaN()) {}

NeuronFfn::Input NeuronFfn::pack_input(Session& session, const float* x, int64_t rows) const {
  Input input = {rows, {{nullptr, nullptr}, rows}, {{nullptr, nullptr}, rows}};
  const Runtime& runtime = *parts_.runtime;
  const std::shared_ptr<const Matrix> predictor = parts_.predictor.empty() ? nullptr : parts_.predictor[0];
  // Where first is no matrix, second is none either.
  const Matrix* one = or_else(parts_.first, parts_.raw_input ? nullptr : predictor);
  if (one) {
    const Matrix* two = parts_.second ? parts_.second.get() : one;
    const Matrix* three = predictor && !parts_.raw_input ? predictor.get() : one;
    input.normed = pack(session, runtime, x, rows, &parts_.norm, {one, two, three});
  }
  if (parts_.raw_input && predictor) {
    input.raw = pack(session, runtime, x, rows, nullptr, {predictor.get()});
  }
  return input;
}

// The predictor's scores (rows x neurons).
const float* NeuronFfn::predict(Session& session, const Input& input) const {
  const Runtime& runtime = *parts_.runtime;
  Activations x = parts_.raw_input ? input.raw : input.normed;
  float* scores = nullptr;
  for (size_t i = 0; i < parts_.predictor.size(); ++i) {
    const Matrix& matrix = *parts_.predictor[i];
    if (i > 0) x = pack(session, runtime, scores, input.rows, nullptr, {&matrix});
    scores = session.allocate<float>(input.rows * matrix.rows());
    const bool relu = parts_.score == Score::kLowRankRelu && i + 1 < parts_.predictor.size();
    if (relu) {
      multiply_neurons(session, runtime, x, nullptr, matrix, Activation::kRelu, scores);
    } else {
      multiply(session, runtime, x, {{&matrix, scores, matrix.rows()}}, false);
    }
  }
  return scores;
}

// All neurons' values, or their activations where `second` is read by rows.
float* NeuronFfn::values(Session& session, const Input& input) const {
  auto* h = session.allocate<float>(input.rows * neurons());
  const bool gated = parts_.first && parts_.second;
  multiply_neurons(session, *parts_.runtime, input.normed, gated ? parts_.first.get() : nullptr,
                   gated ? *parts_.second : *parts_.first,
                   gated ? parts_.activation : alone(parts_.activation), h);
  return h;
}

void NeuronFfn::forward(const float* x, float* out, int64_t rows, bool dense, const float* scores) {
  Session session(parts_.runtime->pool);
  if (rows <= kMostChosen) return forward_chosen(session, x, out, rows, dense, scores);
  const Runtime& runtime = *parts_.runtime;
  const NeuronRows* any = parts_.first_rows ? parts_.first_rows.get() : parts_.second_rows.get();
  if (!any) {
    add_all(session, runtime, values(session, pack_input(session, x, rows)), rows, *parts_.down,
            parts_.post_norm.get(), out);
    return;
  }
  // Rows are multiplied as panels, which want the activations that a matrix of their type wants.
  const Activations normed = pack_as(session, runtime, x, rows, parts_.norm, *any, parts_.first.get());
  auto* h = session.allocate<float>(rows * neurons());
  if (parts_.first) {
    multiply_neurons(session, runtime, normed, nullptr, *parts_.first, alone(parts_.activation), h);
  } else {
    multiply_rows(session, runtime, normed, *parts_.first_rows, Apply::kActivate, alone(parts_.activation),
                  h);
  }
  if (parts_.second_rows) {
    multiply_rows(session, runtime, normed, *parts_.second_rows, Apply::kTimes, parts_.activation, h);
  }
  add_all(session, runtime, h, rows, *parts_.down, parts_.post_norm.get(), out);
}

void NeuronFfn::forward_chosen(Session& session, const float* x, float* out, int64_t rows, bool dense,
                               const float* scores) {
  const Runtime& runtime = *parts_.runtime;
  const bool predicted = parts_.way == Way::kPredictor, exact = parts_.way == Way::kExact;
  const bool overruled = dense && (predicted || parts_.way == Way::kThreshold);
  const Input input = pack_input(session, x, rows);
  Chosen chosen{};
  chosen.tokens = rows;
  chosen.neurons = neurons();
  chosen.activation = parts_.activation;
  chosen.first = parts_.first_rows.get();
  chosen.second = parts_.second_rows.get();
  if (const NeuronRows* any = chosen.first ? chosen.first : chosen.second) {
    chosen.x = pack_for_rows(session, runtime, x, rows, &parts_.norm, *any);
  }
  chosen.known = parts_.first ? values(session, input) : nullptr;
  if (parts_.way == Way::kDense || overruled) {
    chosen.everything = !overruled;
  } else {
    chosen.scores = !predicted ? chosen.known
                    : scores   ? keep(session, scores, rows * neurons())
                               : predict(session, input);
    chosen.factors = parts_.factors.empty() ? nullptr : parts_.factors.data();
    chosen.magnitude = !predicted;
    // Exactly what is not zero: the least number above it.
    chosen.cutoff = exact ? std::numeric_limits<float>::denorm_min() : cutoff();
    chosen.by_token = !exact;  // zeros add nothing
    const int64_t call = calls_.fetch_add(1, std::memory_order_relaxed);
    if (predicted && parts_.recall > 0 && rows == 1 && chosen.first &&
        call % parts_.audit_period == parts_.audit_offset) {
      audit(session, chosen);
    }
  }
  const Touched touched = add_chosen(session, runtime, chosen, *parts_.down, parts_.post_norm.get(), out);
  if (dense) return;
  tokens_.fetch_add(rows, std::memory_order_relaxed);
  read_.fetch_add(touched.read, std::memory_order_relaxed);
  fired_.fetch_add(touched.fired, std::memory_order_relaxed);
}

// Computes which neurons truly fire, and moves the cut-off towards the one that would have kept the share
// `recall` of them.
void NeuronFfn::audit(Session& session, const Chosen& chosen) {
  auto* pre = session.allocate<float>(neurons());
  multiply_all_rows(session, *parts_.runtime, chosen.x, *chosen.first, pre);
  auto* scores = session.allocate<float>(neurons());
  int64_t fired = 0, found = 0;
  for (int64_t j = 0; j < neurons(); ++j) {
    if (!(pre[j] > 0)) continue;
    scores[fired++] = chosen.scores[j];
    found += chosen.scores[j] >= chosen.cutoff;
  }
  if (fired == 0) return;
  const auto missed = static_cast<int64_t>((1 - parts_.recall) * static_cast<float>(fired));
  std::nth_element(scores, scores + missed, scores + fired);
  set_cutoff(cutoff() + kAuditRate * (scores[missed] - cutoff()));
  const float recall = static_cast<float>(found) / static_cast<float>(fired), before = recall_seen();
  recall_seen_.store(std::isnan(before) ? recall : before + kAuditRate * (recall - before),
                     std::memory_order_relaxed);
}

void NeuronFfn::neurons(const float* x, int64_t rows, float* pre, float* h) const {
  Session session(parts_.runtime->pool);
  const Runtime& runtime = *parts_.runtime;
  const NeuronRows* any = parts_.first_rows ? parts_.first_rows.get() : parts_.second_rows.get();
  const Activations normed = any ? pack_as(session, runtime, x, rows, parts_.norm, *any, parts_.first.get())
                                 : pack_input(session, x, rows).normed;
  const int64_t n = rows * neurons();
  const auto product = [&](const Matrix* matrix, const NeuronRows* by_row, float* y) {
    if (matrix) {
      multiply(session, runtime, normed, {{matrix, y, matrix->rows()}}, false);
    } else {
      multiply_rows(session, runtime, normed, *by_row, Apply::kWrite, parts_.activation, y);
    }
  };
  product(parts_.first.get(), parts_.first_rows.get(), pre);
  std::copy_n(pre, n, h);
  float* up = nullptr;
  if (parts_.second || parts_.second_rows) {
    up = session.allocate<float>(n);
    product(parts_.second.get(), parts_.second_rows.get(), up);
  }
  runtime.vector.activate(parts_.activation, h, up, n);
}

}  // namespace hotset
