// score_topk and score_items on the CPU. A block of users meets the catalogue 64 items at a time: the tile is packed
// with items across the vector lanes, scored by the register-blocked product of tile_gemm.h, and only scores above a
// user's k-th best leave the registers, as candidates (score_keys.h). Users x items never exist in memory.
#include "score_topk.h"

#include "score_keys.h"
#include "score_network.h"

#if defined(DEEPREC_ISA_avx2)
#include <immintrin.h>
#endif

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kAhead = 64;  // items between what is read and what is asked for
static_assert(sizeof(Candidates) == kCandidateBytes);

// A step of the squared distance, in place of that of the product.
struct Difference {
  float value;
};
DEEPREC_INLINE Vec multiply_add(Difference a, const Difference* b, Vec acc) {
  const Vec difference = a.value - load(&b->value);
  return acc + difference * difference;
}

// Sums of all pairs of users [user, user + rows) and the packed tile, to the epilogue.
template <class Epilogue>
DEEPREC_INLINE void score_pairs(const ScoreJob& job, const ScoreScratch& scratch, int64_t user, int64_t rows, int64_t n,
                                const Epilogue& epilogue) {
  const float* users = job.user_factors + user * job.num_factors;
  if (job.similarity == Similarity::l2) {
    gemm<Difference>(reinterpret_cast<const Difference*>(users), job.num_factors, 1,
                     reinterpret_cast<const Difference*>(scratch.item_factors), kTile, rows, n, job.num_factors,
                     epilogue);
  } else {
    gemm<float>(users, job.num_factors, 1, scratch.item_factors, kTile, rows, n, job.num_factors, epilogue);
  }
}

// Scores as they are, to rows of kTile.
struct Rows {
  const ScoreScratch& scratch;

  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const int64_t at = j + v * kLanes;
      const Vec scale = load(scratch.item_scale + at), shift = load(scratch.item_bias + at);
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        store(scratch.scores + (i + r) * kTile + at, acc[r][v] * scale + shift);
      }
    }
  }
};

// scores[r, j] of users user.. and the packed tile; columns from the tile's width to the next multiple of 16 are noise.
void score_rows(const ScoreJob& job, const ScoreScratch& scratch, int64_t user, int64_t rows, int64_t n) {
  score_pairs(job, scratch, user, rows, n, Rows{scratch});
  if (job.num_hidden == 0) {
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (job.use_bfloat16) {
      add_network<uint32_t>(job, scratch, user + r, n, scratch.scores + r * kTile);
    } else {
      add_network<float>(job, scratch, user + r, n, scratch.scores + r * kTile);
    }
  }
}

// One over the length of column j of the tile, 0 for a zero vector. A column whose squares would leave the range of
// float32 is first brought near 1 by a power of two, which rounds nothing; one with NaN or infinity gives NaN.
float inverse_length(const ScoreJob& job, float* tile, int64_t j) {
  float largest = 0.0f;
  for (int64_t d = 0; d < job.num_factors; ++d) {
    const float x = __builtin_fabsf(tile[d * kTile + j]);
    largest = x > largest || x != x ? x : largest;
  }
  if (largest == 0.0f) {
    return 0.0f;
  }
  uint32_t bits;
  __builtin_memcpy(&bits, &largest, 4);
  const uint32_t exponent = bits >> 23 < 253 ? bits >> 23 : 253;
  bits = (254 - exponent) << 23;
  float scale, sum = 0.0f;
  __builtin_memcpy(&scale, &bits, 4);
  for (int64_t d = 0; d < job.num_factors; ++d) {
    const float x = tile[d * kTile + j] * scale;
    tile[d * kTile + j] = x;
    sum += x * x;
  }
  return 1.0f / __builtin_sqrtf(sum);
}

