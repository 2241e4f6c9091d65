// Candidates in bfloat16 for softmax_loss: products of pairs, two bfloat16 of consecutive k in a word, summed in
// float32 (tile_gemm.h). Vectors stay as they were given, so that logits are those of exact products; lengths and gamma
// meet the sums. Shares and slopes are rounded to bfloat16 before they weigh vectors, as they are by torch's own
// softmax in bfloat16.
#pragma once

#include "softmax_tile.h"

namespace deeprec::DEEPREC_ISA {
namespace {

// Buffers of one thread; `rows` of the base are filled for smoothing alone.
struct PairTile : TileScratch<float> {
  uint32_t *raw, *words, *pairs, *factors;

  PairTile(void* memory, int64_t stride) : TileScratch<float>(memory, stride) {
    uint32_t* const at = reinterpret_cast<uint32_t*>(grads + kTile * stride);
    words = reinterpret_cast<uint32_t*>(steps);  // [D / 2, kTileStride] candidates across the lanes
    raw = at;                                    // [kTile, stride] candidates as they lie
    pairs = raw + kTile * stride;                // [kTile / 2, stride] two candidates in a word
    factors = pairs + kTile / 2 * stride;        // shares [kSoftmaxRows, kTile / 2], slopes [kSoftmaxRows / 2, kTile]
  }
};

template <class E>
struct TileOf {
  using type = TileScratch<typename Accumulator<E>::type>;
};
template <>
struct TileOf<Bf16> {
  using type = PairTile;
};

// Words of a row: its numbers two by two, and zeros.
inline void copy_words(const Bf16* from, int64_t dim, int64_t words, uint32_t* to) {
  for (int64_t s = dim / 2; s < words; ++s) {
    to[s] = 0;
  }
  if (dim > 0) {
    __builtin_memcpy(to, from, static_cast<uint64_t>(dim) * sizeof(Bf16));
  }
}

// to[d]: a[d] in the lower half, b[d] in the upper half; b may be null.
inline void pair_up(const Bf16* a, const Bf16* b, int64_t dim, uint32_t* to) {
  for (int64_t d = 0; d < dim; ++d) {
    to[d] = a[d].bits;
  }
  for (int64_t d = 0; b && d < dim; ++d) {
    to[d] |= static_cast<uint32_t>(b[d].bits) << 16;
  }
  for (int64_t d = dim; d < padded(dim); ++d) {
    to[d] = 0;
  }
}

// words [count, kTileStride] of raw [width, stride], 16 x 16 at a time.
inline void transpose_words(const uint32_t* raw, int64_t stride, int64_t width, int64_t count, uint32_t* words) {
  for (int64_t j = 0; j < padded(width); j += 16) {
    for (int64_t s = 0; s < count; ++s) {
      uint32_t* const to = words + s * kTileStride + j;
      for (int64_t r = 0; r < 16; ++r) {
        to[r] = raw[(j + r) * stride + s];
      }
    }
  }
}

inline void pack_queries(const SoftmaxJob& job, int64_t begin, int64_t end, Bf16) {
  const int64_t stride = softmax_stride(job.dim), words = steps<uint32_t>(job.dim);
  const Bf16* const queries = static_cast<const Bf16*>(job.queries);
  uint32_t* const packed = static_cast<uint32_t*>(job.packed);
  for (int64_t b = begin; b < end; ++b) {
    const Bf16* const query = queries + b * job.query_stride;
    copy_words(query, job.dim, words, packed + b * stride);
    const float inverse = job.is_cosine ? inverse_of(query, job.dim) : 1.0f;
    static_cast<float*>(job.scale)[b] = static_cast<float>(job.gamma) * inverse;
    if (b % 2 == 0) {
      const Bf16* const next = b + 1 < job.batch ? query + job.query_stride : nullptr;
      pair_up(query, next, job.dim, static_cast<uint32_t*>(job.pairs) + b / 2 * stride);
    }
  }
}

inline void pack_tile(const SoftmaxJob& job, const PairTile& tile, int64_t at, int64_t width, Bf16) {
  const int64_t stride = softmax_stride(job.dim), count = steps<uint32_t>(job.dim);
  const Bf16* const items = static_cast<const Bf16*>(job.items);
  const auto item = [&](int64_t j) { return items + place_of(job, at + j) * job.item_stride; };
  for (int64_t j = 0; j < width; ++j) {
    copy_words(item(j), job.dim, count, tile.raw + j * stride);
    tile.inverse[j] = job.is_cosine ? inverse_of(item(j), job.dim) : 1.0f;
    if (j % 2 == 0) {
      pair_up(item(j), j + 1 < width ? item(j + 1) : nullptr, job.dim, tile.pairs + j / 2 * stride);
    }
    if (job.smoothing > 0) {
      widen_row(item(j), job.dim, job.is_cosine, tile.rows + j * stride);
    }
  }
  for (int64_t j = width; j < padded(width); ++j) {
    copy_words(nullptr, 0, count, tile.raw + j * stride);
    tile.inverse[j] = 0;
  }
  transpose_words(tile.raw, stride, width, count, tile.words);
  copy_shift(job, tile.shift, at, width);
}

// c[i, j] = acc * row[i] * column[j] + shift[j].
struct StoreScaled {
  float* c;
  int64_t ldc;
  const float *row, *column, *shift;

  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const int64_t at = j + v * kLanes;
      const Vec factor = load(column + at), added = load(shift + at);
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        store(c + (i + r) * ldc + at, acc[r][v] * (row[i + r] * factor) + added);
      }
    }
  }
};

