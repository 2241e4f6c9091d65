// The PyTorch side of sampled_softmax_loss: checks, chances of the items, and the split of the rows; the kernel is in
// sampled_softmax_loss.cpp.
#include "sampled_softmax_loss.h"

#ifdef DEEPREC_ISA_portable
#include <cmath>
#include <optional>
#include <tuple>

#include "softmax_inputs.h"
#include "tensor.h"

namespace deeprec {
namespace {

constexpr const char* kOp = "sampled_softmax_loss";
constexpr int64_t kGrain = 1 << 15;  // multiplications a thread should have
constexpr int64_t kNoLists[2] = {0, 0};

// The tensors of a call as the schema names them, up to `include_positive`.
struct SampledArguments {
  const Tensor &queries, &items, &targets;
  const std::optional<Tensor>&bias, &seen_indptr, &seen_indices, &seen_rows;
  int64_t num_negatives, seed, offset;
  const std::optional<Tensor>&threshold, &alias, &cumulative;
  double gamma;
  bool cosine, use_log_q, include_positive;
};

// A job and what it points to.
class SampledCall : public SoftmaxInputs {
 public:
  SampledSoftmaxJob job{};
  int64_t num_entries;

  explicit SampledCall(const SampledArguments& given) : SoftmaxInputs(kOp, given.queries) {
    take_vectors(job, given.queries, given.items, given.gamma);
    DEEPREC_CHECK(job.num_items > 0 && job.num_items < (int64_t{1} << 31) && given.num_negatives >= 0 &&
                      given.num_negatives < (int64_t{1} << 31) && given.offset >= 0,
                  "ValueError: ", kOp, ": N must be in [1, 2^31), num_negatives in [0, 2^31) and offset >= 0, got ",
                  job.num_items, ", ", given.num_negatives, " and ", given.offset);
    job.is_cosine = given.cosine;
    job.include_positive = given.include_positive;
    num_entries = 1 + given.num_negatives;
    take_targets(job, given.targets);
    if (given.bias) {
      DEEPREC_CHECK(given.bias->dim() == 1 && given.bias->size(0) == job.num_items &&
                        given.bias->scalar_type() == dtype && given.bias->is_cpu(),
                    "ValueError: ", kOp, ": bias must be [", job.num_items, "] in the dtype of items");
      job.bias = keep(torch::stable::to(*given.bias, wide));
    }
    take_table(given);
    take_seen(given);
    NegativeSource& source = job.draw.source;
    source.num_items = job.num_items;
    source.key0 = static_cast<uint32_t>(given.seed);
    source.key1 = static_cast<uint32_t>(static_cast<uint64_t>(given.seed) >> 32);
    source.reject_below = static_cast<uint32_t>((uint64_t{1} << 32) % static_cast<uint64_t>(job.num_items));
    job.draw.users = rows_.data();
    job.draw.num_negatives = given.num_negatives;
    job.draw.offset = static_cast<uint64_t>(given.offset);
    if (given.use_log_q) {
      wide == ScalarType::Double ? take_scales(log_scale64_) : take_scales(log_scale32_);
    }
    is_exhausted_.resize(static_cast<size_t>(job.batch));
    job.is_exhausted = is_exhausted_.data();
  }

  void run() const {
    const auto kernel = DEEPREC_DISPATCH(sampled_softmax_rows);
    const int64_t chunks = threads_for(job.batch * num_entries * (job.dim + 1), kGrain);
    for_each_chunk(chunks, [&](int64_t c) {
      std::vector<int32_t> ids(static_cast<size_t>(sampled_ids_size(job.draw.num_negatives)));
      std::vector<char> values(static_cast<size_t>((3 * num_entries + 2 * job.dim) * wide_bytes));
      kernel(job, ids.data(), values.data(), job.batch * c / chunks, job.batch * (c + 1) / chunks);
    });
    for (size_t b = 0; b < is_exhausted_.size(); ++b) {
      DEEPREC_CHECK(!is_exhausted_[b], "ValueError: ", kOp, ": row ", b,
                    " knows every item of positive weight, so there is no negative; leave the row out or give every "
                    "item some weight");
    }
  }

 private:
  std::vector<int32_t> rows_;
  std::vector<uint8_t> is_exhausted_;
  std::vector<double> log_scale64_;
  std::vector<float> log_scale32_;

  void take_table(const SampledArguments& given) {
    if (!given.threshold && !given.alias && !given.cumulative) {
      return;
    }
    DEEPREC_CHECK(given.threshold && given.alias && given.cumulative && given.threshold->dim() == 1 &&
                      given.alias->dim() == 1 && given.cumulative->dim() == 1 &&
                      given.threshold->size(0) == job.num_items && given.alias->size(0) == job.num_items &&
                      given.cumulative->size(0) == job.num_items + 1,
                  "ValueError: ", kOp, ": popularity must describe ", job.num_items,
                  " items; build it with alias_table(weights)");
    DEEPREC_CHECK(given.threshold->scalar_type() == ScalarType::Long && given.alias->scalar_type() == ScalarType::Int &&
                      given.cumulative->scalar_type() == ScalarType::Long && given.alias->is_cpu(),
                  "TypeError: ", kOp, ": the tensors of popularity must be int64, int32 and int64");
    job.draw.source.threshold = static_cast<const int64_t*>(keep(*given.threshold));
    job.draw.source.alias = static_cast<const int32_t*>(keep(*given.alias));
    job.draw.source.cumulative = static_cast<const int64_t*>(keep(*given.cumulative));
    const int32_t* other = job.draw.source.alias;
    const bool is_bad = outside(other, 0, job.num_items, 0, job.num_items);
    for (int64_t j = 0; is_bad && j < job.num_items; ++j) {
      DEEPREC_CHECK(other[j] >= 0 && other[j] < job.num_items, "IndexError: ", kOp, ": alias must be in [0, ",
                    job.num_items, "), got ", other[j], " at position ", j);
    }
  }

