// Pieces shared by the passes of softmax_loss: packed tiles of candidates, their logits, masks and exponentials.
#pragma once

#include "lanes_math.h"
#include "softmax_loss.h"
#include "tile_gemm.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kTile = kSoftmaxTile, kTileStride = kSoftmaxTileStride;

template <class A>
constexpr A kMinusInfinity = static_cast<A>(-__builtin_inf());

// Buffers of one thread.
template <class A>
struct TileScratch {
  A *rows, *steps, *shift, *inverse, *sum, *bias, *logits, *grads;

  TileScratch(void* memory, int64_t stride) {
    A* at = static_cast<A*>(memory);
    const auto take = [&at](int64_t count) {
      A* const begin = at;
      at += (count + 15) / 16 * 16;
      return begin;
    };
    rows = take(kTile * stride);         // [kTile, stride] candidates, unit vectors for cosines
    steps = take(stride * kTileStride);  // [D, kTileStride] the same with candidates across the lanes
    shift = take(kTile);
    inverse = take(kTile);
    sum = take(stride);
    bias = take(kTile);
    logits = take(kSoftmaxRows * kTileStride);
    grads = take(kTile * stride);
  }
};

struct AddTo {
  float* c;
  int64_t ldc;

  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        float* at = c + (i + r) * ldc + j + v * kLanes;
        store(at, load(at) + acc[r][v]);
      }
    }
  }
};

// c[i, j] += sum_s a[i * a_row + s * a_step] b[s * ldb + j]; n a multiple of kPad.
inline void add_product(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t ldb, int64_t m,
                        int64_t n, int64_t num_steps, float* c, int64_t ldc) {
  gemm<float>(a, a_row, a_step, b, ldb, m, n, num_steps, AddTo{c, ldc});
}

inline void add_product(const double* a, int64_t a_row, int64_t a_step, const double* b, int64_t ldb, int64_t m,
                        int64_t n, int64_t num_steps, double* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t s = 0; s < num_steps; ++s) {
      const double x = a[i * a_row + s * a_step];
      for (int64_t j = 0; j < n; ++j) {
        c[i * ldc + j] += x * b[s * ldb + j];
      }
    }
  }
}

// Logits [rows, kTileStride] of packed queries and a tile of n candidates (a multiple of kPad).
inline void products(const float* q, int64_t ldq, const TileScratch<float>& tile, int64_t rows, int64_t n,
                     int64_t dim) {
  gemm<float>(q, ldq, 1, tile.steps, kTileStride, rows, n, dim, Store<false>{tile.logits, kTileStride, tile.shift});
}

inline void products(const double* q, int64_t ldq, const TileScratch<double>& tile, int64_t rows, int64_t n,
                     int64_t dim) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      tile.logits[i * kTileStride + j] = tile.shift[j];
    }
  }
  add_product(q, ldq, 1, tile.steps, kTileStride, rows, n, dim, tile.logits, kTileStride);
}

// One over the length of a row, 0 for a row of zeros.
template <class E>
typename Accumulator<E>::type inverse_of(const E* row, int64_t dim) {
  using A = typename Accumulator<E>::type;
  A square = 0;
  for (int64_t d = 0; d < dim; ++d) {
    square += widen(row[d]) * widen(row[d]);
  }
  return square == 0 ? A(0) : 1 / static_cast<A>(__builtin_sqrt(square));
}

// One row, widened, and for cosines made a unit vector; returns one over its length, 0 for a row of zeros.
template <class E, class A>
A widen_row(const E* from, int64_t dim, bool is_cosine, A* to) {
  for (int64_t d = 0; d < dim; ++d) {
    to[d] = widen(from[d]);
  }
  for (int64_t d = dim; d < padded(dim); ++d) {
    to[d] = 0;
  }
  if (!is_cosine) {
    return 1;
  }
  const A inverse = inverse_of(from, dim);
  for (int64_t d = 0; d < dim; ++d) {
    to[d] *= inverse;
  }
  return inverse;
}

// The gradient of a vector from that of its unit vector u: (g - u (u . g)) / length.
template <class A>
void through_length(const A* unit, A inverse, int64_t dim, A* grad) {
  A along = 0;
  for (int64_t d = 0; d < dim; ++d) {
    along += unit[d] * grad[d];
  }
  for (int64_t d = 0; d < dim; ++d) {
    grad[d] = inverse * (grad[d] - unit[d] * along);
  }
}

