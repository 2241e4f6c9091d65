// Register-blocked matrix products for tiles that live in cache: the inner loops of ncf_loss and score_topk.
//
//   gemm<T>(a, a_row, a_step, b, b_step, m, n, steps, epilogue):  acc[i, j] = sum_s a[i, s] * b[s, j]
//
// T = float is a product in float32; T = uint32_t holds two bfloat16 of consecutive k in one word (the lower k in
// the lower half) and the product is bfloat16 x bfloat16 accumulated in float32. A "step" is one word of k: one k
// in float32, two in bfloat16; steps<T>(k) counts them.
//   a: element (i, s) at a[i * a_row + s * a_step]; so a row-major tile and a transposed one are both served.
//   b: row s at b + s * b_step, n contiguous words; n a multiple of kPad (16), rows padded with zeros.
//   epilogue: called with registers while they are hot, epilogue(acc, i, j) for rows i.. and columns j..; Store
//   below is the plain one (bias, ReLU); ncf_loss brings its own. Rows come in blocks of kRows, then 4, 2, 1, and
//   a block starts at an even row.
// Weights are packed once a call: pack_transposed<T> for C = A W^T (W [n, k], torch.nn.Linear), pack<T> for
// C = A W (W [k, n]). pack_rows<T> makes the left operand (row-major, one word a step).
// stride(n) pads a row of n words to an odd number of 64-byte lines, so that a column panel spreads over all the
// sets of the first-level cache. Buffers should be 64-byte aligned; nothing breaks when they are not.
//
// Instruction sets: avx512bf16 uses vdpbf16ps for bfloat16; all others widen to float32. Everything is in
// namespace deeprec::DEEPREC_ISA and uses compiler vector types only (see isa.h for why no std:: templates).
#pragma once

#include <cstdint>

#if defined(DEEPREC_ISA_avx512)
#include <immintrin.h>
#endif

#define DEEPREC_INLINE inline __attribute__((always_inline))

namespace deeprec::DEEPREC_ISA {

#if defined(DEEPREC_ISA_avx512)
constexpr int kLanes = 16, kRows = 6, kVectors = 4;
#elif defined(DEEPREC_ISA_avx2)
constexpr int kLanes = 8, kRows = 6, kVectors = 2;
#else
constexpr int kLanes = 4, kRows = 4, kVectors = 2;
#endif
constexpr int64_t kPad = 16;

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef float VecMem __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint32_t BitsMem __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

DEEPREC_INLINE int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }
DEEPREC_INLINE int64_t stride(int64_t n) { return (padded(n) / 16 | 1) * 16; }

template <class T>
constexpr int64_t kPerWord = 1;  // how many k one word holds
template <>
inline constexpr int64_t kPerWord<uint32_t> = 2;
template <class T>
DEEPREC_INLINE int64_t steps(int64_t k) {
  return (k + kPerWord<T> - 1) / kPerWord<T>;
}

DEEPREC_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecMem*>(p); }
DEEPREC_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecMem*>(p) = v; }
DEEPREC_INLINE void store_bits(uint32_t* p, Bits v) { *reinterpret_cast<BitsMem*>(p) = v; }
DEEPREC_INLINE Vec relu(Vec v) { return v < 0.0f ? Vec{} : v; }  // keeps NaN

// Round to nearest even, NaN stays NaN. Plain loops vectorise.
DEEPREC_INLINE uint32_t bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
}

DEEPREC_INLINE Bits bf16(Vec x) {
  const Bits bits = (Bits)x, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
}

// One word a lane: low in the lower half, high in the upper half.
DEEPREC_INLINE Bits pair_bf16(Vec low, Vec high) {
#if defined(DEEPREC_ISA_avx512bf16)
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (Bits)_mm512_permutexvar_epi16(order, both);
#else
  return bf16(low) | bf16(high) << 16;
#endif
}