  void take_seen(const SampledArguments& given) {
    const SeenLists seen = take_lists(job.batch, given.seen_indptr, given.seen_indices, given.seen_rows, job.num_items);
    rows_.assign(static_cast<size_t>(job.batch), 0);
    job.draw.source.indptr = seen.indptr ? seen.indptr : kNoLists;
    job.draw.source.indices = seen.indices;
    for (int64_t b = 0; seen.indptr && b < job.batch; ++b) {
      const int64_t row = seen.row(b);
      DEEPREC_CHECK(row < (int64_t{1} << 31), "IndexError: ", kOp, ": seen_rows must be in [0, 2^31), got ", row,
                    " at position ", b);
      DEEPREC_CHECK(seen.indptr[row + 1] - seen.indptr[row] < job.num_items, "ValueError: ", kOp, ": row ", b,
                    " knows all ", job.num_items, " items, so there is no negative; leave the row out");
      rows_[static_cast<size_t>(b)] = static_cast<int32_t>(row);
    }
  }

  // log(S / sum of the chances that row b has left), to which the kernel adds log p_j.
  template <class A>
  void take_scales(std::vector<A>& log_scale) {
    const NegativeSource& source = job.draw.source;
    const double num_items = static_cast<double>(job.num_items);
    for (const int32_t row : rows_) {
      const int64_t begin = source.indptr[row], end = source.indptr[row + 1];
      double left = num_items - static_cast<double>(end - begin);
      if (source.cumulative) {
        left = static_cast<double>(source.cumulative[job.num_items]) / num_items;
        for (int64_t p = begin; p < end; ++p) {
          const int64_t item = source.indices[p];
          left -= static_cast<double>(source.cumulative[item + 1] - source.cumulative[item]) / num_items;
        }
      }
      log_scale.push_back(static_cast<A>(std::log(static_cast<double>(job.draw.num_negatives)) - std::log(left)));
    }
    job.log_scale = log_scale.data();
  }
};

std::tuple<Tensor, Tensor, Tensor> sampled_softmax_loss(
    const Tensor& queries, const Tensor& items, const Tensor& targets, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& seen_indptr, const std::optional<Tensor>& seen_indices,
    const std::optional<Tensor>& seen_rows, int64_t num_negatives, int64_t seed, int64_t offset,
    const std::optional<Tensor>& threshold, const std::optional<Tensor>& alias, const std::optional<Tensor>& cumulative,
    double gamma, bool cosine, bool use_log_q, bool include_positive, bool need_grad) {
  SampledCall call({queries, items, targets, bias, seen_indptr, seen_indices, seen_rows, num_negatives, seed, offset,
                    threshold, alias, cumulative, gamma, cosine, use_log_q, include_positive});
  SampledSoftmaxJob& job = call.job;
  job.need_grad = need_grad;
  Tensor losses = empty_cpu({job.batch}, call.wide), stats = empty_cpu({2, job.batch}, call.wide);
  Tensor grad = need_grad ? empty_cpu({job.batch, job.dim}, call.wide) : empty_cpu({0}, call.wide);
  job.losses = losses.data_ptr();
  job.stats = stats.data_ptr();
  job.queries_grad = grad.data_ptr();
  call.run();
  return {losses, stats, grad};
}

std::tuple<Tensor, Tensor> sampled_softmax_slopes(
    const Tensor& queries, const Tensor& items, const Tensor& targets, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& seen_indptr, const std::optional<Tensor>& seen_indices,
    const std::optional<Tensor>& seen_rows, int64_t num_negatives, int64_t seed, int64_t offset,
    const std::optional<Tensor>& threshold, const std::optional<Tensor>& alias, const std::optional<Tensor>& cumulative,
    double gamma, bool cosine, bool use_log_q, bool include_positive, const Tensor& stats_in,
    const Tensor& row_grads_in) {
  SampledCall call({queries, items, targets, bias, seen_indptr, seen_indices, seen_rows, num_negatives, seed, offset,
                    threshold, alias, cumulative, gamma, cosine, use_log_q, include_positive});
  SampledSoftmaxJob& job = call.job;
  DEEPREC_CHECK(stats_in.dim() == 2 && stats_in.size(0) == 2 && stats_in.size(1) == job.batch &&
                    stats_in.scalar_type() == call.wide && stats_in.is_cpu(),
                "ValueError: ", kOp, ": stats must be [2, ", job.batch, "], as sampled_softmax_loss returns it");
  DEEPREC_CHECK(row_grads_in.dim() == 1 && row_grads_in.size(0) == job.batch &&
                    row_grads_in.scalar_type() == call.wide && row_grads_in.is_cpu(),
                "ValueError: ", kOp, ": row_grads must be [", job.batch, "] in float32 (float64 beside float64)");
  const Tensor stats = as_contiguous(stats_in), row_grads = as_contiguous(row_grads_in);
  const int64_t nnz = job.batch * call.num_entries;
  Tensor entries = empty_cpu({nnz}, ScalarType::Int), slopes = empty_cpu({nnz}, call.wide);
  job.stats = stats.data_ptr();
  job.row_grads = row_grads.data_ptr();
  job.entries = static_cast<int32_t*>(entries.data_ptr());
  job.slopes = slopes.data_ptr();
  if (job.batch > 0) {
    call.run();
  }
  return {entries, slopes};
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("sampled_softmax_loss", TORCH_BOX(&deeprec::sampled_softmax_loss));
  m.impl("sampled_softmax_slopes", TORCH_BOX(&deeprec::sampled_softmax_slopes));
}
#endif