void inverse_lengths(const ScoreJob& job, const ScoreScratch& scratch, int64_t n) {
  for (int64_t j = 0; j < n; j += kLanes) {
    Vec sums{};
    for (int64_t d = 0; d < job.num_factors; ++d) {
      const Vec x = load(scratch.item_factors + d * kTile + j);
      sums += x * x;
    }
    for (int64_t r = 0; r < kLanes; ++r) {
      const bool is_usual = sums[r] > 0x1p-80f && sums[r] < 0x1p80f;
      scratch.item_scale[j + r] =
          is_usual ? 1.0f / __builtin_sqrtf(sums[r]) : inverse_length(job, scratch.item_factors, j + r);
    }
  }
}

// Items at the places [at, at + width) of the range. What lies behind them scores -inf or NaN.
void pack_tile(const ScoreJob& job, const ScoreScratch& scratch, const ScoreRange& range, int64_t at, int64_t width) {
  const int32_t* ids = range.ids ? range.ids + at : nullptr;
  const int64_t first = ids ? 0 : at;
  pack_items(job.item_factors + first * job.num_factors, job.num_factors, ids, width, scratch.item_factors);
  if (job.num_hidden) {
    pack_items(job.item_hidden + first * job.num_hidden, job.num_hidden, ids, width, scratch.item_hidden);
  }
  for (int64_t j = 0; j < padded(width); ++j) {
    const float bias = job.item_bias && j < width ? job.item_bias[ids ? ids[j] : at + j] : 0.0f;
    scratch.item_bias[j] = j < width ? job.bias + bias : kMinusInfinity;
    scratch.item_scale[j] = job.similarity == Similarity::l2 ? -1.0f : 1.0f;
  }
  if (job.similarity == Similarity::cosine) {
    inverse_lengths(job, scratch, padded(width));
  }
}

// Bit j: scores[j] > threshold. NaN and -inf are never above anything.
DEEPREC_INLINE uint32_t above(Vec scores, float threshold) {
#if defined(DEEPREC_ISA_avx512)
  return _mm512_cmp_ps_mask((__m512)scores, _mm512_set1_ps(threshold), _CMP_GT_OQ);
#elif defined(DEEPREC_ISA_avx2)
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps((__m256)scores, _mm256_set1_ps(threshold), _CMP_GT_OQ)));
#else
  uint32_t mask = 0;
  for (int j = 0; j < kLanes; ++j) {
    mask |= static_cast<uint32_t>(scores[j] > threshold) << j;
  }
  return mask;
#endif
}

// The scores of one tile that exceed a user's threshold become candidates, unless the user has seen the item.
struct Choice {
  const ScoreJob& job;
  const ScoreSink& sink;
  const int32_t* ids;  // of the range, or null
  int64_t begin, at;   // places where the range and the tile begin
  Candidates* users;   // of row 0

  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const Vec scale = load(item_scale + j + v * kLanes), shift = load(item_bias + j + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        const Vec scores = acc[r][v] * scale + shift;
        const uint32_t mask = above(scores, users[i + r].threshold);
        if (__builtin_expect(mask != 0, 0)) {
          float kept[kLanes];
          store(kept, scores);
          take(users[i + r], kept, mask, at + j + v * kLanes);
        }
      }
    }
  }

  __attribute__((noinline)) void take(Candidates& user, const float* scores, uint32_t mask, int64_t place) const {
    for (; mask; mask &= mask - 1) {
      const int64_t j = __builtin_ctz(mask);
      if (user.seen_at < user.seen_end && is_seen(user, ids ? ids[place + j] : place + j)) {
        continue;
      }
      if (scores[j] > user.threshold) {  // which may have risen since the mask was made
        user.add(scores[j], place + j - begin, sink.k, sink.capacity);
      }
    }
  }

  // Items come in ascending order, so a user's list is walked once.
  bool is_seen(Candidates& user, int64_t item) const {
    while (user.seen_at < user.seen_end && job.seen_indices[user.seen_at] < item) {
      ++user.seen_at;
    }
    return user.seen_at < user.seen_end && job.seen_indices[user.seen_at] == item;
  }

  const float* item_scale;
  const float* item_bias;
};

