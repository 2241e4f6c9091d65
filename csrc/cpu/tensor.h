// Small helpers of the PyTorch-facing wrappers (portable pass only): allocation, checks, chunked threading.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../check.h"
#include "element.h"

namespace deeprec {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A contiguous uninitialised CPU tensor. Calls the C shim directly: through the dispatcher it costs microseconds.
inline Tensor empty_cpu(const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(shape[d], 1);
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                               aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// Asks before it calls: torch::stable::contiguous goes through the dispatcher, which costs microseconds.
inline Tensor as_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline bool is_index(ScalarType t) { return t == ScalarType::Int || t == ScalarType::Long; }

inline Element element_of(const char* op, ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Element::f32;
    case ScalarType::Double:
      return Element::f64;
    case ScalarType::BFloat16:
      return Element::bf16;
    case ScalarType::Half:
      return Element::f16;
    default:
      DEEPREC_CHECK(false, "TypeError: ", op, ": values must be float32, float64, bfloat16 or float16");
  }
}

// Whether a value of values[begin, end) lies outside [low, low + count). The sign bit of `signs` is set by one that
// does: no branches, so the compiler makes vectors of it. Numbers wrap around, hostile ones too.
template <class T>
bool outside(const T* values, int64_t begin, int64_t end, int64_t low, int64_t count) {
  using U = std::make_unsigned_t<T>;
  const U first = static_cast<U>(low);
  const U last = static_cast<U>(std::min<int64_t>(count - 1, std::numeric_limits<T>::max()));
  U signs = 0;
  for (int64_t i = begin; i < end; ++i) {
    const U place = static_cast<U>(values[i]) - first;
    signs |= place | (last - place);
  }
  return static_cast<T>(signs) < 0;
}

// Whether values[begin, end), none of them negative, do not each exceed the one before.
template <class T>
bool falls(const T* values, int64_t begin, int64_t end) {
  using U = std::make_unsigned_t<T>;
  U signs = 0;
  for (int64_t i = begin; i + 1 < end; ++i) {
    signs |= static_cast<U>(values[i + 1]) - static_cast<U>(values[i]) - 1;
  }
  return static_cast<T>(signs) < 0;
}

// Threads worth starting for `work` units when one thread should get at least `grain` of them.
inline int64_t threads_for(int64_t work, int64_t grain) {
  if (work < 2 * grain) {
    return 1;
  }
  return std::min<int64_t>(torch::stable::get_num_threads(), work / grain);
}

// Calls f(chunk) for chunk in [0, chunks), on as many threads as there are.
template <class F>
void for_each_chunk(int64_t chunks, const F& f) {
  if (chunks <= 1) {
    f(int64_t{0});
    return;
  }
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      f(chunk);
    }
  });
}

}  // namespace deeprec
