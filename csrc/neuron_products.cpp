#include "neuron_products.h"

#include <algorithm>
#include <stdexcept>

namespace hotset {
namespace {

// Neurons are dealt out to parts, a few neighbours at a time, and each part adds up its own in their order.
// So the order of additions depends neither on the threads nor on which other neurons are computed: leaving
// out zeros changes no bit of the result. As the hottest come first, dealing also balances the parts.
constexpr int64_t kMinParts = 8, kMaxParts = 32;
constexpr int64_t kPartNeurons = 512;
constexpr int64_t kNeighbours = 64;

// Neurons of which one matrix is read before the next one is: those that the kernels take at once.
constexpr int64_t kGroup = 4;

// Rows to a chunk where all are read.
constexpr int64_t kChunkBytes = 64 << 10;

// Tokens of a prompt whose sums of some columns stay in the second-level cache.
constexpr int64_t kTokenBlock = 128;

constexpr int64_t kSliceBytes = 16 << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t row_bytes_in_file(Type type, int64_t cols) {
  switch (type) {
    case kQ4_0:
      return cols / 32 * 18;
    case kQ4_1:
      return cols / 32 * 20;
    case kQ8_0:
      return cols / 32 * 34;
    default:
      return cols * 2;
  }
}

struct PackRowsJob {
  const NeuronKernels* kernels;
  Type type;
  NeuronUse use;
  int64_t rows, cols, from_bytes, to_bytes, per_chunk;
  const uint8_t* data;
  uint8_t* packed;
  float* largest_scales;

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}
  void commit(int64_t chunk, void*) const {
    for (int64_t j = chunk * per_chunk; j < std::min((chunk + 1) * per_chunk, rows); ++j) {
      kernels->pack_row(type, use, data + j * from_bytes, cols, packed + j * to_bytes);
      if (use == kNeuronAdd) largest_scales[j] = kernels->largest_scale(type, packed + j * to_bytes, cols);
    }
  }
};

// Some rows, re-laid as panels, times all tokens.
struct RowsJob {
  const Runtime* runtime;
  NeuronMatrix rows;
  const float* bias;
  const void* x;
  int64_t tokens;
  Apply apply;
  Activation activation;
  float* y;

  static constexpr int64_t kPanels = 2;

  int64_t chunk_rows() const { return kPanels * runtime->linear.lanes; }
  int64_t panel_bytes() const { return runtime->linear.panel_bytes(rows.type, rows.cols); }
  int64_t file_bytes() const { return row_bytes_in_file(rows.type, rows.cols); }
  int64_t product_floats() const { return tokens * chunk_rows(); }
  size_t scratch_bytes() const {
    const int64_t floats = product_floats() * sizeof(float);
    return static_cast<size_t>(ceil_div(floats, 64) * 64 + kPanels * panel_bytes() +
                               chunk_rows() * file_bytes());
  }

  void compute(int64_t chunk, void* scratch) const {
    const LinearKernels& linear = runtime->linear;
    auto* product = static_cast<float*>(scratch);
    auto* panels = static_cast<uint8_t*>(scratch) + ceil_div(product_floats() * sizeof(float), 64) * 64;
    uint8_t* file_rows = panels + kPanels * panel_bytes();
    const int64_t first = chunk * chunk_rows(), count = std::min(chunk_rows(), rows.rows - first);
    for (int64_t j = 0; j < count; ++j) {
      runtime->neurons.unpack_row(rows.type, rows.data + (first + j) * rows.stride, rows.cols,
                                  file_rows + j * file_bytes());
    }
    const int64_t n_panels = ceil_div(count, linear.lanes);
    for (int64_t p = 0; p < n_panels; ++p) {
      const int64_t valid = std::min(linear.lanes, count - p * linear.lanes);
      linear.pack_panel(rows.type, file_rows + p * linear.lanes * file_bytes(), valid, rows.cols,
                        panels + p * panel_bytes());
    }
    const PackedMatrix matrix = {rows.type, count, rows.cols, panel_bytes(), panels};
    linear.matmul(&matrix, 0, n_panels, x, tokens, 0, tokens, product, n_panels * linear.lanes);
    for (int64_t t = 0; t < tokens; ++t) {
      float* row = product + t * n_panels * linear.lanes;
      if (bias) runtime->vector.add(bias + first, count, row);
      if (apply == Apply::kActivate) runtime->vector.activate(activation, row, nullptr, count);
    }
  }