// First entry of the user's sorted list at or after `item`.
int64_t first_seen(const ScoreJob& job, int64_t begin, int64_t end, int64_t item) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (job.seen_indices[middle] < item) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

#if defined(DEEPREC_ISA_avx512)
// Adds columns [0, columns) of 16 adjacent items to the sums of `kUsers` users: the block is transposed in registers
// and used there, in the same order of summation as in a packed tile.
template <int kUsers>
DEEPREC_INLINE void add_block(const float* users, const float* items, int64_t dim, int columns, Vec (&acc)[kUsers]) {
  const __mmask16 mask = static_cast<__mmask16>((1u << columns) - 1);
  __m512 block[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    __builtin_prefetch(items + (r + kAhead) * dim);
    block[r] = _mm512_maskz_loadu_ps(mask, items + r * dim);
  }
  transpose_registers(block);
#pragma GCC unroll 16
  for (int c = 0; c < 16; ++c) {
    if (c < columns) {
#pragma GCC unroll 4
      for (int u = 0; u < kUsers; ++u) {
        acc[u] = acc[u] + users[u * dim + c] * (Vec)block[c];
      }
    }
  }
}

template <int kUsers>
DEEPREC_INLINE void score_direct(const float* users, const float* items, int64_t dim, Vec (&acc)[kUsers][1]) {
  Vec sums[kUsers] = {};
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    add_block<kUsers>(users + d, items + d, dim, 16, sums);
  }
  if (d < dim) {
    add_block<kUsers>(users + d, items + d, dim, static_cast<int>(dim - d), sums);
  }
#pragma GCC unroll 4
  for (int u = 0; u < kUsers; ++u) {
    acc[u][0] = sums[u];
  }
}

// Users of the range and 16 items at a time, without a packed tile; returns the place up to which they are done.
template <int kUsers>
int64_t scan_direct(const ScoreJob& job, const ScoreScratch& scratch, const ScoreRange& range, Choice choice) {
  const float* users = job.user_factors + range.user_begin * job.num_factors;
  int64_t at = range.begin;
  for (; at + kTile <= range.end; at += kTile) {
    choice.at = at;
    for (int64_t j = 0; j < kTile; j += kLanes) {
      store(scratch.item_scale + j, Vec{} + 1.0f);
      store(scratch.item_bias + j, job.item_bias ? load(job.item_bias + at + j) + job.bias : Vec{} + job.bias);
    }
    for (int64_t j = 0; j < kTile; j += kLanes) {
      Vec acc[kUsers][1];
      score_direct<kUsers>(users, job.item_factors + (at + j) * job.num_factors, job.num_factors, acc);
      choice(acc, 0, j);
    }
  }
  return at;
}
#endif

// Dot products of very few users and adjacent items, for whom packing would cost more than the product.
int64_t scan_few(const ScoreJob& job, const ScoreScratch& scratch, const ScoreRange& range, const Choice& choice) {
#if defined(DEEPREC_ISA_avx512)
  if (job.similarity == Similarity::dot && !job.num_hidden && !range.ids) {
    switch (range.user_end - range.user_begin) {
      case 1:
        return scan_direct<1>(job, scratch, range, choice);
      case 2:
        return scan_direct<2>(job, scratch, range, choice);
    }
  }
#endif
  return range.begin;
}

