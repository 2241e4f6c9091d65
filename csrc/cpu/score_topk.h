// What the kernels of score_topk and their PyTorch wrapper agree on: plain pointers and sizes.
#pragma once

#include <cstdint>

#include "isa.h"

namespace deeprec {

constexpr int64_t kTileItems = 64;   // items scored together; their packed rows stay in the first-level cache
constexpr int64_t kScoreUsers = 48;  // users scored before their scores are looked at

struct ScoreLayer {
  const float* weight;     // [out, in]
  const uint32_t* packed;  // [out, in / 2] words of two bfloat16, or null for float32 arithmetic
  const float* bias;       // [out]
  int64_t in, out;
};

// score = item_bias[i] + bias + sum_d user_factors[u, d] item_factors[i, d]
//         + hidden_weight . x_L,   x_1 = relu(user_hidden[u] + item_hidden[i]),   x_{l+1} = relu(W_l x_l + b_l)
struct ScoreJob {
  int64_t num_users, num_items, num_factors, num_hidden, num_layers;
  const float* user_factors;   // [B, D]; for the network already times the output weights
  const float* item_factors;   // [N, D]
  const float* item_bias;      // [N] or null
  const float* user_hidden;    // [B, H1]
  const float* item_hidden;    // [N, H1]
  const ScoreLayer* layers;    // [num_layers]
  const float* hidden_weight;  // [H_L]
  float bias;
  bool use_bfloat16;
  const int64_t* seen_indptr;  // null: nothing is masked
  const int32_t* seen_indices;
  const int64_t* seen_rows;  // null: row b for user b
};

// Buffers of one thread.
struct ScoreScratch {
  float* item_factors;    // [D, kTileItems]
  float* item_hidden;     // [H1, kTileItems]
  float* item_bias;       // [kTileItems]
  float* activations[2];  // [widest, kTileItems]
  float* scores;          // [kScoreUsers, kTileItems]
  int64_t* seen_at;       // [users of a block]
  int64_t* counts;        // [users of a block]
};

// Where the scores of a block go: `dense` [B, num_items] when not null, else the best k of [item_begin, item_end)
// at values and ids + user * stride.
struct ScoreSink {
  float* dense;
  float* values;
  int64_t* ids;
  int64_t k, stride;
};

}  // namespace deeprec

DEEPREC_DECLARE(void, score_block,
                (const ::deeprec::ScoreJob& job, const ::deeprec::ScoreScratch& scratch,
                 const ::deeprec::ScoreSink& sink, int64_t user_begin, int64_t user_end, int64_t item_begin,
                 int64_t item_end))
DEEPREC_DECLARE(void, merge_best,
                (const float* values, const int64_t* ids, int64_t count, float* best_values, int64_t* best_ids,
                 int64_t k))
DEEPREC_DECLARE(void, pack_score_weights, (const float* weight, int64_t rows, int64_t columns, uint32_t* packed))
