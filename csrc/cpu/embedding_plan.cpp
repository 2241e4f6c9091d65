// deeprec::embedding_plan(ids, num_embeddings) -> (rows, offsets, order): groups positions by row.
// Stable least-significant-digit radix sort of (id, position); being stable, its result is unique, so the number of
// threads cannot change it. Digits are as wide as pays: one pass when a histogram over all rows is cheap.
#include "isa.h"

#ifdef DEEPREC_ISA_portable
#include <memory>
#include <tuple>
#include <utility>

#include "tensor.h"

namespace deeprec {
namespace {

// Half the traffic of two int64 where both fit in 32 bits, which is the usual case.
template <class Key>
struct Entry {
  Key id;
  Key position;
};

int bits_for(int64_t num_embeddings) {
  int bits = 1;
  while (bits < 63 && (int64_t{1} << bits) < num_embeddings) {
    ++bits;
  }
  return bits;
}

int num_passes(int bits, int64_t nnz) {
  if (bits <= 14 && nnz >= (int64_t{1} << bits) / 4) {
    return 1;
  }
  const int width = nnz < 4096 ? 8 : 11;
  return (bits + width - 1) / width;
}

// Fills `entries` from ids; returns the first position that is out of range, or nnz.
template <class Id, class Key>
int64_t read_ids(const Id* ids, int64_t nnz, int64_t num_embeddings, Entry<Key>* entries) {
  for (int64_t i = 0; i < nnz; ++i) {
    const int64_t id = ids[i];
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(num_embeddings)) {
      return i;
    }
    entries[i] = {static_cast<Key>(id), static_cast<Key>(i)};
  }
  return nnz;
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

template <class Id, class Position, class Key>
void write_plan(const Entry<Key>* sorted, int64_t nnz, Id* rows, Position* offsets, Position* order) {
  int64_t row = -1;
  for (int64_t i = 0; i < nnz; ++i) {
    if (i == 0 || sorted[i].id != sorted[i - 1].id) {
      ++row;
      rows[row] = static_cast<Id>(sorted[i].id);
      offsets[row] = static_cast<Position>(i);
    }
    order[i] = static_cast<Position>(sorted[i].position);
  }
  offsets[row + 1] = static_cast<Position>(nnz);
}

template <class Id, class Position, class Key>
std::tuple<Tensor, Tensor, Tensor> plan(const Tensor& ids, int64_t nnz, int64_t num_embeddings) {
  const Id* values = static_cast<const Id*>(ids.data_ptr());
  std::unique_ptr<Entry<Key>[]> first(new Entry<Key>[nnz]), second(new Entry<Key>[nnz]);
  const int64_t bad = read_ids(values, nnz, num_embeddings, first.get());
  STD_TORCH_CHECK(bad == nnz, "embedding_plan: ids must be in [0, ", num_embeddings, "), got ",
                  static_cast<int64_t>(values[bad == nnz ? 0 : bad]), " at position ", bad);
  const int bits = bits_for(num_embeddings);
  const int passes = num_passes(bits, nnz);
  const int width = (bits + passes - 1) / passes;
  const int64_t buckets = int64_t{1} << width;
  const int64_t chunks = threads_for(nnz, 32768);
  std::unique_ptr<int64_t[]> counts(new int64_t[chunks * buckets]);
  for (int pass = 0; pass < passes; ++pass) {
    scatter_pass(first.get(), second.get(), nnz, pass * width, buckets, chunks, counts.get());
    std::swap(first, second);
  }
  int64_t unique = nnz > 0 ? 1 : 0;
  for (int64_t i = 1; i < nnz; ++i) {
    unique += first[i].id != first[i - 1].id;
  }
  const ScalarType position = sizeof(Position) == 4 ? ScalarType::Int : ScalarType::Long;
  Tensor rows = empty_cpu({unique}, ids.scalar_type());
  Tensor offsets = empty_cpu({unique + 1}, position);
  Tensor order = empty_cpu({nnz}, position);
  write_plan(first.get(), nnz, static_cast<Id*>(rows.data_ptr()), static_cast<Position*>(offsets.data_ptr()),
             static_cast<Position*>(order.data_ptr()));
  return {rows, offsets, order};
}

std::tuple<Tensor, Tensor, Tensor> embedding_plan(const Tensor& ids_in, int64_t num_embeddings) {
  STD_TORCH_CHECK(is_index(ids_in.scalar_type()), "embedding_plan: ids must be int32 or int64");
  STD_TORCH_CHECK(num_embeddings >= 0, "embedding_plan: num_embeddings must be >= 0, got ", num_embeddings);
  const Tensor ids = ids_in.is_contiguous() ? ids_in : torch::stable::contiguous(ids_in);
  const int64_t nnz = ids.numel();
  const bool wide = ids.scalar_type() == ScalarType::Long;
  if (nnz >= int64_t{1} << 31) {
    return wide ? plan<int64_t, int64_t, uint64_t>(ids, nnz, num_embeddings)
                : plan<int32_t, int64_t, uint64_t>(ids, nnz, num_embeddings);
  }
  if (num_embeddings > int64_t{1} << 32) {
    return wide ? plan<int64_t, int32_t, uint64_t>(ids, nnz, num_embeddings)
                : plan<int32_t, int32_t, uint64_t>(ids, nnz, num_embeddings);
  }
  return wide ? plan<int64_t, int32_t, uint32_t>(ids, nnz, num_embeddings)
              : plan<int32_t, int32_t, uint32_t>(ids, nnz, num_embeddings);
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) { m.impl("embedding_plan", TORCH_BOX(&deeprec::embedding_plan)); }
#endif
