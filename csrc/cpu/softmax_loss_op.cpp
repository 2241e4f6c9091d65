// The PyTorch side of softmax_loss: checks, the working order of the candidates, buffers, and the split into blocks of
// rows and chunks of candidates; the kernels are in softmax_loss.cpp. The split depends on the shapes alone and parts
// are added in their order, so results are the same for any number of threads.
#include "softmax_loss.h"

#ifdef DEEPREC_ISA_portable
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <tuple>

#include "softmax_inputs.h"
#include "tensor.h"

namespace deeprec {
namespace {

constexpr const char* kOp = "softmax_loss";
constexpr int64_t kUnits = 32;        // units of work to aim at, where blocks of rows are fewer
constexpr int64_t kItemsGrain = 128;  // candidates of a unit of the backward pass
constexpr int64_t kMinChunk = 4 * kSoftmaxTile;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory that lines up with cache lines, not initialised.
class Buffer {
 public:
  explicit Buffer(int64_t bytes)
      : memory_(std::aligned_alloc(64, static_cast<size_t>((std::max<int64_t>(bytes, 1) + 63) / 64 * 64))) {
    if (!memory_) {
      throw std::bad_alloc();
    }
  }
  void* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
};

// The tensors of a call as the schema names them, up to `correct_positive`.
struct Arguments {
  const Tensor &queries, &items, &targets;
  const std::optional<Tensor>&bias, &log_q, &item_ids, &seen_indptr, &seen_indices, &seen_rows;
  double gamma;
  bool cosine;
  double smoothing;
  bool include_positive, correct_positive;
};

// A job and what it points to.
class Call : public SoftmaxInputs {
 public:
  SoftmaxJob job{};
  bool has_pairs;  // of bfloat16

  explicit Call(const Arguments& given) : SoftmaxInputs(kOp, given.queries) {
    take_vectors(job, given.queries, given.items, given.gamma);
    DEEPREC_CHECK(given.smoothing >= 0 && given.smoothing < 1, "ValueError: ", kOp,
                  ": label_smoothing must be in [0, 1), got ", given.smoothing);
    job.smoothing = given.smoothing;
    job.is_cosine = given.cosine;
    job.include_positive = given.include_positive;
    take_targets(job, given.targets);
    const SeenLists seen = take_lists(job.batch, given.seen_indptr, given.seen_indices, given.seen_rows, -1);
    job.seen_indptr = seen.indptr;
    job.seen_indices = seen.indices;
    job.seen_rows = seen.rows;
    sort_candidates(given.item_ids);
    wide == ScalarType::Double ? take_shifts<double>(given) : take_shifts<float>(given);
    packed_.emplace(job.batch * softmax_stride(job.dim) * wide_bytes);
    job.packed = packed_->get();
    has_pairs = job.element == Element::bf16;
    if (has_pairs) {
      pairs_.emplace(divide_up(job.batch, 2) * softmax_stride(job.dim) * 4);
      scale_.emplace(job.batch * 4);
      job.pairs = pairs_->get();
      job.scale = scale_->get();
    }
    const auto pack = DEEPREC_DISPATCH_BF16(softmax_pack);
    const int64_t chunks = threads_for(job.batch * (job.dim + 1), 1 << 15);
    for_each_chunk(chunks, [&](int64_t c) { pack(job, job.batch * c / chunks, job.batch * (c + 1) / chunks); });
  }

 private:
  std::vector<int64_t> order_, ids_, same_begin_, same_end_;
  std::optional<Buffer> shift_, positive_shift_, packed_, pairs_, scale_;