  void commit(int64_t chunk, void* scratch) const {
    const int64_t first = chunk * chunk_rows(), count = std::min(chunk_rows(), rows.rows - first);
    const int64_t stride = ceil_div(count, runtime->linear.lanes) * runtime->linear.lanes;
    const auto* product = static_cast<const float*>(scratch);
    for (int64_t t = 0; t < tokens; ++t) {
      const float* from = product + t * stride;
      float* to = y + t * rows.rows + first;
      if (apply != Apply::kTimes) {
        std::copy_n(from, count, to);
        continue;
      }
      const bool drelu = activation == Activation::kDrelu;
      for (int64_t j = 0; j < count; ++j) to[j] *= drelu ? std::max(from[j], 0.0f) : from[j];
    }
  }
};

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
  int64_t most;                     // neurons that a part can have
  int64_t sum_floats;               // of one token
  float* sums;                      // parts x tokens x sum_floats
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
  // next are fetched. Down waits until all values are known, since they set the units in which it is added
  // up.
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
    while (begun < count || (has_second && done < kept)) {
      if (begun < count) {
        NeuronList now = firsts(begun);
        const bool waiting = has_second && done < kept;
        begun += now.count;
        const NeuronList next = waiting ? seconds(done) : firsts(begun);
        now.next = &next;
        kept += multiply_first(now, s, kept);
      }
      if (has_second && (kept - done >= kGroup || (begun == count && done < kept))) {
        NeuronList now = seconds(done);
        const int64_t after = done + now.count;
        const NeuronList next = begun < count ? firsts(begun) : seconds(after);
        now.next = &next;
        multiply_second(now, s, done);
        done = after;
      }
    }
    if (has_second) kept = squeeze(s.kept, kept, s.h, s.kept);
    const NeuronList downs = {&down, s.kept, kept, nullptr};
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

// A group of columns for a block of tokens.
struct AllJob {
  const Runtime* runtime;
  NeuronMatrix down;
  const float *h, *bias;
  int64_t tokens;
  bool add;
  float* out;

  int64_t groups() const { return ceil_div(down.cols, runtime->neurons.group_cols); }
  size_t scratch_bytes() const {
    return std::min(kTokenBlock, tokens) * runtime->neurons.group_cols * sizeof(float);
  }

  void compute(int64_t chunk, void* scratch) const {
    const int64_t width = runtime->neurons.group_cols, group = chunk % groups();
    const int64_t first = chunk / groups() * kTokenBlock, count = std::min(kTokenBlock, tokens - first);
    auto* y = static_cast<float*>(scratch);
    std::fill_n(y, count * width, 0.0f);
    if (bias) {
      const int64_t n = std::min(width, down.cols - group * width);
      for (int64_t t = 0; t < count; ++t) std::copy_n(bias + group * width, n, y + t * width);
    }
    runtime->neurons.multiply(&down, group, h + first * down.rows, down.rows, count, y, width);
  }

