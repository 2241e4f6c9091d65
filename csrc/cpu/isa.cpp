// deeprec::_cpu_isa() -> int: which instruction set the compiled CPU kernels use (0 portable, 1 AVX2, 2 AVX-512,
// 3 AVX-512 with the dot products of bfloat16 and int8).
#include "isa.h"

#ifdef DEEPREC_ISA_portable
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>

namespace deeprec {
namespace {

Isa detect() {
  Isa best = Isa::portable;
#if defined(DEEPREC_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    best = Isa::avx2;
  }
  if (best == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd")) {
    best = Isa::avx512;
  }
  if (best == Isa::avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
    best = Isa::avx512bf16;
  }
#endif
  if (const char* asked = std::getenv("DEEPREC_ISA")) {
    const Isa limit = !std::strcmp(asked, "portable") ? Isa::portable
                      : !std::strcmp(asked, "avx2")   ? Isa::avx2
                      : !std::strcmp(asked, "avx512") ? Isa::avx512
                                                      : Isa::avx512bf16;
    if (static_cast<int>(limit) < static_cast<int>(best)) {
      best = limit;
    }
  }
  return best;
}

int64_t cpu_isa() { return static_cast<int64_t>(active_isa()); }

}  // namespace

Isa active_isa() {
  static const Isa isa = detect();
  return isa;
}

}  // namespace deeprec

STABLE_TORCH_LIBRARY_FRAGMENT(deeprec, m) { m.def("_cpu_isa() -> int"); }
STABLE_TORCH_LIBRARY_IMPL(deeprec, CompositeExplicitAutograd, m) { m.impl("_cpu_isa", TORCH_BOX(&deeprec::cpu_isa)); }
#endif
