// What the kernels of embedding_fm share: where the tables lie, and the arguments of the forward and the backward pass.
//
// Features f < F read a table each; entry p is one (id, x) of a bag f * B + b and a feature of its own in the formula,
// so entries of one bag interact too. Entry p is bag p without offsets, and p in [offsets[bag], offsets[bag + 1]) with
// them.
#pragma once

#include "element.h"
#include "isa.h"
#include "row_copy.h"

namespace deeprec {

struct FmFeature {
  const char* weight;  // [R, D], columns adjacent
  int64_t row_stride;  // bytes
  int64_t num_rows;
  const char* linear;     // [R] or null
  int64_t linear_stride;  // bytes
  int64_t padding;        // id that does not count; -1: none
};

// out[b] = sum x w + 0.5 sum_d [(sum x v)^2 - sum x^2 v^2] for the samples [begin, end).
struct FmForwardArgs {
  Element element;
  int64_t num_features, dim, batch;
  const FmFeature* features;
  const void* ids;
  bool wide_ids;
  int64_t feature_stride, bag_stride;  // of ids and values, elements; without offsets
  const void* offsets;                 // [F * B + 1], dtype of ids; null: one id a bag
  const void* values;                  // dtype of the tables; null: 1
  int64_t value_feature_stride, value_bag_stride;
  int64_t tile;       // samples whose ids become addresses together, at most kFmTile
  void* out;          // [B]
  void* sums;         // [B, D], sum of x v in the accumulator's type
  void* embeddings;   // [B, F, D], sum of x v of each bag; may be null
  const char* zeros;  // a row of zeros
  bool one_line;      // each row lies within one line of 64 bytes
  // Memory that stays as it is until the next call with the same number, 0, 1 or 2.
  char* (*get_memory)(void* memory, int which, int64_t bytes);
  void* memory;
  int64_t begin, end;
};

constexpr int64_t kFmTile = 64;

// Gradients of the rows [begin, end) of a plan, which belong to one table, times `factor`:
//   v: sum_p g x (S - x v) + x e,  w: sum_p g x,  x_p: g (w + v . S - x |v|^2) + v . e
// with g = grad[b], S = sums[b], e = embeddings_grad[b, f] of the bag of entry p.
struct FmGradArgs {
  Element element;
  int64_t dim, batch;
  int64_t feature;                         // the only feature of the table, or -1
  const void *row_offsets, *order, *bags;  // of the plan; bags may be null
  bool wide_positions;
  const void* rows;  // of the plan
  bool wide_rows;
  const void* grad;                                // [B], accumulator type
  const void* sums;                                // [B, D], accumulator type
  const char* embeddings_grad;                     // [B, F, D], columns adjacent; may be null
  int64_t grad_batch_stride, grad_feature_stride;  // elements
  const void* values;                              // of each entry; null: 1
  void* values_grad;                               // may be null
  const char* weight;
  int64_t row_stride;     // bytes
  const char* linear;     // null without a linear term
  int64_t linear_stride;  // bytes
  RowsAhead ahead, linear_ahead;
  int64_t begin, end, segment_end;
  double factor;
  void* out;         // [end - begin, D]
  void* linear_out;  // [end - begin]
  bool wide_out;     // in the accumulator's type, not in that of the table
};

}  // namespace deeprec

// Returns whether an id is out of range; what it has written is then of no use.
DEEPREC_DECLARE(bool, fm_forward, (const FmForwardArgs& a))
DEEPREC_DECLARE(void, fm_sum_grads, (const FmGradArgs& a))