// kLanes floats of one row -> kLanes bfloat16, i.e. kLanes / 2 words of the row-major operand.
DEEPREC_INLINE void store_row_bf16(uint32_t* p, Vec v) {
#if defined(DEEPREC_ISA_avx512bf16)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#elif defined(DEEPREC_ISA_avx512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)bf16(v)));
#else
  for (int i = 0; i < kLanes / 2; ++i) {
    p[i] = bf16(v[2 * i]) | bf16(v[2 * i + 1]) << 16;
  }
#endif
}

DEEPREC_INLINE Vec multiply_add(float a, const float* b, Vec acc) { return acc + a * load(b); }
DEEPREC_INLINE Vec multiply_add(uint32_t a, const uint32_t* b, Vec acc) {
  const Bits words = *reinterpret_cast<const BitsMem*>(b);
#if defined(DEEPREC_ISA_avx512bf16)
  return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)words);
#else
  const uint32_t low_bits = a << 16, high_bits = a & 0xffff0000u;
  float low, high;
  __builtin_memcpy(&low, &low_bits, 4);
  __builtin_memcpy(&high, &high_bits, 4);
  return acc + low * (Vec)(words << 16) + high * (Vec)(words & 0xffff0000u);
#endif
}

template <class T, int M, int N, class Epilogue>
DEEPREC_INLINE void gemm_block(const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step, int64_t num_steps,
                               int64_t i, int64_t j, const Epilogue& epilogue) {
  Vec acc[M][N];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      acc[r][v] = Vec{};
    }
  }
  for (int64_t s = 0; s < num_steps; ++s, a += a_step, b += b_step) {
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const T word = a[r * a_row];
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        acc[r][v] = multiply_add(word, b + v * kLanes, acc[r][v]);
      }
    }
  }
  epilogue(acc, i, j);
}

template <class T, int N, class Epilogue>
inline void gemm_panel(const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step, int64_t m,
                       int64_t num_steps, int64_t j, const Epilogue& epilogue) {
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows) {
    gemm_block<T, kRows, N>(a + i * a_row, a_row, a_step, b, b_step, num_steps, i, j, epilogue);
  }
  if (kRows > 4 && i + 4 <= m) {
    gemm_block<T, 4, N>(a + i * a_row, a_row, a_step, b, b_step, num_steps, i, j, epilogue);
    i += 4;
  }
  if (i + 2 <= m) {
    gemm_block<T, 2, N>(a + i * a_row, a_row, a_step, b, b_step, num_steps, i, j, epilogue);
    i += 2;
  }
  if (i < m) {
    gemm_block<T, 1, N>(a + i * a_row, a_row, a_step, b, b_step, num_steps, i, j, epilogue);
  }
}

// Any m; n a multiple of kPad. Column panels outside, so that one panel of b stays in the first-level cache.
template <class T, class Epilogue>
inline void gemm(const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_step, int64_t m, int64_t n,
                 int64_t num_steps, const Epilogue& epilogue) {
  int64_t j = 0;
  for (; j + kVectors * kLanes <= n; j += kVectors * kLanes) {
    gemm_panel<T, kVectors>(a, a_row, a_step, b + j, b_step, m, num_steps, j, epilogue);
  }
#if defined(DEEPREC_ISA_avx512)
  if (j + 2 * kLanes <= n) {
    gemm_panel<T, 2>(a, a_row, a_step, b + j, b_step, m, num_steps, j, epilogue);
    j += 2 * kLanes;
  }
  if (j < n) {
    gemm_panel<T, 1>(a, a_row, a_step, b + j, b_step, m, num_steps, j, epilogue);
  }
#endif
}

// c[i, j] = acc + bias[j] (bias may be null), through ReLU or not; c holds padded(n) columns.
template <bool kRelu>
struct Store {
  float* c;
  int64_t ldc;
  const float* bias;

  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const Vec shift = bias ? load(bias + j + v * kLanes) : Vec{};
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        const Vec sum = acc[r][v] + shift;
        store(c + (i + r) * ldc + j + v * kLanes, kRelu ? relu(sum) : sum);
      }
    }
  }
};

