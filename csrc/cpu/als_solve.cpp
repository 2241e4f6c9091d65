// deeprec::als_solve: half a sweep of alternating least squares on implicit feedback. For every row of a sparse matrix
// it solves (G + ridge I + sum w y y') x = sum (1 + w) y over the row's entries, by Cholesky or by a few steps of
// conjugate gradient.
//
// Conjugate gradient: rows go in groups of kGroup, whose products with G are one register-blocked product, and each
// step reads a row's factors once, kBlock entries at a time: dot products, then their sum, while the factors are in the
// first-level cache. Cholesky: G and the entries, kChunk at a time, are added up in register tiles of the upper
// triangle, and the same tiles take the blocked factorisation. Rows of factors are padded with zeros to whole cache
// lines, so nothing here has a remainder. A row is one thread's and its sums are in the order of its entries: bitwise
// the same for any thread count.
#include "isa.h"
#include "lanes.h"
#include "row_copy.h"

namespace deeprec {

constexpr int64_t kGroup = 8;   // rows whose products with G are taken together
constexpr int64_t kChunk = 64;  // entries between two additions to the tiles of the normal equations
constexpr int64_t kPanel = 16;  // rows of the Cholesky factor that are finished together; the padding is a multiple

struct AlsArgs {
  bool is_wide;                  // double, else float
  const void *indptr, *indices;  // [B + 1], [nnz]
  bool wide_ids;
  const void* weights;  // [nnz]
  const void* factors;  // [N, width]
  const void* gram;     // [width, width]
  const void* ridge;    // [B]
  const void* start;    // [B, width] or null: zeros
  int64_t dim, width;   // columns, and with the padding
  int64_t cg_steps;     // 0: Cholesky
  bool asks;            // for factors before they are needed: they do not fit the second-level cache
  void* out;            // [B, width]
  void* loss;           // [B]
  void* scratch;        // als_scratch values, on a cache line
  int64_t begin, end;   // rows
  int64_t failed;       // set: the first row whose matrix is not positive definite; -1: none
};

// Values of scratch that a thread needs.
constexpr int64_t als_scratch(int64_t width, int64_t cg_steps) {
  return cg_steps > 0 ? 3 * kGroup * width : (width + kChunk + 4) * width;
}

}  // namespace deeprec

DEEPREC_DECLARE(void, als_solve_rows, (AlsArgs & a))

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int kBlock = 8;  // entries whose dot products are taken together
constexpr int kTileRows = 8;
#if defined(DEEPREC_ISA_avx512)
constexpr int kTileLanes = 2;  // registers of a tile's row
#else
constexpr int kTileLanes = 1;
#endif

template <class T, int N>
static inline void add_up_four(const Lanes<T, N>* from, T* to) {
#if defined(DEEPREC_ISA_avx512)
  if constexpr (sizeof(T) == 4) {
    const __m512 a = (__m512)from[0], b = (__m512)from[1], c = (__m512)from[2], d = (__m512)from[3];
    constexpr __mmask16 all_lanes = 0xffff;  // GCC 12 warns about the undefined source of the plain forms
    const __m512 ab = _mm512_maskz_unpacklo_ps(all_lanes, a, b) + _mm512_maskz_unpackhi_ps(all_lanes, a, b);
    const __m512 cd = _mm512_maskz_unpacklo_ps(all_lanes, c, d) + _mm512_maskz_unpackhi_ps(all_lanes, c, d);
    const __m512 all =
        _mm512_maskz_shuffle_ps(all_lanes, ab, cd, 0x44) + _mm512_maskz_shuffle_ps(all_lanes, ab, cd, 0xee);
    const __m256 half = _mm512_maskz_extractf32x8_ps(0xff, all, 0) + _mm512_maskz_extractf32x8_ps(0xff, all, 1);
    _mm_storeu_ps(to, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
    return;
  }
#elif defined(DEEPREC_ISA_avx2)
  if constexpr (sizeof(T) == 4) {
    const __m256 a = (__m256)from[0], b = (__m256)from[1], c = (__m256)from[2], d = (__m256)from[3];
    const __m256 ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
    const __m256 cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
    const __m256 all = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
    _mm_storeu_ps(to, _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1));
    return;
  }
#endif
  for (int i = 0; i < 4; ++i) {
    to[i] = sum_lanes<T, N>(from[i]);
  }
}

