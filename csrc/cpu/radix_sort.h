// Stable least-significant-digit radix sort of (row, position): groups the positions of a batch by row. Being stable,
// its result is unique, so the number of threads cannot change it. Digits are as wide as pays: one pass when a
// histogram over all rows is cheap. Portable pass only.
#pragma once

#include <memory>
#include <utility>

#include "tensor.h"

namespace deeprec {

// Half the traffic of two int64 where both fit in 32 bits, which is the usual case.
template <class Key>
struct Entry {
  Key id;
  Key position;
};

inline int bits_for(int64_t num_embeddings) {
  int bits = 1;
  while (bits < 63 && (int64_t{1} << bits) < num_embeddings) {
    ++bits;
  }
  return bits;
}

inline int num_passes(int bits, int64_t nnz) {
  if (bits <= 14 && nnz >= (int64_t{1} << bits) / 4) {
    return 1;
  }
  const int width = nnz < 4096 ? 8 : 11;
  return (bits + width - 1) / width;
}

// One stable counting pass from `from` to `to` over digit (id >> shift) & (buckets - 1).
template <class Key>
void scatter_pass(const Entry<Key>* from, Entry<Key>* to, int64_t nnz, int shift, int64_t buckets, int64_t chunks,
                  int64_t* counts) {
  const Key mask = static_cast<Key>(buckets - 1);
  const int64_t per_chunk = (nnz + chunks - 1) / chunks;
  for_each_chunk(chunks, [&](int64_t chunk) {
    int64_t* count = counts + chunk * buckets;
    std::fill(count, count + buckets, int64_t{0});
    const int64_t end = std::min(nnz, (chunk + 1) * per_chunk);
    for (int64_t i = chunk * per_chunk; i < end; ++i) {
      ++count[(from[i].id >> shift) & mask];
    }
  });
  int64_t total = 0;
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      total += std::exchange(counts[chunk * buckets + bucket], total);
    }
  }
  for_each_chunk(chunks, [&](int64_t chunk) {
    int64_t* next = counts + chunk * buckets;
    const int64_t end = std::min(nnz, (chunk + 1) * per_chunk);
    for (int64_t i = chunk * per_chunk; i < end; ++i) {
      to[next[(from[i].id >> shift) & mask]++] = from[i];
    }
  });
}

// Sorts `first` by id with the help of `second`, of the same size; returns the one of the two that holds the result.
template <class Key>
Entry<Key>* radix_sort(Entry<Key>* first, Entry<Key>* second, int64_t nnz, int64_t num_embeddings, int64_t chunks) {
  const int bits = bits_for(num_embeddings);
  const int passes = num_passes(bits, nnz);
  const int width = (bits + passes - 1) / passes;
  const int64_t buckets = int64_t{1} << width;
  std::unique_ptr<int64_t[]> counts(new int64_t[chunks * buckets]);
  for (int pass = 0; pass < passes; ++pass) {
    scatter_pass(first, second, nnz, pass * width, buckets, chunks, counts.get());
    std::swap(first, second);
  }
  return first;
}

template <class Key>
int64_t count_distinct(const Entry<Key>* sorted, int64_t nnz) {
  int64_t unique = nnz > 0 ? 1 : 0;
  for (int64_t i = 1; i < nnz; ++i) {
    unique += sorted[i].id != sorted[i - 1].id;
  }
  return unique;
}

}  // namespace deeprec
