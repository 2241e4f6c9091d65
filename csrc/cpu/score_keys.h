// Candidates of score_topk as keys: the score's bits in an order-preserving form above, the complement of the place in
// the scan below. A larger key is a better recommendation, equal scores prefer the earlier place, and no two keys of a
// scan are equal: which keys are the k largest depends on nothing but the scores.
//
// A buffer takes the scores above the k-th best known so far; once full it keeps its k largest. So a candidate costs a
// store and its share of a selection, whatever k is, where a heap would cost log k jumps.
#pragma once

#include <cstdint>

#include "tile_gemm.h"

namespace deeprec::DEEPREC_ISA {

constexpr float kMinusInfinity = -__builtin_inff();
constexpr int64_t kSmall = 64;         // keys that are sorted by counting for each how many are larger
constexpr int64_t kMedianRounds = 24;  // after which ranges are halved by value: hostile orders stay cheap too

DEEPREC_INLINE uint64_t key_of(float score, int64_t place) {
  const float value = score + 0.0f;  // -0 equals 0
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint32_t ordered = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(place));
}

DEEPREC_INLINE float score_of(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  const uint32_t bits = ordered ^ (ordered >> 31 ? 0x80000000u : 0xffffffffu);
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

DEEPREC_INLINE int64_t place_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

// Descending, at most kSmall keys; no branch depends on them.
inline void sort_small(uint64_t* keys, int64_t count) {
  uint64_t sorted[kSmall];
  for (int64_t i = 0; i < count; ++i) {
    int64_t larger = 0;
    for (int64_t j = 0; j < count; ++j) {
      larger += keys[j] > keys[i];
    }
    sorted[larger] = keys[i];
  }
  __builtin_memcpy(keys, sorted, static_cast<uint64_t>(count) * sizeof(uint64_t));
}

// Keys above the pivot first; returns how many.
inline int64_t partition(uint64_t* keys, int64_t count, uint64_t pivot) {
  int64_t above = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t key = keys[i];
    keys[i] = keys[above];
    keys[above] = key;
    above += key > pivot;
  }
  return above;
}

// A range of keys, all in [low, high], still to be put in order.
struct KeyRange {
  uint64_t* keys;
  int64_t count;
  uint64_t low = 0, high = ~uint64_t{0};
  int64_t rounds = 0;

  uint64_t pivot() const {
    if (rounds >= kMedianRounds) {
      return low + (high - low) / 2;
    }
    const uint64_t a = keys[count / 8], b = keys[count / 2], c = keys[count - 1 - count / 8];
    const uint64_t less = a < b ? a : b, more = a < b ? b : a;
    return c < less ? less : c < more ? c : more;
  }

  // Splits at a pivot: this range keeps the keys above it, the other one is returned.
  KeyRange split() {
    const uint64_t at = pivot();
    const int64_t above = partition(keys, count, at);
    const KeyRange rest{keys + above, count - above, low, at, rounds + 1};
    count = above;
    low = at;
    ++rounds;
    return rest;
  }
};

inline void sort_keys(KeyRange range) {
  while (range.count > kSmall) {
    KeyRange rest = range.split();
    sort_keys(range.count < rest.count ? range : rest);
    range = range.count < rest.count ? rest : range;
  }
  sort_small(range.keys, range.count);
}

// The k largest of count >= k keys to the front, in any order.
inline void select_keys(uint64_t* keys, int64_t count, int64_t k) {
  KeyRange range{keys, count};
  while (range.count > kSmall && k > 0) {
    KeyRange rest = range.split();
    if (k >= range.count) {
      k -= range.count;
      range = rest;
    }
  }
  if (k > 0) {
    sort_small(range.keys, range.count);
  }
}

// Of one user and one scan.
struct Candidates {
  float threshold;  // a score has to exceed it
  int64_t count;
  uint64_t* keys;  // [capacity]
  int64_t seen_at, seen_end;

  // Places rise from one call to the next.
  DEEPREC_INLINE void add(float score, int64_t place, int64_t k, int64_t capacity) {
    keys[count++] = key_of(score, place);
    if (count == capacity) {
      keep(k);
    }
  }

  __attribute__((noinline)) void keep(int64_t k) {
    select_keys(keys, count, k);
    count = k;
    uint64_t least = ~uint64_t{0};
    for (int64_t i = 0; i < k; ++i) {
      least = keys[i] < least ? keys[i] : least;
    }
    threshold = score_of(least);
  }
};

}  // namespace deeprec::DEEPREC_ISA
