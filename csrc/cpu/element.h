// Element types of kernels: loads widen to the accumulator type, stores round to nearest even.
// Everything lives in the namespace of the instruction set and is written by hand, because inline functions shared
// between the sets (c10::Half's among them) could be linked from the wrong one; see isa.h.
#pragma once

#include <cstdint>

namespace deeprec {

enum class Element : int { f32, f64, bf16, f16 };

namespace DEEPREC_ISA {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

static inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

static inline float widen(float x) { return x; }
static inline double widen(double x) { return x; }
static inline float widen(Bf16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

static inline float widen(F16 x) {
#if defined(__F16C__) || defined(__aarch64__)
  _Float16 half;
  __builtin_memcpy(&half, &x.bits, 2);
  return static_cast<float>(half);
#else
  // Shift exponent and mantissa into place, then rescale: one multiplication is right for normals and subnormals.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const float value = bits_to_float(rest) * 0x1p112f;
  return bits_to_float(sign | float_to_bits((x.bits & 0x7c00u) == 0x7c00u ? bits_to_float(rest | 0x7f800000u) : value));
#endif
}

static inline void narrow(float x, float* out) { *out = x; }
static inline void narrow(double x, double* out) { *out = x; }

static inline void narrow(float x, Bf16* out) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

static inline void narrow(float x, F16* out) {
#if defined(__F16C__) || defined(__aarch64__)
  const _Float16 half = static_cast<_Float16>(x);
  __builtin_memcpy(&out->bits, &half, 2);
#else
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or beyond
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns the mantissa and rounds in hardware
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
#endif
}

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

}  // namespace DEEPREC_ISA
}  // namespace deeprec

// Returns run<T>(args) for the type of an element.
#define DEEPREC_BY_ELEMENT(element, run, args) \
  switch (element) {                           \
    case Element::f32:                         \
      return run<float>(args);                 \
    case Element::f64:                         \
      return run<double>(args);                \
    case Element::bf16:                        \
      return run<Bf16>(args);                  \
    case Element::f16:                         \
      return run<F16>(args);                   \
  }                                            \
  static_assert(true)
