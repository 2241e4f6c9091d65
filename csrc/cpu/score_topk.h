// What the kernels of score_topk and their PyTorch wrapper agree on: plain pointers and sizes.
#pragma once

#include <cstdint>

#include "isa.h"
#include "score_dot.h"

namespace deeprec {

constexpr int64_t kScoreUsers = 48;  // users scored before their scores are looked at

struct ScoreLayer {
  const float* weight;     // [out, in]
  const uint32_t* packed;  // [out, in / 2] words of two bfloat16, or null for float32 arithmetic
  const float* bias;       // [out]
  int64_t in, out;
};

enum class Similarity : int64_t { dot = 0, cosine = 1, l2 = 2 };

// score = item_bias[i] + bias + sum_d user_factors[u, d] item_factors[i, d]
//         + hidden_weight . x_L,   x_1 = relu(user_hidden[u] + item_hidden[i]),   x_{l+1} = relu(W_l x_l + b_l)
// cosine: user_factors have unit length or are zero, and the sum is divided by the item's length (zero where that is).
// l2: - sum_d (user_factors[u, d] - item_factors[i, d])^2.
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
  Similarity similarity;
  const int64_t* seen_indptr;  // null: nothing is masked
  const int32_t* seen_indices;
  const int64_t* seen_rows;  // null: row b for user b
};

// What one call of score_block covers: these users, and of the items in order, or of the list `ids` if there is one,
// those at the places [begin, end).
struct ScoreRange {
  int64_t user_begin, user_end, begin, end;
  const int32_t* ids;
};

// Buffers of one thread.
struct ScoreScratch {
  float* item_factors;    // [D, kTileItems]
  float* item_hidden;     // [H1, kTileItems]
  float* item_scale;      // [kTileItems]
  float* item_bias;       // [kTileItems]
  float* activations[2];  // [widest, kTileItems]
  float* scores;          // [kScoreUsers, kTileItems]
  void* candidates;       // [users of a block] of kCandidateBytes
  uint64_t* keys;         // [users of a block, capacity]
};

constexpr int64_t kCandidateBytes = 40;

// Where the scores of a block go: `dense` [B, num_items] when not null, else the best k of a range at values and ids +
// user * stride. `capacity` > k: candidates held before the k best of them are chosen.
struct ScoreSink {
  float* dense;
  float* values;
  int64_t* ids;
  int64_t k, stride, capacity;
};

}  // namespace deeprec

DEEPREC_DECLARE_BF16(void, score_block,
                     (const ::deeprec::ScoreJob& job, const ::deeprec::ScoreScratch& scratch,
                      const ::deeprec::ScoreSink& sink, const ::deeprec::ScoreRange& range))
DEEPREC_DECLARE_BF16(void, pack_score_weights, (const float* weight, int64_t rows, int64_t columns, uint32_t* packed))
