// One source, several instruction sets. CMake compiles every csrc/cpu/*.cpp once per set with DEEPREC_ISA
// defined to its name (portable, avx2, avx512). Kernels live in namespace deeprec::DEEPREC_ISA; the wrapper
// that PyTorch calls is compiled in the portable pass only and picks a kernel with DEEPREC_DISPATCH.
//
// A fourth set, avx512bf16, is avx512 with vdpbf16ps and vpdpbusd. Only the sources that gain from them (bf16_sources
// in CMakeLists.txt) are compiled for it, with DEEPREC_ISA_avx512 defined too; their kernels are declared by
// DEEPREC_DECLARE_BF16 and picked by DEEPREC_DISPATCH_BF16. All others serve such a processor by their avx512 copy.
//
// Kernels must not use templates or inline functions of the standard library: the linker may keep the AVX-512
// copy of such a function and an older processor would then run it. Use raw pointers and plain loops there.
#pragma once

#include <cstdint>

// For functions that only prefetch: GCC takes such a function for one without effects and drops calls it does not
// inline.
#define DEEPREC_ALWAYS_INLINE inline __attribute__((always_inline))

namespace deeprec {

enum class Isa : int { portable = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

// The best set that this processor and system offer, or what the environment variable DEEPREC_ISA asks for
// when the processor has it. Read once.
Isa active_isa();

}  // namespace deeprec

// Declares one kernel in every namespace: DEEPREC_DECLARE(void, gather, (const float* w, int64_t n));
#if defined(DEEPREC_X86)
#define DEEPREC_DECLARE(ret, name, args) \
  namespace deeprec::portable {          \
  ret name args;                         \
  }                                      \
  namespace deeprec::avx2 {              \
  ret name args;                         \
  }                                      \
  namespace deeprec::avx512 {            \
  ret name args;                         \
  }
#define DEEPREC_DECLARE_BF16(ret, name, args) \
  DEEPREC_DECLARE(ret, name, args)            \
  namespace deeprec::avx512bf16 {             \
  ret name args;                              \
  }
#define DEEPREC_DISPATCH(name)                                                 \
  (::deeprec::active_isa() >= ::deeprec::Isa::avx512 ? ::deeprec::avx512::name \
   : ::deeprec::active_isa() == ::deeprec::Isa::avx2 ? ::deeprec::avx2::name   \
                                                     : ::deeprec::portable::name)
#define DEEPREC_DISPATCH_BF16(name) \
  (::deeprec::active_isa() == ::deeprec::Isa::avx512bf16 ? ::deeprec::avx512bf16::name : DEEPREC_DISPATCH(name))
#else
#define DEEPREC_DECLARE(ret, name, args) \
  namespace deeprec::portable {          \
  ret name args;                         \
  }
#define DEEPREC_DECLARE_BF16(ret, name, args) DEEPREC_DECLARE(ret, name, args)
#define DEEPREC_DISPATCH(name) (::deeprec::portable::name)
#define DEEPREC_DISPATCH_BF16(name) DEEPREC_DISPATCH(name)
#endif
