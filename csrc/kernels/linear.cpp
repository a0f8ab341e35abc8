// The table of linear kernels of one instruction set: compiled once for each, with HOTSET_LEVEL naming it.
#include "kernels/linear_activations.h"
#include "kernels/linear_float.h"
#include "kernels/linear_int8.h"
#include "kernels/linear_pack.h"

namespace hotset {
namespace {

ActivationFormat activation_format(Type type) { return is_float(type) ? kActF32 : kActInt8; }

int64_t panel_bytes(Type type, int64_t cols) {
  if (is_float(type)) return float_panel_bytes(type, cols);
  return with_format(type, [&](auto format) { return decltype(format)::panel_bytes(cols); });
}

void pack_panel(Type type, const uint8_t* src, int64_t rows, int64_t cols, uint8_t* panel) {
  if (rows < kLanes) memset(panel, 0, panel_bytes(type, cols));
  for (int64_t row = 0; row < rows; row++) {
    if (type == kF32) {
      pack_float_row<float>(src + row * cols * 4, cols, row, panel);
    } else if (is_float(type)) {
      pack_float_row<uint16_t>(src + row * cols * 2, cols, row, panel);
    } else {
      with_blocks(type, [&](auto format, auto block) {
        using F = decltype(format);
        const int64_t row_bytes = cols / kBlock / F::Meta::kBlocks * block.kBytes;
        pack_row<F, decltype(block)>(src + row * row_bytes, cols, row, panel);
      });
    }
  }
}

int64_t activation_bytes(ActivationFormat format, int64_t rows, int64_t cols) {
  int64_t n = tile_tokens(rows);
  return (rows + n - 1) / n * tile_bytes(format, n, cols);
}

void pack_activations(ActivationFormat format, const float* x, int64_t ldx, int64_t rows, int64_t cols,
                      int64_t first, int64_t last, void* out) {
  int64_t n = tile_tokens(rows);
  int64_t bytes = tile_bytes(format, n, cols);
  for (int64_t t = first; t < last; t++) {
    uint8_t* tile = static_cast<uint8_t*>(out) + t / n * bytes;
    if (t % n == 0 && last - t < n) memset(tile, 0, bytes);
    if (format == kActF32) {
      pack_float_activations(x + t * ldx, cols, n, t % n, tile);
    } else if (n == 1) {
      pack_int8_row<1>(x + t * ldx, cols, 0, tile);
    } else {
      pack_int8_row<kTile>(x + t * ldx, cols, t % n, tile);
    }
  }
}

// A row of a tile is words of four bytes, those of the tile's rows side by side.
template <int n>
void gather_tile(int64_t words, const uint8_t* const* from, int64_t stride, uint8_t* to) {
  for (int64_t i = 0; i < words; i++) {
    for (int t = 0; t < n; t++) memcpy(to + 4 * (i * n + t), from[t] + i * stride, 4);
  }
}

void gather_activations(ActivationFormat format, int64_t cols, const void* x, int64_t rows,
                        const int32_t* which, int64_t n, void* out) {
  const int64_t from_tokens = tile_tokens(rows), to_tokens = tile_tokens(n);
  const int64_t from_bytes = tile_bytes(format, from_tokens, cols);
  const int64_t to_bytes = tile_bytes(format, to_tokens, cols);
  const int64_t words = format == kActF32 ? cols : cols / kBlock * (kQuads + kBlockWords) + 1;
  uint8_t* to = static_cast<uint8_t*>(out);
  for (int64_t first = 0; first < n; first += to_tokens, to += to_bytes) {
    const uint8_t* from[kTile];
    for (int64_t t = 0; t < to_tokens; t++) {
      const int64_t row = which[first + t < n ? first + t : first];  // any, where there is none
      from[t] = static_cast<const uint8_t*>(x) + row / from_tokens * from_bytes + row % from_tokens * 4;
    }
    if (to_tokens == 1) {
      gather_tile<1>(words, from, from_tokens * 4, to);
    } else {
      gather_tile<kTile>(words, from, from_tokens * 4, to);
    }
  }
}

void multiply(float* y, int64_t n, float factor) {
  for (int64_t i = 0; i < n; i += kLanes) store(y + i, load(y + i) * broadcast(factor));
}

void matvec(const PackedMatrix* w, int64_t panel0, int64_t panel1, const void* x, float* y) {
  if (is_float(w->type)) {
    with_weight(w->type, [&](auto weight) {
      matvec_float<decltype(weight)>(w, panel0, panel1, static_cast<const float*>(x), y);
    });
  } else {
    with_format(w->type, [&](auto format) {
      matvec_int8<decltype(format)>(w, panel0, panel1, static_cast<const uint8_t*>(x), y);
    });
  }
  if (w->scale != 1) multiply(y, (panel1 - panel0) * kLanes, w->scale);
}

void matmul(const PackedMatrix* w, int64_t panel0, int64_t panel1, const void* x, int64_t rows, int64_t row0,
            int64_t row1, float* y, int64_t ldy) {
  if (rows == 1) return matvec(w, panel0, panel1, x, y);
  const uint8_t* tiles = static_cast<const uint8_t*>(x);
  if (is_float(w->type)) {
    with_weight(w->type, [&](auto weight) {
      matmul_float<decltype(weight)>(w, panel0, panel1, tiles, row0, row1, y, ldy);
    });
  } else {
    with_format(w->type, [&](auto format) {
      matmul_int8<decltype(format)>(w, panel0, panel1, tiles, row0, row1, y, ldy);
    });
  }
  if (w->scale == 1) return;
  for (int64_t row = row0; row < row1; row++, y += ldy) multiply(y, (panel1 - panel0) * kLanes, w->scale);
}

}  // namespace

extern const LinearKernels HOTSET_TABLE(linear);
const LinearKernels HOTSET_TABLE(linear) = {
    kLanes,           activation_format,  panel_bytes, pack_panel, activation_bytes,
    pack_activations, gather_activations, matvec,      matmul,     set_entries,
};

}  // namespace hotset
