// Whether a plan may be followed: everything it names lies within the ids, the bags and the tables of its call. Plain
// passes over neighbouring numbers without branches, so that the compiler makes vectors of them and no step shows it;
// that a plan given by a caller groups the very ids of the call is the operator `plan_check`. Portable pass only.
#pragma once

#include "bag_layout.h"
#include "row_blocks.h"

namespace deeprec {

struct PlanChecker {
  const BagPlan& plan;
  const Layout& layout;
  const Ints& sizes;   // rows of each table
  const Ints& tables;  // of each feature

  bool is_safe() const {
    const int64_t num_tables = static_cast<int64_t>(sizes.size());
    const bool has_offsets = layout.offsets.has_value();
    const bool has_shape =
        is_index(plan.rows.scalar_type()) && is_index(plan.order.scalar_type()) &&
        plan.order.scalar_type() == plan.bags.scalar_type() &&
        plan.order.scalar_type() == plan.row_offsets.scalar_type() && plan.row_offsets.numel() == plan.num_rows + 1 &&
        plan.table_starts.scalar_type() == ScalarType::Long && plan.table_starts.numel() == num_tables + 1 &&
        plan.num_entries <= layout.nnz && plan.bags.numel() == (has_offsets ? layout.nnz : 0);
    if (!has_shape || !is_plain(plan.rows) || !is_plain(plan.row_offsets) || !is_plain(plan.order) ||
        !is_plain(plan.bags) || !is_plain(plan.table_starts)) {
      return false;
    }
    if (plan.wide_positions) {
      return plan.wide_rows ? holds<int64_t, int64_t>() : holds<int32_t, int64_t>();
    }
    return plan.wide_rows ? holds<int64_t, int32_t>() : holds<int32_t, int32_t>();
  }

  static bool is_plain(const Tensor& t) { return t.is_cpu() && t.is_contiguous(); }

  template <class Row, class Position>
  bool holds() const {
    const Row* rows = static_cast<const Row*>(plan.row_data);
    const Position* offsets = static_cast<const Position*>(plan.offset_data);
    const int64_t num_tables = static_cast<int64_t>(sizes.size()), num_rows = plan.num_rows;
    const int64_t* starts = plan.table_start;
    bool bad = offsets[0] != 0 || offsets[num_rows] != plan.num_entries || starts[0] != 0 ||
               starts[num_tables] != num_rows || outside(starts, 0, num_tables + 1, 0, num_rows + 1) ||
               outside(offsets, 0, num_rows + 1, 0, plan.num_entries + 1) || falls(offsets, 0, num_rows + 1);
    for (int64_t t = 0; !bad && t < num_tables; ++t) {
      bad = starts[t] > starts[t + 1] || outside(rows, starts[t], starts[t + 1], 0, sizes[static_cast<size_t>(t)]) ||
            falls(rows, starts[t], starts[t + 1]);
    }
    return !bad && have_own_bags<Position>() && are_of_own_features<Position>(offsets);
  }

  // The bag of an entry of feature f is one of f's.
  template <class Position>
  bool have_own_bags() const {
    if (!layout.offsets) {
      return true;
    }
    const Position* bags = static_cast<const Position*>(plan.bags.data_ptr());
    for (int64_t f = 0; f < layout.num_features; ++f) {
      if (outside(bags, layout.first_entry(f), layout.first_entry(f + 1), f * layout.batch, layout.batch)) {
        return false;
      }
    }
    return true;
  }

  // The entries of a table's rows are entries of its features.
  template <class Position>
  bool are_of_own_features(const Position* offsets) const {
    const Position* order = static_cast<const Position*>(plan.order.data_ptr());
    for (int64_t t = 0; t < static_cast<int64_t>(sizes.size()); ++t) {
      const int64_t begin = offsets[plan.table_start[t]], end = offsets[plan.table_start[t + 1]];
      int64_t first = 0, last = 0, count = 0;  // the entries of the features lie between, so many of them
      for (int64_t f = 0; f < layout.num_features; ++f) {
        if (tables[static_cast<size_t>(f)] == t && layout.num_entries(f)) {
          first = count ? first : layout.first_entry(f);
          last = layout.first_entry(f + 1);
          count += layout.num_entries(f);
        }
      }
      if (begin == end) {
        continue;
      }
      if (outside(order, begin, end, first, last - first)) {
        return false;
      }
      for (int64_t j = begin; last - first != count && j < end; ++j) {
        if (tables[static_cast<size_t>(feature_of<Position>(order[j]))] != t) {
          return false;
        }
      }
    }
    return true;
  }

  // `entry` lies within the ids, and the bags have been looked at.
  template <class Position>
  int64_t feature_of(int64_t entry) const {
    return (layout.offsets ? static_cast<const Position*>(plan.bags.data_ptr())[entry] : entry) / layout.batch;
  }
};

inline void require_safe(const char* op, const BagPlan& plan, const Layout& layout, const Tensors& weights,
                         const Ints& tables) {
  Ints sizes;
  for (const Tensor& w : weights) {
    sizes.push_back(w.size(0));
  }
  DEEPREC_CHECK((PlanChecker{plan, layout, sizes, tables}.is_safe()), "ValueError: ", op,
                ": plan must be the one of these ids and offsets, got one that names other entries, bags or rows; "
                "make it with embedding_bags_plan");
}

}  // namespace deeprec
