// What the kernel of sampled_softmax_loss and its PyTorch wrapper agree on: plain pointers and sizes.
// "wide" is float, and double beside double.
#pragma once

#include "element.h"
#include "sample_negatives.h"

namespace deeprec {

struct SampledSoftmaxJob {
  NegativeJob draw;  // of all rows; `out` is set to a buffer of the thread's own
  Element element;
  int64_t batch, num_items, dim, query_stride, item_stride;
  const void* queries;     // [B, D], rows query_stride apart
  const void* items;       // [N, D], rows item_stride apart
  const int64_t* targets;  // [B]
  const void* bias;        // wide [N], or null
  const void* log_scale;   // wide [B], log of how often an item of chance 1 is expected; null: no correction
  double gamma;
  bool is_cosine, include_positive, need_grad;
  void* losses;           // wide [B]
  void* stats;            // wide [2, B]: maximum m, log sum exp(z - m)
  void* queries_grad;     // wide [B, D] where need_grad
  const void* row_grads;  // wide [B], of the losses; null: the forward pass
  int32_t* entries;       // [B, 1 + S]: the positive, then the negatives
  void* slopes;           // wide [B, 1 + S], derivatives by the logits of the losses times their gradients
  uint8_t* is_exhausted;  // [B] out: 1 where every item of positive weight is known, so that there is none to draw
};

}  // namespace deeprec

namespace deeprec {

// Rows whose negatives are drawn together: enough for whole batches of the generator.
inline constexpr int64_t rows_drawn(int64_t num_negatives) {
  return num_negatives >= 1024 ? 1 : 1024 / (num_negatives > 0 ? num_negatives : 1);
}

inline constexpr int64_t sampled_ids_size(int64_t num_negatives) {
  return 1 + num_negatives + rows_drawn(num_negatives) * num_negatives;
}

}  // namespace deeprec

// `ids`: a buffer of sampled_ids_size(S) int32; `values`: wide [3 (1 + S) + 2 D].
DEEPREC_DECLARE(void, sampled_softmax_rows,
                (const ::deeprec::SampledSoftmaxJob& job, int32_t* ids, void* values, int64_t begin, int64_t end))
