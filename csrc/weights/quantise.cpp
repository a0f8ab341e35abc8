// With a search, one block is rounded with eight scales side by side, the lanes of simple loops that
// compilers vectorise; then each lane's scale is fitted to its codes by least squares, and they are rounded
// again. What is kept is the best of all.
#include "weights/quantise.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <thread>
#include <vector>

#include "kernels/tables.h"

namespace hotset {
namespace {

constexpr int kBlock = kQuantBlock;
constexpr int kLanes = 8;
constexpr int kRefits = 1;
constexpr int64_t kRowsAtOnce = 16;
using Lanes = float[kLanes];

uint16_t to_half(float x) {  // the nearest, the largest finite one at most
  const float size = std::min(std::fabs(x), 65504.0f);
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (size < 0x1p-14f) return static_cast<uint16_t>(sign | std::lrint(size * 0x1p24f));
  uint32_t bits;
  std::memcpy(&bits, &size, sizeof bits);
  bits += 0xfff + (bits >> 13 & 1);  // ties to even
  return static_cast<uint16_t>(sign | ((bits >> 13) - (112 << 10)));
}

float from_half(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const float size = exponent ? std::ldexp(static_cast<float>(mantissa | 1024), exponent - 25)
                              : static_cast<float>(mantissa) * 0x1p-24f;
  return half & 0x8000 ? -size : size;
}

float as_half(float x) { return from_half(to_half(x)); }

// The same for a scale: one too small for half precision is its least number, which loses less than none.
float scale_as_half(float x) {
  const float half = as_half(x);
  return half == 0 && x != 0 ? std::copysign(0x1p-24f, x) : half;
}

// The nearest power of two that MXFP4 has, without those below 2^-126, of which a float has no inverse.
float as_power(float x) {
  int exponent;
  const float mantissa = std::frexp(std::fabs(x), &exponent);  // from 0.5
  return std::ldexp(1.0f, std::clamp(mantissa < 0x1.6a09e6p-1f ? exponent - 1 : exponent, -126, 126));
}

// A type's codes: w = scale * code + min. In types with a table a code is its value, one of `values`.
struct Codes {
  float low, high;
  bool has_min;
  std::vector<float> values = {};  // rising
};

Codes codes_of(Type type) {
  switch (type) {
    case kQ4_1:
      return {0, 15, true};
    case kQ4_0:
      return {-8, 7, false};
    case kIQ4_NL:
      return {-127, 113, false, {std::begin(Uneven::kFloats), std::end(Uneven::kFloats)}};
    case kMXFP4:
      return {-12, 12, false, {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12}};
    default:
      return {-127, 127, false};
  }
}

// What an error costs: its column's root times it, squared; and what it adds to later columns' errors.
struct Metric {
  const float* roots;   // (32)
  const float* factor;  // (32, 32) upper triangular, roots being the diagonal's reciprocals, or null
};

struct Block {
  float loss = std::numeric_limits<float>::infinity();
  float scale = 0, min = 0;
  float codes[kBlock], errors[kBlock];
};

// Pushes column k's errors on to the columns after it.
void push(const Metric& metric, int k, const Lanes& from, Lanes* columns) {
  if (!metric.factor) return;
  Lanes errors;  // a copy, which the compiler knows to be apart from the columns
  std::copy_n(from, kLanes, errors);
  for (int j = k + 1; j < kBlock; ++j) {
    const float share = metric.factor[k * kBlock + j];
    for (int l = 0; l < kLanes; ++l) columns[j][l] -= errors[l] * share;
  }
}

// Numbers of 32 columns as the loss sees them: the sum of their squares is the loss, were they the errors.
void project(const Metric& metric, Lanes* columns) {
  for (int k = 0; k < kBlock; ++k) {
    for (int l = 0; l < kLanes; ++l) columns[k][l] *= metric.roots[k];
    push(metric, k, columns[k], columns);
  }
}

class Search {
 public:
  Search(Type type, const Metric& metric) : type_(type), codes_(codes_of(type)), metric_(metric) {
    for (size_t i = 1; i < codes_.values.size(); ++i) {
      steps_[i - 1] = codes_.values[i] - codes_.values[i - 1];
      middles_[i - 1] = (codes_.values[i] + codes_.values[i - 1]) / 2;
    }
    if (!codes_.has_min) return;
    for (auto& column : ones_) std::fill_n(column, kLanes, 1.0f);
    project(metric_, ones_);
  }

