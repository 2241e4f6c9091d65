// How a CUDA kernel reports a value that it cannot work with: kernels/faults says what becomes of it. `claim` lies on
// the device: the number of the check that failed first, or 0, and the address of the report, which the device can
// write.
#pragma once

#include <cstdint>

namespace deeprec {
namespace {

// The first thread to claim the report fills it in: check, value, position, bound, and what else the check tells.
__device__ inline void report_fault(int64_t* claim, int64_t check, int64_t value, int64_t position, int64_t bound,
                                    int64_t other) {
  static_assert(sizeof(unsigned long long) == sizeof(int64_t), "the claim is one word");
  if (atomicCAS(reinterpret_cast<unsigned long long*>(claim), 0ull, static_cast<unsigned long long>(check)) != 0) {
    return;
  }
  volatile int64_t* report = reinterpret_cast<volatile int64_t*>(claim[1]);
  report[1] = value;
  report[2] = position;
  report[3] = bound;
  report[4] = other;
  __threadfence_system();
  report[0] = check;
}

}  // namespace
}  // namespace deeprec
