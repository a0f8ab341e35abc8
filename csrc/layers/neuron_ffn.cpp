#include "layers/neuron_ffn.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

namespace hotset {
namespace {

const Linear* or_else(const std::shared_ptr<const Linear>& a, const std::shared_ptr<const Linear>& b) {
  return a ? a.get() : b.get();
}

// The cut-off that exactly what is not zero reaches: the least number above it.
constexpr float kNotZero = std::numeric_limits<float>::denorm_min();

// A copy of some rows.
float* gather(Session& session, const float* from, const int64_t* rows, int64_t n, int64_t cols) {
  auto* to = session.allocate<float>(n * cols);
  for (int64_t i = 0; i < n; ++i) std::copy_n(from + rows[i] * cols, cols, to + i * cols);
  return to;
}

// What rows show whose neurons are all computed.
struct LookJob {
  const float* scores;         // (rows x neurons)
  const float* const* values;  // of each row
  int64_t neurons;
  const float* may_be_lost;  // by each row
  Shown* shown;

  static size_t scratch_bytes() { return sizeof(Shown); }

  void compute(int64_t row, void* scratch) const {
    constexpr float kAll = -std::numeric_limits<float>::infinity();
    new (scratch) Shown(Cutoff::look(scores + row * neurons, values[row], neurons, kAll, may_be_lost[row]));
  }
  void commit(int64_t row, void* scratch) const { shown[row] = *static_cast<const Shown*>(scratch); }
};

}  // namespace

// One call's input, packed for whoever reads it.
struct NeuronFfn::Input {
  int64_t rows;
  Activations normed;  // for first, second and a predictor that reads what they read
  Activations raw;     // for a predictor that does not
};

NeuronFfn::Input NeuronFfn::pack_input(Session& session, const float* x, int64_t rows) const {
  Input input = {rows, {{nullptr, nullptr}, rows}, {{nullptr, nullptr}, rows}};
  const Runtime& runtime = *parts_.runtime;
  const std::shared_ptr<const Linear> predictor = parts_.predictor.empty() ? nullptr : parts_.predictor[0];
  // Where first is no matrix, second is none either.
  const Linear* one = or_else(parts_.first, parts_.raw_input ? nullptr : predictor);
  if (one) {
    const Linear* two = parts_.second ? parts_.second.get() : one;
    const Linear* three = predictor && !parts_.raw_input ? predictor.get() : one;
    input.normed = pack(session, runtime, x, rows, &parts_.norm, {one, two, three});
  }
  if (parts_.raw_input && predictor) {
    input.raw = pack(session, runtime, x, rows, nullptr, {predictor.get()});
  }
  return input;
}

// The predictor's scores (rows x neurons).
const float* NeuronFfn::predict(Session& session, const Input& input) const {
  const Zone zone(parts_.runtime->zones, ZoneName::kFfnPredictor);
  const Runtime& runtime = *parts_.runtime;
  Activations x = parts_.raw_input ? input.raw : input.normed;
  float* scores = nullptr;
  for (size_t i = 0; i < parts_.predictor.size(); ++i) {
    const Linear& matrix = *parts_.predictor[i];
    if (i > 0) x = pack(session, runtime, scores, input.rows, nullptr, {&matrix});
    scores = session.allocate<float>(input.rows * matrix.rows());
    const bool relu = parts_.score == Score::kLowRankRelu && i + 1 < parts_.predictor.size();
    if (relu) {
      multiply_gated(session, runtime, x, nullptr, matrix, Activation::kRelu, scores);
    } else {
      multiply(session, runtime, x, {{&matrix, scores, matrix.rows()}}, false);
    }
  }
  return scores;
}

// All neurons' values, or their activations where `second` is read by rows.
float* NeuronFfn::values(Session& session, const Input& input) const {
  const Zone zone(parts_.runtime->zones, ZoneName::kFfnUp);
  auto* h = session.allocate<float>(input.rows * neurons());
  const bool gated = parts_.first && parts_.second;
  multiply_gated(session, *parts_.runtime, input.normed, gated ? parts_.first.get() : nullptr,
                 gated ? *parts_.second : *parts_.first, gated ? parts_.activation : alone(parts_.activation),
                 h);
  return h;
}

Chooser* NeuronFfn::chooser(const Span& span) const {
  const bool chooses = span.sequence && parts_.index < static_cast<int64_t>(span.sequence->choosers.size());
  return chooses ? &span.sequence->choosers[parts_.index] : nullptr;
}

void NeuronFfn::cut_offs(const Batch& batch, float* to, int64_t stride) const {
  for (int64_t row = 0; row < batch.rows(); ++row) {
    const Span& span = batch.span_of(row);
    Chooser* of = chooser(span);
    float& cutoff = to[row * stride];
    cutoff = std::numeric_limits<float>::infinity();
    if (span.lossless || !of) continue;
    bool unknown = of->cutoff.due(batch.position(row), false);
    // An audit moves it for the rows that follow.
    for (int64_t before = 0; before < row; ++before) {
      unknown |= chooser(batch.span_of(before)) == of && std::isnan(to[before * stride]);
    }
    cutoff = unknown ? std::numeric_limits<float>::quiet_NaN() : exact() ? kNotZero : of->cutoff.value();
  }
}

void NeuronFfn::prefetch(const Batch& batch, const Said& said, const std::function<bool()>& enough) const {
  Session session(parts_.runtime->pool);
  const int64_t words = ceil_div(neurons(), 64);
  auto *bits = session.allocate<uint64_t>(words), *of_row = session.allocate<uint64_t>(words);
  std::fill_n(bits, words, 0);
  for (int64_t row = 0; row < batch.rows(); ++row) {
    if (said.scores(row)) continue;
    take(said, row, 0, of_row, nullptr);
    for (int64_t w = 0; w < words; ++w) bits[w] |= of_row[w];
  }
  fetch_neurons(session, *parts_.runtime, bits, *parts_.down, enough);
}

bool NeuronFfn::wants_scores(const Batch& batch) const {
  if (!needs_scores()) return false;
  const std::vector<Span>& spans = batch.spans();
  return std::any_of(spans.begin(), spans.end(), [](const Span& span) { return !span.lossless; });
}

std::string NeuronFfn::refuses(const Batch& batch) const {
  for (const Span& span : batch.spans()) {
    if (span.lossless) continue;
    const auto choosers = span.sequence ? static_cast<int64_t>(span.sequence->choosers.size()) : 0;
    if (parts_.index < 0 || parts_.index >= choosers) return "the sequence is another model's";
  }
  return {};
}

// Rows of lossless spans, which need nearly all neurons together, go one way, however few they are; all
// others go the other way, however many: so that a row's bits do not depend on its neighbours.
void NeuronFfn::forward(const float* x, float* out, const Batch& batch, const Said& said) const {
  Session session(parts_.runtime->pool);
  const Zone zone(parts_.runtime->zones, ZoneName::kFfnChosen);
  const int64_t width = hidden();
  auto* lossless = session.allocate<int64_t>(batch.rows());
  auto* chosen = session.allocate<int64_t>(batch.rows());
  auto* of_chosen = session.allocate<Row>(batch.rows());
  auto* due = session.allocate<Row>(batch.rows());
  int64_t n_lossless = 0, n_chosen = 0, n_due = 0;
  for (int64_t row = 0; row < batch.rows(); ++row) {
    const Span& span = batch.span_of(row);
    Chooser* of = chooser(span);
    const int64_t position = batch.position(row);
    if (!span.lossless) {
      of_chosen[n_chosen] = {row, position, of};
      chosen[n_chosen++] = row;
      continue;
    }
    if (of && !parts_.predictor.empty() && of->cutoff.due(position, true)) {
      due[n_due++] = {n_lossless, position, of};
    }
    lossless[n_lossless++] = row;
  }
  if (n_chosen == 0) return add_lossless(session, x, out, n_lossless, due, n_due);
  if (n_lossless == 0) return add_chosen_neurons(session, x, out, said, of_chosen, n_chosen);

  // Gathered before any result is written, as out may be x.
  const auto scatter = [&](const float* from, const int64_t* rows, int64_t n) {
    for (int64_t i = 0; i < n; ++i) std::copy_n(from + i * width, width, out + rows[i] * width);
  };
  const float *lossless_x = gather(session, x, lossless, n_lossless, width),
              *x_of = gather(session, x, chosen, n_chosen, width);
  float *lossless_out = gather(session, out, lossless, n_lossless, width),
        *out_of = gather(session, out, chosen, n_chosen, width);
  add_lossless(session, lossless_x, lossless_out, n_lossless, due, n_due);
  add_chosen_neurons(session, x_of, out_of, said, of_chosen, n_chosen);
  scatter(lossless_out, lossless, n_lossless);
  scatter(out_of, chosen, n_chosen);
}

// All neurons of all rows; those that are `due` are audited, for which only their scores are missing.
void NeuronFfn::add_lossless(Session& session, const float* x, float* out, int64_t rows, const Row* due,
                             int64_t n_due) const {
  const float* scores = nullptr;
  if (n_due > 0) {
    auto* of = session.allocate<int64_t>(n_due);
    for (int64_t i = 0; i < n_due; ++i) of[i] = due[i].row;
    scores = predict(session, pack_input(session, gather(session, x, of, n_due, hidden()), n_due));
  }
  const float* h = add_all_neurons(session, x, out, rows);
  auto* shown = session.allocate<Shown>(n_due);
  auto* values = session.allocate<const float*>(n_due);
  auto* may_be_lost = session.allocate<float>(n_due);
  for (int64_t i = 0; i < n_due; ++i) {
    values[i] = h + due[i].row * neurons();
    may_be_lost[i] = 1 - due[i].chooser->cutoff.plan().kept;
  }
  session.run(n_due, LookJob{scores, values, neurons(), may_be_lost, shown});
  for (int64_t i = 0; i < n_due; ++i) due[i].chooser->cutoff.learn(due[i].position, shown[i], true);
}

// Returns their values (rows x neurons).
const float* NeuronFfn::add_all_neurons(Session& session, const float* x, float* out, int64_t rows) const {
  const Runtime& runtime = *parts_.runtime;
  Zone zone(runtime.zones, ZoneName::kFfnUp);
  const NeuronRows* any = parts_.first_rows ? parts_.first_rows.get() : parts_.second_rows.get();
  if (!any) {
    const float* all = values(session, pack_input(session, x, rows));
    zone.next(ZoneName::kFfnDown);
    add_all(session, runtime, all, rows, *parts_.down, parts_.post_norm.get(), out);
    return all;
  }
  // Rows are multiplied as panels, which want the activations that a matrix of their type wants.
  const Activations normed = pack_as(session, runtime, x, rows, parts_.norm, *any, parts_.first.get());
  auto* h = session.allocate<float>(rows * neurons());
  if (parts_.first) {
    multiply_gated(session, runtime, normed, nullptr, *parts_.first, alone(parts_.activation), h);
  } else {
    multiply_rows(session, runtime, normed, *parts_.first_rows, Apply::kActivate, alone(parts_.activation),
                  h);
  }
  if (parts_.second_rows) {
    multiply_rows(session, runtime, normed, *parts_.second_rows, Apply::kTimes, parts_.activation, h);
  }
  zone.next(ZoneName::kFfnDown);
  add_all(session, runtime, h, rows, *parts_.down, parts_.post_norm.get(), out);
  return h;
}

// Bits of the neurons whose score reaches the cut-off.
void NeuronFfn::choose(const float* scores, float cutoff, uint64_t* bits) const {
  for (int64_t first = 0; first < neurons(); first += 64) {
    const int64_t n = std::min<int64_t>(64, neurons() - first);
    *bits++ = parts_.runtime->neurons.select(scores + first, nullptr, false, n, cutoff);
  }
}

// What is said of a row: bits of the neurons that it chooses and, where there is `known`, their activations.
void NeuronFfn::take(const Said& said, int64_t row, float cutoff, uint64_t* bits, float* known) const {
  if (const float* scores = said.scores(row)) return choose(scores, cutoff, bits);
  const int64_t words = ceil_div(neurons(), 64);
  bits[words - 1] = 0;
  std::memcpy(bits, said.bits(row), Said::bit_words(neurons()) * sizeof(float));
  for (int64_t w = 0; known && w < words; ++w) {
    for (uint64_t of = bits[w]; of != 0; of &= of - 1) {
      const int64_t j = 64 * w + std::countr_zero(of);
      known[j] = said.numbers(row)[j];
    }
  }
}

void NeuronFfn::add_chosen_neurons(Session& session, const float* x, float* out, const Said& said,
                                   const Row* of, int64_t rows) const {
  const Runtime& runtime = *parts_.runtime;
  const bool predicted = parts_.way == Way::kPredictor;
  const bool told = said.rows && (predicted || (exact() && said.cutoffs));
  Chosen chosen{};
  chosen.rows = rows;
  chosen.neurons = neurons();
  chosen.activation = parts_.activation;
  chosen.first = parts_.first_rows.get();
  chosen.second = parts_.second_rows.get();
  if (const NeuronRows* any = chosen.first ? chosen.first : chosen.second) {
    chosen.x = pack_for_rows(session, runtime, x, rows, &parts_.norm, any->packed.type, hidden());
  }
  chosen.everything = parts_.way == Way::kDense;
  chosen.tally = tally_.get();
  const int64_t words = ceil_div(neurons(), 64);
  auto* bits = told ? session.allocate<uint64_t>(rows * words) : nullptr;
  auto* known = told && exact() ? session.allocate<float>(rows * neurons()) : nullptr;
  if (told) {
    chosen.bits = bits;
    chosen.known = known;
  } else {
    const Input input = pack_input(session, x, rows);
    chosen.known = parts_.first ? values(session, input) : nullptr;
    if (!chosen.everything) chosen.scores = predicted ? predict(session, input) : chosen.known;
    chosen.factors = parts_.factors.empty() ? nullptr : parts_.factors.data();
    chosen.magnitude = !predicted;
  }
  // What an audited row shows counts from its sequence's next row on, so that the rows up to it are computed
  // first.
  auto* cutoffs = session.allocate<float>(rows);
  auto* looked_at = session.allocate<uint64_t>(rows);
  chosen.cutoffs = cutoffs;
  for (int64_t start = 0, end = 0; start < rows; start = end) {
    bool audited = false, any_audited = false;
    do {
      Cutoff& cutoff = of[end].chooser->cutoff;
      audited = predicted && cutoff.due(of[end].position, false);
      any_audited |= audited;
      looked_at[end] = audited ? cutoff.looked_at() : 0;
      cutoffs[end] = exact() ? kNotZero : cutoff.value();
      if (told) {
        take(said, of[end].row, cutoffs[end], bits + end * words, known ? known + end * neurons() : nullptr);
      }
      ++end;
    } while (end < rows && !(audited && of[end].chooser == of[end - 1].chooser));
    Chosen part = chosen.part(start, end - start);
    if (any_audited) {
      part.looked_at = looked_at + start;
      part.values = session.allocate<float>(part.rows * neurons());
      std::fill_n(part.values, part.rows * neurons(), 0.0f);
    }
    const Touched* touched =
        add_chosen(session, runtime, part, *parts_.down, parts_.post_norm.get(), out + start * hidden());
    for (int64_t t = start; t < end; ++t) {
      Chooser& chooser = *of[t].chooser;
      const Touched& of_row = touched[t - start];
      ++chooser.rows;
      chooser.read += of_row.read;
      chooser.fired += of_row.fired;
      const int64_t n = predicted ? of_row.chosen : of_row.read;
      chooser.chosen += n;
      tally_->chosen.fetch_add(n, std::memory_order_relaxed);
      tally_->rows.fetch_add(1, std::memory_order_relaxed);
      if (!predicted || !chooser.cutoff.due(of[t].position, false)) continue;
      ++chooser.audits;
      const float* scores = told ? said.scores(of[t].row) : chosen.scores + t * neurons();
      const float* h = part.values + (t - start) * neurons();
      const float may_be_lost = 1 - chooser.cutoff.plan().kept;
      const Shown shown = Cutoff::look(scores, h, neurons(), cutoffs[t], may_be_lost);
      chooser.kept += chooser.cutoff.learn(of[t].position, shown, false);
    }
  }
}

void NeuronFfn::neurons(const float* x, int64_t rows, float* pre, float* h) const {
  Session session(parts_.runtime->pool);
  const Runtime& runtime = *parts_.runtime;
  const NeuronRows* any = parts_.first_rows ? parts_.first_rows.get() : parts_.second_rows.get();
  const Activations normed = any ? pack_as(session, runtime, x, rows, parts_.norm, *any, parts_.first.get())
                                 : pack_input(session, x, rows).normed;
  const int64_t n = rows * neurons();
  const auto product = [&](const Linear* matrix, const NeuronRows* by_row, float* y) {
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
