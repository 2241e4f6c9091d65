// The scan of prefilter_topk: bounds of a tile of 64 items for a block of users by the register-blocked product of
// tile_gemm.h, then exact scores of the items that a bound does not leave out. prefilter_topk.h has the proof.
#include "prefilter_topk.h"

#include "prefilter_topk_code.h"
#include "score_keys.h"

#if defined(DEEPREC_ISA_avx2)
#include <immintrin.h>
#endif

namespace deeprec::DEEPREC_ISA {

// Four int8 of adjacent columns: items hold q + 128, users p. Without vpdpbusd the 128 is taken off first.
struct Bytes {
  uint32_t word;
};

#if defined(DEEPREC_ISA_avx512bf16)
constexpr int32_t kShift = 128;  // the product is sum (q + 128) p
#else
constexpr int32_t kShift = 0;
#endif

typedef int32_t Whole __attribute__((vector_size(kLanes * 4)));
typedef int16_t Halves __attribute__((vector_size(kLanes * 4)));

DEEPREC_INLINE Vec multiply_add(Bytes a, const Bytes* b, Vec acc) {
  const Bits words = *reinterpret_cast<const BitsMem*>(b);
#if defined(DEEPREC_ISA_avx512bf16)
  // Not by _mm512_dpbusd_epi32: GCC 12 then moves and stores each sum once a step, which doubles the time.
  const __m512i user = _mm512_set1_epi32(static_cast<int>(a.word));
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(words), "v"(user));
  return acc;
#elif defined(DEEPREC_ISA_avx512)
  // As AVX2 below; a mask takes the place of vpsignb.
  const __m512i user = _mm512_set1_epi32(static_cast<int>(a.word)), item = (__m512i)(words ^ 0x80808080u);
  const __m512i signed_item = _mm512_mask_sub_epi8(item, _mm512_movepi8_mask(user), _mm512_setzero_si512(), item);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(user), signed_item);
  return (Vec)((Whole)acc + (Whole)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(DEEPREC_ISA_avx2)
  // |p| times q with the sign of p: sums of two stay within 2 * 128 * 127 < 2^15, so nothing saturates.
  const __m256i user = _mm256_set1_epi32(static_cast<int>(a.word));
  const __m256i item = _mm256_sign_epi8((__m256i)(words ^ 0x80808080u), user);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(user), item);
  return (Vec)((Whole)acc + (Whole)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
  // Even and odd bytes as int16: two products of 127 * 128 at most fit into one.
  const Halves item = (Halves)(words ^ 0x80808080u), user = (Halves)(Bits{} + a.word);
  const Whole pairs = (Whole)((item << 8 >> 8) * (user << 8 >> 8) + (item >> 8) * (user >> 8));
  return (Vec)((Whole)acc + (pairs << 16 >> 16) + (pairs >> 16));
#endif
}

