// deeprec::plan_check(ids, offsets, ..., a plan) -> whether the plan is the one that embedding_bags_plan makes of them.
// Nothing is sorted: a plan that may be followed (plan_check.h), whose entries each bear the id of their row, ascend
// within it and are as many as there are, is the plan.
#include "isa.h"

#ifdef DEEPREC_ISA_portable
#include <atomic>

#include "plan_check.h"

namespace deeprec {
namespace {

constexpr int64_t kCheckGrain = 1 << 14;  // entries worth a thread

struct Comparison {
  const BagPlan& plan;
  const Layout& layout;
  const Ints &tables, &padding;

  // Whether bag b of all features has the entries from offsets[b] on.
  template <class Position>
  bool has_bags() const {
    if (!layout.offsets) {
      return true;
    }
    return layout.wide ? has_bags_of<int64_t, Position>() : has_bags_of<int32_t, Position>();
  }

  template <class Id, class Position>
  bool has_bags_of() const {
    const Position* bags = static_cast<const Position*>(plan.bags.data_ptr());
    const Id* bounds = static_cast<const Id*>(layout.offsets->data_ptr());
    bool is_right = true;
    for (int64_t bag = 0; bag < layout.num_features * layout.batch; ++bag) {
      for (int64_t entry = bounds[bag]; entry < bounds[bag + 1]; ++entry) {
        is_right &= bags[entry] == bag;
      }
    }
    return is_right;
  }

  // Whether a table's rows hold as many entries as its features have beside padding.
  bool has_all(int64_t table) const {
    int64_t missing = plan.row_offset(plan.table_start[table + 1]) - plan.row_offset(plan.table_start[table]);
    for (int64_t f = 0; f < layout.num_features; ++f) {
      if (tables[static_cast<size_t>(f)] == table) {
        missing -= layout.num_entries(f);
        const int64_t pad = padding[static_cast<size_t>(f)];
        for (int64_t entry = 0; pad >= 0 && entry < layout.num_entries(f); ++entry) {
          missing += layout.id(f, entry) == pad;
        }
      }
    }
    return missing == 0;
  }

  // Whether the entries of rows [begin, end) of a table ascend and bear the id of their row, which is no padding.
  // `only` is the table's one feature, or -1.
  template <class Id, class Position>
  bool bear_their_row(int64_t begin, int64_t end, int64_t only) const {
    const Position* order = static_cast<const Position*>(plan.order.data_ptr());
    const Position* bags = layout.offsets ? static_cast<const Position*>(plan.bags.data_ptr()) : nullptr;
    const Position* offsets = static_cast<const Position*>(plan.offset_data);
    const Id* rows = static_cast<const Id*>(plan.row_data);
    std::vector<const Id*> ids;  // such that ids[f][entry * bag_stride] is the id of an entry of feature f
    for (int64_t f = 0; f < layout.num_features; ++f) {
      ids.push_back(
          static_cast<const Id*>(layout.ids_from(layout.start(f) - layout.first_entry(f) * layout.bag_stride)));
    }
    const int64_t step = layout.bag_stride, batch = layout.batch;
    bool is_right = true;
    for (int64_t u = begin; u < end; ++u) {
      const Id row = rows[u];
      int64_t before = -1;
      for (int64_t j = offsets[u]; j < offsets[u + 1]; ++j) {
        const int64_t entry = order[j];
        const size_t f = static_cast<size_t>(only >= 0 ? only : (bags ? bags[entry] : entry) / batch);
        is_right &= (entry > before) & (ids[f][entry * step] == row) & (row != padding[f]);
        before = entry;
      }
    }
    return is_right;
  }

  template <class Id, class Position>
  bool holds() const {
    const int64_t num_tables = plan.table_starts.numel() - 1, chunks = threads_for(plan.num_entries, kCheckGrain);
    Ints only;  // the one feature of each table, or -1
    for (int64_t t = 0; t < num_tables; ++t) {
      const auto first = std::find(tables.begin(), tables.end(), t);
      const bool is_only = first != tables.end() && std::find(first + 1, tables.end(), t) == tables.end();
      only.push_back(is_only ? first - tables.begin() : -1);
      if (!has_all(t)) {
        return false;
      }
    }
    std::atomic<bool> is_right{has_bags<Position>()};
    for_each_chunk(chunks, [&](int64_t chunk) {
      const int64_t first = plan.first_row_from(plan.num_entries * chunk / chunks);
      const int64_t last =
          chunk + 1 == chunks ? plan.num_rows : plan.first_row_from(plan.num_entries * (chunk + 1) / chunks);
      for (int64_t t = 0; t < num_tables; ++t) {
        const int64_t from = std::max(first, plan.table_start[t]), to = std::min(last, plan.table_start[t + 1]);
        if (from < to && !bear_their_row<Id, Position>(from, to, only[static_cast<size_t>(t)])) {
          is_right = false;
        }
      }
    });
    return is_right;
  }

  bool holds() const {
    if (plan.wide_positions) {
      return plan.wide_rows ? holds<int64_t, int64_t>() : holds<int32_t, int64_t>();
    }
    return plan.wide_rows ? holds<int64_t, int32_t>() : holds<int32_t, int32_t>();
  }
};

Tensor plan_check(const Tensor& ids, const std::optional<Tensor>& offsets, const Ints& num_embeddings,
                  const Ints& tables, const Ints& padding, const Tensor& rows, const Tensor& row_offsets,
                  const Tensor& order, const Tensor& bags, const Tensor& table_starts) {
  const char* op = "plan_check";
  check_features(op, tables, padding, num_embeddings.size());
  const Layout layout(op, ids, offsets, tables.size());
  const BagPlan plan(rows, row_offsets, order, bags, table_starts);
  const Comparison comparison{plan, layout, tables, padding};
  Tensor out = empty_cpu({}, ScalarType::Bool);
  *static_cast<bool*>(out.data_ptr()) = rows.scalar_type() == layout.ids.scalar_type() &&
                                        PlanChecker{plan, layout, num_embeddings, tables}.is_safe() &&
                                        comparison.holds();
  return out;
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) { m.impl("plan_check", TORCH_BOX(&deeprec::plan_check)); }
#endif