template <class T>
static inline T dot(const T* a, const T* b, int64_t width) {
  constexpr int L = kFullLanes<T>;
  Lanes<T, L> sum = {};
  for (int64_t d = 0; d < width; d += L) {
    sum += load_lanes<L>(a + d) * load_lanes<L>(b + d);
  }
  return sum_lanes<T, L>(sum);
}

// to += factor from
template <class T>
static inline void add_scaled(T factor, const T* from, T* to, int64_t begin, int64_t width) {
  constexpr int L = kFullLanes<T>;
  for (int64_t d = begin; d < width; d += L) {
    store_lanes<L>(to + d, load_lanes<L>(to + d) + factor * load_lanes<L>(from + d));
  }
}

// The tile [i, i + kTileRows) x [j, j + V registers) of c += sum over e of rows[e][i] b[e][j].
template <class T, int V>
static inline void add_to_tile(const T* const* rows, const T* b, int64_t count, int64_t i, int64_t j, int64_t width,
                               T* c) {
  constexpr int L = kFullLanes<T>;
  Lanes<T, L> sum[kTileRows][V];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      sum[r][v] = load_lanes<L>(c + (i + r) * width + j + v * L);
    }
  }
  for (int64_t e = 0; e < count; ++e) {
    const T* left = rows[e] + i;
    const T* right = b + e * width + j;
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        sum[r][v] += left[r] * load_lanes<L>(right + v * L);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      store_lanes<L>(c + (i + r) * width + j + v * L, sum[r][v]);
    }
  }
}

// The upper triangle of c from row and column `from` on += sum over e of rows[e]' b[e]; `from` a multiple of kPanel.
// What a tile holds below the diagonal means nothing.
template <class T>
static inline void add_to_triangle(const T* const* rows, const T* b, int64_t count, int64_t from, int64_t width, T* c) {
  constexpr int64_t L = kFullLanes<T>, full = kTileLanes * L;
  for (int64_t j = from; j < width;) {
    const bool is_full = j + full <= width;
    const int64_t next = j + (is_full ? full : L);
    for (int64_t i = from; i < next; i += kTileRows) {
      if (is_full) {
        add_to_tile<T, kTileLanes>(rows, b, count, i, j, width, c);
      } else {
        add_to_tile<T, 1>(rows, b, count, i, j, width, c);
      }
    }
    j = next;
  }
}

template <class T, class Id>
struct Rows {
  static constexpr int L = kFullLanes<T>;
  AlsArgs& a;
  const Id *indptr, *indices;
  const T *weights, *factors, *gram, *ridge, *start;
  T *out, *loss, *scratch;
  int64_t width, last;

  explicit Rows(AlsArgs& args)
      : a(args),
        indptr(static_cast<const Id*>(args.indptr)),
        indices(static_cast<const Id*>(args.indices)),
        weights(static_cast<const T*>(args.weights)),
        factors(static_cast<const T*>(args.factors)),
        gram(static_cast<const T*>(args.gram)),
        ridge(static_cast<const T*>(args.ridge)),
        start(static_cast<const T*>(args.start)),
        out(static_cast<T*>(args.out)),
        loss(static_cast<T*>(args.loss)),
        scratch(static_cast<T*>(args.scratch)),
        width(args.width),
        last(indptr[args.end]) {}

  const T* factor(int64_t p) const { return factors + static_cast<int64_t>(indices[p]) * width; }

  void ask(int64_t p) const {
    if (a.asks && p < last) {
      prefetch_row<2>(reinterpret_cast<const char*>(factor(p)), width * static_cast<int64_t>(sizeof(T)));
    }
  }

  // -- conjugate gradient -------------------------------------------------------------------------------------------

