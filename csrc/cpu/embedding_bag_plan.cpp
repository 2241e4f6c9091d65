// deeprec::embedding_bags_plan: the entries of a batch grouped by table and row, one stable radix sort a table.
#include "embedding_bag.h"

#ifdef DEEPREC_ISA_portable
#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "bag_layout.h"
#include "embedding_bag_op.h"
#include "radix_sort.h"

namespace deeprec {
namespace {

template <class Key>
struct SortedTable {
  Entry<Key>* entries;
  int64_t count = 0, unique = 0;
};

// Entries of one table, padding left out, in the order of their numbers; returns the first bad entry or -1.
template <class Id, class Key>
int64_t read_table(const Layout& layout, const Ints& tables, const Ints& padding, int64_t table, int64_t num_rows,
                   SortedTable<Key>* out) {
  const Id* ids = static_cast<const Id*>(layout.ids.data_ptr());
  Entry<Key>* to = out->entries;
  int64_t n = 0;
  for (size_t i = 0; i < tables.size(); ++i) {
    if (tables[i] != table) {
      continue;
    }
    const int64_t f = static_cast<int64_t>(i), first = layout.first_entry(f), count = layout.num_entries(f);
    const int64_t start = layout.start(f), stride = layout.bag_stride, pad = padding[i];
    for (int64_t j = 0; j < count; ++j) {
      const int64_t id = ids[start + j * stride];
      if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(num_rows)) {
        return first + j;
      }
      to[n] = {static_cast<Key>(id), static_cast<Key>(first + j)};
      n += id != pad;
    }
  }
  out->count = n;
  return -1;
}

template <class Id, class Position, class Key>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> plan_as(const Layout& layout, const Ints& sizes, const Ints& tables,
                                                           const Ints& padding) {
  const int64_t num_tables = static_cast<int64_t>(sizes.size());
  std::vector<SortedTable<Key>> sorted(sizes.size());
  Ints most(sizes.size(), 0);
  for (size_t i = 0; i < tables.size(); ++i) {
    most[static_cast<size_t>(tables[i])] += layout.num_entries(static_cast<int64_t>(i));
  }
  // One allocation: what several threads allocate in turn, the system gives and takes page by page.
  std::unique_ptr<Entry<Key>[]> memory(new Entry<Key>[static_cast<size_t>(2 * layout.nnz)]);
  Entry<Key>* next = memory.get();
  for (size_t t = 0; t < sizes.size(); ++t) {
    sorted[t].entries = next;
    next += 2 * most[t];
  }
  std::atomic<int64_t> bad{-1};
  const bool many = num_tables >= torch::stable::get_num_threads();  // then a thread sorts whole tables
  const auto sort = [&](int64_t t) {
    SortedTable<Key>& table = sorted[static_cast<size_t>(t)];
    const int64_t rows = sizes[static_cast<size_t>(t)];
    const int64_t at = read_table<Id, Key>(layout, tables, padding, t, rows, &table);
    if (at >= 0) {
      int64_t seen = bad.load();
      while ((seen < 0 || at < seen) && !bad.compare_exchange_weak(seen, at)) {
      }
      return;
    }
    const int64_t chunks = many ? 1 : threads_for(table.count, 32768);
    table.entries = radix_sort(table.entries, table.entries + table.count, table.count, rows, chunks);
    table.unique = count_distinct(table.entries, table.count);
  };
  const bool parallel = many && threads_for(layout.nnz, 4096) > 1;
  for_each_chunk(parallel ? num_tables : 1, [&](int64_t chunk) {
    for (int64_t t = parallel ? chunk : 0; t < (parallel ? chunk + 1 : num_tables); ++t) {
      sort(t);
    }
  });
  if (bad >= 0) {
    raise_bad("embedding_bags_plan", layout, nullptr, &sizes, tables, bad);
  }

  Ints row_starts(sizes.size() + 1, 0), entry_starts(sizes.size() + 1, 0);
  for (size_t t = 0; t < sizes.size(); ++t) {
    row_starts[t + 1] = row_starts[t] + sorted[t].unique;
    entry_starts[t + 1] = entry_starts[t] + sorted[t].count;
  }
  const ScalarType position = sizeof(Position) == 4 ? ScalarType::Int : ScalarType::Long;
  Tensor rows = empty_cpu({row_starts.back()}, layout.ids.scalar_type());
  Tensor row_offsets = empty_cpu({row_starts.back() + 1}, position);
  Tensor order = empty_cpu({entry_starts.back()}, position);
  Tensor bags = empty_cpu({layout.offsets ? layout.nnz : 0}, position);
  Tensor table_starts = empty_cpu({num_tables + 1}, ScalarType::Long);
  std::copy(row_starts.begin(), row_starts.end(), static_cast<int64_t*>(table_starts.data_ptr()));
  Id* row_data = static_cast<Id*>(rows.data_ptr());
  Position* offset_data = static_cast<Position*>(row_offsets.data_ptr());
  Position* order_data = static_cast<Position*>(order.data_ptr());
  const auto write = [&](int64_t t) {
    const SortedTable<Key>& table = sorted[static_cast<size_t>(t)];
    int64_t row = row_starts[static_cast<size_t>(t)] - 1;
    const int64_t first = entry_starts[static_cast<size_t>(t)];
    const Entry<Key>* entries = table.entries;
    for (int64_t i = 0; i < table.count; ++i) {
      if (i == 0 || entries[i].id != entries[i - 1].id) {
        ++row;
        row_data[row] = static_cast<Id>(entries[i].id);
        offset_data[row] = static_cast<Position>(first + i);
      }
      order_data[first + i] = static_cast<Position>(entries[i].position);
    }
  };
  for_each_chunk(parallel ? num_tables : 1, [&](int64_t chunk) {
    for (int64_t t = parallel ? chunk : 0; t < (parallel ? chunk + 1 : num_tables); ++t) {
      write(t);
    }
  });
  offset_data[row_starts.back()] = static_cast<Position>(entry_starts.back());
  if (layout.offsets) {
    Position* bag_data = static_cast<Position*>(bags.data_ptr());
    const int64_t num_bags = layout.num_features * layout.batch;
    const int64_t chunks = threads_for(layout.nnz, 32768);
    for_each_chunk(chunks, [&](int64_t chunk) {
      for (int64_t bag = num_bags * chunk / chunks; bag < num_bags * (chunk + 1) / chunks; ++bag) {
        std::fill(bag_data + layout.bound(bag), bag_data + layout.bound(bag + 1), static_cast<Position>(bag));
      }
    });
  }
  return {rows, row_offsets, order, bags, table_starts};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> embedding_bags_plan(const Tensor& ids,
                                                                       const std::optional<Tensor>& offsets,
                                                                       const Ints& num_embeddings, const Ints& tables,
                                                                       const Ints& padding) {
  const char* op = "embedding_bags_plan";
  check_features(op, tables, padding, num_embeddings.size());
  const Layout layout(op, ids, offsets, tables.size());
  int64_t largest = 0;
  for (const int64_t size : num_embeddings) {
    DEEPREC_CHECK(size >= 0, "ValueError: ", op, ": num_embeddings must be >= 0, got ", size);
    largest = std::max(largest, size);
  }
  const bool small = layout.nnz < int64_t{1} << 31 && layout.num_features * layout.batch < int64_t{1} << 31;
  if (small && largest <= int64_t{1} << 32) {
    return layout.wide ? plan_as<int64_t, int32_t, uint32_t>(layout, num_embeddings, tables, padding)
                       : plan_as<int32_t, int32_t, uint32_t>(layout, num_embeddings, tables, padding);
  }
  if (small) {
    return layout.wide ? plan_as<int64_t, int32_t, uint64_t>(layout, num_embeddings, tables, padding)
                       : plan_as<int32_t, int32_t, uint64_t>(layout, num_embeddings, tables, padding);
  }
  return layout.wide ? plan_as<int64_t, int64_t, uint64_t>(layout, num_embeddings, tables, padding)
                     : plan_as<int32_t, int64_t, uint64_t>(layout, num_embeddings, tables, padding);
}

}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) { m.impl("embedding_bags_plan", TORCH_BOX(&deeprec::embedding_bags_plan)); }
#endif
