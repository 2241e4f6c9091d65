// The compressed numbers of prefilter_topk and what they are made of, for items and users alike.
#pragma once

#include "tile_gemm.h"

namespace deeprec::DEEPREC_ISA {

// Norms and largest elements for which the proof in prefilter_topk.h holds; a factor that covers rounding in float64.
constexpr double kLargestNorm = 0x1p63, kSlack = 1.0 + 0x1p-18;
constexpr float kSmallestElement = 0x1p-60f;

DEEPREC_INLINE double magnitude(double x) { return x < 0 ? -x : x; }
DEEPREC_INLINE float magnitude(float x) { return x < 0 ? -x : x; }

// The largest element and the norm of a row; the norm is NaN or infinite where an element is.
struct RowSize {
  float largest;
  double norm;

  DEEPREC_INLINE bool is_regular() const { return norm <= kLargestNorm && largest >= kSmallestElement; }
};

inline RowSize size_of(const float* row, int64_t dim) {
  float largest = 0.0f;
  double squares[8] = {};
  int64_t d = 0;
  for (; d + 8 <= dim; d += 8) {
    for (int64_t j = 0; j < 8; ++j) {
      const float size = magnitude(row[d + j]);
      largest = size > largest ? size : largest;
      squares[j] += static_cast<double>(row[d + j]) * row[d + j];
    }
  }
  for (; d < dim; ++d) {
    const float size = magnitude(row[d]);
    largest = size > largest ? size : largest;
    squares[0] += static_cast<double>(row[d]) * row[d];
  }
  for (int64_t j = 1; j < 8; ++j) {
    squares[0] += squares[j];
  }
  return {largest, __builtin_sqrt(squares[0])};
}

// The power of two above a normal x > 0.
DEEPREC_INLINE float power_above(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  bits = (bits & 0x7f800000u) + 0x00800000u;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

// bfloat16 of x; what is too small to matter becomes 0, so that no instruction meets a denormal number.
DEEPREC_INLINE uint32_t half_of(double x) { return magnitude(x) < 0x1p-100 ? 0u : bf16(static_cast<float>(x)); }

DEEPREC_INLINE float value_of_half(uint32_t half) {
  const uint32_t bits = half << 16;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

}  // namespace deeprec::DEEPREC_ISA