  // sum += w (y . x) y over E entries, or with kFirst ((1 + w) - w (y . x)) y, the residual; returns their loss then.
  template <int E, bool kFirst>
  T add_entries(int64_t p, const T* x, T* sum) const {
    const T* y[E];
    Lanes<T, L> products[E];
#pragma GCC unroll 8
    for (int e = 0; e < E; ++e) {
      y[e] = factor(p + e);
      products[e] = Lanes<T, L>{};
    }
    for (int64_t d = 0; d < width; d += L) {
      const Lanes<T, L> of_x = load_lanes<L>(x + d);
#pragma GCC unroll 8
      for (int e = 0; e < E; ++e) {
        products[e] += of_x * load_lanes<L>(y[e] + d);
      }
    }
    T scores[E < 4 ? 4 : E], shares[E], total = 0;
    if constexpr (E % 4 == 0) {
      for (int e = 0; e < E; e += 4) {
        add_up_four<T, L>(products + e, scores + e);
      }
    } else {
      Lanes<T, L> four[4] = {products[0], {}, {}, {}};  // summed as the others are
      add_up_four<T, L>(four, scores);
    }
    for (int e = 0; e < E; ++e) {
      const T w = weights[p + e], score = scores[e];
      shares[e] = kFirst ? 1 + w - w * score : w * score;
      if (kFirst) {
        total += (1 + w) * (1 - score) * (1 - score) - score * score;
      }
    }
    for (int64_t d = 0; d < width; d += L) {
      Lanes<T, L> column = load_lanes<L>(sum + d);
#pragma GCC unroll 8
      for (int e = 0; e < E; ++e) {
        column += shares[e] * load_lanes<L>(y[e] + d);
      }
      store_lanes<L>(sum + d, column);
    }
    return total;
  }

  template <bool kFirst>
  T add_row(int64_t b, const T* x, T* sum) const {
    int64_t p = indptr[b];
    const int64_t stop = indptr[b + 1];
    T total = 0;
    for (; p + kBlock <= stop; p += kBlock) {
      for (int64_t e = 0; kFirst && e < kBlock; ++e) {
        ask(p + 2 * kBlock + e);
      }
      total += add_entries<kBlock, kFirst>(p, x, sum);
    }
    for (; p < stop; ++p) {
      if (kFirst) {
        ask(p + 2 * kBlock);
      }
      total += add_entries<1, kFirst>(p, x, sum);
    }
    return total;
  }

  // to[r] = from[r] G + ridge from[r] for the rows of a group.
  void multiply(const T* from, int64_t first, int64_t count, T* to) const {
    const T* columns[kGroup];
    for (int64_t r = 0; r < kGroup; ++r) {
      const T own = r < count ? ridge[first + r] : T(0);
      columns[r] = from + r * width;
      for (int64_t d = 0; d < width; d += L) {
        store_lanes<L>(to + r * width + d, own * load_lanes<L>(columns[r] + d));
      }
    }
    int64_t j = 0;
    for (; j + kTileLanes * L <= width; j += kTileLanes * L) {
      multiply_tile<kTileLanes>(columns, j, to);
    }
    for (; j < width; j += L) {
      multiply_tile<1>(columns, j, to);
    }
  }

