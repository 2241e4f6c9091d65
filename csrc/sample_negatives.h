// What the CPU and the CUDA kernel of sample_negatives share: the counter-based generator and the rule that turns its
// words into one negative. Integers only, so every device gives the same numbers.
//
// Generator: Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"),
// key = the 64-bit seed, counter = (example low, example high, group of negatives, attempt).
//
// The functions have internal linkage (anonymous namespace), so that each instruction set keeps its own copy.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DEEPREC_HOST_DEVICE __host__ __device__
#else
#define DEEPREC_HOST_DEVICE
#endif

namespace deeprec {

constexpr uint32_t kMaxAttempts = 64;  // after so many misses the negative is chosen by rank among the unseen items
constexpr int64_t kNoNegative = -1;

// Plain pointers to everything that describes the draw; threshold, alias and cumulative are null for uniform negatives.
struct NegativeSource {
  const int64_t* indptr;
  const int32_t* indices;
  int64_t num_items;
  uint32_t key0, key1;
  uint32_t
      reject_below;  // 2^32 mod num_items: multiply-shift stays exactly uniform when low words below it are refused
  const int64_t* threshold;
  const int32_t* alias;
  const int64_t* cumulative;
};

namespace {

DEEPREC_HOST_DEVICE inline bool is_weighted(const NegativeSource& s) { return s.threshold != nullptr; }

// A Philox block has four words; a uniform attempt takes one, a weighted attempt two (column and coin).
DEEPREC_HOST_DEVICE inline int64_t negatives_per_block(const NegativeSource& s) { return is_weighted(s) ? 2 : 4; }

DEEPREC_HOST_DEVICE inline void philox_round(uint32_t c[4], uint32_t key0, uint32_t key1) {
  const uint64_t p0 = static_cast<uint64_t>(c[0]) * 0xD2511F53u;
  const uint64_t p1 = static_cast<uint64_t>(c[2]) * 0xCD9E8D57u;
  const uint32_t c1 = c[1], c3 = c[3];
  c[0] = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
  c[1] = static_cast<uint32_t>(p1);
  c[2] = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
  c[3] = static_cast<uint32_t>(p0);
}

DEEPREC_HOST_DEVICE inline void philox4x32_10(uint32_t c[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    philox_round(c, key0, key1);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

DEEPREC_HOST_DEVICE inline void philox_block(const NegativeSource& s, uint64_t example, uint32_t group,
                                             uint32_t attempt, uint32_t words[4]) {
  words[0] = static_cast<uint32_t>(example);
  words[1] = static_cast<uint32_t>(example >> 32);
  words[2] = group;
  words[3] = attempt;
  philox4x32_10(words, s.key0, s.key1);
}

// Number of entries of the sorted list [first, first + n) below `item`; no branch depends on the data.
DEEPREC_HOST_DEVICE inline int64_t lower_bound(const int32_t* first, int64_t n, int64_t item) {
  const int32_t* base = first;
  while (n > 1) {
    const int64_t half = n >> 1;
    base += base[half - 1] < item ? half : 0;
    n -= half;
  }
  return (base - first) + (n == 1 && *base < item ? 1 : 0);
}

struct SearchSeen {  // membership by binary search in the user's sorted list
  DEEPREC_HOST_DEVICE bool operator()(const NegativeSource& s, int64_t user, int64_t item) const {
    const int32_t* first = s.indices + s.indptr[user];
    const int64_t n = s.indptr[user + 1] - s.indptr[user];
    const int64_t rank = lower_bound(first, n, item);
    return rank < n && first[rank] == item;
  }
};

// The candidate of one attempt, or kNoNegative where the word would make low columns likelier than others.
DEEPREC_HOST_DEVICE inline int64_t candidate(const NegativeSource& s, uint32_t word, uint32_t coin) {
  const uint64_t product = static_cast<uint64_t>(word) * static_cast<uint64_t>(s.num_items);
  if (static_cast<uint32_t>(product) < s.reject_below) {
    return kNoNegative;
  }
  const int64_t column = static_cast<int64_t>(product >> 32);
  if (!is_weighted(s)) {
    return column;
  }
  // Without a branch, which the coin would mispredict every other time, to wait for the table.
  const int64_t heads = -static_cast<int64_t>(static_cast<int64_t>(coin) < s.threshold[column]),
                other = s.alias[column];
  const int64_t item = other ^ ((other ^ column) & heads);
  return item < s.num_items ? item : kNoNegative;  // a damaged table names no item beyond the last
}

DEEPREC_HOST_DEVICE inline uint64_t multiply_high(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// Uniform over the unseen items: the one of rank floor(random * unseen / 2^64).
DEEPREC_HOST_DEVICE inline int64_t unseen_by_rank(const NegativeSource& s, int64_t user, uint64_t random) {
  const int32_t* seen = s.indices + s.indptr[user];
  const int64_t n = s.indptr[user + 1] - s.indptr[user];
  int64_t item = static_cast<int64_t>(multiply_high(random, static_cast<uint64_t>(s.num_items - n)));
  // `low` is the number of seen items before the drawn one: the first k with seen[k] - k > rank.
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (seen[middle] - middle > item) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return item + low;
}

// An item's weight is the step of `cumulative`; an item outside the catalogue has none.
DEEPREC_HOST_DEVICE inline int64_t weight_of(const NegativeSource& s, int64_t item) {
  const bool is_known = item >= 0 && item < s.num_items;
  return is_known ? s.cumulative[item + 1] - s.cumulative[item] : 0;
}

// Weighted over the unseen items, in units of the alias table.
DEEPREC_HOST_DEVICE inline int64_t unseen_by_weight(const NegativeSource& s, int64_t user, uint64_t random) {
  const int32_t* seen = s.indices + s.indptr[user];
  const int64_t n = s.indptr[user + 1] - s.indptr[user];
  int64_t unseen = s.cumulative[s.num_items];
  for (int64_t k = 0; k < n; ++k) {
    unseen -= weight_of(s, seen[k]);
  }
  if (unseen <= 0) {
    return kNoNegative;  // every item of positive weight is seen
  }
  // `mark` walks up the cumulative axis: each seen item before the drawn one pushes it by that item's weight.
  int64_t mark = static_cast<int64_t>(multiply_high(random, static_cast<uint64_t>(unseen)));
  for (int64_t k = 0; k < n && (seen[k] < 0 || (seen[k] < s.num_items && s.cumulative[seen[k]] <= mark)); ++k) {
    mark += weight_of(s, seen[k]);
  }
  int64_t low = 0, high = s.num_items;  // the last item whose interval starts at or before mark
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (s.cumulative[middle] <= mark) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Attempts from `attempt` on for word `slot` of a block, then the choice by rank. Rarely reached: it need not be fast.
template <class Seen>
DEEPREC_HOST_DEVICE int64_t retry_negative(const NegativeSource& s, const Seen& is_seen, int64_t user, uint64_t example,
                                           uint32_t group, int slot, uint32_t attempt) {
  uint32_t words[4];
  for (; attempt < kMaxAttempts; ++attempt) {
    philox_block(s, example, group, attempt, words);
    const int64_t item = candidate(s, words[slot], words[(slot + 1) & 3]);
    if (item >= 0 && !is_seen(s, user, item)) {
      return item;
    }
  }
  philox_block(s, example, group, kMaxAttempts, words);
  const uint64_t high = words[slot];
  if (is_weighted(s)) {
    return unseen_by_weight(s, user, high << 32 | words[slot + 1]);
  }
  philox_block(s, example, group, kMaxAttempts + 1, words);
  return unseen_by_rank(s, user, high << 32 | words[slot]);
}

}  // namespace
}  // namespace deeprec
