// The weights of experts: packed when they are first needed, given back when a budget is used up.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "runtime/runtime.h"

namespace hotset {

// One matrix of each expert of a layer (experts x rows x cols), as it lies in a file.
struct ExpertMatrix {
  Type type;
  int64_t experts, rows, cols, row_bytes;
  const uint8_t* data;
  bool from_file;  // `data` is a read-only file mapping, whose pages are given back as they are copied
  bool by_neuron;  // single rows are read, for `use`; else all together, in panels
  NeuronUse use;
  std::vector<float> bias;            // of all experts, or empty
  std::vector<float> scale;           // of each expert's weights, in panels only; or empty
  std::shared_ptr<const void> owner;  // of `data`

  int64_t expert_bytes() const { return rows * row_bytes; }

  // The bias belongs to the rows, or to the columns of rows that are added up.
  int64_t biases() const { return by_neuron && use == kNeuronAdd ? cols : rows; }
  const float* bias_of(int64_t expert) const {
    return bias.empty() ? nullptr : bias.data() + expert * biases();
  }
};

// Pieces of memory by size; what was given back is handed out again, but not to other sizes.
class Pieces {
 public:
  uint8_t* take(size_t bytes);  // page-aligned; throws std::bad_alloc
  void give_back(uint8_t* piece, size_t bytes);
  void release();  // tells the system that given-back pieces hold nothing

 private:
  struct Free {
    uint8_t* piece;
    bool dirty;
  };
  struct OfSize {
    std::vector<Buffer> blocks;
    size_t used = 0;  // of the last block
    std::vector<Free> free;
  };
  std::map<size_t, OfSize> sizes_;
};

class ExpertBank;

// What all layers' experts share: the memory of those that are packed.
class ExpertCache {
 public:
  static constexpr int64_t kNoBudget = std::numeric_limits<int64_t>::max();

  struct Counts {
    int64_t bytes, experts;    // packed now
    int64_t packs, evictions;  // so far
  };

  // Of packed experts, the coldest are given back where they would take more than `budget` bytes, but for
  // those that one call of a layer needs together.
  ExpertCache(std::shared_ptr<Runtime> runtime, int64_t budget)
      : runtime_(std::move(runtime)), budget_(budget) {}

  Counts counts() const;
  int64_t budget() const { return budget_; }

 private:
  friend class ExpertBank;

  bool evict_coldest();

  std::shared_ptr<Runtime> runtime_;
  const int64_t budget_;
  mutable std::mutex mutex_;
  std::vector<ExpertBank*> banks_;
  Pieces pieces_;
  Counts counts_{};
};

// One layer's experts.
class ExpertBank {
 public:
  ExpertBank(std::shared_ptr<ExpertCache> cache, std::vector<ExpertMatrix> matrices);
  ~ExpertBank();
  ExpertBank(const ExpertBank&) = delete;
  ExpertBank& operator=(const ExpertBank&) = delete;

  int64_t experts() const { return matrices_[0].experts; }
  const ExpertMatrix& matrix(size_t i) const { return matrices_[i]; }

  // Packs those of n different experts that are not packed; they all stay so until the next call. `rows` says
  // how many rows of a batch of `batch_rows` use each. Throws std::bad_alloc.
  void need(Session& session, const int32_t* experts, const int64_t* rows, int64_t n, int64_t batch_rows);

  // Rows so far, how many of them used each expert, and which experts are packed.
  struct Uses {
    int64_t rows;
    std::vector<int64_t> of;
    std::vector<bool> packed;
  };
  Uses uses() const;

  // Matrix i of an expert that is packed: in panels, or by neuron.
  PackedMatrix packed(size_t i, int64_t expert) const;
  NeuronMatrix rows(size_t i, int64_t expert) const;

 private:
  friend class ExpertCache;

  struct Expert {
    uint8_t* packed = nullptr;
    float heat = 0;    // rows that used it, decayed, when it was last used
    int64_t used = 0;  // in the bank's time
    int64_t rows = 0;  // that used it so far
    bool needed = false;
  };

  float heat(const Expert& expert) const;

  std::shared_ptr<ExpertCache> cache_;
  std::vector<ExpertMatrix> matrices_;
  std::vector<int64_t> offsets_;  // of the matrices in an expert's memory
  int64_t stride_ = 0;            // of a neuron's rows, which lie one behind the other
  int64_t bytes_ = 0;             // of an expert's memory
  std::vector<Expert> experts_;
  int64_t time_ = 0;  // rows so far
};

}  // namespace hotset
