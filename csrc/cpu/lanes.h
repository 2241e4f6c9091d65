// N adjacent columns of a row in a register, as a compiler vector type: loads widen to the accumulator's type, stores
// round to nearest even. each_block cuts a row of any length into blocks of K registers of N columns.
#pragma once

#include "element.h"

#if defined(DEEPREC_ISA_avx2) || defined(DEEPREC_ISA_avx512)
#include <immintrin.h>
#endif

namespace deeprec::DEEPREC_ISA {

#if defined(DEEPREC_ISA_avx512)
constexpr int kRegisterBytes = 64;
#elif defined(DEEPREC_ISA_avx2)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <class A>
constexpr int kFullLanes = kRegisterBytes / static_cast<int>(sizeof(A));

template <class A, int N>
struct LanesOf {
  typedef A type __attribute__((vector_size(N * sizeof(A))));
};
template <class A>
struct LanesOf<A, 1> {
  typedef A type;
};
template <class A, int N>
using Lanes = typename LanesOf<A, N>::type;

template <int N>
static inline Lanes<float, N> load_lanes(const float* p) {
  Lanes<float, N> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <int N>
static inline Lanes<double, N> load_lanes(const double* p) {
  Lanes<double, N> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <int N>
static inline Lanes<float, N> load_lanes(const Bf16* p) {
  if constexpr (N == 1) {
    return widen(*p);
  } else {
    Lanes<uint16_t, N> bits;
    __builtin_memcpy(&bits, p, sizeof(bits));
    return (Lanes<float, N>)(__builtin_convertvector(bits, Lanes<uint32_t, N>) << 16);
  }
}

template <int N>
static inline Lanes<float, N> load_lanes(const F16* p) {
  if constexpr (N == 1) {
    return widen(*p);
#if defined(DEEPREC_ISA_avx512)  // maskz: GCC 12 warns about the undefined source of the plain conversions
  } else if constexpr (N == 16) {
    return (Lanes<float, N>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#endif
#if defined(DEEPREC_ISA_avx2) || defined(DEEPREC_ISA_avx512)
  } else if constexpr (N == 8) {
    return (Lanes<float, N>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  } else {
    Lanes<float, N> v;
    for (int i = 0; i < N; ++i) {
      v[i] = widen(p[i]);
    }
    return v;
  }
}

template <int N>
static inline void store_lanes(float* p, Lanes<float, N> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <int N>
static inline void store_lanes(double* p, Lanes<double, N> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <int N>
static inline void store_lanes(Bf16* p, Lanes<float, N> v) {
  if constexpr (N == 1) {
    narrow(v, p);
  } else {
    using Bits = Lanes<uint32_t, N>;
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Bits is_nan = (Bits)((bits & 0x7fffffffu) > 0x7f800000u);
    const Lanes<uint16_t, N> half =
        __builtin_convertvector((is_nan & 0x7fc0u) | (~is_nan & rounded), Lanes<uint16_t, N>);
    __builtin_memcpy(p, &half, sizeof(half));
  }
}

template <int N>
static inline void store_lanes(F16* p, Lanes<float, N> v) {
  if constexpr (N == 1) {
    narrow(v, p);
#if defined(DEEPREC_ISA_avx512)
  } else if constexpr (N == 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(DEEPREC_ISA_avx2) || defined(DEEPREC_ISA_avx512)
  } else if constexpr (N == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#endif
  } else {
    for (int i = 0; i < N; ++i) {
      narrow(v[i], p + i);
    }
  }
}

// The columns added up, the first one first.
template <class A, int N>
static inline A sum_lanes(Lanes<A, N> v) {
  if constexpr (N == 1) {
    return v;
  } else {
    A total = v[0];
    for (int i = 1; i < N; ++i) {
      total += v[i];
    }
    return total;
  }
}

// Calls body<N, K>(d) for blocks of N * K columns that begin at d and cover [0, dim): full registers four, two, one at
// a time, then halves of one, then one to three columns by themselves.
template <class A, class Body>
static inline void each_block(int64_t dim, const Body& body) {
  constexpr int L = kFullLanes<A>;
  int64_t d = 0;
  for (; d + 4 * L <= dim; d += 4 * L) {
    body.template operator()<L, 4>(d);
  }
  if (d + 2 * L <= dim) {
    body.template operator()<L, 2>(d);
    d += 2 * L;
  }
  if (d + L <= dim) {
    body.template operator()<L, 1>(d);
    d += L;
  }
  if constexpr (L > 8) {
    if (d + 8 <= dim) {
      body.template operator()<8, 1>(d);
      d += 8;
    }
  }
  if constexpr (L > 4) {
    if (d + 4 <= dim) {
      body.template operator()<4, 1>(d);
      d += 4;
    }
  }
  switch (dim - d) {
    case 1:
      return body.template operator()<1, 1>(d);
    case 2:
      return body.template operator()<1, 2>(d);
    case 3:
      return body.template operator()<1, 3>(d);
  }
}

#if defined(DEEPREC_ISA_avx512)
static inline __mmask16 at_least_mask(const int32_t* ids, __mmask16 lanes, int64_t bound) {
  return bound > INT32_MAX ? 0
                           : _mm512_mask_cmpge_epi32_mask(lanes, _mm512_maskz_loadu_epi32(lanes, ids),
                                                          _mm512_set1_epi32(static_cast<int32_t>(bound)));
}
static inline __mmask8 at_least_mask(const int64_t* ids, __mmask16 lanes, int64_t bound) {
  const __mmask8 low = static_cast<__mmask8>(lanes);
  return _mm512_mask_cmpge_epi64_mask(low, _mm512_maskz_loadu_epi64(low, ids), _mm512_set1_epi64(bound));
}
#endif

// The first place from `begin` on, or `end`, where an id is `bound` or more.
template <class Id>
static inline int64_t first_at_least(const Id* ids, int64_t begin, int64_t end, int64_t bound) {
#if defined(DEEPREC_ISA_avx512)
  constexpr int64_t N = 64 / static_cast<int64_t>(sizeof(Id));
  for (; begin < end; begin += N) {
    const int64_t count = end - begin < N ? end - begin : N;
    const unsigned reached = at_least_mask(ids + begin, static_cast<__mmask16>((1u << count) - 1), bound);
    if (reached) {
      return begin + __builtin_ctz(reached);
    }
  }
  return end;
#else
  while (begin < end && ids[begin] < bound) {
    ++begin;
  }
  return begin;
#endif
}

}  // namespace deeprec::DEEPREC_ISA