namespace {

static_assert(sizeof(Candidates) <= kCandidatesBytes);

constexpr int64_t kTile = kTileItems;
constexpr float kInfinity = __builtin_inff();
constexpr double kUnit = 0x1p-24;

// -- the user's side of the bound --

// A float that is no smaller.
DEEPREC_INLINE float upwards(double x) { return static_cast<float>(x * kSlack); }

// Element d of p_1 and p_2, p_1 in units of `step`, as they are stored; returns what they stand for together.
struct Planes {
  uint32_t stored[2];
  double sizes[2];  // |p_1|, |p_2|
  double value;
};

DEEPREC_INLINE Planes int8_planes(double x, bool has_two) {
  const int32_t whole = static_cast<int32_t>(__builtin_rint(x));
  const int32_t low = has_two ? ((whole + 128) & 255) - 128 : 0;
  const int32_t high = has_two ? (whole - low) / 256 : whole;
  return {{static_cast<uint32_t>(high) & 255u, static_cast<uint32_t>(low) & 255u},
          {magnitude(1.0 * whole - low), magnitude(1.0 * low)},
          1.0 * whole};
}

DEEPREC_INLINE Planes bf16_planes(double x, bool has_two) {
  const uint32_t first = half_of(x);
  const double high = value_of_half(first);
  const uint32_t second = has_two ? half_of(x - high) : 0u;
  const double low = value_of_half(second);
  return {{first, second}, {magnitude(high), magnitude(low)}, high + low};
}

// Fills what the scan needs of a user; false where the proof does not hold for it.
bool prepare_user(const PrefilterJob& job, const PrefilterScratch& scratch, int64_t user, int64_t slot) {
  const float* row = job.users + user * job.dim;
  const int64_t planes = job.num_planes, per_word = job.is_int8 ? 4 : 2, bits = job.is_int8 ? 8 : 16;
  const int64_t num_steps = (job.dim + per_word - 1) / per_word;
  uint32_t* words = scratch.planes + slot * planes * num_steps;
  __builtin_memset(words, 0, static_cast<uint64_t>(planes * num_steps) * sizeof(uint32_t));
  __builtin_memset(scratch.offsets + slot * planes, 0, static_cast<uint64_t>(planes) * sizeof(int32_t));
  scratch.steps[slot] = scratch.item_errors[slot] = scratch.user_errors[slot] = 0.0f;
  const RowSize size = size_of(row, job.dim);
  if (!size.is_regular()) {
    return false;
  }
  const float step = !job.is_int8 ? power_above(size.largest) : size.largest / (planes == 2 ? 32512.0f : 127.0f);
  int32_t sums[2] = {0, 0};
  double errors = 0.0, sizes[2] = {0.0, 0.0};
  for (int64_t d = 0; d < job.dim; ++d) {
    const double x = static_cast<double>(row[d]) / step;
    const Planes element = job.is_int8 ? int8_planes(x, planes == 2) : bf16_planes(x, planes == 2);
    const double error = row[d] - element.value * step;
    errors += error * error;
    for (int64_t p = 0; p < planes; ++p) {
      words[p * num_steps + d / per_word] |= element.stored[p] << (d % per_word * bits);
      sums[p] += static_cast<int8_t>(element.stored[p]);
      sizes[p] += element.sizes[p] * element.sizes[p];
    }
  }
  for (int64_t p = 0; p < planes; ++p) {
    scratch.offsets[slot * planes + p] = kShift * sums[p];
  }
  const double dim = static_cast<double>(job.dim), g = dim * kUnit / (1.0 - dim * kUnit);
  const double m = step * (__builtin_sqrt(sizes[0]) + __builtin_sqrt(sizes[1]));
  const double kappa = job.is_int8 ? 8 * kUnit : (4 * dim + 16) * kUnit;
  scratch.steps[slot] = step;
  scratch.item_errors[slot] = upwards((1 + g) * size.norm);
  scratch.user_errors[slot] = upwards(__builtin_sqrt(errors) + g * size.norm + kappa * m);
  return true;
}

// -- bounds of a tile --

// Bit j: not bound[j] < threshold; NaN is below nothing.
DEEPREC_INLINE uint64_t not_below(Vec bound, float threshold) {
#if defined(DEEPREC_ISA_avx512)
  return _mm512_cmp_ps_mask((__m512)bound, _mm512_set1_ps(threshold), _CMP_NLT_UQ);
#elif defined(DEEPREC_ISA_avx2)
  return static_cast<uint64_t>(
      _mm256_movemask_ps(_mm256_cmp_ps((__m256)bound, _mm256_set1_ps(threshold), _CMP_NLT_UQ)));
#else
  uint64_t mask = 0;
  for (int j = 0; j < kLanes; ++j) {
    mask |= static_cast<uint64_t>(!(bound[j] < threshold)) << j;
  }
  return mask;
#endif
}

// Takes S of users (kPlanes rows of the product each) and leaves the mask of the items whose bound reaches far enough.
template <bool kInt8, int kPlanes>
struct Bounds {
  const PrefilterScratch& scratch;
  const float* scales;  // [kTile]
  const float* bias;    // [kTile] or null
  float rho, nu;

  DEEPREC_INLINE Vec plane(Vec acc, int64_t row) const {
    if constexpr (kInt8) {
      return __builtin_convertvector((Whole)acc - scratch.offsets[row], Vec);
    } else {
      return acc;
    }
  }

  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
    constexpr int kSecond = kPlanes - 1;
#pragma GCC unroll 8
    for (int r = 0; r + kSecond < M; r += kPlanes) {
      const int64_t slot = (i + r) / kPlanes;
      const float width = rho * scratch.item_errors[slot] + nu * scratch.user_errors[slot];
      const float step = scratch.steps[slot], threshold = scratch.thresholds[slot];
      uint64_t mask = 0;
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        Vec sum = plane(acc[r][v], i + r);
        if constexpr (kPlanes == 2) {
          sum = sum * (kInt8 ? 256.0f : 1.0f) + plane(acc[r + kSecond][v], i + r + kSecond);
        }
        Vec high = load(scales + j + v * kLanes) * (sum * step + width);
        if (bias) {
          high += load(bias + j + v * kLanes);
        }
        mask |= not_below(high, threshold) << (j + v * kLanes);
      }
      scratch.masks[slot] |= mask;
    }
  }
};

