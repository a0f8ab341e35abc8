// Attention over simd.h: keys are walked in splits whose softmax is taken alone and joined to that of those
// before (arXiv 1805.02867, 2205.14135), and all rows that share a key-value head go together, so that keys
// and values are read once for them. Splits lie at multiples of their size, whoever asks: a row's result
// depends on its own query and on the keys that it sees, and on nothing else.
#include "kernels/vector.h"
#include "simd/vector_math.h"

namespace hotset {
namespace {

constexpr int64_t kBlock = 2 * kLanes;  // key_block
constexpr int64_t kSplit = 128;         // keys in a split, a multiple of every kBlock
constexpr int64_t kFewRows = 12;  // up to here half-precision keys and values are converted in the inner loop
constexpr float kNothing = -1e30f;  // the maximum of no scores

HOTSET_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
HOTSET_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
HOTSET_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

HOTSET_INLINE F32 load_numbers(const float* p) { return load(p); }
HOTSET_INLINE F32 load_numbers(const uint16_t* p) { return load_f16(p); }

// ---------------------------------------------------------------------------------------------------------------
// The cache's layout.

int64_t key_block_bytes(KvType type, int64_t head_dim) {
  switch (type) {
    case KvType::kF32:
      return kBlock * head_dim * 4;
    case KvType::kF16:
      return kBlock * head_dim * 2;
    default:  // codes, then a scale to each position and 32 dimensions
      return kBlock * (head_dim + head_dim / kKvBlock * 2);
  }
}

int64_t value_row_bytes(KvType type, int64_t head_dim) {
  switch (type) {
    case KvType::kF32:
      return round_up(head_dim, kBlock) * 4;
    case KvType::kF16:
      return round_up(head_dim, kBlock) * 2;
    default:
      return head_dim + head_dim / kKvBlock * 2;
  }
}

HOTSET_INLINE uint16_t to_f16(float x) {
  uint16_t lanes[kLanes];
  store_f16(lanes, broadcast(x));
  return lanes[0];
}

HOTSET_INLINE float from_f16(uint16_t x) {
  uint16_t lanes[kLanes] = {x};
  float numbers[kLanes];
  store(numbers, load_f16(lanes));
  return numbers[0];
}

// 32 numbers as codes times the scale that is returned (a half), NaN where one is not finite.
HOTSET_INLINE uint16_t quantise(const float* x, int8_t* codes) {
  F32 largest = zero_f32(), not_finite = zero_f32();
  for (int i = 0; i < kKvBlock; i += kLanes) {
    largest = max(largest, abs(load(x + i)));
    not_finite = fma(load(x + i), zero_f32(), not_finite);
  }
  const float scale = max(largest) / 127.0f + sum(not_finite);
  const F32 inverse = broadcast(scale > 0.0f ? 1.0f / scale : 0.0f);
  for (int i = 0; i < kKvBlock; i += kLanes) store_i8(codes + i, round_to_i32(load(x + i) * inverse));
  return to_f16(scale);
}

// Infinity becomes NaN: a key too large for a half must not look like one that no query asks for.
HOTSET_INLINE uint16_t without_infinity(uint16_t half) {
  constexpr uint16_t kInfinity = 0x7c00;
  return (half & 0x7fff) == kInfinity ? uint16_t(half | 1) : half;
}

void store_key(KvType type, const float* key, int64_t head_dim, int64_t position, uint8_t* keys) {
  uint8_t* block = keys + position / kBlock * key_block_bytes(type, head_dim);
  const int64_t column = position % kBlock;
  if (type == KvType::kF32) {
    float* out = reinterpret_cast<float*>(block) + column;
    for (int64_t d = 0; d < head_dim; ++d) out[d * kBlock] = key[d];
  } else if (type == KvType::kF16) {
    uint16_t* out = reinterpret_cast<uint16_t*>(block) + column;
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      const int64_t n = least(kLanes, head_dim - d);
      uint16_t halves[kLanes];
      store_f16(halves, n == kLanes ? load(key + d) : load_first(key + d, n));
      for (int64_t i = 0; i < n; ++i) out[(d + i) * kBlock] = without_infinity(halves[i]);
    }
  } else {
    int8_t* out = reinterpret_cast<int8_t*>(block) + column;
    uint16_t* scales = reinterpret_cast<uint16_t*>(block + head_dim * kBlock) + column;
    for (int64_t d = 0; d < head_dim; d += kKvBlock) {
      int8_t codes[kKvBlock];
      scales[d / kKvBlock * kBlock] = quantise(key + d, codes);
      for (int64_t i = 0; i < kKvBlock; ++i) out[(d + i) * kBlock] = codes[i];
    }
  }
}

void store_value(KvType type, const float* value, int64_t head_dim, int64_t position, uint8_t* values) {
  uint8_t* row = values + position * value_row_bytes(type, head_dim);
  if (type == KvType::kF32) {
    memcpy(row, value, static_cast<size_t>(head_dim) * 4);
  } else if (type == KvType::kF16) {
    uint16_t* out = reinterpret_cast<uint16_t*>(row);
    int64_t d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) store_f16(out + d, load(value + d));
    // The padding of the row has room for the rest of a register, and stays zero.
    if (d < head_dim) store_f16(out + d, load_first(value + d, head_dim - d));
  } else {
    int8_t* codes = reinterpret_cast<int8_t*>(row);
    uint16_t* scales = reinterpret_cast<uint16_t*>(row + head_dim);
    for (int64_t d = 0; d < head_dim; d += kKvBlock) scales[d / kKvBlock] = quantise(value + d, codes + d);
  }
}