  // The working order, and the targets in it.
  void sort_candidates(const std::optional<Tensor>& item_ids) {
    if (!item_ids) {
      return;
    }
    const std::vector<int64_t> ids = numbers("item_ids", *item_ids, job.num_items);
    const size_t count = ids.size();
    order_.resize(count);
    for (size_t j = 0; j < count; ++j) {
      order_[j] = static_cast<int64_t>(j);
    }
    std::sort(order_.begin(), order_.end(), [&ids](int64_t a, int64_t b) {
      const int64_t left = ids[static_cast<size_t>(a)], right = ids[static_cast<size_t>(b)];
      return left != right ? left < right : a < b;
    });
    std::vector<int64_t> rank(count);
    ids_.resize(count);
    for (size_t at = 0; at < count; ++at) {
      ids_[at] = ids[static_cast<size_t>(order_[at])];
      rank[static_cast<size_t>(order_[at])] = static_cast<int64_t>(at);
    }
    for (int64_t& target : targets_) {
      target = rank[static_cast<size_t>(target)];
      const auto same = std::equal_range(ids_.begin(), ids_.end(), ids_[static_cast<size_t>(target)]);
      same_begin_.push_back(same.first - ids_.begin());
      same_end_.push_back(same.second - ids_.begin());
    }
    job.order = order_.data();
    job.ids = ids_.data();
    job.same_begin = same_begin_.data();
    job.same_end = same_end_.data();
  }

  // bias - log_q of each candidate; what the positive gets beside that of its candidate.
  template <class A>
  void take_shifts(const Arguments& given) {
    if (given.bias) {
      DEEPREC_CHECK(given.bias->dim() == 1 && given.bias->size(0) == job.num_items &&
                        given.bias->scalar_type() == dtype && given.bias->is_cpu(),
                    "ValueError: ", kOp, ": bias must be [", job.num_items, "] in the dtype of items");
    }
    const A* log_q = nullptr;
    if (given.log_q) {
      DEEPREC_CHECK(given.log_q->dim() == 1 && given.log_q->size(0) == job.num_items &&
                        given.log_q->scalar_type() == wide && given.log_q->is_cpu(),
                    "ValueError: ", kOp, ": log_q must be [", job.num_items, "] in float32 (float64 beside float64)");
      log_q = static_cast<const A*>(keep(*given.log_q));
    }
    if (!given.bias && !log_q) {
      return;
    }
    const void* bias = given.bias ? keep(torch::stable::to(*given.bias, wide)) : nullptr;
    shift_.emplace(job.num_items * wide_bytes);
    A* shift = static_cast<A*>(shift_->get());
    for (int64_t at = 0; at < job.num_items; ++at) {
      const int64_t place = job.order ? job.order[at] : at;
      shift[at] = (bias ? static_cast<const A*>(bias)[place] : A(0)) - (log_q ? log_q[place] : A(0));
    }
    job.shift = shift;
    if (log_q && !given.correct_positive) {
      positive_shift_.emplace(job.batch * wide_bytes);
      A* positive = static_cast<A*>(positive_shift_->get());
      for (int64_t b = 0; b < job.batch; ++b) {
        positive[b] = log_q[job.order ? job.order[job.targets[b]] : job.targets[b]];
      }
      job.positive_shift = positive;
    }
  }
};

// Chunks of the candidates and blocks of the rows, as units of work.
void run_forward(const Call& call) {
  const SoftmaxJob& job = call.job;
  const int64_t wide_bytes = call.wide_bytes;
  const int64_t blocks = divide_up(job.batch, kSoftmaxBlock);
  const int64_t most = std::max<int64_t>(1, job.num_items / kMinChunk);
  const int64_t chunks = std::min(divide_up(kUnits, blocks), most);
  const int64_t per_chunk = divide_up(divide_up(job.num_items, chunks), kSoftmaxTile) * kSoftmaxTile;
  const int64_t entries = chunks * job.batch, stride = softmax_stride(job.dim);
  const bool is_smooth = job.smoothing > 0;
  const Buffer maxima(entries * wide_bytes), sums(entries * 8), logits(is_smooth ? entries * 8 : 0);
  const Buffer hidden(entries * 8), positives(job.batch * wide_bytes);
  const Buffer weighted(job.need_grad ? entries * stride * wide_bytes : 0);
  const Buffer plain(job.need_grad && is_smooth ? entries * stride * wide_bytes : 0);
  const SoftmaxParts parts{chunks,
                           maxima.get(),
                           static_cast<double*>(sums.get()),
                           static_cast<double*>(logits.get()),
                           static_cast<int64_t*>(hidden.get()),
                           positives.get(),
                           weighted.get(),
                           plain.get()};
  const auto part = DEEPREC_DISPATCH_BF16(softmax_part);
  torch::stable::parallel_for(0, blocks * chunks, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(softmax_scratch_size(job.dim, call.has_pairs) * wide_bytes);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / chunks * kSoftmaxBlock, chunk = unit % chunks;
      part(job, parts, scratch.get(), row, std::min(row + kSoftmaxBlock, job.batch), chunk,
           std::min(chunk * per_chunk, job.num_items), std::min((chunk + 1) * per_chunk, job.num_items));
    }
  });
  const Buffer scratch(stride * wide_bytes);
  DEEPREC_DISPATCH_BF16(softmax_merge)(job, parts, scratch.get(), 0, job.batch);
}

