// What the operators over the rows of a sparse matrix share: the checks of its positions, and how the columns are cut
// into tiles. Portable pass only.
#pragma once

#include "tensor.h"

namespace deeprec {

constexpr int64_t kSecondLevelTile = 1 << 19, kThirdLevelTile = 1 << 23;  // bytes

// A batch of rows in compressed form, checked: rows whole, columns in [0, num_columns).
struct Csr {
  Tensor indptr, indices;  // contiguous
  int64_t batch, nnz, num_columns;
  bool wide_ids;

  Csr(const char* op, const Tensor& indptr_in, const Tensor& indices_in, int64_t batch_in, int64_t num_columns_in)
      : indptr(as_contiguous(indptr_in)),
        indices(as_contiguous(indices_in)),
        batch(batch_in),
        nnz(indices_in.numel()),
        num_columns(num_columns_in),
        wide_ids(indices_in.scalar_type() == ScalarType::Long) {
    DEEPREC_CHECK(indptr.dim() == 1 && indices.dim() == 1 && is_index(indices.scalar_type()) && indices.is_cpu() &&
                      indptr.scalar_type() == indices.scalar_type() && indptr.size(0) == batch + 1 && batch >= 0,
                  "ValueError: ", op, ": indptr must be [", batch + 1, "] and indices [nnz], both int32 or both int64");
    wide_ids ? check<int64_t>(op) : check<int32_t>(op);
  }

  template <class Id>
  void check(const char* op) const {
    const Id *bounds = static_cast<const Id*>(indptr.data_ptr()), *columns = static_cast<const Id*>(indices.data_ptr());
    DEEPREC_CHECK(bounds[0] == 0 && bounds[batch] == nnz, "ValueError: ", op,
                  ": indptr must begin with 0 and end with the number of indices, ", nnz, ", got ", bounds[0], " and ",
                  bounds[batch]);
    for (int64_t b = 0; b < batch; ++b) {
      DEEPREC_CHECK(bounds[b] <= bounds[b + 1], "ValueError: ", op, ": indptr must ascend, got ", bounds[b + 1],
                    " after ", bounds[b], " at position ", b + 1);
    }
    const bool bad = outside(columns, 0, nnz, 0, num_columns);
    for (int64_t p = 0; bad && p < nnz; ++p) {
      DEEPREC_CHECK(columns[p] >= 0 && columns[p] < num_columns, "IndexError: ", op, ": indices must be in [0, ",
                    num_columns, "), got ", columns[p], " at position ", p);
    }
  }

  // Columns to work on at a time when a row of the layer takes `row_bytes`: as many as the second-level cache holds,
  // but enough for eight entries a row of the batch, then from the third-level cache. All of them where that would not
  // hold them either, or where few columns are used again.
  int64_t tile(int64_t row_bytes) const {
    const int64_t fit = kSecondLevelTile / std::max<int64_t>(row_bytes, 1);
    const int64_t columns = std::max(fit, 8 * num_columns / (nnz / std::max<int64_t>(batch, 1) + 1) + 1);
    const bool is_worth_it = 2 * nnz >= 3 * num_columns && num_columns > 2 * fit;
    return is_worth_it && columns * row_bytes <= kThirdLevelTile ? columns : std::max<int64_t>(num_columns, 1);
  }

  // Whether rows of the layer should be asked for before they are needed.
  static bool asks(int64_t tile, int64_t row_bytes) { return tile * row_bytes > 2 * kSecondLevelTile; }

  // The first row of `chunk` when rows are dealt to chunks by their entries.
  int64_t first_row(int64_t chunk, int64_t chunks) const {
    int64_t low = 0, high = batch;
    const int64_t share = (nnz + batch) * chunk / chunks;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      const int64_t before = middle + (wide_ids ? static_cast<const int64_t*>(indptr.data_ptr())[middle]
                                                : static_cast<const int32_t*>(indptr.data_ptr())[middle]);
      (before < share ? low : high) = before < share ? middle + 1 : middle;
    }
    return chunk == chunks ? batch : low;
  }
};

}  // namespace deeprec