inline void transpose(const float* rows, int64_t ldr, int64_t width, int64_t dim, float* steps) {
  pack_transposed(rows, ldr, width, dim, steps, kTileStride);
}

inline void transpose(const double* rows, int64_t ldr, int64_t width, int64_t dim, double* steps) {
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t j = 0; j < padded(width); ++j) {
      steps[d * kTileStride + j] = j < width ? rows[j * ldr + d] : 0;
    }
  }
}

DEEPREC_INLINE int64_t place_of(const SoftmaxJob& job, int64_t at) { return job.order ? job.order[at] : at; }
DEEPREC_INLINE int64_t id_of(const SoftmaxJob& job, int64_t at) { return job.ids ? job.ids[at] : at; }

// What is added to the similarities of a tile; `to` holds padded(width).
template <class A>
void copy_shift(const SoftmaxJob& job, A* to, int64_t at, int64_t width) {
  const A* shift = static_cast<const A*>(job.shift);
  for (int64_t j = 0; j < padded(width); ++j) {
    to[j] = shift && j < width ? shift[at + j] : A(0);
  }
}

// Tiles of wide numbers; softmax_pairs.h has those of pairs of bfloat16. The element is told by `zero`.
template <class E>
void pack_queries(const SoftmaxJob& job, int64_t begin, int64_t end, E zero) {
  using A = typename Accumulator<E>::type;
  const E* queries = static_cast<const E*>(job.queries);
  for (int64_t b = begin; b < end; ++b) {
    A* const to = static_cast<A*>(job.packed) + b * softmax_stride(job.dim);
    widen_row(queries + b * job.query_stride, job.dim, job.is_cosine, to);
    for (int64_t d = 0; d < job.dim; ++d) {
      to[d] *= static_cast<A>(job.gamma);
    }
  }
}

template <class E, class A>
void pack_tile(const SoftmaxJob& job, const TileScratch<A>& tile, int64_t at, int64_t width, E zero) {
  const int64_t stride = softmax_stride(job.dim);
  const E* items = static_cast<const E*>(job.items);
  for (int64_t j = 0; j < width; ++j) {
    const E* item = items + place_of(job, at + j) * job.item_stride;
    widen_row(item, job.dim, job.is_cosine, tile.rows + j * stride);
  }
  transpose(tile.rows, stride, width, job.dim, tile.steps);
  copy_shift(job, tile.shift, at, width);
}

// Logits of rows [row, row + rows) and a tile.
template <class A>
void score(const SoftmaxJob& job, const TileScratch<A>& tile, int64_t row, int64_t rows, int64_t width) {
  const int64_t stride = softmax_stride(job.dim);
  products(static_cast<const A*>(job.packed) + row * stride, stride, tile, rows, padded(width), job.dim);
}

// to += shares [rows, width], which lie in tile.logits, times the (unit) candidates.
template <class A>
void add_candidates(const SoftmaxJob& job, const TileScratch<A>& tile, int64_t rows, int64_t width, A* to) {
  const int64_t stride = softmax_stride(job.dim);
  add_product(tile.logits, kTileStride, 1, tile.rows, stride, rows, padded(job.dim), width, to, stride);
}

// tile.grads += slopes [rows, width]', which lie in tile.logits, times gamma times the (unit) queries.
template <class A>
void add_queries(const SoftmaxJob& job, const TileScratch<A>& tile, int64_t row, int64_t rows, int64_t width) {
  const int64_t stride = softmax_stride(job.dim);
  add_product(tile.logits, 1, kTileStride, static_cast<const A*>(job.packed) + row * stride, stride, width,
              padded(job.dim), rows, tile.grads, stride);
}

// First of ids[begin, end), ascending, that is `id` or more.
template <class Id>
int64_t first_from(const Id* ids, int64_t begin, int64_t end, int64_t id) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (ids[middle] < id) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// Begin and end of a row's list of known positives.
struct SeenList {
  int64_t begin, end;
  SeenList(const SoftmaxJob& job, int64_t b) : begin(0), end(0) {
    if (job.seen_indptr) {
      const int64_t row = job.seen_rows ? job.seen_rows[b] : b;
      begin = job.seen_indptr[row];
      end = job.seen_indptr[row + 1];
    }
  }
};

