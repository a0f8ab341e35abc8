#include "layers/experts.h"

#include <algorithm>
#include <cmath>

#include "layers/expert_neurons.h"
#include "layers/neuron_prompts.h"

namespace hotset {
namespace {

// Rows whose neurons are in memory at once.
constexpr int64_t kMostRows = 512;

// The same of experts stored by neuron, for whose parts each row has several results.
constexpr int64_t kMostRowsByNeuron = 256;

constexpr int64_t kRowGroup = 16;

// Writes each row's weights, zero for experts that it does not select. Cheap, and all in its commit as in
// products.cpp.
struct SelectJob {
  const Routing* routing;
  const float* logits;
  int64_t rows;
  float* weights;

  int64_t floats() const { return routing->scratch_floats() + routing->used; }
  size_t scratch_bytes() const {
    return static_cast<size_t>(floats()) * sizeof(float) +
           static_cast<size_t>(routing->used) * sizeof(int32_t);
  }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void* scratch) const {
    auto* of_selected = static_cast<float*>(scratch) + routing->scratch_floats();
    auto* experts = reinterpret_cast<int32_t*>(static_cast<float*>(scratch) + floats());
    for (int64_t row = chunk * kRowGroup; row < std::min((chunk + 1) * kRowGroup, rows); ++row) {
      float* to = weights + row * routing->count;
      routing->select(logits + row * routing->count, static_cast<float*>(scratch), experts, of_selected);
      std::fill_n(to, routing->count, 0.0f);
      for (int64_t i = 0; i < routing->used; ++i) to[experts[i]] = of_selected[i];
    }
  }
};

bool is_selected(float weight) { return !(weight <= 0); }  // or not a number

}  // namespace

// What the router says of a batch: which experts are used, and by which rows.
struct Experts::Selected {
  int64_t n;                       // experts
  const int32_t* experts;          // ascending
  const int64_t *counts, *firsts;  // of each: its rows, and where they begin in these:
  const int32_t* rows;
  const float* weights;
  const float* shared;  // the shared expert's weight for each row, or null
};

Activations Experts::pack_input(Session& session, const float* x, int64_t rows) const {
  const LinearKernels& linear = runtime->linear;
  unsigned formats = 1u << router->format;
  for (size_t i = 0; i < (gated ? 2 : 1); ++i)
    formats |= 1u << linear.activation_format(bank->matrix(i).type);
  if (shared) {
    for (const Linear* matrix : {shared->gate.get(), shared->up.get(), shared->gate_of.get()}) {
      if (matrix) formats |= 1u << matrix->format;
    }
  }
  return pack_formats(session, *runtime, x, rows, hidden(), &norm, formats);
}

void Experts::route(const float* x, int64_t rows, float* logits) const {
  Session session(runtime->pool);
  const Zone zone(runtime->zones, ZoneName::kFfnRouter);
  const Activations packed = pack(session, *runtime, x, rows, nullptr, {router.get()});
  multiply(session, *runtime, packed, {{router.get(), logits, routing.count}}, false);
}

void Experts::select(const float* x, int64_t rows, const float* logits, float* weights) const {
  Session session(runtime->pool);
  const Zone zone(runtime->zones, ZoneName::kFfnRouter);
  if (!logits) logits = router_logits(session, x, rows, router_norm ? *router_norm : norm);
  session.run(ceil_div(rows, kRowGroup), SelectJob{&routing, logits, rows, weights});
}

const float* Experts::router_logits(Session& session, const float* x, int64_t rows,
                                    const Norm& norm_of_x) const {
  auto* logits = session.allocate<float>(rows * routing.count);
  const Activations packed = pack(session, *runtime, x, rows, &norm_of_x, {router.get()});
  multiply(session, *runtime, packed, {{router.get(), logits, routing.count}}, false);
  return logits;
}