  template <int V>
  void multiply_tile(const T* const* from, int64_t j, T* to) const {
    Lanes<T, L> sum[kGroup][V];
#pragma GCC unroll 8
    for (int r = 0; r < kGroup; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        sum[r][v] = load_lanes<L>(to + r * width + j + v * L);
      }
    }
    for (int64_t k = 0; k < a.dim; ++k) {
      const T* right = gram + k * width + j;
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          sum[r][v] += from[r][k] * load_lanes<L>(right + v * L);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kGroup; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        store_lanes<L>(to + r * width + j + v * L, sum[r][v]);
      }
    }
  }

  void solve_group(int64_t first, int64_t count) const {
    T *direction = scratch, *residual = direction + kGroup * width, *product = residual + kGroup * width;
    T squares[kGroup] = {};
    for (int64_t r = 0; r < kGroup; ++r) {
      const bool has_start = r < count && start && indptr[first + r] < indptr[first + r + 1];
      for (int64_t d = 0; d < width; d += L) {
        const Lanes<T, L> zero = {};
        const Lanes<T, L> x = has_start ? load_lanes<L>(start + (first + r) * width + d) : zero;
        store_lanes<L>(direction + r * width + d, x);
        store_lanes<L>(residual + r * width + d, zero);
        if (r < count) {
          store_lanes<L>(out + (first + r) * width + d, x);
        }
      }
    }
    multiply(direction, first, count, product);
    for (int64_t r = 0; r < count; ++r) {
      const T* x = out + (first + r) * width;
      T *p = direction + r * width, *rest = residual + r * width, *of_x = product + r * width;
      loss[first + r] = add_row<true>(first + r, x, rest) + dot(x, of_x, width);
      add_scaled(T(-1), of_x, rest, 0, width);
      __builtin_memcpy(p, rest, static_cast<uint64_t>(width) * sizeof(T));
      squares[r] = dot(rest, rest, width);
    }
    for (int64_t step = 0; step < a.cg_steps; ++step) {
      bool is_done = true;
      for (int64_t r = 0; r < count; ++r) {
        is_done &= !(squares[r] > 0);
      }
      if (is_done) {
        return;
      }
      multiply(direction, first, count, product);
      for (int64_t r = 0; r < count; ++r) {
        squares[r] = squares[r] > 0 ? take_step(first + r, squares[r], r) : T(0);
      }
    }
  }

  // Returns the squared norm of the residual after the step; 0 ends the row.
  T take_step(int64_t b, T squares, int64_t r) const {
    T *p = scratch + r * width, *rest = p + kGroup * width, *of_p = rest + kGroup * width, *x = out + b * width;
    add_row<false>(b, p, of_p);
    const T curvature = dot(p, of_p, width);
    if (!(curvature > 0)) {
      return 0;
    }
    const T length = squares / curvature;
    loss[b] -= length * squares;
    add_scaled(length, p, x, 0, width);
    add_scaled(-length, of_p, rest, 0, width);
    const T left = dot(rest, rest, width), share = left / squares;
    for (int64_t d = 0; d < width; d += L) {
      store_lanes<L>(p + d, load_lanes<L>(rest + d) + share * load_lanes<L>(p + d));
    }
    return left;
  }

  // -- Cholesky -----------------------------------------------------------------------------------------------------

  // x = A^-1 rhs by A = U'U in place; false where A is not positive definite.
  bool factorise(T* matrix, T* copies, T* inverse) const {
    const T* rows[kPanel];
    for (int64_t k = 0; k < a.dim; k += kPanel) {
      const int64_t stop = k + kPanel < a.dim ? k + kPanel : a.dim;
      for (int64_t i = k; i < stop; ++i) {
        T* row = matrix + i * width;
        const T pivot = row[i];
        if (!(pivot > 0) || pivot - pivot != 0) {
          return false;
        }
        inverse[i] = 1 / static_cast<T>(__builtin_sqrt(pivot));
        const int64_t begin = i / L * L;
        for (int64_t d = begin; d < width; d += L) {
          store_lanes<L>(row + d, load_lanes<L>(row + d) * inverse[i]);
        }
        for (int64_t below = i + 1; below < stop; ++below) {
          add_scaled(-row[below], row, matrix + below * width, below / L * L, width);
        }
      }
      if (k + kPanel < a.dim) {
        for (int64_t e = 0; e < kPanel; ++e) {
          const T* row = matrix + (k + e) * width;
          rows[e] = row;
          for (int64_t d = k + kPanel; d < width; d += L) {
            store_lanes<L>(copies + e * width + d, -load_lanes<L>(row + d));
          }
        }
        add_to_triangle(rows, copies, kPanel, k + kPanel, width, matrix);
      }
    }
    return true;
  }

  void substitute(const T* matrix, const T* inverse, T* rest, T* half, T* x) const {
    for (int64_t k = 0; k < a.dim; ++k) {
      half[k] = rest[k] * inverse[k];
      add_scaled(-half[k], matrix + k * width, rest, k / L * L, width);
    }
    for (int64_t d = a.dim; d < width; ++d) {
      x[d] = 0;
    }
    for (int64_t k = a.dim; k-- > 0;) {
      const T* row = matrix + k * width;
      const int64_t aligned = (k / L + 1) * L;
      T value = half[k];
      for (int64_t d = k + 1; d < aligned; ++d) {
        value -= row[d] * x[d];
      }
      x[k] = (value - dot(row + aligned, x + aligned, width - aligned)) * inverse[k];
    }
  }

  bool solve_exactly(int64_t b) const {
    T *matrix = scratch, *scaled = matrix + width * width, *rhs = scaled + kChunk * width, *rest = rhs + width;
    T *half = rest + width, *inverse = half + width, *x = out + b * width;
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t d = i / L * L; d < width; d += L) {
        store_lanes<L>(matrix + i * width + d, load_lanes<L>(gram + i * width + d));
      }
      matrix[i * width + i] += ridge[b];
      rhs[i] = 0;
    }
    const T* rows[kChunk];
    T total = 0;
    const int64_t stop = indptr[b + 1];
    for (int64_t p = indptr[b]; p < stop; p += kChunk) {
      const int64_t count = stop - p < kChunk ? stop - p : kChunk;
      for (int64_t e = 0; e < count; ++e) {
        const T w = weights[p + e];
        rows[e] = factor(p + e);
        total += 1 + w;
        ask(p + kChunk + e);
        for (int64_t d = 0; d < width; d += L) {
          const Lanes<T, L> y = load_lanes<L>(rows[e] + d);
          store_lanes<L>(scaled + e * width + d, w * y);
          store_lanes<L>(rhs + d, load_lanes<L>(rhs + d) + (1 + w) * y);
        }
      }
      add_to_triangle(rows, scaled, count, 0, width, matrix);
    }
    if (!factorise(matrix, scaled, inverse)) {
      return false;
    }
    __builtin_memcpy(rest, rhs, static_cast<uint64_t>(width) * sizeof(T));
    substitute(matrix, inverse, rest, half, x);
    loss[b] = total - dot(rhs, x, width);
    return true;
  }

  void run() const {
    if (a.cg_steps > 0) {
      for (int64_t b = a.begin; b < a.end; b += kGroup) {
        solve_group(b, a.end - b < kGroup ? a.end - b : kGroup);
      }
      return;
    }
    for (int64_t b = a.begin; b < a.end; ++b) {
      if (indptr[b] == indptr[b + 1]) {
        for (int64_t d = 0; d < width; ++d) {
          out[b * width + d] = 0;
        }
        loss[b] = 0;
      } else if (!solve_exactly(b)) {
        a.failed = b;
        return;
      }
    }
  }
};

}  // namespace

