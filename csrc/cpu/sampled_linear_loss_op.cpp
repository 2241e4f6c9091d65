// The PyTorch side of sampled_linear_loss: checks, buffers, and the split of the rows into parts with as many entries;
// the kernel is in sampled_linear_loss.cpp.
#include "sampled_linear_loss.h"

#ifdef DEEPREC_ISA_portable
#include <optional>
#include <tuple>

#include "csr.h"

namespace deeprec {
namespace {

constexpr const char* kOp = "sampled_linear_loss";
constexpr int64_t kGrain = 1 << 15;  // multiplications a thread should have

Tensor columns_adjacent(const char* name, const Tensor& x, ScalarType dtype) {
  DEEPREC_CHECK(x.dim() == 2 && x.is_cpu() && x.scalar_type() == dtype, kOp, ": ", name,
                " must be a matrix on the CPU in the dtype of hidden");
  return x.size(1) <= 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
}

const void* entry_values(const char* name, const Tensor& t, int64_t nnz, ScalarType wide) {
  DEEPREC_CHECK(t.dim() == 1 && t.size(0) == nnz && t.scalar_type() == wide && t.is_cpu() && t.is_contiguous(), kOp,
                ": ", name, " must be [", nnz, "], contiguous, float32 (float64 beside float64)");
  return t.data_ptr();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sampled_linear_loss(const Tensor& hidden_in, const Tensor& weight_in,
                                                               const std::optional<Tensor>& bias,
                                                               const Tensor& indptr_in, const Tensor& indices_in,
                                                               const Tensor& targets_in,
                                                               const std::optional<Tensor>& entry_weights_in,
                                                               int64_t activation, int64_t loss, bool need_grad) {
  const ScalarType dtype = hidden_in.scalar_type();
  const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor hidden = columns_adjacent("hidden", hidden_in, dtype);
  const Tensor weight = columns_adjacent("weight", weight_in, dtype);
  const int64_t batch = hidden.size(0), dim = hidden.size(1), num_columns = weight.size(0);
  DEEPREC_CHECK(weight.size(1) == dim, kOp, ": weight must be [N, ", dim, "], got [", num_columns, ", ", weight.size(1),
                "]");
  DEEPREC_CHECK(activation >= 0 && activation <= 2 && loss >= 0 && loss <= 3 && (loss != 1 || activation == 1), kOp,
                ": activation must be 0 to 2, loss 0 to 3, and loss 1 goes with activation 1");
  const Csr csr(kOp, indptr_in, indices_in, batch, num_columns);
  const int64_t nnz = csr.nnz;
  SampledArgs args{};
  args.element = element_of(kOp, dtype);
  args.hidden = hidden.data_ptr();
  args.weight = weight.data_ptr();
  args.hidden_stride = hidden.stride(0);
  args.weight_stride = weight.stride(0);
  args.dim = dim;
  std::optional<Tensor> adjacent_bias, weights;
  if (bias) {
    DEEPREC_CHECK(bias->numel() == num_columns && bias->scalar_type() == dtype && bias->is_cpu(), kOp,
                  ": bias must be [", num_columns, "] in the dtype of hidden");
    adjacent_bias = as_contiguous(*bias);
    args.bias = adjacent_bias->data_ptr();
  }
  args.indptr = csr.indptr.data_ptr();
  args.indices = csr.indices.data_ptr();
  args.wide_ids = csr.wide_ids;
  const Tensor targets = as_contiguous(targets_in);
  args.targets = entry_values("targets", targets, nnz, wide);
  if (entry_weights_in) {
    weights = as_contiguous(*entry_weights_in);
    args.entry_weights = entry_values("entry_weights", *weights, nnz, wide);
  }
  args.activation = static_cast<Activation>(activation);
  args.loss = static_cast<EntryLoss>(loss);
  Tensor predictions = empty_cpu({nnz}, wide), slopes = empty_cpu({nnz}, wide), total = empty_cpu({}, wide);
  Tensor hidden_grad = need_grad ? empty_cpu({batch, dim}, dtype) : empty_cpu({0}, dtype);
  args.predictions = predictions.data_ptr();
  args.slopes = slopes.data_ptr();
  args.hidden_grad = need_grad ? hidden_grad.data_ptr() : nullptr;
  std::vector<double> row_loss(static_cast<size_t>(batch));
  std::vector<int64_t> next(static_cast<size_t>(batch));
  args.row_loss = row_loss.data();
  args.next = next.data();
  args.num_columns = num_columns;
  const int64_t row_bytes = dim * static_cast<int64_t>(weight.element_size());
  args.tile = csr.tile(row_bytes);
  args.asks = Csr::asks(args.tile, row_bytes);

  // Threads get rows with about as many entries.
  const int64_t chunks = threads_for((nnz + batch) * (dim + 1), kGrain);
  const Tensor grads = need_grad && wide != dtype ? empty_cpu({batch, dim}, wide) : hidden_grad;
  args.grads = need_grad ? grads.data_ptr() : nullptr;
  for_each_chunk(chunks, [&](int64_t chunk) {
    SampledArgs part = args;
    part.begin = csr.first_row(chunk, chunks);
    part.end = csr.first_row(chunk + 1, chunks);
    DEEPREC_DISPATCH(sampled_rows)(part);
  });
  double sum = 0;
  for (const double of_row : row_loss) {
    sum += of_row;
  }
  if (wide == ScalarType::Double) {
    *static_cast<double*>(total.data_ptr()) = sum;
  } else {
    *static_cast<float*>(total.data_ptr()) = static_cast<float>(sum);
  }
  return {total, predictions, slopes, hidden_grad};
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) { m.impl("sampled_linear_loss", TORCH_BOX(&deeprec::sampled_linear_loss)); }
#endif
