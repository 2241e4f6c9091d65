// Pieces shared by the passes of ncf_loss: tiles of examples as operands, and what they do with registers.
#pragma once

#include "ncf_loss.h"
#include "tile_gemm.h"

namespace deeprec::DEEPREC_ISA {
namespace {

// A tile of T examples of a width, in the two forms that products want: `rows` is the left operand of the next
// layer, `steps` either operand of a weight gradient, whose sum runs over examples (in pairs for bfloat16).
template <class T>
struct Tile {
  T *rows, *steps;
  int64_t row_stride, step_stride;
};

struct Scratch {
  uint32_t* at;
  uint32_t* take(int64_t words) {
    uint32_t* out = at;
    at += (words + 15) / 16 * 16;
    return out;
  }
  float* floats(int64_t count) { return reinterpret_cast<float*>(take(count)); }
  void tile(int64_t width, Tile<float>& out) {
    out.row_stride = out.step_stride = stride(width);
    out.rows = out.steps = floats(kNcfTile * out.row_stride);
  }
  void tile(int64_t width, Tile<uint32_t>& out) {
    out.row_stride = stride(padded(width) / 2);
    out.step_stride = stride(width);
    out.rows = take(kNcfTile * out.row_stride);
    out.steps = take(kNcfTile / 2 * out.step_stride);
  }
};

// Two examples e, e + 1 (e even), one vector of columns.
DEEPREC_INLINE void put(const Tile<float>& t, int64_t e, int64_t j, Vec even, Vec odd) {
  store(t.rows + e * t.row_stride + j, even);
  store(t.rows + (e + 1) * t.row_stride + j, odd);
}
DEEPREC_INLINE void put(const Tile<uint32_t>& t, int64_t e, int64_t j, Vec even, Vec odd) {
  store_row_bf16(t.rows + e * t.row_stride + j / 2, even);
  store_row_bf16(t.rows + (e + 1) * t.row_stride + j / 2, odd);
  store_bits(t.steps + e / 2 * t.step_stride + j, pair_bf16(even, odd));
}

// ReLU's derivative: keep the gradient where the activation is positive.
DEEPREC_INLINE void mask(const Tile<float>& x, int64_t e, int64_t j, Vec& even, Vec& odd) {
  even = load(x.rows + e * x.row_stride + j) > 0.0f ? even : Vec{};
  odd = load(x.rows + (e + 1) * x.row_stride + j) > 0.0f ? odd : Vec{};
}
DEEPREC_INLINE void mask(const Tile<uint32_t>& x, int64_t e, int64_t j, Vec& even, Vec& odd) {
  const Bits pair = *reinterpret_cast<const BitsMem*>(x.steps + e / 2 * x.step_stride + j);
  even = (pair << 17) != 0 ? even : Vec{};
  odd = (pair & 0x7fff0000u) != 0 ? odd : Vec{};
}

struct Accumulate {
  float* c;
  int64_t ldc;
  bool is_first;
  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        float* to = c + (i + r) * ldc + j + v * kLanes;
        store(to, is_first ? acc[r][v] : acc[r][v] + load(to));
      }
    }
  }
};

template <class T>
T* words(uint32_t* p) {
  return reinterpret_cast<T*>(p);
}

void clear(float* p, int64_t count) { __builtin_memset(p, 0, static_cast<uint64_t>(count) * sizeof(float)); }

// Rows of tables and of hidden layers are read in random order: ask for them a few examples ahead.
constexpr int64_t kAhead = 4;
DEEPREC_INLINE void prefetch(const float* row, int64_t width) {
  for (int64_t j = 0; j < width; j += 16) {
    __builtin_prefetch(row + j);
  }
}

}  // namespace
}  // namespace deeprec::DEEPREC_ISA
