// How the ids of a call over several tables lie. Portable pass only.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "embedding_bag.h"
#include "tensor.h"

namespace deeprec {

using Ints = std::vector<int64_t>;
using Tensors = std::vector<Tensor>;

inline Tensor rows_adjacent(const Tensor& t) {
  return t.dim() < 2 || t.size(1) <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t);
}

inline void check_features(const char* op, const Ints& tables, const Ints& padding, size_t num_tables) {
  DEEPREC_CHECK(padding.size() == tables.size(), "ValueError: ", op,
                ": tables and padding must have one entry a feature, got ", tables.size(), " and ", padding.size());
  for (const int64_t table : tables) {
    DEEPREC_CHECK(table >= 0 && table < static_cast<int64_t>(num_tables), "ValueError: ", op,
                  ": tables must be in [0, ", num_tables, "), got ", table);
  }
}

// ids (and what lies like them) of one call: [F, B] of any strides, or [nnz] with offsets [F * B + 1].
struct Layout {
  Tensor ids;
  std::optional<Tensor> offsets;
  int64_t num_features, batch, nnz, feature_stride, bag_stride;
  bool wide;

  Layout(const char* op, const Tensor& ids_in, const std::optional<Tensor>& offsets_in, size_t features)
      : ids(ids_in), num_features(static_cast<int64_t>(features)), nnz(ids_in.numel()) {
    DEEPREC_CHECK(is_index(ids.scalar_type()) && ids.is_cpu(), "TypeError: ", op,
                  ": ids must be int32 or int64 on the CPU");
    wide = ids.scalar_type() == ScalarType::Long;
    if (!offsets_in) {
      DEEPREC_CHECK(ids.dim() == 2 && ids.size(0) == num_features, "ValueError: ", op, ": ids must be [", num_features,
                    ", B]");
      batch = ids.size(1);
      feature_stride = ids.stride(0);
      bag_stride = ids.stride(1);
      return;
    }
    DEEPREC_CHECK(ids.dim() == 1, "ValueError: ", op, ": ids with offsets must have one dimension");
    ids = ids.is_contiguous() ? ids : torch::stable::contiguous(ids);
    offsets = offsets_in->is_contiguous() ? *offsets_in : torch::stable::contiguous(*offsets_in);
    const int64_t bounds = offsets->numel();
    DEEPREC_CHECK(offsets->scalar_type() == ids.scalar_type() && offsets->dim() == 1 && bounds >= 1 &&
                      (num_features == 0 ? bounds == 1 : (bounds - 1) % num_features == 0),
                  "ValueError: ", op, ": offsets must be [", num_features, " * B + 1] in the dtype of ids, got ",
                  bounds);
    batch = num_features == 0 ? 0 : (bounds - 1) / num_features;
    feature_stride = 0;
    bag_stride = 1;
    wide ? check_offsets<int64_t>(op) : check_offsets<int32_t>(op);
  }

  template <class Id>
  void check_offsets(const char* op) const {
    const Id* o = static_cast<const Id*>(offsets->data_ptr());
    const int64_t last = offsets->numel() - 1;
    const bool ascending = DEEPREC_DISPATCH(steps_of_offsets)(o, last + 1, wide, nnz).ascend;
    DEEPREC_CHECK(ascending && o[0] == 0 && o[last] == nnz, "ValueError: ", op,
                  ": offsets must ascend from 0 to the number of ids (", nnz, "), got ", static_cast<int64_t>(o[0]),
                  " to ", static_cast<int64_t>(o[last]));
  }

  int64_t bound(int64_t bag) const {
    if (!offsets) {
      return bag;
    }
    return wide ? static_cast<const int64_t*>(offsets->data_ptr())[bag]
                : static_cast<int64_t>(static_cast<const int32_t*>(offsets->data_ptr())[bag]);
  }

  int64_t first_entry(int64_t f) const { return bound(f * batch); }
  int64_t num_entries(int64_t f) const { return bound((f + 1) * batch) - bound(f * batch); }

  // Where the ids of feature f begin, in elements.
  int64_t start(int64_t f) const { return offsets ? first_entry(f) : f * feature_stride; }

  int64_t id(int64_t f, int64_t entry) const {
    const int64_t at = start(f) + entry * bag_stride;
    return wide ? static_cast<const int64_t*>(ids.data_ptr())[at]
                : static_cast<int64_t>(static_cast<const int32_t*>(ids.data_ptr())[at]);
  }

  const void* ids_from(int64_t element) const {
    return static_cast<const char*>(ids.data_ptr()) + element * (wide ? 8 : 4);
  }
};

// The operator embedding_bags_plan: rows, row_offsets, order, bags, table_starts.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> embedding_bags_plan(const Tensor& ids,
                                                                       const std::optional<Tensor>& offsets,
                                                                       const Ints& num_embeddings, const Ints& tables,
                                                                       const Ints& padding);

}  // namespace deeprec