Experts::Selected Experts::selected(Session& session, const Activations& x, const Given& given) const {
  const int64_t rows = x.rows, count = routing.count;
  const bool gate_of = shared && shared->gate_of;
  auto* of_shared = shared ? session.allocate<float>(rows) : nullptr;
  const float *logits = given.logits, *weights = given.weights;
  float* own = logits || weights ? nullptr : session.allocate<float>(rows * count);
  const Output of_router = {router.get(), own, count};
  const Output of_gate = {gate_of ? shared->gate_of.get() : nullptr, of_shared, 1};
  if (own && gate_of) {
    multiply(session, *runtime, x, {of_router, of_gate}, false);
  } else if (own) {
    multiply(session, *runtime, x, {of_router}, false);
  } else if (gate_of) {
    multiply(session, *runtime, x, {of_gate}, false);
  }
  for (int64_t row = 0; shared && row < rows; ++row) {
    of_shared[row] = gate_of ? 0.5f * (1 + std::tanh(0.5f * of_shared[row])) : 1.0f;
  }
  if (!weights) {
    auto* to = session.allocate<float>(rows * count);
    session.run(ceil_div(rows, kRowGroup), SelectJob{&routing, own ? own : logits, rows, to});
    weights = to;
  }

  // The rows of each expert, in their order.
  auto* places = session.allocate<int64_t>(count);
  std::fill_n(places, count, 0);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t expert = 0; expert < count; ++expert)
      places[expert] += is_selected(weights[i * count + expert]);
  }
  auto* chosen = session.allocate<int32_t>(count);
  auto *counts = session.allocate<int64_t>(count), *firsts = session.allocate<int64_t>(count);
  int64_t n = 0, first = 0;
  for (int64_t expert = 0; expert < count; ++expert) {
    if (places[expert] == 0) continue;
    chosen[n] = static_cast<int32_t>(expert);
    counts[n] = places[expert];
    firsts[n++] = first;
    places[expert] = std::exchange(first, first + places[expert]);
  }
  auto* of_expert = session.allocate<int32_t>(first);
  auto* sorted = session.allocate<float>(first);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t expert = 0; expert < count; ++expert) {
      const float weight = weights[i * count + expert];
      if (!is_selected(weight)) continue;
      of_expert[places[expert]] = static_cast<int32_t>(i);
      sorted[places[expert]++] = weight;
    }
  }
  return {n, chosen, counts, firsts, of_expert, sorted, of_shared};
}

// The selected experts, packed, and the shared one as the last.
ExpertUses Experts::uses(Session& session, const Activations& x, const Selected& selected) const {
  {
    const Zone zone(runtime->zones, ZoneName::kFfnPacking);
    bank->need(session, selected.experts, selected.counts, selected.n, x.rows);
  }
  const int64_t n = selected.n + (shared ? 1 : 0);
  auto* all = session.allocate<ExpertUse>(n);
  for (int64_t i = 0; i < selected.n; ++i) {
    const int64_t expert = selected.experts[i], up = gated ? 1 : 0;
    ExpertUse& use = all[i] = {};
    if (gated) {
      use.gate = bank->packed(0, expert);
      use.gate_bias = bank->matrix(0).bias_of(expert);
    }
    use.up = bank->packed(up, expert);
    use.up_bias = bank->matrix(up).bias_of(expert);
    use.down = bank->packed(up + 1, expert);
    use.down_bias = bank->matrix(up + 1).bias_of(expert);
    use.gated = gated;
    use.count = selected.counts[i];
    use.rows = selected.rows + selected.firsts[i];
    use.weights = selected.weights + selected.firsts[i];
  }
  if (shared) {
    const auto bias = [](const Linear& m) { return m.bias.empty() ? nullptr : m.bias.data(); };
    auto* rows = session.allocate<int32_t>(x.rows);
    for (int64_t row = 0; row < x.rows; ++row) rows[row] = static_cast<int32_t>(row);
    ExpertUse& use = all[n - 1] = {};
    use.gated = shared->gate != nullptr;
    if (use.gated) {
      use.gate = shared->gate->packed;
      use.gate_bias = bias(*shared->gate);
    }
    use.up = shared->up->packed;
    use.up_bias = bias(*shared->up);
    use.down = shared->down->packed;
    use.down_bias = bias(*shared->down);
    use.count = x.rows;
    use.rows = rows;
    use.weights = selected.shared;
  }
  for (ExpertUse* use = all; use < all + n; ++use) {
    const ActivationFormat format = runtime->linear.activation_format(use->down.type);
    use->h = session.allocate<float>(use->count * use->size());
    use->h_packed =
        session.allocate<uint8_t>(runtime->linear.activation_bytes(format, use->count, use->size()));
  }
  gather_inputs(session, *runtime, x, hidden(), all, n);
  return {all, n, x.rows, activation};
}