void als_solve_rows(AlsArgs& a) {
  if (a.is_wide) {
    a.wide_ids ? Rows<double, int64_t>(a).run() : Rows<double, int32_t>(a).run();
  } else {
    a.wide_ids ? Rows<float, int64_t>(a).run() : Rows<float, int32_t>(a).run();
  }
}

}  // namespace deeprec::DEEPREC_ISA

#ifdef DEEPREC_ISA_portable
#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <tuple>

#include "csr.h"

namespace deeprec {
namespace {

constexpr int64_t kGrain = 1 << 16;        // multiplications a thread should have
constexpr int64_t kPieces = 16;            // of rows, for each thread: whoever is done takes the next
constexpr int64_t kMostSteps = 1000;       // of conjugate gradient
constexpr int64_t kSecondLevel = 1 << 19;  // bytes of factors that need not be asked for

// The rows of a matrix with zeros up to `width` columns and, where asked for, `rows` rows; itself where it is that.
Tensor padded_rows(const Tensor& given, int64_t rows, int64_t width) {
  if (given.size(1) == width && given.size(0) == rows && given.is_contiguous()) {
    return given;
  }
  const Tensor from = as_contiguous(given), to = empty_cpu({rows, width}, given.scalar_type());
  const int64_t element = static_cast<int64_t>(from.element_size()), bytes = from.size(1) * element;
  if (rows * width == 0) {
    return to;  // it may have no memory to be written to
  }
  std::memset(to.data_ptr(), 0, static_cast<size_t>(rows * width * element));
  for (int64_t r = 0; r < from.size(0); ++r) {
    std::memcpy(static_cast<char*>(to.data_ptr()) + r * width * element,
                static_cast<const char*>(from.data_ptr()) + r * bytes, static_cast<size_t>(bytes));
  }
  return to;
}

Tensor without_padding(const Tensor& from, int64_t dim) {
  if (from.size(1) == dim) {
    return from;
  }
  const Tensor to = empty_cpu({from.size(0), dim}, from.scalar_type());
  const int64_t element = static_cast<int64_t>(from.element_size());
  for (int64_t r = 0; r < from.size(0); ++r) {
    std::memcpy(static_cast<char*>(to.data_ptr()) + r * dim * element,
                static_cast<const char*>(from.data_ptr()) + r * from.size(1) * element,
                static_cast<size_t>(dim * element));
  }
  return to;
}

// Pieces of rows on several threads; returns the first row that has no solution, -1 where every row has one.
int64_t solve(const AlsArgs& args, const Csr& csr, int64_t threads, int64_t element) {
  const int64_t pieces = threads == 1 ? 1 : threads * kPieces;
  const int64_t bytes = als_scratch(args.width, args.cg_steps) * element;
  const auto kernel = DEEPREC_DISPATCH(als_solve_rows);
  std::atomic<int64_t> next{0};
  std::mutex lock;
  int64_t failed = -1;
  for_each_chunk(threads, [&](int64_t) {
    AlsArgs mine = args;
    std::vector<char> memory(static_cast<size_t>(bytes + 64));
    mine.scratch = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    for (int64_t piece = next++; piece < pieces; piece = next++) {
      mine.begin = csr.first_row(piece, pieces);
      mine.end = csr.first_row(piece + 1, pieces);
      kernel(mine);
      if (mine.failed >= 0) {
        const std::lock_guard<std::mutex> guard(lock);
        failed = failed < 0 ? mine.failed : std::min(failed, mine.failed);
        mine.failed = -1;
      }
    }
  });
  return failed;
}

std::tuple<Tensor, Tensor> als_solve(const Tensor& indptr, const Tensor& indices, const Tensor& weights_in,
                                     const Tensor& factors_in, const Tensor& gram_in, const Tensor& ridge_in,
                                     const std::optional<Tensor>& start_in, int64_t cg_steps) {
  const char* op = "als_solve";
  DEEPREC_CHECK(factors_in.dim() == 2 && factors_in.is_cpu() && indptr.dim() == 1 && indptr.numel() >= 1,
                "ValueError: ", op, ": factors must be [N, D] on the CPU and indptr [B + 1]");
  const ScalarType dtype = factors_in.scalar_type();
  DEEPREC_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "TypeError: ", op,
                ": factors must be float32 or float64");
  DEEPREC_CHECK(cg_steps >= 0 && cg_steps <= kMostSteps, "ValueError: ", op, ": cg_steps must be in [0, ", kMostSteps,
                "], got ", cg_steps);
  const Csr csr(op, indptr, indices, indptr.numel() - 1, factors_in.size(0));
  const int64_t dim = factors_in.size(1), element = static_cast<int64_t>(factors_in.element_size());
  const auto is_right = [&](const Tensor& t, int64_t rows, int64_t columns) {
    const bool has_shape =
        columns < 0 ? t.dim() == 1 && t.size(0) == rows : t.dim() == 2 && t.size(0) == rows && t.size(1) == columns;
    return has_shape && t.is_cpu() && t.scalar_type() == dtype;
  };
  DEEPREC_CHECK(is_right(weights_in, csr.nnz, -1) && is_right(ridge_in, csr.batch, -1), "ValueError: ", op,
                ": weights must be [", csr.nnz, "] and ridge [", csr.batch, "], in the dtype of factors");
  DEEPREC_CHECK(is_right(gram_in, dim, dim), "ValueError: ", op, ": gram must be [", dim, ", ", dim,
                "] in the dtype of factors");
  DEEPREC_CHECK(!start_in || is_right(*start_in, csr.batch, dim), "ValueError: ", op, ": start must be [", csr.batch,
                ", ", dim, "] in the dtype of factors");