// Left operand from float32 rows: out [m, steps<T>(k)] with row stride ldo words (ldo >= steps), padding of k zero.
inline void pack_rows(const float* x, int64_t ldx, int64_t m, int64_t k, float* out, int64_t ldo) {
  for (int64_t i = 0; i < m; ++i) {
    __builtin_memcpy(out + i * ldo, x + i * ldx, static_cast<uint64_t>(k) * sizeof(float));
  }
}
inline void pack_rows(const float* x, int64_t ldx, int64_t m, int64_t k, uint32_t* out, int64_t ldo) {
  for (int64_t i = 0; i < m; ++i) {
    const float* row = x + i * ldx;
    uint32_t* to = out + i * ldo;
    int64_t j = 0;
    for (; j + kLanes <= k; j += kLanes) {
      store_row_bf16(to + j / 2, load(row + j));
    }
    for (; j < k; j += 2) {
      to[j / 2] = bf16(row[j]) | (j + 1 < k ? bf16(row[j + 1]) << 16 : 0u);
    }
  }
}

// Right operand of C = A W from W [k, n]: out [steps<T>(k), ldo], columns n..padded(n) zero.
inline void pack(const float* w, int64_t ldw, int64_t k, int64_t n, float* out, int64_t ldo) {
  for (int64_t s = 0; s < k; ++s) {
    __builtin_memcpy(out + s * ldo, w + s * ldw, static_cast<uint64_t>(n) * sizeof(float));
    for (int64_t j = n; j < padded(n); ++j) {
      out[s * ldo + j] = 0.0f;
    }
  }
}
inline void pack(const float* w, int64_t ldw, int64_t k, int64_t n, uint32_t* out, int64_t ldo) {
  for (int64_t s = 0; s < steps<uint32_t>(k); ++s) {
    const float* low = w + 2 * s * ldw;
    const bool has_high = 2 * s + 1 < k;
    const float* high = has_high ? low + ldw : low;
    uint32_t* to = out + s * ldo;
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes) {
      store_bits(to + j, pair_bf16(load(low + j), has_high ? load(high + j) : Vec{}));
    }
    for (; j < n; ++j) {
      to[j] = bf16(low[j]) | (has_high ? bf16(high[j]) << 16 : 0u);
    }
    for (; j < padded(n); ++j) {
      to[j] = 0;
    }
  }
}

#if defined(DEEPREC_ISA_avx512)
// maskz: GCC 12 warns about the undefined source of the plain intrinsics.
DEEPREC_INLINE __m512 low_of(__m512 a, __m512 b) { return _mm512_maskz_unpacklo_ps(0xffff, a, b); }
DEEPREC_INLINE __m512 high_of(__m512 a, __m512 b) { return _mm512_maskz_unpackhi_ps(0xffff, a, b); }
DEEPREC_INLINE __m512 low_pairs(__m512 a, __m512 b) {
  return (__m512)_mm512_maskz_unpacklo_pd(0xff, (__m512d)a, (__m512d)b);
}
DEEPREC_INLINE __m512 high_pairs(__m512 a, __m512 b) {
  return (__m512)_mm512_maskz_unpackhi_pd(0xff, (__m512d)a, (__m512d)b);
}
DEEPREC_INLINE __m512 even_quarters(__m512 a, __m512 b) { return _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0x88); }
DEEPREC_INLINE __m512 odd_quarters(__m512 a, __m512 b) { return _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0xdd); }