void Experts::add_some(Session& session, const float* x, float* out, int64_t rows, const Given& given) const {
  Zone zone(runtime->zones, ZoneName::kFfnRouter);
  const Activations packed = pack_input(session, x, rows);
  const Selected of = selected(session, packed, given);
  zone.next(ZoneName::kFfnUp);
  const ExpertUses all = uses(session, packed, of);
  if (all.n == 0) return;
  multiply_experts(session, *runtime, all, nullptr);
  zone.next(ZoneName::kFfnDown);
  pack_neurons(session, *runtime, all);
  if (!post_norm) return add_experts(session, *runtime, all, out);
  auto* y = session.allocate<float>(rows * hidden());
  std::fill_n(y, rows * hidden(), 0.0f);
  add_experts(session, *runtime, all, y);
  add_normed(session, *runtime, *post_norm, y, rows, out);
}

void Experts::forward(const float* x, float* out, int64_t rows, const float* logits,
                      const Batch* batch) const {
  add_all(x, out, rows, {logits, nullptr}, batch);
}

void Experts::add(const float* x, float* out, int64_t rows, const float* weights, const Batch* batch) const {
  add_all(x, out, rows, {nullptr, weights}, batch);
}

void Experts::add_all(const float* x, float* out, int64_t rows, const Given& given,
                      const Batch* batch) const {
  const int64_t most = by_neuron ? kMostRowsByNeuron : kMostRows;
  for (int64_t row = 0; row < rows; row += most) {
    const auto from = [&](const float* of) { return of ? of + row * routing.count : nullptr; };
    Given of_rows = {from(given.logits), from(given.weights)};
    const int64_t n = std::min(most, rows - row);
    const float* in = x + row * hidden();
    float *to = out + row * hidden(), *sum = to;
    Session session(runtime->pool);
    if (router_norm && !of_rows.logits && !of_rows.weights) {
      const Zone zone(runtime->zones, ZoneName::kFfnRouter);
      of_rows.logits = router_logits(session, in, n, *router_norm);
    }
    if (beside) {
      sum = session.allocate<float>(n * hidden());
      std::fill_n(sum, n * hidden(), 0.0f);
      beside->add(session, in, sum, n);
    }
    if (by_neuron) {
      add_by_neuron(session, in, sum, n, of_rows, batch, row);
    } else {
      add_some(session, in, sum, n, of_rows);
    }
    if (beside) add_normed(session, *runtime, *joined_norm, sum, n, to);
  }
}

