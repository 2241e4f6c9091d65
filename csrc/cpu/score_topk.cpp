// score_topk and score_items on the CPU. A block of users meets the catalogue 64 items at a time: the tile is packed
// with items across the vector lanes, scored by the register-blocked product of tile_gemm.h, and only scores above a
// user's K-th best reach that user's heap. Users x items never exist in memory.
#include "score_topk.h"

#include "tile_gemm.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kTile = kTileItems;
constexpr float kMinusInfinity = -__builtin_inff();

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

void first_activations(const float* user, const float* items, int64_t num_hidden, int64_t n, float* to) {
  for (int64_t h = 0; h < num_hidden; ++h) {
    for (int64_t j = 0; j < n; j += kLanes) {
      store(to + h * kTile + j, relu(load(items + h * kTile + j) + user[h]));
    }
  }
}

void first_activations(const float* user, const float* items, int64_t num_hidden, int64_t n, uint32_t* to) {
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
void add_network(const ScoreJob& job, const ScoreScratch& scratch, int64_t user, int64_t n, float* scores) {
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

// scores[r, j] of users user.. and the packed tile; columns from the tile's width to the next multiple of 16 are noise.
void score_rows(const ScoreJob& job, const ScoreScratch& scratch, int64_t user, int64_t rows, int64_t n) {
  gemm<float>(job.user_factors + user * job.num_factors, job.num_factors, 1, scratch.item_factors, kTile, rows, n,
              job.num_factors, Store<false>{scratch.scores, kTile, scratch.item_bias});
  if (job.num_hidden == 0) {
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (job.use_bfloat16) {
      add_network<uint32_t>(job, scratch, user + r, n, scratch.scores + r * kTile);
    } else {
      add_network<float>(job, scratch, user + r, n, scratch.scores + r * kTile);
    }
  }
}

void pack_tile(const ScoreJob& job, const ScoreScratch& scratch, int64_t item, int64_t width) {
  pack_transposed(job.item_factors + item * job.num_factors, job.num_factors, width, job.num_factors,
                  scratch.item_factors, kTile);
  pack_transposed(job.item_hidden + item * job.num_hidden, job.num_hidden, width, job.num_hidden, scratch.item_hidden,
                  kTile);
  for (int64_t j = 0; j < kTile; ++j) {
    scratch.item_bias[j] = job.bias + (job.item_bias && j < width ? job.item_bias[item + j] : 0.0f);
  }
}

// The order of recommendations: higher score first, then lower id.
DEEPREC_INLINE bool is_worse(float value, int64_t id, float other_value, int64_t other_id) {
  return value < other_value || (value == other_value && id > other_id);
}

// A heap of the best `count` seen so far, the worst of them at its root.
void sift_down(float* values, int64_t* ids, int64_t count, int64_t at, float value, int64_t id) {
  for (;;) {
    int64_t child = 2 * at + 1;
    if (child >= count) {
      break;
    }
    if (child + 1 < count && is_worse(values[child + 1], ids[child + 1], values[child], ids[child])) {
      ++child;
    }
    if (!is_worse(values[child], ids[child], value, id)) {
      break;
    }
    values[at] = values[child];
    ids[at] = ids[child];
    at = child;
  }
  values[at] = value;
  ids[at] = id;
}

// Candidates arrive with rising ids among equal values, so only a strictly better value enters a full heap.
void offer(float* values, int64_t* ids, int64_t k, int64_t& count, float value, int64_t id) {
  if (count == k) {
    if (value > values[0]) {
      sift_down(values, ids, k, 0, value, id);
    }
    return;
  }
  int64_t at = count++;
  while (at > 0) {
    const int64_t parent = (at - 1) / 2;
    if (!is_worse(value, id, values[parent], ids[parent])) {
      break;
    }
    values[at] = values[parent];
    ids[at] = ids[parent];
    at = parent;
  }
  values[at] = value;
  ids[at] = id;
}

// Heap to descending order; places without a candidate become (-inf, -1).
void finish(float* values, int64_t* ids, int64_t k, int64_t count) {
  for (int64_t left = count - 1; left > 0; --left) {
    const float value = values[left];
    const int64_t id = ids[left];
    values[left] = values[0];
    ids[left] = ids[0];
    sift_down(values, ids, left, 0, value, id);
  }
  for (int64_t at = count; at < k; ++at) {
    values[at] = kMinusInfinity;
    ids[at] = -1;
  }
}

// Bit j: scores[j] > threshold. NaN and -inf are never above anything.
DEEPREC_INLINE uint32_t above(const float* scores, float threshold) {
#if defined(DEEPREC_ISA_avx512)
  return _mm512_cmp_ps_mask((__m512)load(scores), _mm512_set1_ps(threshold), _CMP_GT_OQ);
#else
  uint32_t mask = 0;
  for (int j = 0; j < kLanes; ++j) {
    mask |= static_cast<uint32_t>(scores[j] > threshold) << j;
  }
  return mask;
#endif
}

void select_best(float* scores, int64_t width, int64_t item, float* values, int64_t* ids, int64_t k, int64_t& count) {
  for (int64_t j = width; j < padded(width); ++j) {
    scores[j] = kMinusInfinity;
  }
  for (int64_t j = 0; j < width; j += kLanes) {
    uint32_t mask = above(scores + j, count == k ? values[0] : kMinusInfinity);
    for (; mask; mask &= mask - 1) {
      const int64_t at = j + __builtin_ctz(mask);
      offer(values, ids, k, count, scores[at], item + at);
    }
  }
}

void mask_seen(const ScoreJob& job, int64_t user, int64_t& at, float* scores, int64_t item, int64_t width) {
  const int64_t last = job.seen_indptr[(job.seen_rows ? job.seen_rows[user] : user) + 1];
  for (; at < last && job.seen_indices[at] < item + width; ++at) {
    if (job.seen_indices[at] >= item) {
      scores[job.seen_indices[at] - item] = kMinusInfinity;
    }
  }
}

// First entry of the user's sorted list at or after `item`.
int64_t first_seen(const ScoreJob& job, int64_t user, int64_t item) {
  const int64_t row = job.seen_rows ? job.seen_rows[user] : user;
  int64_t low = job.seen_indptr[row], high = job.seen_indptr[row + 1];
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (job.seen_indices[middle] < item) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace

void score_block(const ScoreJob& job, const ScoreScratch& scratch, const ScoreSink& sink, int64_t user_begin,
                 int64_t user_end, int64_t item_begin, int64_t item_end) {
  for (int64_t user = user_begin; user < user_end; ++user) {
    scratch.counts[user - user_begin] = 0;
    scratch.seen_at[user - user_begin] = job.seen_indptr ? first_seen(job, user, item_begin) : 0;
  }
  for (int64_t item = item_begin; item < item_end; item += kTile) {
    const int64_t width = item_end - item < kTile ? item_end - item : kTile;
    pack_tile(job, scratch, item, width);
    for (int64_t user = user_begin; user < user_end; user += kScoreUsers) {
      const int64_t rows = user_end - user < kScoreUsers ? user_end - user : kScoreUsers;
      score_rows(job, scratch, user, rows, padded(width));
      for (int64_t r = 0; r < rows; ++r) {
        float* scores = scratch.scores + r * kTile;
        if (sink.dense) {
          __builtin_memcpy(sink.dense + (user + r) * job.num_items + item, scores,
                           static_cast<uint64_t>(width) * sizeof(float));
          continue;
        }
        const int64_t u = user + r, slot = u - user_begin;
        if (job.seen_indptr) {
          mask_seen(job, u, scratch.seen_at[slot], scores, item, width);
        }
        select_best(scores, width, item, sink.values + u * sink.stride, sink.ids + u * sink.stride, sink.k,
                    scratch.counts[slot]);
      }
    }
  }
  if (!sink.dense) {
    for (int64_t user = user_begin; user < user_end; ++user) {
      finish(sink.values + user * sink.stride, sink.ids + user * sink.stride, sink.k,
             scratch.counts[user - user_begin]);
    }
  }
}

void merge_best(const float* values, const int64_t* ids, int64_t count, float* best_values, int64_t* best_ids,
                int64_t k) {
  int64_t kept = 0;
  for (int64_t c = 0; c < count; ++c) {
    if (ids[c] >= 0) {
      offer(best_values, best_ids, k, kept, values[c], ids[c]);
    }
  }
  finish(best_values, best_ids, k, kept);
}

void pack_score_weights(const float* weight, int64_t rows, int64_t columns, uint32_t* packed) {
  pack_rows(weight, columns, rows, columns, packed, steps<uint32_t>(columns));
}

}  // namespace deeprec::DEEPREC_ISA