  // The best rounding of w (32).
  Block run(const float* w) {
    for (int k = 0; k < kBlock; ++k) std::fill_n(targets_[k], kLanes, w[k]);
    std::memcpy(projected_, targets_, sizeof projected_);
    project(metric_, projected_);
    Block best;
    start(w);
    round(&best);
    for (int i = 0; i < kRefits; ++i) {
      fit();
      round(&best);
    }
    return best;
  }

 private:
  // The lanes' first scales and minima. Among them are those of GGUF's reference.
  void start(const float* w) {
    const auto [low, high] = std::minmax_element(w, w + kBlock);
    const float largest = *high > -*low ? *high : *low;
    for (int l = 0; l < kLanes; ++l) {
      const auto step = static_cast<float>(l);
      min_[l] = 0;
      if (type_ == kQ4_1) {  // the range, cut by some of it at either end
        const float range = *high - *low, below = static_cast<float>(l % 3),
                    above = static_cast<float>(l / 3);
        min_[l] = *low + range * kCut * below;
        scale_[l] = range * (1 - kCut * (below + above)) / 15;
      } else if (type_ == kQ8_0) {
        scale_[l] = largest / (127 + 0.25f * step);
      } else if (type_ == kIQ4_NL) {  // as at the table's ends, or beyond
        scale_[l] = l < kLanes / 2 ? largest / (codes_.low * (0.9f + 0.1f * step))
                                   : largest / (codes_.high * (0.9f + 0.1f * (step - kLanes / 2)));
      } else if (type_ == kMXFP4) {
        scale_[l] = std::ldexp(std::fabs(largest) / 12, l - 3);
      } else {  // the largest number as -8 or as 7, or beyond, both being cut off
        scale_[l] =
            l < kLanes / 2 ? largest / -(7.2f + 0.8f * step) : largest / (6.6f + 0.8f * (step - kLanes / 2));
      }
    }
  }

  void round(Block* best) {
    Lanes inverses, losses;
    for (int l = 0; l < kLanes; ++l) {
      scale_[l] = type_ == kMXFP4 ? as_power(scale_[l]) : scale_as_half(scale_[l]);
      min_[l] = as_half(min_[l]);
      inverses[l] = scale_[l] != 0 ? 1 / scale_[l] : 0;
      losses[l] = 0;
    }
    Lanes columns[kBlock], errors[kBlock];
    std::memcpy(columns, targets_, sizeof columns);
    const float low = codes_.low, high = codes_.high;
    const bool table = !codes_.values.empty();
    for (int k = 0; k < kBlock; ++k) {
      const float root = metric_.roots[k];
      Lanes codes;
      for (int l = 0; l < kLanes; ++l) {
        constexpr float kRound = 0x1.8p23f;  // leaves no bits for fractions
        float code = (columns[k][l] - min_[l]) * inverses[l];
        code = code > low ? code : low;
        code = code < high ? code : high;
        codes[l] = table ? code : (code + kRound) - kRound;
      }
      if (table) to_values(codes);
      for (int l = 0; l < kLanes; ++l) {
        const float code = codes[l];
        const float error = (columns[k][l] - (scale_[l] * code + min_[l])) * root;
        rounded_[k][l] = code;
        errors[k][l] = error;
        losses[l] += error * error;
      }
      push(metric_, k, errors[k], columns);
    }
    const auto l = std::min_element(losses, losses + kLanes) - losses;
    if (!(losses[l] < best->loss)) return;
    *best = {losses[l], scale_[l], min_[l], {}, {}};
    for (int k = 0; k < kBlock; ++k) {
      best->codes[k] = rounded_[k][l];
      best->errors[k] = errors[k][l];
    }
  }