  void commit(int64_t chunk, void* scratch) const {
    const int64_t width = runtime->neurons.group_cols, col0 = chunk % groups() * width;
    const int64_t first = chunk / groups() * kTokenBlock, count = std::min(kTokenBlock, tokens - first);
    const int64_t n = std::min(width, down.cols - col0);
    const auto* y = static_cast<const float*>(scratch);
    for (int64_t t = 0; t < count; ++t, y += width) {
      float* to = out + (first + t) * down.cols + col0;
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

const float* bias_of(const NeuronRows* rows) {
  return rows && !rows->bias.empty() ? rows->bias.data() : nullptr;
}

}  // namespace

NeuronStore::NeuronStore(std::shared_ptr<Runtime> runtime_, int64_t neurons_, int64_t cols_,
                         std::vector<Type> types)
    : runtime(std::move(runtime_)), neurons(neurons_), cols(cols_), types_(std::move(types)) {
  for (const Type type : types_) stride_ += runtime->neurons.row_bytes(type, cols);
  memory_ = runtime->buffers.allocate(static_cast<size_t>(neurons * stride_));
}

uint8_t* NeuronStore::take(Type type, int64_t rows, int64_t matrix_cols) {
  if (taken_ == types_.size() || types_[taken_] != type || rows != neurons || matrix_cols != cols) {
    throw std::invalid_argument("store: made for other rows");
  }
  uint8_t* place = memory_.get() + used_;
  used_ += runtime->neurons.row_bytes(types_[taken_++], cols);
  return place;
}

NeuronRows::NeuronRows(std::shared_ptr<NeuronStore> store, Type type, NeuronUse use, int64_t rows,
                       int64_t cols, int64_t row_bytes, const uint8_t* data, bool from_file,
                       const float* bias)
    : store_(std::move(store)) {
  uint8_t* place = store_->take(type, rows, cols);
  if (use == kNeuronAdd) largest_scales_.resize(static_cast<size_t>(rows));
  packed = {type, rows, cols, store_->stride(), place, largest_scales_.data()};
  if (bias) this->bias.assign(bias, bias + (use == kNeuronDot ? rows : cols));

  Runtime& runtime = *store_->runtime;
  const int64_t per_chunk = std::max<int64_t>(1, kChunkBytes / row_bytes);
  const int64_t per_slice = std::max<int64_t>(1, kSliceBytes / row_bytes);
  Session session(runtime.pool);
  for (int64_t row = 0; row < rows; row += per_slice) {
    const int64_t count = std::min(per_slice, rows - row);
    const uint8_t* slice = data + row * row_bytes;
    float* scales = use == kNeuronAdd ? largest_scales_.data() + row : nullptr;
    session.run(ceil_div(count, per_chunk),
                PackRowsJob{&runtime.neurons, type, use, count, cols, row_bytes, packed.stride, per_chunk,
                            slice, place + row * packed.stride, scales});
    if (from_file) release_file_pages(slice, static_cast<size_t>(count * row_bytes));
  }
  if (from_file) release_file_pages(data, static_cast<size_t>(rows * row_bytes));
}

void multiply_rows(Session& session, const Runtime& runtime, const Activations& x, const NeuronRows& rows,
                   Apply apply, Activation activation, float* y) {
  const ActivationFormat format = runtime.linear.activation_format(rows.packed.type);
  const RowsJob job{&runtime, rows.packed, bias_of(&rows), x.packed[format], x.rows, apply, activation, y};
  session.run(ceil_div(rows.rows(), job.chunk_rows()), job);
}

Activations pack_as(Session& session, const Runtime& runtime, const float* x, int64_t tokens,
                    const Norm& norm, const NeuronRows& rows, const Matrix* matrix) {
  unsigned formats = 1u << runtime.linear.activation_format(rows.packed.type);
  if (matrix) formats |= 1u << matrix->format;
  return pack_formats(session, runtime, x, tokens, rows.cols(), &norm, formats);
}

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
              AllRowsJob{&runtime.neurons, rows.packed, bias_of(&rows), x.packed, per_chunk, y});
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
  if (chosen.first) job.first = chosen.first->packed;
  if (chosen.second) job.second = chosen.second->packed;
  job.first_bias = bias_of(chosen.first);
  job.second_bias = bias_of(chosen.second);
  job.indices = dealt.indices;
  job.starts = dealt.starts;
  job.most = dealt.most;
  job.sum_floats = sum_floats;
  job.sums = sums;
  job.touched = &touched;
  session.run(parts, job);

  float* y = post_norm ? session.allocate<float>(chosen.tokens * cols) : out;
  session.run(
      ceil_div(cols, runtime.neurons.group_cols),
      FinishJob{&runtime, cols, chosen.tokens, parts, sum_floats, sums, bias_of(&down), !post_norm, y});
  if (post_norm) add_normed(session, runtime, *post_norm, y, chosen.tokens, out);
}

void add_all(Session& session, const Runtime& runtime, const float* h, int64_t tokens, const NeuronRows& down,
             const Norm* post_norm, float* out) {
  const int64_t cols = down.cols();
  float* y = post_norm ? session.allocate<float>(tokens * cols) : out;
  const AllJob job{&runtime, down.packed, h, bias_of(&down), tokens, !post_norm, y};
  session.run(job.groups() * ceil_div(tokens, kTokenBlock), job);
  if (post_norm) add_normed(session, runtime, *post_norm, y, tokens, out);
}

}  // namespace hotset
