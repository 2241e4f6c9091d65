// The score of one (user, item) pair by its dot product, in the one order of summation that every path keeps:
//
//   score = (... ((0 + u[0] v[0]) + u[1] v[1]) + ... + u[D-1] v[D-1]) + item_bias
//
// in float32, one column after the other, each product and sum fused into one rounding where the instruction set can
// (multiply_add of tile_gemm.h). Lanes are items, so vectors change nothing in it: a pair has the same bits by itself,
// in a packed tile, beside other users and for any split of the catalogue.
//
//   score_dot    one pair by itself
//   pack_items   up to 64 item rows, adjacent or named by ids, as the right operand of gemm<float>: [D, kTileItems]
#pragma once

#include "tile_gemm.h"

namespace deeprec {

constexpr int64_t kTileItems = 64;  // items scored together; their packed rows stay in the first-level cache

namespace DEEPREC_ISA {

DEEPREC_INLINE float score_dot(const float* user, const float* item, int64_t dim) {
  float sum = 0.0f;
  for (int64_t d = 0; d < dim; ++d) {
    sum = sum + user[d] * item[d];
  }
  return sum;
}

// The rows items[ids[0]], items[ids[1]], .. (null: the first ones) as `tile` [dim, kTileItems]; columns from `width`
// to the next multiple of 16 become zero, those behind keep what they hold.
inline void pack_items(const float* items, int64_t dim, const int32_t* ids, int64_t width, float* tile) {
  for (int64_t j = 0; j < width; j += kPad) {
    const float* rows[kPad];
    const int64_t count = width - j < kPad ? width - j : kPad;
    for (int64_t r = 0; r < count; ++r) {
      rows[r] = items + (ids ? static_cast<int64_t>(ids[j + r]) : j + r) * dim;
    }
    transpose_rows(rows, count, dim, tile + j, kTileItems);
  }
}

}  // namespace DEEPREC_ISA
}  // namespace deeprec
