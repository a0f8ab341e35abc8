#include "weights/expert_cache.h"

#include <algorithm>
#include <cmath>

namespace hotset {
namespace {

constexpr size_t kBlockBytes = size_t{64} << 20;
constexpr int64_t kPage = 4096;

// So far around a page that is read may a system map others: Linux maps as many as it has read together.
constexpr int64_t kAround = 2 << 20;

// Rows after which an expert that was not used counts half.
constexpr float kHalfLife = 512;

// Packed weights to a chunk.
constexpr int64_t kChunkBytes = 256 << 10;

// Packs one matrix of an expert.
struct Packing {
  const ExpertMatrix* matrix;
  const uint8_t* from;
  uint8_t* to;
  int64_t stride;  // of its panels, or rows
  int64_t first_chunk;
};

struct PackExpertsJob {
  const Runtime* runtime;
  const Packing* packings;
  int64_t n;

  // Rows of a piece: a panel's, or one.
  int64_t lanes(const ExpertMatrix& m) const { return m.by_neuron ? 1 : runtime->linear.lanes; }
  int64_t pieces(const ExpertMatrix& m) const { return ceil_div(m.rows, lanes(m)); }
  int64_t per_chunk(const ExpertMatrix& m) const {
    return std::max<int64_t>(1, kChunkBytes / (lanes(m) * m.row_bytes));
  }
  int64_t chunks(const ExpertMatrix& m) const { return ceil_div(pieces(m), per_chunk(m)); }

  size_t scratch_bytes() const { return 0; }
  void compute(int64_t, void*) const {}