void begin_users(const ScoreJob& job, const ScoreScratch& scratch, const ScoreSink& sink, const ScoreRange& range) {
  Candidates* users = static_cast<Candidates*>(scratch.candidates);
  const int64_t first = range.begin == range.end ? 0 : range.ids ? range.ids[range.begin] : range.begin;
  for (int64_t user = range.user_begin; user < range.user_end; ++user) {
    const int64_t slot = user - range.user_begin, row = job.seen_rows ? job.seen_rows[user] : user;
    Candidates& own = users[slot];
    own = {kMinusInfinity, 0, scratch.keys + slot * sink.capacity, 0, 0};
    if (job.seen_indptr) {
      own.seen_end = job.seen_indptr[row + 1];
      own.seen_at = first_seen(job, job.seen_indptr[row], own.seen_end, first);
    }
  }
}

// The k best in order; (-inf, -1) where there are fewer.
void finish_users(const ScoreScratch& scratch, const ScoreSink& sink, const ScoreRange& range) {
  Candidates* users = static_cast<Candidates*>(scratch.candidates);
  for (int64_t user = range.user_begin; user < range.user_end; ++user) {
    Candidates& own = users[user - range.user_begin];
    if (own.count > sink.k) {
      select_keys(own.keys, own.count, sink.k);
      own.count = sink.k;
    }
    sort_keys({own.keys, own.count});
    float* values = sink.values + user * sink.stride;
    int64_t* ids = sink.ids + user * sink.stride;
    for (int64_t c = 0; c < sink.k; ++c) {
      const bool is_there = c < own.count;
      const int64_t place = is_there ? range.begin + place_of(own.keys[c]) : 0;
      values[c] = is_there ? score_of(own.keys[c]) : kMinusInfinity;
      ids[c] = !is_there ? -1 : range.ids ? range.ids[place] : place;
    }
  }
}

// What needs the scores as rows: all of them, or those of the network.
void by_rows(const ScoreJob& job, const ScoreScratch& scratch, const ScoreSink& sink, const ScoreRange& range,
             Choice choice, int64_t width) {
  for (int64_t user = range.user_begin; user < range.user_end; user += kScoreUsers) {
    const int64_t rows = range.user_end - user < kScoreUsers ? range.user_end - user : kScoreUsers;
    score_rows(job, scratch, user, rows, padded(width));
    for (int64_t r = 0; r < rows; ++r) {
      const float* scores = scratch.scores + r * kTile;
      if (sink.dense) {
        __builtin_memcpy(sink.dense + (user + r) * job.num_items + choice.at, scores,
                         static_cast<uint64_t>(width) * sizeof(float));
        continue;
      }
      Candidates& own = choice.users[user + r - range.user_begin];
      for (int64_t j = 0; j < padded(width); j += kLanes) {
        const uint32_t mask = above(load(scores + j), own.threshold);
        if (mask) {
          choice.take(own, scores + j, mask, choice.at + j);
        }
      }
    }
  }
}

}  // namespace

void score_block(const ScoreJob& job, const ScoreScratch& scratch, const ScoreSink& sink, const ScoreRange& range) {
  if (!sink.dense) {
    begin_users(job, scratch, sink, range);
  }
  Choice choice{job,
                sink,
                range.ids,
                range.begin,
                0,
                static_cast<Candidates*>(scratch.candidates),
                scratch.item_scale,
                scratch.item_bias};
  for (choice.at = sink.dense ? range.begin : scan_few(job, scratch, range, choice); choice.at < range.end;
       choice.at += kTile) {
    const int64_t width = range.end - choice.at < kTile ? range.end - choice.at : kTile;
    pack_tile(job, scratch, range, choice.at, width);
    if (sink.dense || job.num_hidden) {
      by_rows(job, scratch, sink, range, choice, width);
    } else {
      score_pairs(job, scratch, range.user_begin, range.user_end - range.user_begin, padded(width), choice);
    }
  }
  if (!sink.dense) {
    finish_users(scratch, sink, range);
  }
}

void pack_score_weights(const float* weight, int64_t rows, int64_t columns, uint32_t* packed) {
  pack_rows(weight, columns, rows, columns, packed, steps<uint32_t>(columns));
}

}  // namespace deeprec::DEEPREC_ISA
