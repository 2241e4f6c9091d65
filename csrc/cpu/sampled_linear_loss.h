// The arguments of the kernel of sampled_linear_loss.
#pragma once

#include "element.h"
#include "isa.h"

namespace deeprec {

enum class Activation : int64_t { identity = 0, sigmoid = 1, tanh = 2 };
enum class EntryLoss : int64_t { squared = 0, cross_entropy = 1, logistic = 2, hinge = 3 };

struct SampledArgs {
  Element element;
  const void *hidden, *weight, *bias;  // [B, H], [N, H], [N] or null; columns adjacent
  int64_t hidden_stride, weight_stride, dim;
  const void *indptr, *indices;  // [B + 1], [nnz]
  bool wide_ids;
  const void *targets, *entry_weights;  // [nnz], accumulator type; weights may be null
  Activation activation;
  EntryLoss loss;
  void *predictions, *slopes;  // [nnz], accumulator type
  void* hidden_grad;           // [B, H]; null: not asked for
  void* grads;                 // [B, H], accumulator type: hidden_grad where that is its type
  double* row_loss;            // [B]
  int64_t* next;               // [B]: the entry that each row has come to
  int64_t num_columns, tile;   // columns of the decoder, and how many of them are worked on at a time
  bool asks;                   // for rows of the decoder: a tile is too large for the second-level cache
  int64_t begin, end;          // rows
};

}  // namespace deeprec

DEEPREC_DECLARE(void, sampled_rows, (const SampledArgs& a))
