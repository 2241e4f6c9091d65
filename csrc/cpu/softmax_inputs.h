// What softmax_loss and sampled_softmax_loss both take, checked and kept: queries, items, targets and the lists of
// known positives. Portable pass only.
#pragma once

#include <limits>
#include <optional>
#include <vector>

#include "tensor.h"

namespace deeprec {

// The lists of known positives: row b of the batch has list `rows[b]`, or b without rows; null where there are none.
struct SeenLists {
  const int64_t* indptr = nullptr;
  const int32_t* indices = nullptr;
  const int64_t* rows = nullptr;

  int64_t row(int64_t b) const { return rows ? rows[b] : b; }
};

// Base of the two calls; keeps the tensors that a job points to.
class SoftmaxInputs {
 public:
  ScalarType dtype, wide;
  int64_t wide_bytes;

 protected:
  std::vector<int64_t> targets_;

  SoftmaxInputs(const char* op, const Tensor& queries) : dtype(queries.scalar_type()), op_(op) {
    wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    wide_bytes = dtype == ScalarType::Double ? 8 : 4;
  }

  const void* keep(const Tensor& t) {
    owned_.push_back(as_contiguous(t));
    return owned_.back().data_ptr();
  }

  // Sizes, vectors and gamma of a job.
  template <class Job>
  void take_vectors(Job& job, const Tensor& queries, const Tensor& items, double gamma) {
    job.element = element_of(op_, dtype);
    DEEPREC_CHECK(queries.dim() == 2 && queries.is_cpu(), "ValueError: ", op_, ": queries must be [B, D] on the CPU");
    job.batch = queries.size(0);
    job.dim = queries.size(1);
    DEEPREC_CHECK(items.dim() == 2 && items.size(1) == job.dim && items.scalar_type() == dtype && items.is_cpu(),
                  "ValueError: ", op_, ": items must be [N, ", job.dim, "] in the dtype of queries");
    job.num_items = items.size(0);
    DEEPREC_CHECK(gamma > 0 && gamma <= std::numeric_limits<double>::max(), "ValueError: ", op_,
                  ": gamma must be a finite number > 0, got ", gamma);
    job.gamma = gamma;
    job.queries = rows_adjacent(queries, job.query_stride);
    job.items = rows_adjacent(items, job.item_stride);
  }

  // int64 numbers of a tensor of int32 or int64.
  std::vector<int64_t> numbers(const char* name, const Tensor& t, int64_t count) {
    DEEPREC_CHECK(is_index(t.scalar_type()), "TypeError: ", op_, ": ", name, " must be int32 or int64");
    DEEPREC_CHECK(t.dim() == 1 && t.size(0) == count && t.is_cpu(), "ValueError: ", op_, ": ", name, " must be [",
                  count, "] on the CPU");
    const void* data = keep(t);
    std::vector<int64_t> out(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      out[static_cast<size_t>(i)] = t.scalar_type() == ScalarType::Long ? static_cast<const int64_t*>(data)[i]
                                                                        : static_cast<const int32_t*>(data)[i];
    }
    return out;
  }

  template <class Job>
  void take_targets(Job& job, const Tensor& targets) {
    targets_ = numbers("targets", targets, job.batch);
    for (size_t b = 0; b < targets_.size(); ++b) {
      DEEPREC_CHECK(targets_[b] >= 0 && targets_[b] < job.num_items, "IndexError: ", op_, ": targets must be in [0, ",
                    job.num_items, "), got ", targets_[b], " at position ", b);
    }
    job.targets = targets_.data();
  }

  // The lists, one for each row; with num_ids >= 0 their ids must lie below it.
  SeenLists take_lists(int64_t batch, const std::optional<Tensor>& indptr, const std::optional<Tensor>& indices,
                       const std::optional<Tensor>& rows, int64_t num_ids) {
    SeenLists seen;
    DEEPREC_CHECK(indptr.has_value() == indices.has_value() && (indptr || !rows), "ValueError: ", op_,
                  ": give seen_indptr and seen_indices together");
    if (!indptr) {
      return seen;
    }
    DEEPREC_CHECK(indptr->scalar_type() == ScalarType::Long && indices->scalar_type() == ScalarType::Int,
                  "TypeError: ", op_, ": seen_indptr must be int64 and seen_indices int32");
    DEEPREC_CHECK(
        indptr->dim() == 1 && indices->dim() == 1 && indptr->is_cpu() && indices->is_cpu() && indptr->size(0) > 0,
        "ValueError: ", op_, ": seen_indptr must be [rows + 1] and seen_indices [nnz] on the CPU");
    seen.indptr = static_cast<const int64_t*>(keep(*indptr));
    seen.indices = static_cast<const int32_t*>(keep(*indices));
    const int64_t lists = indptr->size(0) - 1, nnz = indices->numel();
    if (rows) {
      DEEPREC_CHECK(rows->scalar_type() == ScalarType::Long, "TypeError: ", op_, ": seen_rows must be int64");
      DEEPREC_CHECK(rows->dim() == 1 && rows->size(0) == batch && rows->is_cpu(), "ValueError: ", op_,
                    ": seen_rows must be [", batch, "] on the CPU");
      seen.rows = static_cast<const int64_t*>(keep(*rows));
    } else {
      DEEPREC_CHECK(lists == batch, "ValueError: ", op_, ": seen_indptr must be [", batch + 1, "], got [", lists + 1,
                    "]");
    }
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t row = seen.row(b);
      DEEPREC_CHECK(row >= 0 && row < lists, "IndexError: ", op_, ": seen_rows must be in [0, ", lists, "), got ", row,
                    " at position ", b);
      const int64_t begin = seen.indptr[row], end = seen.indptr[row + 1];
      DEEPREC_CHECK(0 <= begin && begin <= end && end <= nnz, "ValueError: ", op_,
                    ": seen_indptr must ascend from 0 to the number of seen_indices, ", nnz, ", got ", begin, " and ",
                    end, " for row ", row);
      for (int64_t p = begin; p < end; ++p) {
        const int32_t id = seen.indices[p];
        DEEPREC_CHECK(num_ids < 0 || (id >= 0 && id < num_ids), "IndexError: ", op_, ": seen_indices must be in [0, ",
                      num_ids, "), got ", id, " at position ", p);
        DEEPREC_CHECK(p == begin || seen.indices[p - 1] < id, "ValueError: ", op_,
                      ": seen_indices must ascend without repeats within a row, got ", id, " after ",
                      seen.indices[p - 1], " at position ", p);
      }
    }
    return seen;
  }

 private:
  const char* op_;
  std::vector<Tensor> owned_;

  const void* rows_adjacent(const Tensor& t, int64_t& stride) {
    owned_.push_back(t.size(1) <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t));
    stride = owned_.back().stride(0);
    return owned_.back().data_ptr();
  }
};

}  // namespace deeprec