// The selected experts' first matrices, and the rows that use them; packed for second too.
ExpertUses Experts::uses_of_first(Session& session, const Activations& x, const Selected& of,
                                  bool second_too) const {
  {
    const Zone zone(runtime->zones, ZoneName::kFfnPacking);
    bank->need(session, of.experts, of.counts, of.n, x.rows);
  }
  auto *uses = session.allocate<ExpertUse>(of.n), *inputs = session.allocate<ExpertUse>(of.n);
  for (int64_t i = 0; i < of.n; ++i) {
    const int64_t expert = of.experts[i];
    ExpertUse& use = inputs[i] = {};
    use.up = bank->packed(0, expert);
    use.up_bias = bank->matrix(0).bias_of(expert);
    use.count = of.counts[i];
    use.rows = of.rows + of.firsts[i];
    use.weights = of.weights + of.firsts[i];
    use.h = session.allocate<float>(use.count * size());
    uses[i] = use;
    use.gated = second_too;
    if (second_too) use.gate.type = bank->matrix(1).type;
  }
  gather_inputs(session, *runtime, x, hidden(), inputs, of.n);
  for (int64_t i = 0; i < of.n; ++i) std::copy_n(inputs[i].x, 2, uses[i].x);
  return {uses, of.n, x.rows, alone(activation)};
}

// h times up's part, of all neurons.
void Experts::multiply_second(Session& session, const ExpertUse& use, int64_t expert) const {
  multiply_rows(session, *runtime, {{use.x[kActF32], use.x[kActInt8]}, use.count}, bank->rows(1, expert),
                bank->matrix(1).bias_of(expert), Apply::kTimes, activation, use.h);
}

// The shared expert's result.
const float* Experts::add_shared(Session& session, const Activations& x) const {
  auto* h = session.allocate<float>(x.rows * shared->up->rows());
  auto* y = session.allocate<float>(x.rows * hidden());
  multiply_gated(session, *runtime, x, shared->gate.get(), *shared->up, activation, h);
  const Activations packed = pack(session, *runtime, h, x.rows, nullptr, {shared->down.get()});
  multiply(session, *runtime, packed, {{shared->down.get(), y, hidden()}}, false);
  return y;
}

// `row0`: the first row's number in the batch.
void Experts::add_by_neuron(Session& session, const float* x, float* out, int64_t rows, const Given& given,
                            const Batch* batch, int64_t row0) const {
  Zone zone(runtime->zones, ZoneName::kFfnRouter);
  const Activations packed = pack_input(session, x, rows);
  const Selected of = selected(session, packed, given);
  const int64_t n = of.n + (shared ? 1 : 0);
  if (n == 0) return;
  zone.next(ZoneName::kFfnUp);
  const ExpertUses all = uses_of_first(session, packed, of, false);
  if (of.n > 0) multiply_experts(session, *runtime, all, nullptr);

  const size_t down = gated ? 2 : 1;
  const int64_t parts = expert_parts(size());
  auto* neurons = session.allocate<ExpertNeurons>(of.n);
  auto* results = session.allocate<ExpertResult>(n);
  for (int64_t i = 0; i < of.n; ++i) {
    const ExpertUse& use = all.uses[i];
    const int64_t expert = of.experts[i];
    auto* to = session.allocate<float>(parts * use.count * hidden());
    neurons[i] = {gated, {}, bank->rows(down, expert), nullptr, use.count, use.rows, use.h, to};
    if (gated) {
      neurons[i].second = bank->rows(1, expert);
      neurons[i].second_bias = bank->matrix(1).bias_of(expert);
    }
    results[i] = {to, parts, use.count, use.rows, use.weights, bank->matrix(down).bias_of(expert)};
  }
  if (shared) {
    auto* every = session.allocate<int32_t>(rows);
    for (int64_t row = 0; row < rows; ++row) every[row] = static_cast<int32_t>(row);
    results[of.n] = {add_shared(session, packed), 1, rows, every, of.shared, nullptr};
  }

  zone.next(ZoneName::kFfnChosen);
  RowActivations of_second = {nullptr, 0, rows};
  if (gated) {
    of_second = pack_for_rows(session, *runtime, x, rows, &norm, bank->matrix(1).type, hidden());
  }
  const auto is_lossless = [&](int64_t row) { return !batch || batch->span_of(row0 + row).lossless; };
  auto* whole = session.allocate<bool>(rows);
  for (int64_t row = 0; row < rows; ++row) whole[row] = everything && !is_lossless(row);
  auto* touched = session.allocate<Touched>(rows);
  std::fill_n(touched, rows, Touched{});
  multiply_expert_neurons(session, *runtime, neurons, of.n, activation, whole, of_second, touched);
  for (int64_t row = 0; row < rows; ++row) {
    if (is_lossless(row)) continue;
    Sequence* sequence = batch->span_of(row0 + row).sequence;
    if (!sequence || index >= static_cast<int64_t>(sequence->choosers.size())) continue;
    Chooser& chooser = sequence->choosers[index];
    ++chooser.rows;
    chooser.read += touched[row].read;
    chooser.fired += touched[row].fired;
    chooser.chosen += touched[row].chosen;
  }
  if (!post_norm) return add_results(session, *runtime, results, n, rows, hidden(), out);
  auto* y = session.allocate<float>(rows * hidden());
  std::fill_n(y, rows * hidden(), 0.0f);
  add_results(session, *runtime, results, n, rows, hidden(), y);
  add_normed(session, *runtime, *post_norm, y, rows, out);
}

