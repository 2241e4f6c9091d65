// The K best of a dot product from a compressed copy of the items: a bound of each score is enough to leave most items
// out, and the few that are left are scored as score_topk scores them. The result has its bits.
//
// Copy of item i:  v = v' + e,  v' = s_i q_i.  int8: q in [-127, 127]; bfloat16: |q| <= 1 and s_i a power of two.
// User:            u = u' + f,  u' = t (p_1 + p_2), p_2 the rounding error of p_1 in finer steps (two planes), or 0.
//
// The bound. Let x be the score of score_topk before the bias: a sum of D products in float32, in whatever order. With
// r = 2^-24 and g = D r / (1 - D r), a sum's error is at most g sum_d |u_d v_d| <= g |u| |v|, and |v| <= |v'| + |e|:
//
//   |x - u'.v'|  <=  |x - u.v| + |u.e + f.v'|  <=  g |u| (|v'| + |e|) + |u| |e| + |f| |v'|
//                 =  s_i [ |e|/s_i (1 + g) |u|  +  |q_i| (|f| + g |u|) ].
//
// The scan has u'.v' as s_i t S. Of int8, S = q.p is whole: two conversions, the sum of both planes and two products
// each cost r of at most m |q| s_i, where m = t (|p_1| + |p_2|). Of bfloat16, S is a sum of 2 D products in float32: as
// the instructions may round twice a product, 4 D r of the same. A tile of 64 items keeps rho >= |e|/s_i and
// nu >= |q_i| of its own, so that with
//
//   a = (1 + g) |u|,   c = |f| + g |u| + kappa m,   kappa = 8 r (int8), (4 D + 16) r (bfloat16)
//   high = s_i (t S + rho a + nu c),      x <= high + A.
//
// a, c, rho and nu come from float64 and are enlarged by 2^-18, which is more than their own rounding and that of the
// sum in brackets. A = (2 D + 16) 2^-126 is what underflow costs, also where the processor flushes denormals to zero.
//
// The bias. fl(x + b) >= T means x + b >= T - r |T| - 2^-126, so high + b >= T - r |T| - A - 2^-126. A bound computed
// below T - 2^-22 |T| - 2 A thus proves that the score is below T: the item is neither better than the K-th best exact
// score so far, nor its equal. T only rises, so an item that is left out never comes back.
//
// What the proof needs is kept by exceptions: rows with NaN or infinity, norms above 2^63 (a sum could overflow) and
// largest elements below 2^-60 have s_i = NaN, whose bound is below nothing, and are scored exactly; rows of zeros have
// s_i = 0, and x = 0 is exact. A user outside [2^-60, 2^63] gives up: score_topk serves it. So does one for whom too
// many items are left.
#pragma once

#include <cstdint>

#include "isa.h"
#include "score_dot.h"

namespace deeprec {

constexpr int64_t kMaxPrefilterDim = int64_t{1} << 16;  // 255 * 127 * D fits into 32 bits modulo 2^32, and D r is small
constexpr int64_t kPendingItems = 16;                   // items of a user that are scored exactly together

// Items that are listed for a user, ascending: one list for all users (indptr null), or compressed rows of which user u
// has row rows[u], or u.
struct PrefilterLists {
  const int32_t* indices;  // null: no lists
  int64_t count;
  const int64_t* indptr;
  const int64_t* rows;

  DEEPREC_ALWAYS_INLINE int64_t row(int64_t user) const { return rows ? rows[user] : user; }
  DEEPREC_ALWAYS_INLINE int64_t begin(int64_t user) const { return indptr ? indptr[row(user)] : 0; }
  DEEPREC_ALWAYS_INLINE int64_t end(int64_t user) const { return indptr ? indptr[row(user) + 1] : count; }
};

struct PrefilterJob {
  int64_t num_users, num_items, dim, k;
  bool is_int8;
  int64_t num_planes;      // 1 or 2
  const float* users;      // [B, D]
  const float* items;      // [N, D]
  const float* item_bias;  // [N] or null
  const uint32_t* words;   // [tiles, steps, 64]: four int8 + 128, or two bfloat16, of adjacent columns
  const float* scales;     // [tiles, 64], s_i
  const float* bounds;     // [tiles, 2], rho and nu
  PrefilterLists seen, allow;
  int64_t capacity;       // keys of a user and a part of the catalogue, above k
  int64_t most_rescored;  // beyond a sixteenth of the items passed: a user with more gives up
};

// Buffers of one thread, for a block of users.
struct PrefilterScratch {
  uint32_t* planes;    // [users * num_planes, steps]
  float* steps;        // [users], t
  int32_t* offsets;    // [users * num_planes], what the sums of int8 are too large by
  float* item_errors;  // [users], a
  float* user_errors;  // [users], c
  float* thresholds;   // [users], a bound below it leaves an item out
  uint64_t* masks;     // [users], items of the tile that are left
  int32_t* pending;    // [users, kPendingItems]
  int64_t* num_pending;
  int64_t* num_rescored;
  int64_t* seen_at;
  int64_t* allow_at;
  bool* gave_up;
  void* candidates;  // [users] of kCandidatesBytes
  float* tile;       // [D, kTileItems], rows that are scored exactly
};

constexpr int64_t kCandidatesBytes = 40;

// The best k of a part of the catalogue for user u, and perhaps more: keys of score_keys.h at keys + u * stride, and at
// counts[u * count_stride] their number, or -1 for a user that the bound does not serve.
struct PrefilterSink {
  uint64_t* keys;
  int64_t* counts;
  int64_t stride, count_stride;
};

}  // namespace deeprec

// For the users of a block, the part that is the tiles [tile_begin, tile_end).
DEEPREC_DECLARE_BF16(void, prefilter_scan,
                     (const ::deeprec::PrefilterJob& job, const ::deeprec::PrefilterScratch& scratch,
                      const ::deeprec::PrefilterSink& sink, int64_t user_begin, int64_t user_end, int64_t tile_begin,
                      int64_t tile_end))
// The k best of the keys in order; (-inf, -1) where there are fewer.
DEEPREC_DECLARE_BF16(void, prefilter_finish, (uint64_t* keys, int64_t count, int64_t k, float* values, int64_t* ids))
// One tile of the copy, from `count` <= 64 item rows.
DEEPREC_DECLARE(void, prefilter_pack,
                (const float* rows, int64_t count, int64_t dim, bool is_int8, uint32_t* words, float* scales,
                 float* bounds))