  const int64_t width = (dim + kPanel - 1) / kPanel * kPanel;
  const Tensor factors = padded_rows(factors_in, factors_in.size(0), width), gram = padded_rows(gram_in, width, width);
  const Tensor weights = as_contiguous(weights_in), ridge = as_contiguous(ridge_in);
  std::optional<Tensor> start;
  if (start_in) {
    start = padded_rows(*start_in, csr.batch, width);
  }
  const Tensor out = empty_cpu({csr.batch, width}, dtype), loss = empty_cpu({csr.batch}, dtype);
  AlsArgs args{};
  args.is_wide = dtype == ScalarType::Double;
  args.indptr = csr.indptr.data_ptr();
  args.indices = csr.indices.data_ptr();
  args.wide_ids = csr.wide_ids;
  args.weights = weights.data_ptr();
  args.factors = factors.data_ptr();
  args.gram = gram.data_ptr();
  args.ridge = ridge.data_ptr();
  args.start = start ? start->data_ptr() : nullptr;
  args.dim = dim;
  args.width = width;
  args.cg_steps = cg_steps;
  args.asks = factors.numel() * element > kSecondLevel;
  args.out = out.data_ptr();
  args.loss = loss.data_ptr();
  args.failed = -1;
  const int64_t an_entry = cg_steps > 0 ? 2 * (cg_steps + 1) * width : width * width / 2;
  const int64_t threads = threads_for((csr.nnz + csr.batch) * an_entry, kGrain);
  const int64_t failed = solve(args, csr, threads, element);
  DEEPREC_CHECK(failed < 0, "ValueError: ", op, ": gram + ridge + the weighted products of row ", failed,
                " must be positive definite; give ridge > 0, finite weights >= 0 and finite factors");
  return {without_padding(out, dim), loss};
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) { m.impl("als_solve", TORCH_BOX(&deeprec::als_solve)); }
#endif