// The selected experts, their h computed; and what the activation is applied to, if asked for.
ExpertUses Experts::hidden_of(Session& session, const Activations& x, const Selected& of, float* pre) const {
  ExpertUses all = by_neuron ? uses_of_first(session, x, of, gated) : uses(session, x, of);
  all.n = of.n;
  multiply_experts(session, *runtime, all, pre);
  for (int64_t i = 0; by_neuron && gated && i < of.n; ++i) {
    multiply_second(session, all.uses[i], of.experts[i]);
  }
  return all;
}

void Experts::fired(const float* x, int64_t rows, const float* weights, float* counts) const {
  std::fill_n(counts, rows * routing.count, 0.0f);
  for (int64_t first = 0; first < rows; first += kMostRows) {
    Session session(runtime->pool);
    const int64_t n = std::min(kMostRows, rows - first);
    const Activations packed = pack_input(session, x + first * hidden(), n);
    const Selected of = selected(session, packed, {nullptr, weights + first * routing.count});
    if (of.n == 0) continue;
    const ExpertUses all = hidden_of(session, packed, of, nullptr);
    for (int64_t i = 0; i < of.n; ++i) {
      const ExpertUse& use = all.uses[i];
      for (int64_t t = 0; t < use.count; ++t) {
        const float* h = use.h + t * size();
        const auto zeros = std::count(h, h + size(), 0.0f);
        counts[(first + use.rows[t]) * routing.count + of.experts[i]] = static_cast<float>(size() - zeros);
      }
    }
  }
}

void Experts::neurons(const float* x, int64_t rows, float* pre, float* h) const {
  const int64_t width = routing.count * size();
  std::fill_n(pre, rows * width, 0.0f);
  std::fill_n(h, rows * width, 0.0f);
  for (int64_t first = 0; first < rows; first += kMostRows) {
    Session session(runtime->pool);
    const int64_t n = std::min(kMostRows, rows - first);
    const float* in = x + first * hidden();
    const Activations packed = pack_input(session, in, n);
    const float* logits = router_norm ? router_logits(session, in, n, *router_norm) : nullptr;
    const Selected of = selected(session, packed, {logits, nullptr});
    auto* inputs = session.allocate<float>(n * routing.used * size());
    const ExpertUses all = hidden_of(session, packed, of, inputs);
    const float* from = inputs;
    for (int64_t i = 0; i < of.n; ++i) {
      const ExpertUse& use = all.uses[i];
      for (int64_t t = 0; t < use.count; ++t, from += size()) {
        const int64_t to = (first + use.rows[t]) * width + of.experts[i] * size();
        std::copy_n(from, size(), pre + to);
        std::copy_n(use.h + t * size(), size(), h + to);
      }
    }
  }
}

}  // namespace hotset