template <class A>
int64_t hide(A* logits, int64_t begin, int64_t end, int64_t target) {
  int64_t count = 0;
  for (int64_t j = begin; j < end; ++j) {
    if (j != target) {
      logits[j] = kMinusInfinity<A>;
      ++count;
    }
  }
  return count;
}

// -inf for the masked candidates of row b in the tile [at, at + width); returns how many. `seen` is where the row's
// list may begin, and moves on.
template <class A>
int64_t mask(const SoftmaxJob& job, int64_t b, int64_t at, int64_t width, int64_t& seen, A* logits) {
  const int64_t target = job.targets[b] - at;
  int64_t count = 0;
  if (job.same_begin) {
    const int64_t begin = job.same_begin[b] - at, end = job.same_end[b] - at;
    count += hide(logits, begin < 0 ? 0 : begin, end < width ? end : width, target);
  }
  if (!job.seen_indptr) {
    return count;
  }
  const int64_t last = SeenList(job, b).end, positive = id_of(job, job.targets[b]);
  const int64_t low = id_of(job, at), high = id_of(job, at + width - 1);
  while (seen < last && job.seen_indices[seen] < low) {
    ++seen;
  }
  for (int64_t k = seen; k < last && job.seen_indices[k] <= high; ++k) {
    const int64_t id = job.seen_indices[k];
    if (id == positive) {
      continue;
    }
    if (!job.ids) {
      count += hide(logits, id - at, id - at + 1, target);
      continue;
    }
    const int64_t begin = first_from(job.ids, at, at + width, id);
    int64_t end = begin;
    while (end < at + width && job.ids[end] == id) {
      ++end;
    }
    count += hide(logits, begin - at, end - at, target);
  }
  return count;
}

// exp(x), and 0 below -87; x at most a little above 0. NaN stays.
DEEPREC_INLINE Vec exp_or_zero(Vec x) {
  const Vec bounded = x < -87.0f ? Vec{} - 87.0f : x;
  return x < -87.0f ? Vec{} : exp_bounded<kLanes>(bounded);
}

inline float largest(const float* x, int64_t n) {
  Vec top = Vec{} + kMinusInfinity<float>;
  for (int64_t j = 0; j < n; j += kLanes) {
    const Vec v = load(x + j);
    top = v > top ? v : top;  // NaN is never the largest
  }
  float out = top[0];
  for (int l = 1; l < kLanes; ++l) {
    out = top[l] > out ? top[l] : out;
  }
  return out;
}

inline double largest(const double* x, int64_t n) {
  double out = kMinusInfinity<double>;
  for (int64_t j = 0; j < n; ++j) {
    out = x[j] > out ? x[j] : out;
  }
  return out;
}

// x = exp(x - top), added up.
inline double exponentials(float* x, int64_t n, float top) {
  Vec total = Vec{};
  for (int64_t j = 0; j < n; j += kLanes) {
    const Vec e = exp_or_zero(load(x + j) - top);
    store(x + j, e);
    total += e;
  }
  return sum_lanes<float, kLanes>(total);
}

inline double exponentials(double* x, int64_t n, double top) {
  double total = 0;
  for (int64_t j = 0; j < n; ++j) {
    x[j] = __builtin_exp(x[j] - top);
    total += x[j];
  }
  return total;
}

// x = factor * (exp((x - top) - log_sum) - even), and 0 where x is -inf.
inline void slopes(float* x, int64_t n, float top, float log_sum, float factor, float even) {
  for (int64_t j = 0; j < n; j += kLanes) {
    const Vec v = load(x + j);
    const Vec g = factor * (exp_or_zero((v - top) - log_sum) - even);
    store(x + j, v == kMinusInfinity<float> ? Vec{} : g);
  }
}

inline void slopes(double* x, int64_t n, double top, double log_sum, double factor, double even) {
  for (int64_t j = 0; j < n; ++j) {
    x[j] = x[j] == kMinusInfinity<double> ? 0 : factor * (__builtin_exp((x[j] - top) - log_sum) - even);
  }
}

// The sum of what is not masked.
template <class A>
double sum_finite(const A* x, int64_t n) {
  double total = 0;
  for (int64_t j = 0; j < n; ++j) {
    total += x[j] == kMinusInfinity<A> ? 0 : static_cast<double>(x[j]);
  }
  return total;
}

}  // namespace
}  // namespace deeprec::DEEPREC_ISA
