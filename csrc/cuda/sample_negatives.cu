// sample_negatives on CUDA: one thread a Philox block (4 uniform or 2 weighted negatives of one example), membership by
// binary search in the user's list. Same words, same rule, so the same negatives as on the CPU.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>

#include "../check.h"
#include "../sample_negatives.h"

namespace deeprec {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;

template <class Id>
__global__ void sample_negatives_kernel(NegativeSource s, const Id* users, int64_t num_rows, int64_t num_negatives,
                                        uint64_t offset, Id* out) {
  const int64_t per_block = negatives_per_block(s);
  const int step = is_weighted(s) ? 2 : 1;
  const int64_t groups = (num_negatives + per_block - 1) / per_block;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < num_rows * groups; i += stride) {
    const int64_t row = i / groups;
    const uint32_t group = static_cast<uint32_t>(i - row * groups);
    const uint64_t example = offset + static_cast<uint64_t>(row);
    const int64_t user = users[row];
    uint32_t words[4];
    philox_block(s, example, group, 0, words);
    const SearchSeen is_seen;
    for (int64_t t = 0; t < per_block && group * per_block + t < num_negatives; ++t) {
      const int slot = static_cast<int>(t) * step;
      int64_t item = candidate(s, words[slot], words[(slot + 1) & 3]);
      if (item < 0 || is_seen(s, user, item)) {
        item = retry_negative(s, is_seen, user, example, group, slot, 1);
      }
      out[row * num_negatives + group * per_block + t] = static_cast<Id>(item);
    }
  }
}

Tensor sample_negatives_cuda(const Tensor& users, const Tensor& indptr, const Tensor& indices, int64_t num_items,
                             int64_t num_negatives, int64_t seed, int64_t offset,
                             const std::optional<Tensor>& threshold, const std::optional<Tensor>& alias,
                             const std::optional<Tensor>& cumulative) {
  const int64_t num_rows = users.numel();
  const Tensor users_c = torch::stable::contiguous(users), indptr_c = torch::stable::contiguous(indptr),
               indices_c = torch::stable::contiguous(indices);
  Tensor out = torch::stable::new_empty(users, {num_rows, num_negatives});
  if (num_rows == 0 || num_negatives == 0) {
    return out;
  }
  NegativeSource s{};
  s.indptr = indptr_c.const_data_ptr<int64_t>();
  s.indices = indices_c.const_data_ptr<int32_t>();
  s.num_items = num_items;
  s.key0 = static_cast<uint32_t>(seed);
  s.key1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  s.reject_below = static_cast<uint32_t>((uint64_t{1} << 32) % static_cast<uint64_t>(num_items));
  std::optional<Tensor> kept[3];
  if (threshold) {
    DEEPREC_CHECK(alias && cumulative, "sample_negatives: the alias table has three parts");
    kept[0] = torch::stable::contiguous(*threshold);
    kept[1] = torch::stable::contiguous(*alias);
    kept[2] = torch::stable::contiguous(*cumulative);
    s.threshold = kept[0]->const_data_ptr<int64_t>();
    s.alias = kept[1]->const_data_ptr<int32_t>();
    s.cumulative = kept[2]->const_data_ptr<int64_t>();
  }
  const torch::stable::accelerator::DeviceGuard guard(users.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(users.get_device_index(), &stream));
  const int64_t per_block = negatives_per_block(s);
  const int64_t work = num_rows * ((num_negatives + per_block - 1) / per_block);
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>((work + kThreads - 1) / kThreads, 1 << 20));
  const auto launch = [&](auto* to, const auto* from) {
    sample_negatives_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        s, from, num_rows, num_negatives, static_cast<uint64_t>(offset), to);
  };
  if (users.scalar_type() == ScalarType::Long) {
    launch(out.mutable_data_ptr<int64_t>(), users_c.const_data_ptr<int64_t>());
  } else {
    launch(out.mutable_data_ptr<int32_t>(), users_c.const_data_ptr<int32_t>());
  }
  const cudaError_t error = cudaGetLastError();
  DEEPREC_CHECK(error == cudaSuccess, "sample_negatives: ", cudaGetErrorString(error));
  return out;
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CUDA, m) { m.impl("sample_negatives", TORCH_BOX(&deeprec::sample_negatives_cuda)); }