// A split's keys, whole blocks of them, as floats in the same layout.
void unpack_keys(KvType type, const uint8_t* keys, int64_t head_dim, int64_t blocks, float* out) {
  for (int64_t block = 0; block < blocks; ++block, keys += key_block_bytes(type, head_dim)) {
    const int64_t n = kBlock * head_dim;
    if (type == KvType::kF16) {
      const uint16_t* in = reinterpret_cast<const uint16_t*>(keys);
      for (int64_t i = 0; i < n; i += kLanes) store(out + i, load_f16(in + i));
    } else {
      const int8_t* codes = reinterpret_cast<const int8_t*>(keys);
      const uint16_t* scales = reinterpret_cast<const uint16_t*>(keys + n);
      for (int64_t d = 0; d < head_dim; ++d) {
        for (int64_t i = 0; i < kBlock; i += kLanes) {
          const F32 scale = load_f16(scales + d / kKvBlock * kBlock + i);
          store(out + d * kBlock + i, to_f32(load_i8(codes + d * kBlock + i)) * scale);
        }
      }
    }
    out += n;
  }
}

void unpack_values(KvType type, const uint8_t* values, int64_t head_dim, int64_t rows, float* out) {
  const int64_t width = round_up(head_dim, kBlock);
  for (int64_t row = 0; row < rows; ++row, values += value_row_bytes(type, head_dim), out += width) {
    if (type == KvType::kF16) {
      const uint16_t* in = reinterpret_cast<const uint16_t*>(values);
      for (int64_t i = 0; i < width; i += kLanes) store(out + i, load_f16(in + i));
    } else {
      const int8_t* codes = reinterpret_cast<const int8_t*>(values);
      const uint16_t* scales = reinterpret_cast<const uint16_t*>(values + head_dim);
      for (int64_t i = 0; i < width; i += kLanes) {
        store(out + i, to_f32(load_i8(codes + i)) * broadcast(from_f16(scales[i / kKvBlock])));
      }
    }
  }
}