  void commit(int64_t chunk, void*) const {
    const Packing* p =
        std::upper_bound(packings, packings + n, chunk,
                         [](int64_t at, const Packing& packing) { return at < packing.first_chunk; }) -
        1;
    const ExpertMatrix& m = *p->matrix;
    const int64_t first = (chunk - p->first_chunk) * per_chunk(m);
    for (int64_t piece = first; piece < std::min(first + per_chunk(m), pieces(m)); ++piece) {
      const int64_t row = piece * lanes(m);
      const uint8_t* from = p->from + row * m.row_bytes;
      uint8_t* to = p->to + piece * p->stride;
      if (m.by_neuron) {
        runtime->neurons.pack_row(m.type, m.use, from, m.cols, to);
      } else {
        runtime->linear.pack_panel(m.type, from, std::min(lanes(m), m.rows - row), m.cols, to);
      }
    }
  }
};

}  // namespace

uint8_t* Pieces::take(size_t bytes) {
  OfSize& of = sizes_[bytes];
  if (!of.free.empty()) {
    uint8_t* piece = of.free.back().piece;
    of.free.pop_back();
    return piece;
  }
  if (of.blocks.empty() || of.used + bytes > of.blocks.back().size()) {
    of.blocks.emplace_back(std::max(kBlockBytes, bytes), Pages::kHuge);
    of.used = 0;
  }
  uint8_t* piece = of.blocks.back().data() + of.used;
  of.used += bytes;
  return piece;
}

void Pieces::give_back(uint8_t* piece, size_t bytes) { sizes_[bytes].free.push_back({piece, true}); }

void Pieces::release() {
  for (auto& [bytes, of] : sizes_) {
    for (Free& free : of.free) {
      if (free.dirty) release_pages(free.piece, bytes);
      free.dirty = false;
    }
  }
}

ExpertCache::Counts ExpertCache::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

// False where there is none that is not needed. Nobody may read it any more.
bool ExpertCache::evict_coldest() {
  ExpertBank* of = nullptr;
  ExpertBank::Expert* coldest = nullptr;
  float least = 0;
  for (ExpertBank* bank : banks_) {
    for (ExpertBank::Expert& expert : bank->experts_) {
      if (!expert.packed || expert.needed) continue;
      const float heat = bank->heat(expert);
      if (coldest && heat >= least) continue;
      of = bank;
      coldest = &expert;
      least = heat;
    }
  }
  if (!coldest) return false;
  pieces_.give_back(coldest->packed, static_cast<size_t>(of->bytes_));
  coldest->packed = nullptr;
  counts_.bytes -= of->bytes_;
  --counts_.experts;
  ++counts_.evictions;
  return true;
}

ExpertBank::ExpertBank(std::shared_ptr<ExpertCache> cache, std::vector<ExpertMatrix> matrices)
    : cache_(std::move(cache)),
      matrices_(std::move(matrices)),
      experts_(static_cast<size_t>(matrices_[0].experts)) {
  const LinearKernels& linear = cache_->runtime_->linear;
  int64_t neurons = 0;
  for (const ExpertMatrix& m : matrices_) {
    offsets_.push_back(bytes_);
    if (!m.by_neuron) bytes_ += ceil_div(m.rows, linear.lanes) * linear.panel_bytes(m.type, m.cols);
  }
  for (size_t i = 0; i < matrices_.size(); ++i) {
    const ExpertMatrix& m = matrices_[i];
    if (!m.by_neuron) continue;
    offsets_[i] = bytes_ + stride_;
    stride_ += cache_->runtime_->neurons.row_bytes(m.type, m.cols);
    neurons = m.rows;
  }
  bytes_ += neurons * stride_;
  bytes_ = ceil_div(bytes_, kPage) * kPage;
  const std::lock_guard lock(cache_->mutex_);
  cache_->banks_.push_back(this);
}

ExpertBank::~ExpertBank() {
  cache_->runtime_->pool.quiesce();
  const std::lock_guard lock(cache_->mutex_);
  std::erase(cache_->banks_, this);
  for (const Expert& expert : experts_) {
    if (!expert.packed) continue;
    cache_->pieces_.give_back(expert.packed, static_cast<size_t>(bytes_));
    cache_->counts_.bytes -= bytes_;
    --cache_->counts_.experts;
  }
  cache_->pieces_.release();
}

float ExpertBank::heat(const Expert& expert) const {
  return expert.heat * std::exp2(static_cast<float>(expert.used - time_) / kHalfLife);
}

ExpertBank::Uses ExpertBank::uses() const {
  const std::lock_guard lock(cache_->mutex_);
  Uses all{time_, {}, {}};
  for (const Expert& expert : experts_) {
    all.of.push_back(expert.rows);
    all.packed.push_back(expert.packed != nullptr);
  }
  return all;
}

PackedMatrix ExpertBank::packed(size_t i, int64_t expert) const {
  const ExpertMatrix& m = matrices_[i];
  return {m.type,
          m.rows,
          m.cols,
          cache_->runtime_->linear.panel_bytes(m.type, m.cols),
          experts_[expert].packed + offsets_[i],
          m.scale.empty() ? 1 : m.scale[expert]};
}

NeuronMatrix ExpertBank::rows(size_t i, int64_t expert) const {
  const ExpertMatrix& m = matrices_[i];
  return {m.type, m.rows, m.cols, stride_, experts_[expert].packed + offsets_[i]};
}

void ExpertBank::need(Session& session, const int32_t* experts, const int64_t* rows, int64_t n,
                      int64_t batch_rows) {
  const std::lock_guard lock(cache_->mutex_);
  time_ += batch_rows;
  int64_t missing = 0;
  for (int64_t i = 0; i < n; ++i) {
    Expert& expert = experts_[experts[i]];
    expert.heat = heat(expert) + static_cast<float>(rows[i]);
    expert.used = time_;
    expert.rows += rows[i];
    missing += expert.packed == nullptr;
  }
  if (missing == 0) return;

  auto* packings = session.allocate<Packing>(missing * static_cast<int64_t>(matrices_.size()));
  for (int64_t i = 0; i < n; ++i) {
    experts_[experts[i]].needed = true;
    if (experts_[experts[i]].packed) continue;
    for (const ExpertMatrix& m : matrices_) {
      if (m.from_file) fetch_file_pages(m.data + experts[i] * m.expert_bytes(), m.expert_bytes());
    }
  }
  ExpertCache& cache = *cache_;
  if (cache.counts_.bytes > cache.budget_ - missing * bytes_) {
    session.await_readers();  // of regions before, in which a thread may have been left behind
    while (cache.counts_.bytes > cache.budget_ - missing * bytes_ && cache.evict_coldest()) {
    }
  }
  for (int64_t i = 0; i < n; ++i) experts_[experts[i]].needed = false;

  PackExpertsJob job{cache.runtime_.get(), packings, 0};
  std::vector<uint8_t*> taken;
  try {
    int64_t chunks = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (experts_[experts[i]].packed) continue;
      taken.push_back(cache.pieces_.take(static_cast<size_t>(bytes_)));
      for (size_t k = 0; k < matrices_.size(); ++k) {
        const ExpertMatrix& m = matrices_[k];
        const int64_t stride = m.by_neuron ? stride_ : cache.runtime_->linear.panel_bytes(m.type, m.cols);
        packings[job.n++] = {&m, m.data + experts[i] * m.expert_bytes(), taken.back() + offsets_[k], stride,
                             chunks};
        chunks += job.chunks(m);
      }
    }
    cache.pieces_.release();
    session.run(chunks, job);
  } catch (...) {
    for (uint8_t* piece : taken) cache.pieces_.give_back(piece, static_cast<size_t>(bytes_));
    throw;
  }
  for (int64_t i = 0, k = 0; i < n; ++i) {
    if (!experts_[experts[i]].packed) experts_[experts[i]].packed = taken[k++];
  }
  cache.counts_.bytes += missing * bytes_;
  cache.counts_.experts += missing;
  cache.counts_.packs += missing;
  for (int64_t i = 0; i < job.n; ++i) {
    const ExpertMatrix& m = *packings[i].matrix;
    if (!m.from_file) continue;
    // The system has mapped pages around those that were read, too.
    const uint8_t* first = std::max(m.data, packings[i].from - kAround);
    const uint8_t* last =
        std::min(m.data + m.experts * m.expert_bytes(), packings[i].from + m.expert_bytes() + kAround);
    release_file_pages(first, static_cast<size_t>(last - first));
  }
}

}  // namespace hotset