template <bool kInt8, int kPlanes, class Word>
void bound_tile(const PrefilterJob& job, const PrefilterScratch& scratch, int64_t num_users, int64_t tile,
                const float* bias) {
  const int64_t num_steps = kInt8 ? (job.dim + 3) / 4 : (job.dim + 1) / 2;
  const Word* items = reinterpret_cast<const Word*>(job.words) + tile * num_steps * kTile;
  gemm<Word>(
      reinterpret_cast<const Word*>(scratch.planes), num_steps, 1, items, kTile, num_users * kPlanes, kTile, num_steps,
      Bounds<kInt8, kPlanes>{scratch, job.scales + tile * kTile, bias, job.bounds[2 * tile], job.bounds[2 * tile + 1]});
}

void bound_items(const PrefilterJob& job, const PrefilterScratch& scratch, int64_t num_users, int64_t tile) {
  alignas(64) float last_bias[kTile];
  const float* bias = job.item_bias ? job.item_bias + tile * kTile : nullptr;
  const int64_t width = job.num_items - tile * kTile;
  if (bias && width < kTile) {
    for (int64_t j = 0; j < kTile; ++j) {
      last_bias[j] = j < width ? bias[j] : 0.0f;
    }
    bias = last_bias;
  }
  if (job.is_int8) {
    (job.num_planes == 2 ? bound_tile<true, 2, Bytes> : bound_tile<true, 1, Bytes>)(job, scratch, num_users, tile,
                                                                                    bias);
  } else {
    (job.num_planes == 2 ? bound_tile<false, 2, uint32_t> : bound_tile<false, 1, uint32_t>)(job, scratch, num_users,
                                                                                            tile, bias);
  }
}

// -- exact scores of what is left --

// The first place from `at` on whose item is `id` or more: steps that double, then halves.
int64_t first_from(const int32_t* items, int64_t at, int64_t end, int64_t id) {
  int64_t stride = 1;
  while (at + stride < end && items[at + stride] < id) {
    at += stride;
    stride *= 2;
  }
  end = at + stride < end ? at + stride : end;
  while (at < end) {
    const int64_t middle = at + (end - at) / 2;
    if (items[middle] < id) {
      at = middle + 1;
    } else {
      end = middle;
    }
  }
  return at;
}

// Whether the user's list has the item; `at` only moves forward.
DEEPREC_INLINE bool is_listed(const PrefilterLists& lists, int64_t user, int64_t& at, int64_t id) {
  const int64_t end = lists.end(user);
  at = first_from(lists.indices, at, end, id);
  return at < end && lists.indices[at] == id;
}

// A bound below it leaves an item out: below the K-th best score, by more than any rounding.
float threshold_of(float worst, int64_t dim) {
  const double largest = 0x1.fffffep127, value = worst > largest ? largest : worst;
  const double below = value - 0x1p-22 * magnitude(value) - (4.0 * dim + 32.0) * 0x1p-126;
  const float rounded = static_cast<float>(below);
  return rounded <= below ? rounded : static_cast<float>(below - 0x1p-22 * magnitude(value) - 0x1p-120);
}

// Scores the user's pending items as score_topk does, and keeps those above the threshold of its candidates.
void score_pending(const PrefilterJob& job, const PrefilterScratch& scratch, int64_t user, int64_t slot,
                   Candidates& best) {
  alignas(64) float scores[kPendingItems];
  const int32_t* ids = scratch.pending + slot * kPendingItems;
  const int64_t count = scratch.num_pending[slot];
  pack_items(job.items, job.dim, ids, count, scratch.tile);
  gemm<float>(job.users + user * job.dim, job.dim, 1, scratch.tile, kTile, 1, kPendingItems, job.dim,
              Store<false>{scores, kPendingItems, nullptr});
  for (int64_t j = 0; j < count; ++j) {
    const float score = scores[j] + (0.0f + (job.item_bias ? job.item_bias[ids[j]] : 0.0f));
    if (score > best.threshold) {  // NaN and -inf are above nothing
      best.add(score, ids[j], job.k, job.capacity);
    }
  }
  if (best.threshold > -kInfinity) {
    scratch.thresholds[slot] = threshold_of(best.threshold, job.dim);
  }
  scratch.num_pending[slot] = 0;
  scratch.num_rescored[slot] += count;
}