// The first numbers of keys, given as whole blocks, as rows of values.
void turn_keys(const float* keys, int64_t head_dim, int64_t value_dim, int64_t blocks, float* out) {
  const int64_t width = round_up(value_dim, kBlock);
  for (int64_t block = 0; block < blocks; ++block, keys += kBlock * head_dim, out += kBlock * width) {
    for (int64_t i = 0; i < kBlock; ++i) {
      float* row = out + i * width;
      for (int64_t d = 0; d < value_dim; ++d) row[d] = keys[d * kBlock + i];
      for (int64_t d = value_dim; d < width; ++d) row[d] = 0.0f;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Products. Both of attention's have this form: c (rows x columns) = a (rows x k) times b (k x
// columns), where b and c are cut into blocks of kBlock columns. Scores: k is the dimension; weighted sums: k
// is the key.

template <class T>
struct Product {
  int64_t k;
  const float* a;
  int64_t lda;
  const T* b;
  int64_t ldb, b_block;  // from one k to the next, from one block of columns to the next
  float* c;
  int64_t ldc;
};

// kRows x kBlocks blocks of c in registers.
template <int kRows, int kBlocks, class T>
HOTSET_INLINE void multiply_tile(const Product<T>& p, int64_t block) {
  const float* a = p.a;
  const T* b = p.b + block * p.b_block;
  float* c = p.c + block * kBlock;
  F32 sums[kRows][2 * kBlocks];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 2 * kBlocks; ++j) sums[i][j] = zero_f32();
  }
  const auto column = [&](int64_t k, int j) {
    return load_numbers(b + j / 2 * p.b_block + k * p.ldb + j % 2 * kLanes);
  };
  for (int64_t k = 0; k < p.k; ++k) {
    // Whichever are fewer stay in registers, factors or columns, so that these suffice.
    if constexpr (kRows < 2 * kBlocks) {
      F32 factors[kRows];
      for (int i = 0; i < kRows; ++i) factors[i] = broadcast(a[i * p.lda + k]);
      for (int j = 0; j < 2 * kBlocks; ++j) {
        const F32 numbers = column(k, j);
        for (int i = 0; i < kRows; ++i) sums[i][j] = fma(factors[i], numbers, sums[i][j]);
      }
    } else {
      F32 columns[2 * kBlocks];
      for (int j = 0; j < 2 * kBlocks; ++j) columns[j] = column(k, j);
      for (int i = 0; i < kRows; ++i) {
        const F32 factor = broadcast(a[i * p.lda + k]);
        for (int j = 0; j < 2 * kBlocks; ++j) sums[i][j] = fma(factor, columns[j], sums[i][j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 2 * kBlocks; ++j) store(c + i * p.ldc + j * kLanes, sums[i][j]);
  }
}

template <int kRows, int kWide, class T>
HOTSET_INLINE void multiply(const Product<T>& p, int64_t blocks) {
  int64_t block = 0;
  for (; block + kWide <= blocks; block += kWide) multiply_tile<kRows, kWide>(p, block);
  for (; block < blocks; ++block) multiply_tile<kRows, 1>(p, block);
}

// ---------------------------------------------------------------------------------------------------------------

struct Scratch {
  AttentionState* states;  // rows
  float* sums;             // rows x width
  float* part;             // the same of one split
  float* queries;          // rows x head_dim
  float* scores;           // rows x kSplit, then their exponentials
  float* keys;             // kSplit keys
  float* values;           // kSplit x width
};

// Parts begin at multiples of 64 bytes. Returns the size of them all.
size_t divide(int64_t head_dim, int64_t value_dim, int64_t rows, void* memory, Scratch* parts) {
  const int64_t width = round_up(value_dim, kBlock);
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* part = static_cast<float*>(memory) + used;
    used += round_up(floats, 16);
    return part;
  };
  parts->states = reinterpret_cast<AttentionState*>(take(rows * 2));
  parts->sums = take(rows * width);
  parts->part = take(rows * width);
  parts->queries = take(rows * head_dim);
  parts->scores = take(rows * kSplit);
  parts->keys = take(kSplit * head_dim);
  parts->values = take(kSplit * width);
  return static_cast<size_t>(used) * sizeof(float);
}

size_t scratch_bytes(int64_t head_dim, int64_t value_dim, int64_t rows) {
  alignas(64) float nothing[1];
  Scratch parts;
  return divide(head_dim, value_dim, rows, nothing, &parts);
}

// The two functions below are compiled once for all shapes of a call, so that they round equally.

[[gnu::noinline]] void join(int64_t value_dim, const AttentionState* part, const float* part_sums,
                            AttentionState* state, float* sums) {
  const int64_t width = round_up(value_dim, kBlock);
  if (part->sum == 0.0f) return;
  if (state->sum == 0.0f) {
    *state = *part;
    memcpy(sums, part_sums, static_cast<size_t>(width) * sizeof(float));
    return;
  }
  const float largest = state->max > part->max ? state->max : part->max;
  const F32 ours = exp(broadcast(state->max - largest)), theirs = exp(broadcast(part->max - largest));
  for (int64_t i = 0; i < width; i += kLanes) {
    store(sums + i, fma(load(part_sums + i), theirs, load(sums + i) * ours));
  }
  float lanes[kLanes];
  store(lanes, fma(broadcast(part->sum), theirs, broadcast(state->sum) * ours));
  *state = {largest, lanes[0]};
}

// One row's scores of the split that begins with key `first` become exp(score - max), of n keys; those
// outside [low, high) become zero. Sums of lanes meet the same keys, whatever n is.
[[gnu::noinline]] AttentionState soften(float* scores, int64_t first, int64_t n, int64_t low, int64_t high,
                                        float cap) {
  const int64_t begin = most(low - first, 0), end = least(high - first, n), padded = round_up(n, kBlock);
  if (begin >= end) {
    memset(scores, 0, static_cast<size_t>(padded) * sizeof(float));
    return {kNothing, 0.0f};
  }
  const int64_t from = begin / kLanes * kLanes, to = round_up(end, kLanes);
  for (int64_t i = from; cap > 0.0f && i < to; i += kLanes)
    store(scores + i, soft_cap(load(scores + i), cap));
  for (int64_t i = from; i < begin; ++i) scores[i] = kNothing;
  for (int64_t i = end; i < to; ++i) scores[i] = kNothing;
  F32 largest = load(scores + from);
  for (int64_t i = from + kLanes; i < to; i += kLanes) largest = max(largest, load(scores + i));
  const float split_max = max(largest);

  const F32 shift = broadcast(split_max);
  for (int64_t i = from; i < to; i += kLanes) store(scores + i, exp(load(scores + i) - shift));
  for (int64_t i = 0; i < begin; ++i) scores[i] = 0.0f;
  for (int64_t i = end; i < padded; ++i) scores[i] = 0.0f;
  F32 total = zero_f32();
  for (int64_t i = from; i < to; i += kLanes) total = total + load(scores + i);
  return {split_max, sum(total)};
}

// Keys [first, last) of a split for rows [row, row + kRows); `keys` and `values` point at the first of them.
template <int kRows, class T>
void attend_rows(const AttentionTile& t, const Scratch& s, int64_t row, int64_t first, int64_t last,
                 const T* keys, const T* values) {
  const int64_t oldest = t.position + row / t.group, newest = t.position + (row + kRows - 1) / t.group;
  const int64_t n = least(last, newest + 1) - first;
  if (n <= 0 || last <= oldest + 1 - t.window) return;
  const int64_t width = round_up(t.value_dim, kBlock);
  float* scores = s.scores + row * kSplit;
  float* part = s.part + row * width;

  // So many blocks at a time give few rows enough independent sums to hide the latency of additions.
  constexpr int kWide = kRows == 1 ? 4 : kRows <= 3 ? 2 : 1;
  multiply<kRows, kWide>(Product<T>{t.head_dim, s.queries + row * t.head_dim, t.head_dim, keys, kBlock,
                                    kBlock * t.head_dim, scores, kSplit},
                         round_up(n, kBlock) / kBlock);
  AttentionState states[kRows];
  for (int i = 0; i < kRows; ++i) {
    const int64_t position = t.position + (row + i) / t.group;
    states[i] = soften(scores + i * kSplit, first, n, position + 1 - t.window, position + 1, t.soft_cap);
  }
  multiply<kRows, kWide>(Product<T>{n, scores, kSplit, values, width, kBlock, part, width}, width / kBlock);
  for (int i = 0; i < kRows; ++i) {
    join(t.value_dim, states + i, part + i * width, s.states + row + i, s.sums + (row + i) * width);
  }
}

// The same for all rows.
template <class T>
void attend_keys(const AttentionTile& t, const Scratch& s, int64_t first, int64_t last, const T* keys,
                 const T* values) {
  int64_t row = 0;
  for (; row + 6 <= t.rows; row += 6) attend_rows<6>(t, s, row, first, last, keys, values);
  switch (t.rows - row) {
    case 1:
      return attend_rows<1>(t, s, row, first, last, keys, values);
    case 2:
      return attend_rows<2>(t, s, row, first, last, keys, values);
    case 3:
      return attend_rows<3>(t, s, row, first, last, keys, values);
    case 4:
      return attend_rows<4>(t, s, row, first, last, keys, values);
    case 5:
      return attend_rows<5>(t, s, row, first, last, keys, values);
  }
}

void attend(const AttentionTile* tile) {
  const AttentionTile& t = *tile;
  const int64_t width = round_up(t.value_dim, kBlock);
  Scratch s;
  divide(t.head_dim, t.value_dim, t.rows, t.scratch, &s);
  for (int64_t row = 0; row < t.rows; ++row) {
    s.states[row] = {kNothing, 0.0f};
    memcpy(s.queries + row * t.head_dim,
           t.queries + row / t.group * t.query_stride + row % t.group * t.head_dim,
           static_cast<size_t>(t.head_dim) * sizeof(float));
  }
  memset(s.sums, 0, static_cast<size_t>(t.rows * width) * sizeof(float));

  for (int64_t first = t.first_key; first < t.last_key; first += kSplit) {
    const int64_t last = least(first + kSplit, t.last_key);
    const uint8_t* keys = t.keys + first / kBlock * key_block_bytes(t.type, t.head_dim);
    if (!t.values) {
      const int64_t blocks = round_up(last - first, kBlock) / kBlock;
      const float* numbers = s.keys;
      if (t.type == KvType::kF32) {
        numbers = reinterpret_cast<const float*>(keys);
      } else {
        unpack_keys(t.type, keys, t.head_dim, blocks, s.keys);
      }
      turn_keys(numbers, t.head_dim, t.value_dim, blocks, s.values);
      attend_keys<float>(t, s, first, last, numbers, s.values);
      continue;
    }
    const uint8_t* values = t.values + first * value_row_bytes(t.type, t.value_dim);
    if (t.type == KvType::kF32) {
      attend_keys(t, s, first, last, reinterpret_cast<const float*>(keys),
                  reinterpret_cast<const float*>(values));
    } else if (t.type == KvType::kF16 && t.rows <= kFewRows) {
      attend_keys(t, s, first, last, reinterpret_cast<const uint16_t*>(keys),
                  reinterpret_cast<const uint16_t*>(values));
    } else {
      unpack_keys(t.type, keys, t.head_dim, round_up(last - first, kBlock) / kBlock, s.keys);
      unpack_values(t.type, values, t.value_dim, last - first, s.values);
      attend_keys<float>(t, s, first, last, s.keys, s.values);
    }
  }
}

}  // namespace

extern const AttentionKernels HOTSET_TABLE(attention);
const AttentionKernels HOTSET_TABLE(attention) = {
    kBlock, kSplit, key_block_bytes, value_row_bytes, store_key, store_value, scratch_bytes, attend, join};

}  // namespace hotset
