// The network of score_topk for one user and one packed tile of items: activations go from layer to layer in buffers of
// the tile's width, the last layer straight into the scores.
#pragma once

#include "score_topk.h"

namespace deeprec::DEEPREC_ISA {

constexpr int64_t kTile = kTileItems;

// Rows of activations from accumulators: float32 rows, or rows in pairs of bfloat16.
struct Activate {
  float* to;  // [out, kTile], or [out / 2, kTile] words
  const float* bias;
  bool use_bfloat16;

  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
    if (!use_bfloat16) {
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          store(to + (i + r) * kTile + j + v * kLanes, relu(acc[r][v] + bias[i + r]));
        }
      }
      return;
    }
    uint32_t* words = reinterpret_cast<uint32_t*>(to);
#pragma GCC unroll 4
    for (int r = 0; r < M; r += 2) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        const Vec low = relu(acc[r][v] + bias[i + r]);
        const Vec high = r + 1 < M ? relu(acc[r + 1 < M ? r + 1 : r][v] + bias[i + (r + 1 < M ? r + 1 : r)]) : Vec{};
        store_bits(words + (i + r) / 2 * kTile + j + v * kLanes, pair_bf16(low, high));
      }
    }
  }
};

// The last layer: activations go straight into the scores.
struct Output {
  float* scores;  // [kTile]
  const float* bias;
  const float* weight;

  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      Vec sum = load(scores + j + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        sum += weight[i + r] * relu(acc[r][v] + bias[i + r]);
      }
      store(scores + j + v * kLanes, sum);
    }
  }
};

inline void first_activations(const float* user, const float* items, int64_t num_hidden, int64_t n, float* to) {
  for (int64_t h = 0; h < num_hidden; ++h) {
    for (int64_t j = 0; j < n; j += kLanes) {
      store(to + h * kTile + j, relu(load(items + h * kTile + j) + user[h]));
    }
  }
}

inline void first_activations(const float* user, const float* items, int64_t num_hidden, int64_t n, uint32_t* to) {
  for (int64_t h = 0; h < num_hidden; h += 2) {
    const bool has_high = h + 1 < num_hidden;
    for (int64_t j = 0; j < n; j += kLanes) {
      const Vec low = relu(load(items + h * kTile + j) + user[h]);
      const Vec high = has_high ? relu(load(items + (h + 1) * kTile + j) + user[h + 1]) : Vec{};
      store_bits(to + h / 2 * kTile + j, pair_bf16(low, high));
    }
  }
}

DEEPREC_INLINE const float* operand(const ScoreLayer& layer, float) { return layer.weight; }
DEEPREC_INLINE const uint32_t* operand(const ScoreLayer& layer, uint32_t) { return layer.packed; }

// The hidden layers for one user and one tile, added to scores [kTile].
template <class T>
inline void add_network(const ScoreJob& job, const ScoreScratch& scratch, int64_t user, int64_t n, float* scores) {
  const float* user_hidden = job.user_hidden + user * job.num_hidden;
  if (job.num_layers == 0) {
    for (int64_t h = 0; h < job.num_hidden; ++h) {
      for (int64_t j = 0; j < n; j += kLanes) {
        const Vec x = relu(load(scratch.item_hidden + h * kTile + j) + user_hidden[h]);
        store(scores + j, load(scores + j) + job.hidden_weight[h] * x);
      }
    }
    return;
  }
  float* from = scratch.activations[0];
  float* to = scratch.activations[1];
  first_activations(user_hidden, scratch.item_hidden, job.num_hidden, n, reinterpret_cast<T*>(from));
  for (int64_t l = 0; l < job.num_layers; ++l) {
    const ScoreLayer& layer = job.layers[l];
    const int64_t num_steps = steps<T>(layer.in);
    const T* weight = operand(layer, T());
    const T* x = reinterpret_cast<const T*>(from);
    if (l + 1 < job.num_layers) {
      gemm<T>(weight, num_steps, 1, x, kTile, layer.out, n, num_steps, Activate{to, layer.bias, kPerWord<T> == 2});
    } else {
      gemm<T>(weight, num_steps, 1, x, kTile, layer.out, n, num_steps, Output{scores, layer.bias, job.hidden_weight});
    }
    float* other = from;
    from = to;
    to = other;
  }
}

}  // namespace deeprec::DEEPREC_ISA