  // The table's values that are nearest.
  void to_values(Lanes codes) const {
    Lanes values;
    std::fill_n(values, kLanes, codes_.low);
    for (size_t i = 0; i + 1 < codes_.values.size(); ++i) {
      const float middle = middles_[i], step = steps_[i];
      for (int l = 0; l < kLanes; ++l) values[l] += codes[l] > middle ? step : 0;
    }
    std::copy_n(values, kLanes, codes);
  }

  // Weighted least squares: for the codes that each lane has, the scale and minimum of the least loss.
  void fit() {
    project(metric_, rounded_);
    Lanes cc{}, ct{}, co{}, ot{}, oo{};
    for (int k = 0; k < kBlock; ++k) {
      for (int l = 0; l < kLanes; ++l) {
        cc[l] += rounded_[k][l] * rounded_[k][l];
        ct[l] += rounded_[k][l] * projected_[k][l];
      }
      if (!codes_.has_min) continue;
      for (int l = 0; l < kLanes; ++l) {
        co[l] += rounded_[k][l] * ones_[k][l];
        ot[l] += ones_[k][l] * projected_[k][l];
        oo[l] += ones_[k][l] * ones_[k][l];
      }
    }
    for (int l = 0; l < kLanes; ++l) {
      if (!codes_.has_min) {
        if (cc[l] > 0) scale_[l] = ct[l] / cc[l];
        continue;
      }
      const float determinant = cc[l] * oo[l] - co[l] * co[l];
      if (!(determinant > 1e-6f * cc[l] * oo[l])) continue;
      scale_[l] = (ct[l] * oo[l] - ot[l] * co[l]) / determinant;
      min_[l] = (ot[l] * cc[l] - ct[l] * co[l]) / determinant;
    }
  }

  static constexpr float kCut = 0.04f;
  float steps_[15] = {}, middles_[15] = {};  // between a table's values

  Type type_;
  Codes codes_;
  Metric metric_;
  Lanes targets_[kBlock], projected_[kBlock], ones_[kBlock], rounded_[kBlock];
  Lanes scale_, min_;
};

// A block without a search. Products and sums are statements of their own, lest they be fused: the bytes
// would not be the reference's.
template <Type type>
Block nearest(const float* w) {
  Lanes lows, highs;
  std::copy_n(w, kLanes, lows);
  std::copy_n(w, kLanes, highs);
  for (int k = kLanes; k < kBlock; k += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      lows[l] = w[k + l] < lows[l] ? w[k + l] : lows[l];
      highs[l] = w[k + l] > highs[l] ? w[k + l] : highs[l];
    }
  }
  const float low = *std::min_element(lows, lows + kLanes), high = *std::max_element(highs, highs + kLanes);
  const float size = std::fabs(std::max(high, -low));
  Block block;
  if constexpr (type == kQ4_0) {  // the first of the largest is -8
    block.scale = *std::find_if(w, w + kBlock, [=](float x) { return std::fabs(x) == size; }) / -8;
  } else if constexpr (type == kQ4_1) {
    block.min = low;
    block.scale = (high - low) / 15;
  } else {
    block.scale = size / 127;
  }
  const float inverse = block.scale != 0 ? 1 / block.scale : 0;
  const Codes codes = codes_of(type);
  const float shift = 0.5f - codes.low, most = codes.high - codes.low;
  for (int k = 0; k < kBlock; ++k) {
    const float code = (w[k] - block.min) * inverse;
    if constexpr (type == kQ8_0) {  // halves away from zero
      const float distance = std::fabs(code), clipped = distance < codes.high ? distance : codes.high;
      const auto whole = static_cast<float>(static_cast<int>(clipped));
      block.codes[k] = std::copysign(clipped - whole < 0.5f ? whole : whole + 1, code);
    } else {  // halves up
      const float shifted = code + shift, positive = shifted > 0 ? shifted : 0;
      block.codes[k] = static_cast<float>(static_cast<int>(positive < most ? positive : most)) + codes.low;
    }
  }
  return block;
}

void write(Type type, const Block& block, uint8_t* out) {
  const auto put = [&out](float value) {
    const uint16_t half = to_half(value);
    std::memcpy(out, &half, sizeof half);
    out += sizeof half;
  };
  if (type == kMXFP4) {
    *out++ = static_cast<uint8_t>(std::ilogb(block.scale) + 128);
  } else {
    put(block.scale);
  }
  if (type == kQ4_1) put(block.min);
  const int zero = type == kQ4_0 ? 8 : 0;
  const float* table = type == kIQ4_NL ? Uneven::kFloats : type == kMXFP4 ? Fp4::kFloats : nullptr;
  const auto code = [&](int k) {
    if (table) return static_cast<int>(std::find(table, table + 16, block.codes[k]) - table);
    return static_cast<int>(block.codes[k]) + zero;
  };
  if (type == kQ8_0) {
    for (int k = 0; k < kBlock; ++k) out[k] = static_cast<uint8_t>(code(k));
  } else {
    for (int k = 0; k < kBlock / 2; ++k) out[k] = static_cast<uint8_t>(code(k) | code(k + kBlock / 2) << 4);
  }
}

// Calls job(first row, last row) for all rows, a few at a time.
template <class Job>
void in_parallel(int64_t rows, int threads, const Job& job) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t row; (row = next.fetch_add(kRowsAtOnce)) < rows;)
      job(row, std::min(rows, row + kRowsAtOnce));
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads && i * kRowsAtOnce < rows; ++i) others.emplace_back(work);
  work();
  for (auto& thread : others) thread.join();
}

}  // namespace