// 16 columns of 16 rows that are in registers: row r becomes column r.
DEEPREC_INLINE void transpose_registers(__m512 (&a)[16]) {
  __m512 b[16];
#pragma GCC unroll 8
  for (int r = 0; r < 16; r += 2) {
    b[r] = low_of(a[r], a[r + 1]);
    b[r + 1] = high_of(a[r], a[r + 1]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 16; r += 4) {  // quarter q of a[r + c] then holds column 4 q + c of rows r to r + 3
    a[r] = low_pairs(b[r], b[r + 2]);
    a[r + 1] = high_pairs(b[r], b[r + 2]);
    a[r + 2] = low_pairs(b[r + 1], b[r + 3]);
    a[r + 3] = high_pairs(b[r + 1], b[r + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    b[c] = even_quarters(a[c], a[4 + c]);
    b[4 + c] = odd_quarters(a[c], a[4 + c]);
    b[8 + c] = even_quarters(a[8 + c], a[12 + c]);
    b[12 + c] = odd_quarters(a[8 + c], a[12 + c]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    a[c] = even_quarters(b[c], b[8 + c]);
    a[4 + c] = even_quarters(b[4 + c], b[12 + c]);
    a[8 + c] = odd_quarters(b[c], b[8 + c]);
    a[12 + c] = odd_quarters(b[4 + c], b[12 + c]);
  }
}

// `columns` <= 16 columns from `from` on of up to 16 rows, transposed in registers: out[c, 0..16).
DEEPREC_INLINE void transpose_block(const float* const* rows, int64_t count, int64_t from, int64_t columns, float* out,
                                    int64_t ldo) {
  const __mmask16 mask = static_cast<__mmask16>((1u << columns) - 1);
  __m512 a[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    a[r] = r < count ? _mm512_maskz_loadu_ps(mask, rows[r] + from) : _mm512_setzero_ps();
  }
  transpose_registers(a);
#pragma GCC unroll 16
  for (int c = 0; c < 16; ++c) {
    if (c < columns) {
      _mm512_storeu_ps(out + c * ldo, a[c]);
    }
  }
}
#else
DEEPREC_INLINE void transpose_block(const float* const* rows, int64_t count, int64_t from, int64_t columns, float* out,
                                    int64_t ldo) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < 16; ++r) {
      out[c * ldo + r] = r < count ? rows[r][from + c] : 0.0f;
    }
  }
}
#endif

// out[d, 0..16) = rows[0..16)[d] of up to 16 rows of `k` columns, wherever they lie; zero from `count` on.
inline void transpose_rows(const float* const* rows, int64_t count, int64_t k, float* out, int64_t ldo) {
  int64_t d = 0;
  for (; count == 16 && d + 16 <= k; d += 16) {
    transpose_block(rows, 16, d, 16, out + d * ldo, ldo);
  }
  for (; d < k; d += 16) {
    transpose_block(rows, count, d, k - d < 16 ? k - d : 16, out + d * ldo, ldo);
  }
}

// Right operand of C = A W^T from W [n, k] (torch.nn.Linear): out [steps<T>(k), ldo], columns n..padded(n) zero.
// Blocks of 16 rows x 16 words of bfloat16 go through a small buffer, so that reads and writes are both contiguous.
template <class T>
inline void pack_transposed(const float* w, int64_t ldw, int64_t n, int64_t k, T* out, int64_t ldo) {
  T block[16 * 16];
  for (int64_t j = 0; j < n; j += 16) {
    const int64_t rows = n - j < 16 ? n - j : 16;
    if constexpr (kPerWord<T> == 1) {
      const float* from[16];
      for (int64_t r = 0; r < rows; ++r) {
        from[r] = w + (j + r) * ldw;
      }
      transpose_rows(from, rows, k, out + j, ldo);
      continue;
    }
    for (int64_t s = 0; s < steps<T>(k); s += 16) {
      const int64_t left = steps<T>(k) - s, words = left < 16 ? left : 16;
      const int64_t remaining = k - s * kPerWord<T>;
      const int64_t columns = remaining < 16 * kPerWord<T> ? remaining : 16 * kPerWord<T>;
      pack_rows(w + j * ldw + s * kPerWord<T>, ldw, rows, columns, block, 16);
      for (int64_t t = 0; t < words; ++t) {
        T* to = out + (s + t) * ldo + j;
        for (int64_t r = 0; r < rows; ++r) {
          to[r] = block[r * 16 + t];
        }
        for (int64_t r = rows; r < 16; ++r) {
          to[r] = T(0);
        }
      }
    }
  }
}

}  // namespace deeprec::DEEPREC_ISA