// Queues the items of the mask; their rows are asked for now and read when there are enough of them.
void queue_items(const PrefilterJob& job, const PrefilterScratch& scratch, int64_t user, int64_t slot, int64_t first,
                 Candidates& best) {
  for (uint64_t mask = scratch.masks[slot]; mask; mask &= mask - 1) {
    const int64_t id = first + __builtin_ctzll(mask);
    if (id >= job.num_items) {
      return;
    }
    if ((job.seen.indices && is_listed(job.seen, user, scratch.seen_at[slot], id)) ||
        (job.allow.indices && !is_listed(job.allow, user, scratch.allow_at[slot], id))) {
      continue;
    }
    const float* row = job.items + id * job.dim;
    for (int64_t d = 0; d < job.dim; d += 16) {
      __builtin_prefetch(row + d);
    }
    scratch.pending[slot * kPendingItems + scratch.num_pending[slot]++] = static_cast<int32_t>(id);
    if (scratch.num_pending[slot] == kPendingItems) {
      score_pending(job, scratch, user, slot, best);
    }
  }
}

}  // namespace

void prefilter_scan(const PrefilterJob& job, const PrefilterScratch& scratch, const PrefilterSink& sink,
                    int64_t user_begin, int64_t user_end, int64_t tile_begin, int64_t tile_end) {
  const int64_t num_users = user_end - user_begin;
  Candidates* best = static_cast<Candidates*>(scratch.candidates);
  int64_t num_left = 0;
  for (int64_t slot = 0; slot < num_users; ++slot) {
    const int64_t user = user_begin + slot;
    best[slot] = {-kInfinity, 0, sink.keys + user * sink.stride, 0, 0};
    scratch.num_pending[slot] = scratch.num_rescored[slot] = 0;
    scratch.seen_at[slot] = job.seen.begin(user);
    scratch.allow_at[slot] = job.allow.begin(user);
    scratch.gave_up[slot] = !prepare_user(job, scratch, user, slot);
    scratch.thresholds[slot] = -kInfinity;
    num_left += !scratch.gave_up[slot];
  }
  for (int64_t tile = tile_begin; tile < tile_end && num_left > 0; ++tile) {
    __builtin_memset(scratch.masks, 0, static_cast<uint64_t>(num_users) * sizeof(uint64_t));
    bound_items(job, scratch, num_users, tile);
    const int64_t most = job.most_rescored + (tile - tile_begin) * kTile / 16;
    for (int64_t slot = 0; slot < num_users; ++slot) {
      if (scratch.masks[slot] == 0 || scratch.gave_up[slot]) {
        continue;
      }
      queue_items(job, scratch, user_begin + slot, slot, tile * kTile, best[slot]);
      if (scratch.num_rescored[slot] > most) {
        scratch.gave_up[slot] = true;
        --num_left;
      }
    }
  }
  for (int64_t slot = 0; slot < num_users; ++slot) {
    if (!scratch.gave_up[slot] && scratch.num_pending[slot] > 0) {
      score_pending(job, scratch, user_begin + slot, slot, best[slot]);
    }
    sink.counts[(user_begin + slot) * sink.count_stride] = scratch.gave_up[slot] ? -1 : best[slot].count;
  }
}

void prefilter_finish(uint64_t* keys, int64_t count, int64_t k, float* values, int64_t* ids) {
  const int64_t kept = count < k ? count : k;
  select_keys(keys, count, kept);
  sort_keys({keys, kept});
  for (int64_t j = 0; j < k; ++j) {
    values[j] = j < kept ? score_of(keys[j]) : -kInfinity;
    ids[j] = j < kept ? place_of(keys[j]) : -1;
  }
}

}  // namespace deeprec::DEEPREC_ISA