int64_t quantised_block_bytes(Type type) {
  switch (type) {
    case kQ4_0:
    case kIQ4_NL:
      return 18;
    case kMXFP4:
      return 17;
    case kQ4_1:
      return 20;
    case kQ8_0:
      return 34;
    default:
      return 0;
  }
}

bool all_finite(const float* data, int64_t count, float low) {
  int32_t all = 1;  // as wide as the numbers, for the compiler
  for (int64_t i = 0; i < count; ++i) {
    all &= data[i] >= low ? 1 : 0;
    all &= data[i] <= std::numeric_limits<float>::max() ? 1 : 0;
  }
  return all;
}

void quantise(Type type, const float* weights, int64_t rows, int64_t cols, const float* importance,
              uint8_t* out, int threads) {
  const int64_t bytes = quantised_block_bytes(type);
  std::vector<float> roots(static_cast<size_t>(cols), 1.0f);
  for (int64_t i = 0; importance && i < cols; ++i) roots[static_cast<size_t>(i)] = std::sqrt(importance[i]);
  in_parallel(rows, threads, [=, &roots](int64_t row, int64_t end) {
    for (int64_t col = 0; col < cols; col += kBlock) {
      Search search(type, {roots.data() + col, nullptr});
      for (int64_t i = row; i < end; ++i) {
        write(type, search.run(weights + i * cols + col), out + (i * cols + col) / kBlock * bytes);
      }
    }
  });
}

void round_to_nearest(Type type, const float* weights, int64_t rows, int64_t cols, uint8_t* out,
                      int threads) {
  const int64_t blocks = cols / kBlock, bytes = quantised_block_bytes(type);
  const auto round = type == kQ4_0 ? nearest<kQ4_0> : type == kQ4_1 ? nearest<kQ4_1> : nearest<kQ8_0>;
  in_parallel(rows, threads, [=](int64_t row, int64_t end) {
    for (int64_t i = row * blocks; i < end * blocks; ++i) {
      write(type, round(weights + i * kBlock), out + i * bytes);
    }
  });
}

void quantise_with_feedback(Type type, float* slab, int64_t rows, const float* factor, uint8_t* out,
                            int threads) {
  const int64_t bytes = quantised_block_bytes(type);
  float roots[kBlock];
  for (int k = 0; k < kBlock; ++k) roots[k] = 1 / factor[k * kBlock + k];
  const Metric metric{roots, factor};
  in_parallel(rows, threads, [=](int64_t row, int64_t end) {
    Search search(type, metric);
    for (int64_t i = row; i < end; ++i) {
      const Block block = search.run(slab + i * kBlock);
      write(type, block, out + i * bytes);
      std::memcpy(slab + i * kBlock, block.errors, sizeof block.errors);
    }
  });
}

}  // namespace hotset