std::tuple<Tensor, Tensor, Tensor> softmax_loss(
    const Tensor& queries, const Tensor& items, const Tensor& targets, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& log_q, const std::optional<Tensor>& item_ids, const std::optional<Tensor>& seen_indptr,
    const std::optional<Tensor>& seen_indices, const std::optional<Tensor>& seen_rows, double gamma, bool cosine,
    double smoothing, bool include_positive, bool correct_positive, bool need_grad) {
  Call call({queries, items, targets, bias, log_q, item_ids, seen_indptr, seen_indices, seen_rows, gamma, cosine,
             smoothing, include_positive, correct_positive});
  SoftmaxJob& job = call.job;
  job.need_grad = need_grad;
  Tensor losses = empty_cpu({job.batch}, call.wide), stats = empty_cpu({3, job.batch}, call.wide);
  Tensor grad = need_grad ? empty_cpu({job.batch, job.dim}, call.wide) : empty_cpu({0}, call.wide);
  job.losses = losses.data_ptr();
  job.stats = stats.data_ptr();
  job.queries_grad = grad.data_ptr();
  if (job.batch > 0) {
    run_forward(call);
  }
  return {losses, stats, grad};
}

std::tuple<Tensor, Tensor> softmax_loss_grad(const Tensor& queries, const Tensor& items, const Tensor& targets,
                                             const std::optional<Tensor>& bias, const std::optional<Tensor>& log_q,
                                             const std::optional<Tensor>& item_ids,
                                             const std::optional<Tensor>& seen_indptr,
                                             const std::optional<Tensor>& seen_indices,
                                             const std::optional<Tensor>& seen_rows, double gamma, bool cosine,
                                             double smoothing, bool include_positive, bool correct_positive,
                                             const Tensor& stats_in, const Tensor& row_grads_in) {
  Call call({queries, items, targets, bias, log_q, item_ids, seen_indptr, seen_indices, seen_rows, gamma, cosine,
             smoothing, include_positive, correct_positive});
  SoftmaxJob& job = call.job;
  DEEPREC_CHECK(stats_in.dim() == 2 && stats_in.size(0) == 3 && stats_in.size(1) == job.batch &&
                    stats_in.scalar_type() == call.wide && stats_in.is_cpu(),
                "ValueError: ", kOp, ": stats must be [3, ", job.batch, "], as softmax_loss returns it");
  DEEPREC_CHECK(row_grads_in.dim() == 1 && row_grads_in.size(0) == job.batch &&
                    row_grads_in.scalar_type() == call.wide && row_grads_in.is_cpu(),
                "ValueError: ", kOp, ": row_grads must be [", job.batch, "] in float32 (float64 beside float64)");
  const Tensor stats = as_contiguous(stats_in), row_grads = as_contiguous(row_grads_in);
  Tensor grad = empty_cpu({job.num_items, job.dim}, call.dtype);
  Tensor bias_grad = empty_cpu({bias ? job.num_items : 0}, call.dtype);
  job.stats = stats.data_ptr();
  job.row_grads = row_grads.data_ptr();
  job.items_grad = grad.data_ptr();
  job.bias_grad = bias ? bias_grad.data_ptr() : nullptr;
  const auto kernel = DEEPREC_DISPATCH_BF16(softmax_items_grad);
  const int64_t units = divide_up(job.num_items, kItemsGrain);
  torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(softmax_scratch_size(job.dim, call.has_pairs) * call.wide_bytes);
    kernel(job, scratch.get(), begin * kItemsGrain, std::min(end * kItemsGrain, job.num_items));
  });
  return {grad, bias_grad};
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("softmax_loss", TORCH_BOX(&deeprec::softmax_loss));
  m.impl("softmax_loss_grad", TORCH_BOX(&deeprec::softmax_loss_grad));
}
#endif
