// What the kernels of softmax_loss and their PyTorch wrapper agree on: plain pointers and sizes.
//
// Candidates are walked in a working order: that of their ids, or as they lie where no ids are given. The candidates of
// one id are then neighbours, and a sorted list of ids meets them in one walk; `order` leads back.
// "wide" is float, and double beside double.
#pragma once

#include <cstdint>

#include "element.h"
#include "isa.h"

namespace deeprec {

constexpr int64_t kSoftmaxTile = 128;                // candidates that are packed and scored together
constexpr int64_t kSoftmaxTileStride = 144;          // an odd number of cache lines
constexpr int64_t kSoftmaxRows = 48;                 // rows whose logits are looked at together
constexpr int64_t kSoftmaxBlock = 5 * kSoftmaxRows;  // rows that a packed tile serves in the forward pass

// Elements between packed rows of `dim`: whole vectors, an odd number of cache lines.
inline constexpr int64_t softmax_stride(int64_t dim) { return ((dim + 15) / 16 | 1) * 16; }

struct SoftmaxJob {
  Element element;
  int64_t batch, num_items, dim, query_stride, item_stride;
  const void* queries;          // [B, D], rows query_stride apart
  const void* items;            // [N, D], rows item_stride apart
  const int64_t* order;         // [N] places of the candidates in working order, or null
  const int64_t* ids;           // [N] in working order, ascending, or null: a candidate's id is its place
  const int64_t* targets;       // [B] in working order
  const int64_t* same_begin;    // [B] candidates of the positive's id, in working order; null without ids
  const int64_t* same_end;      // [B]
  const void* shift;            // wide [N] in working order, added to the similarities; null: nothing
  const void* positive_shift;   // wide [B], added to the positive's logit; null: nothing
  const int64_t* seen_indptr;   // null: nothing is masked
  const int32_t* seen_indices;  // ascending within a row
  const int64_t* seen_rows;     // null: row b for row b
  double gamma, smoothing;
  bool is_cosine, include_positive, need_grad;
  void* packed;           // wide [B, softmax_stride(D)]: gamma times the (unit) queries, padded with zeros; of bfloat16
                          // uint32 [B, softmax_stride(D)]: the queries, two numbers in a word
  void* pairs;            // uint32 [B / 2, softmax_stride(D)]: the queries, two rows in a word; only bfloat16
  void* scale;            // float [B]: gamma, for cosines over the length of the query; only bfloat16
  void* losses;           // wide [B]
  void* stats;            // wide [3, B]: maximum m, log sum exp(z - m), number of candidates
  void* queries_grad;     // wide [B, D] where need_grad
  const void* row_grads;  // wide [B], of the losses
  void* items_grad;       // [N, D]
  void* bias_grad;        // [N], or null
};

// What one part of the candidates tells of the rows; the parts of a row are put together in their order.
struct SoftmaxParts {
  int64_t chunks;
  void* maxima;     // wide [chunks, B]
  double* sums;     // [chunks, B] of exp(z - maximum)
  double* logits;   // [chunks, B] sums of z over all candidates; only with smoothing
  int64_t* hidden;  // [chunks, B] masked candidates
  void* positives;  // wide [B], logit of the positive
  void* weighted;   // wide [chunks, B, softmax_stride(D)]: sums of exp(z - maximum) times the candidate
  void* plain;      // the same without the factor; only with smoothing
};

// Elements of one thread's buffers: `TileScratch` of softmax_tile.h, or `PairTile` of softmax_pairs.h.
inline constexpr int64_t softmax_scratch_size(int64_t dim, bool has_pairs) {
  const int64_t stride = softmax_stride(dim),
                of_pairs = kSoftmaxTile * stride * 3 / 2 + kSoftmaxTile * kSoftmaxRows / 2;
  return 2 * kSoftmaxTile * stride + stride * kSoftmaxTileStride + 3 * kSoftmaxTile + stride +
         kSoftmaxRows * kSoftmaxTileStride + (has_pairs ? of_pairs : 0);
}

}  // namespace deeprec

DEEPREC_DECLARE_BF16(void, softmax_pack, (const ::deeprec::SoftmaxJob& job, int64_t begin, int64_t end))
DEEPREC_DECLARE_BF16(void, softmax_part,
                     (const ::deeprec::SoftmaxJob& job, const ::deeprec::SoftmaxParts& parts, void* scratch,
                      int64_t row_begin, int64_t row_end, int64_t chunk, int64_t item_begin, int64_t item_end))
DEEPREC_DECLARE_BF16(void, softmax_merge,
                     (const ::deeprec::SoftmaxJob& job, const ::deeprec::SoftmaxParts& parts, void* scratch,
                      int64_t begin, int64_t end))
DEEPREC_DECLARE_BF16(void, softmax_items_grad,
                     (const ::deeprec::SoftmaxJob& job, void* scratch, int64_t item_begin, int64_t item_end))
