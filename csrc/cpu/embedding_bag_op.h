// What the wrappers of the operators over several tables check alike. Portable pass only.
#pragma once

#include <optional>
#include <utility>

#include "bag_layout.h"

namespace deeprec {

inline void check_modes(const char* op, const Ints& modes, size_t num_features, bool has_scale) {
  DEEPREC_CHECK(modes.size() == num_features, "ValueError: ", op, ": modes must have one entry a feature (",
                num_features, "), got ", modes.size());
  for (const int64_t mode : modes) {
    DEEPREC_CHECK(mode >= 0 && mode <= 3, "ValueError: ", op,
                  ": modes must be 0 (sum), 1 (mean), 2 (max) or 3 (none), got ", mode);
    DEEPREC_CHECK(!has_scale || mode != 3, "ValueError: ", op, ": per_sample_weights go with pooled features only");
  }
}

inline void check_tables(const char* op, const Tensors& weights) {
  DEEPREC_CHECK(!weights.empty(), "ValueError: ", op, ": weights must hold at least one table");
  for (const Tensor& w : weights) {
    DEEPREC_CHECK(w.dim() == 2 && w.is_cpu() && w.scalar_type() == weights[0].scalar_type(), "ValueError: ", op,
                  ": weights must be [R, D] tables of one dtype on the CPU");
  }
}

inline bool is_pooled(const Layout& layout, int64_t mode) { return !layout.offsets || mode != 3; }

// The first column of each pooled feature (-1: unpooled), and the width of the result.
inline std::pair<Ints, int64_t> columns_of(const Layout& layout, const Tensors& weights, const Ints& tables,
                                           const Ints& modes) {
  Ints columns;
  int64_t width = 0;
  for (size_t f = 0; f < tables.size(); ++f) {
    const bool pooled = is_pooled(layout, modes[f]);
    columns.push_back(pooled ? width : -1);
    width += pooled ? weights[static_cast<size_t>(tables[f])].size(1) : 0;
  }
  return {columns, width};
}

inline bool has_max(const Layout& layout, const Ints& modes) {
  return layout.offsets && std::find(modes.begin(), modes.end(), 2) != modes.end();
}

inline Tensor check_scale(const char* op, const Layout& layout, const std::optional<Tensor>& scale, ScalarType dtype) {
  DEEPREC_CHECK(scale->scalar_type() == dtype && scale->numel() == layout.nnz && scale->dim() == layout.ids.dim() &&
                    scale->size(0) == layout.ids.size(0) && scale->is_cpu(),
                "ValueError: ", op, ": per_sample_weights must have the shape of ids and the dtype of the tables");
  return layout.offsets && !scale->is_contiguous() ? torch::stable::contiguous(*scale) : *scale;
}

inline void raise_bad(const char* op, const Layout& layout, const Tensors* weights, const Ints* sizes,
                      const Ints& tables, int64_t position) {
  int64_t f = 0;
  while (f + 1 < layout.num_features && layout.first_entry(f + 1) <= position) {
    ++f;
  }
  const int64_t table = tables[static_cast<size_t>(f)];
  const int64_t rows = weights ? (*weights)[static_cast<size_t>(table)].size(0) : (*sizes)[static_cast<size_t>(table)];
  DEEPREC_CHECK(false, "IndexError: ", op, ": ids of table ", table, " must be in [0, ", rows, "), got ",
                layout.id(f, position - layout.first_entry(f)), " at position ", position);
}

}  // namespace deeprec
