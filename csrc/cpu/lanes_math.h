// Functions of the cross-entropy on vectors of N floats.
#pragma once

#include "lanes.h"

namespace deeprec::DEEPREC_ISA {

// exp(x) for x in [-87, 0] (Cephes' polynomial, 2 ulp).
template <int N>
static inline Lanes<float, N> exp_bounded(Lanes<float, N> x) {
  const auto whole = __builtin_convertvector(x * 1.44269504f - 0.5f, Lanes<int32_t, N>);
  const auto n = __builtin_convertvector(whole, Lanes<float, N>);
  const auto r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  auto y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return y * (Lanes<float, N>)((Lanes<uint32_t, N>)(whole + 127) << 23);
}

// log(1 + t) for t in [0, 1]: 2 atanh(t / (2 + t)), whose argument is at most 1/3.
template <int N>
static inline Lanes<float, N> log_one_plus(Lanes<float, N> t) {
  const auto s = t / (t + 2.0f), q = s * s;
  auto y = q * (1.0f / 15) + 1.0f / 13;
  y = y * q + 1.0f / 11;
  y = y * q + 1.0f / 9;
  y = y * q + 1.0f / 7;
  y = y * q + 1.0f / 5;
  y = y * q + 1.0f / 3;
  return 2.0f * (s + s * q * y);
}

// log(x) for normal x > 0: x = m 2^n with m around 1, log m = 2 atanh((m - 1) / (m + 1)), whose argument is at most
// 0.172.
template <int N>
static inline Lanes<float, N> log_positive(Lanes<float, N> x) {
  const auto bits = (Lanes<int32_t, N>)x;
  const auto n = (bits - 0x3f3504f3) >> 23;  // of x / sqrt(1/2), rounded down
  const auto m = (Lanes<float, N>)(bits - (n << 23)), whole = __builtin_convertvector(n, Lanes<float, N>);
  const auto s = (m - 1.0f) / (m + 1.0f), q = s * s;
  auto y = q * (1.0f / 9) + 1.0f / 7;
  y = y * q + 1.0f / 5;
  y = y * q + 1.0f / 3;
  return whole * 0.693359375f + (2.0f * (s + s * q * y) - whole * 2.12194440e-4f);
}

}  // namespace deeprec::DEEPREC_ISA
