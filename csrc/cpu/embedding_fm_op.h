// The tables of embedding_fm as its operators check them and its kernels see them. Portable pass only.
#pragma once

#include <optional>

#include "bag_layout.h"
#include "embedding_fm.h"

namespace deeprec {

// The tables of a call as the kernels see them; keeps alive whatever had to be copied.
struct FmTables {
  Tensors weights, linear;
  int64_t dim;
  std::vector<FmFeature> features;

  FmTables(const char* op, const Tensors& weights_in, const Tensors& linear_in, const Ints& tables, const Ints& padding)
      : weights(weights_in), linear(linear_in), dim(0) {
    DEEPREC_CHECK(!weights.empty(), "ValueError: ", op, ": weights must hold at least one table");
    const ScalarType dtype = weights[0].scalar_type();
    for (Tensor& w : weights) {
      DEEPREC_CHECK(w.dim() == 2 && w.is_cpu() && w.scalar_type() == dtype && w.size(1) == weights[0].size(1),
                    "ValueError: ", op, ": weights must be [R, D] tables of one D and dtype on the CPU");
      w = rows_adjacent(w);
    }
    DEEPREC_CHECK(linear.empty() || linear.size() == weights.size(), "ValueError: ", op,
                  ": linear must be empty or have ", weights.size(), " tables, got ", linear.size());
    for (size_t t = 0; t < linear.size(); ++t) {
      const Tensor& w = linear[t];
      DEEPREC_CHECK(w.is_cpu() && w.scalar_type() == dtype && w.size(0) == weights[t].size(0) &&
                        (w.dim() == 1 || (w.dim() == 2 && w.size(1) == 1)),
                    "ValueError: ", op, ": linear must be [R] or [R, 1] beside each table, in its dtype");
    }
    check_features(op, tables, padding, weights.size());
    dim = weights[0].size(1);
    DEEPREC_CHECK(dim >= 1, "ValueError: ", op, ": weights must have at least one column");
    const int64_t element = static_cast<int64_t>(weights[0].element_size());
    for (size_t f = 0; f < tables.size(); ++f) {
      const size_t t = static_cast<size_t>(tables[f]);
      FmFeature feature{static_cast<const char*>(weights[t].data_ptr()),
                        weights[t].stride(0) * element,
                        weights[t].size(0),
                        nullptr,
                        0,
                        padding[f]};
      if (!linear.empty()) {
        feature.linear = static_cast<const char*>(linear[t].data_ptr());
        feature.linear_stride = linear[t].stride(0) * element;
      }
      features.push_back(feature);
    }
  }

  bool rows_lie_in_lines() const {
    const auto in_line = [](const FmFeature& f) {
      return f.row_stride > 0 && 64 % f.row_stride == 0 &&
             reinterpret_cast<uintptr_t>(f.weight) % static_cast<uintptr_t>(f.row_stride) == 0;
    };
    return std::all_of(features.begin(), features.end(), in_line);
  }

  ScalarType dtype() const { return weights[0].scalar_type(); }
  ScalarType wide() const { return dtype() == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }
};

inline Tensor check_values(const char* op, const Layout& layout, const Tensor& values, ScalarType dtype) {
  DEEPREC_CHECK(values.scalar_type() == dtype && values.is_cpu() && values.dim() == layout.ids.dim() &&
                    values.numel() == layout.nnz && values.size(0) == layout.ids.size(0),
                "ValueError: ", op, ": values must have the shape of ids and the dtype of the tables");
  return layout.offsets && !values.is_contiguous() ? torch::stable::contiguous(values) : values;
}

}  // namespace deeprec