inline void score(const SoftmaxJob& job, const PairTile& tile, int64_t row, int64_t rows, int64_t width) {
  const int64_t stride = softmax_stride(job.dim);
  const StoreScaled to{tile.logits, kTileStride, static_cast<const float*>(job.scale) + row, tile.inverse, tile.shift};
  gemm<uint32_t>(static_cast<const uint32_t*>(job.packed) + row * stride, stride, 1, tile.words, kTileStride, rows,
                 padded(width), steps<uint32_t>(job.dim), to);
}

// to += shares [rows, width], which lie in tile.logits, times the (unit) candidates.
inline void add_candidates(const SoftmaxJob& job, const PairTile& tile, int64_t rows, int64_t width, float* to) {
  const int64_t stride = softmax_stride(job.dim);
  constexpr int64_t ld = kTile / 2;
  for (int64_t r = 0; r < rows; ++r) {
    const float* const shares = tile.logits + r * kTileStride;
    for (int64_t j = 0; j < padded(width); j += kLanes) {
      const Vec share = load(shares + j);
      store_row_bf16(tile.factors + r * ld + j / 2, job.is_cosine ? share * load(tile.inverse + j) : share);
    }
  }
  gemm<uint32_t>(tile.factors, ld, 1, tile.pairs, stride, rows, padded(job.dim), steps<uint32_t>(width),
                 AddTo{to, stride});
}

// tile.grads += slopes [rows, width]', which lie in tile.logits, times gamma times the (unit) queries.
inline void add_queries(const SoftmaxJob& job, const PairTile& tile, int64_t row, int64_t rows, int64_t width) {
  const int64_t stride = softmax_stride(job.dim);
  const float* const scale = static_cast<const float*>(job.scale) + row;
  for (int64_t r = 0; r < rows; r += 2) {
    const float* const slopes = tile.logits + r * kTileStride;
    const bool has_next = r + 1 < rows;
    for (int64_t j = 0; j < padded(width); j += kLanes) {
      const Vec next = has_next ? scale[r + 1] * load(slopes + kTileStride + j) : Vec{};
      store_bits(tile.factors + r / 2 * kTile + j, pair_bf16(scale[r] * load(slopes + j), next));
    }
  }
  gemm<uint32_t>(tile.factors, 1, kTile, static_cast<const uint32_t*>(job.pairs) + row / 2 * stride, stride, width,
                 padded(job.dim), steps<uint32_t>(rows), AddTo{tile.grads, stride});
}

}  // namespace
}  // namespace deeprec::DEEPREC_ISA
