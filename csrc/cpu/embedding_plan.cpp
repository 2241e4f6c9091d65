// deeprec::embedding_plan(ids, num_embeddings) -> (rows, offsets, order): groups positions by row.
#include "isa.h"

#ifdef DEEPREC_ISA_portable
#include <tuple>

#include "radix_sort.h"

namespace deeprec {
namespace {

void check_id(int64_t id, int64_t position, int64_t num_embeddings) {
  DEEPREC_CHECK(static_cast<uint64_t>(id) < static_cast<uint64_t>(num_embeddings),
                "embedding_plan: ids must be in [0, ", num_embeddings, "), got ", id, " at position ", position);
}

template <class Id, class Key>
void read_ids(const Id* ids, int64_t nnz, int64_t num_embeddings, Entry<Key>* entries) {
  for (int64_t i = 0; i < nnz; ++i) {
    check_id(ids[i], i, num_embeddings);
    entries[i] = {static_cast<Key>(ids[i]), static_cast<Key>(i)};
  }
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

// Few rows and one thread: each position goes straight to its place, by a histogram over all rows.
template <class Id, class Position>
std::tuple<Tensor, Tensor, Tensor> plan_by_counting(const Tensor& ids, int64_t nnz, int64_t num_embeddings) {
  const Id* values = static_cast<const Id*>(ids.data_ptr());
  const std::unique_ptr<Position[]> next(new Position[num_embeddings]());
  for (int64_t i = 0; i < nnz; ++i) {
    check_id(values[i], i, num_embeddings);
    ++next[values[i]];
  }
  const int64_t unique = num_embeddings - std::count(next.get(), next.get() + num_embeddings, static_cast<Position>(0));
  const ScalarType position = sizeof(Position) == 4 ? ScalarType::Int : ScalarType::Long;
  Tensor rows = empty_cpu({unique}, ids.scalar_type());
  Tensor offsets = empty_cpu({unique + 1}, position);
  Tensor order = empty_cpu({nnz}, position);
  Id* row_at = static_cast<Id*>(rows.data_ptr());
  Position* offset_at = static_cast<Position*>(offsets.data_ptr());
  Position* order_at = static_cast<Position*>(order.data_ptr());
  Position total = 0;
  for (int64_t id = 0, row = 0; row < unique; ++id) {  // without branches: whether an id occurs cannot be predicted
    row_at[row] = static_cast<Id>(id);
    offset_at[row] = total;
    row += next[id] != 0;
    total += std::exchange(next[id], total);
  }
  offset_at[unique] = static_cast<Position>(nnz);
  for (int64_t i = 0; i < nnz; ++i) {
    order_at[next[values[i]]++] = static_cast<Position>(i);
  }
  return {rows, offsets, order};
}

template <class Id, class Position, class Key>
std::tuple<Tensor, Tensor, Tensor> plan(const Tensor& ids, int64_t nnz, int64_t num_embeddings) {
  const int64_t chunks = threads_for(nnz, 32768);
  if (num_passes(bits_for(num_embeddings), nnz) == 1 && chunks == 1) {
    return plan_by_counting<Id, Position>(ids, nnz, num_embeddings);
  }
  const Id* values = static_cast<const Id*>(ids.data_ptr());
  std::unique_ptr<Entry<Key>[]> first(new Entry<Key>[nnz]), second(new Entry<Key>[nnz]);
  read_ids(values, nnz, num_embeddings, first.get());
  const Entry<Key>* sorted = radix_sort(first.get(), second.get(), nnz, num_embeddings, chunks);
  const int64_t unique = count_distinct(sorted, nnz);
  const ScalarType position = sizeof(Position) == 4 ? ScalarType::Int : ScalarType::Long;
  Tensor rows = empty_cpu({unique}, ids.scalar_type());
  Tensor offsets = empty_cpu({unique + 1}, position);
  Tensor order = empty_cpu({nnz}, position);
  write_plan(sorted, nnz, static_cast<Id*>(rows.data_ptr()), static_cast<Position*>(offsets.data_ptr()),
             static_cast<Position*>(order.data_ptr()));
  return {rows, offsets, order};
}

std::tuple<Tensor, Tensor, Tensor> embedding_plan(const Tensor& ids_in, int64_t num_embeddings) {
  DEEPREC_CHECK(is_index(ids_in.scalar_type()), "embedding_plan: ids must be int32 or int64");
  DEEPREC_CHECK(num_embeddings >= 0, "embedding_plan: num_embeddings must be >= 0, got ", num_embeddings);
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
