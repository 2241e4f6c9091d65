// The backward operators of embedding_fm: checks, allocation and the split of the work; the kernel is in
// embedding_fm_grad.cpp.
#include "embedding_fm.h"

#ifdef DEEPREC_ISA_portable
#include <memory>

#include "embedding_fm_op.h"
#include "plan_check.h"
#include "row_blocks.h"

namespace deeprec {
namespace {

Tensor packed(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// What the three backward operators share; keeps alive whatever it had to copy.
struct FmBackward {
  FmTables all;
  Layout layout;
  Tensor sums;
  std::optional<Tensor> embeddings_grad, values;
  BagPlan plan;
  std::vector<double> grad;  // [B], in the accumulator's type
  Tensor values_grad;
  std::vector<FmGradArgs> of_table;
  double factor = 1;
  void (*kernel)(const FmGradArgs&) = DEEPREC_DISPATCH(fm_sum_grads);

  FmBackward(const char* op, const Tensors& weights, const Tensors& linear, const Tensor& grad_in,
             const Tensor& sums_in, const std::optional<Tensor>& embeddings_grad_in, const Tensor& ids,
             const std::optional<Tensor>& offsets, const std::optional<Tensor>& values_in, BagPlan plan_in,
             const Ints& tables, const Ints& padding, bool need_values_grad)
      : all(op, weights, linear, tables, padding),
        layout(op, ids, offsets, tables.size()),
        sums(packed(sums_in)),
        plan(std::move(plan_in)),
        values_grad(empty_cpu({0}, all.dtype())) {
    const int64_t batch = layout.batch, num_features = layout.num_features;
    require_safe(op, plan, layout, weights, tables);
    DEEPREC_CHECK(
        grad_in.dim() == 1 && grad_in.size(0) == batch && grad_in.scalar_type() == all.dtype() && grad_in.is_cpu(),
        "ValueError: ", op, ": grad must be [", batch, "] in the dtype of the tables");
    DEEPREC_CHECK(sums.dim() == 2 && sums.size(0) == batch && sums.size(1) == all.dim &&
                      sums.scalar_type() == all.wide() && sums.is_cpu(),
                  "ValueError: ", op, ": sums must be the second result of embedding_fm, [", batch, ", ", all.dim, "]");
    FmGradArgs args{};
    args.element = element_of(op, all.dtype());
    args.dim = all.dim;
    args.batch = batch;
    args.row_offsets = plan.row_offsets.data_ptr();
    args.order = plan.order.data_ptr();
    args.bags = layout.offsets ? plan.bags.data_ptr() : nullptr;
    args.wide_positions = plan.wide_positions;
    args.rows = plan.rows.data_ptr();
    args.wide_rows = plan.wide_rows;
    read_grad(grad_in);
    args.grad = grad.data();
    args.sums = sums.data_ptr();
    if (embeddings_grad_in) {
      embeddings_grad = *embeddings_grad_in;
      DEEPREC_CHECK(embeddings_grad->dim() == 3 && embeddings_grad->size(0) == batch &&
                        embeddings_grad->size(1) == num_features && embeddings_grad->size(2) == all.dim &&
                        embeddings_grad->scalar_type() == all.dtype() && embeddings_grad->is_cpu(),
                    "ValueError: ", op, ": embeddings_grad must be [", batch, ", ", num_features, ", ", all.dim,
                    "] in the dtype of the tables");
      if (all.dim > 1 && embeddings_grad->stride(2) != 1) {
        embeddings_grad = torch::stable::contiguous(*embeddings_grad);
      }
      args.embeddings_grad = static_cast<const char*>(embeddings_grad->data_ptr());
      args.grad_batch_stride = embeddings_grad->stride(0);
      args.grad_feature_stride = embeddings_grad->stride(1);
    }
    if (values_in) {
      values = packed(check_values(op, layout, *values_in, all.dtype()));
      args.values = values->data_ptr();
      if (need_values_grad) {
        values_grad = empty_cpu(Ints(values->sizes().begin(), values->sizes().end()), all.dtype());
        std::fill_n(static_cast<char*>(values_grad.data_ptr()), values_grad.numel() * element(), char{0});
        args.values_grad = values_grad.data_ptr();
      }
    }
    set_tables(args, tables);
  }

  void read_grad(const Tensor& from) {
    const int64_t batch = layout.batch, stride = from.stride(0);
    grad.resize(static_cast<size_t>(batch));
    const void* data = from.data_ptr();
    float* narrow = reinterpret_cast<float*>(grad.data());
    for (int64_t b = 0; b < batch; ++b) {
      switch (from.scalar_type()) {
        case ScalarType::Double:
          grad[static_cast<size_t>(b)] = static_cast<const double*>(data)[b * stride];
          break;
        case ScalarType::Float:
          narrow[b] = static_cast<const float*>(data)[b * stride];
          break;
        case ScalarType::BFloat16:
          narrow[b] = portable::widen(static_cast<const portable::Bf16*>(data)[b * stride]);
          break;
        default:
          narrow[b] = portable::widen(static_cast<const portable::F16*>(data)[b * stride]);
      }
    }
  }

  void set_tables(FmGradArgs args, const Ints& tables) {
    Ints feature_of_table(all.weights.size(), -2);  // the only one, or -1
    for (size_t f = 0; f < tables.size(); ++f) {
      int64_t& only = feature_of_table[static_cast<size_t>(tables[f])];
      only = only == -2 ? static_cast<int64_t>(f) : -1;
    }
    for (size_t t = 0; t < all.weights.size(); ++t) {
      args.weight = static_cast<const char*>(all.weights[t].data_ptr());
      args.row_stride = all.weights[t].stride(0) * element();
      args.feature = feature_of_table[t];
      if (has_linear()) {
        args.linear = static_cast<const char*>(all.linear[t].data_ptr());
        args.linear_stride = all.linear[t].stride(0) * element();
      }
      of_table.push_back(args);
    }
  }

  int64_t element() const { return static_cast<int64_t>(all.weights[0].element_size()); }
  int64_t num_tables() const { return static_cast<int64_t>(all.weights.size()); }
  bool has_linear() const { return !all.linear.empty(); }

  // The tables' rows a little ahead, for an operator that does not update them.
  RowsAhead rows_ahead_of(const RowBlock& block) const {
    const FmGradArgs& args = of_table[static_cast<size_t>(block.table)];
    RowsAhead out{plan.row_data, plan.wide_rows, 16, block.segment_end, {}};
    out.targets[0] = {args.row_stride == all.dim * element() ? args.weight : nullptr, args.row_stride};
    return out;
  }

  // Sums the gradients of a block's rows into `out` and, where there is a linear term, `linear_out`.
  void sum(const RowBlock& block, void* out, void* linear_out, bool wide_out, const RowsAhead& ahead,
           const RowsAhead& linear_ahead = {}) const {
    FmGradArgs part = of_table[static_cast<size_t>(block.table)];
    part.begin = block.begin;
    part.end = block.end;
    part.segment_end = block.segment_end;
    part.ahead = ahead;
    part.linear_ahead = linear_ahead;
    part.factor = factor;
    part.out = out;
    part.linear_out = has_linear() ? linear_out : nullptr;
    part.wide_out = wide_out;
    kernel(part);
  }

  template <class Work>
  void each_block(const Work& work) const {
    for_each_row_block(plan, num_tables(), chunks_for(plan, all.dim), [&](int64_t) { return all.dim; }, work);
  }

  // As clip_factor in row_blocks.h, over rows and linear weights together.
  double clip_factor(double max_norm) const {
    std::vector<double> squares(static_cast<size_t>(plan.num_rows));
    const bool is_double = all.dtype() == ScalarType::Double;
    const auto square = [&](const std::vector<double>& values_of, int64_t at) {
      const double g = is_double ? values_of[static_cast<size_t>(at)]
                                 : static_cast<double>(reinterpret_cast<const float*>(values_of.data())[at]);
      return g * g;
    };
    each_block([&](int64_t, const RowBlock& block) {
      const int64_t count = block.end - block.begin;
      std::vector<double> rows(static_cast<size_t>(count * all.dim)), linear(static_cast<size_t>(count));
      sum(block, rows.data(), linear.data(), true, rows_ahead_of(block));
      for (int64_t u = 0; u < count; ++u) {
        double total = has_linear() ? square(linear, u) : 0;
        for (int64_t k = 0; k < all.dim; ++k) {
          total += square(rows, u * all.dim + k);
        }
        squares[static_cast<size_t>(block.begin + u)] = total;
      }
    });
    double total = 0;
    for (const double s : squares) {
      total += s;
    }
    const double norm = std::sqrt(total);
    return norm > max_norm ? max_norm / norm : 1.0;
  }
};

// A result for each table and each linear table, and where their values lie.
struct FmResults {
  Tensors tensors;
  std::vector<char*> data;

  void add(const Tensor& like, int64_t count) {
    Ints shape(like.sizes().begin(), like.sizes().end());
    shape[0] = count;
    tensors.push_back(empty_cpu(shape, like.scalar_type()));
    data.push_back(static_cast<char*>(tensors.back().data_ptr()));
  }
};

Tensors embedding_fm_grad(const Tensors& weights, const Tensors& linear, const Tensor& grad, const Tensor& sums,
                          const std::optional<Tensor>& embeddings_grad, const Tensor& ids,
                          const std::optional<Tensor>& offsets, const std::optional<Tensor>& values, const Tensor& rows,
                          const Tensor& row_offsets, const Tensor& order, const Tensor& bags,
                          const Tensor& table_starts, const Ints& tables, const Ints& padding, bool need_values_grad) {
  const FmBackward backward("embedding_fm_grad", weights, linear, grad, sums, embeddings_grad, ids, offsets, values,
                            {rows, row_offsets, order, bags, table_starts}, tables, padding, need_values_grad);
  const int64_t num_tables = backward.num_tables(), row_bytes = backward.all.dim * backward.element();
  FmResults out;
  for (const Tensors* group : {&weights, &linear}) {
    for (size_t t = 0; t < group->size(); ++t) {
      out.add((*group)[t], backward.plan.table_start[t + 1] - backward.plan.table_start[t]);
    }
  }
  backward.each_block([&](int64_t, const RowBlock& block) {
    const int64_t row = block.begin - backward.plan.table_start[block.table];
    char* linear_out = backward.has_linear()
                           ? out.data[static_cast<size_t>(num_tables + block.table)] + row * backward.element()
                           : nullptr;
    backward.sum(block, out.data[static_cast<size_t>(block.table)] + row * row_bytes, linear_out, false,
                 backward.rows_ahead_of(block));
  });
  out.tensors.push_back(backward.values_grad);
  return out.tensors;
}

// Buffers for the gradients of one block.
struct FmBlockBuffer {
  alignas(64) double fixed[kBlockElements];
  double linear[kMaxBlockRows];
  std::unique_ptr<double[]> large;
  void* rows;

  explicit FmBlockBuffer(int64_t size)
      : large(size > kBlockElements ? new double[static_cast<size_t>(size)] : nullptr),
        rows(large ? large.get() : fixed) {}
};

Tensors embedding_fm_dense_grad(const Tensors& weights, const Tensors& linear, const Tensor& grad, const Tensor& sums,
                                const std::optional<Tensor>& embeddings_grad, const Tensor& ids,
                                const std::optional<Tensor>& offsets, const std::optional<Tensor>& values,
                                const Ints& tables, const Ints& padding, bool need_values_grad) {
  Ints sizes;
  for (const Tensor& w : weights) {
    sizes.push_back(w.size(0));
  }
  const auto [rows, row_offsets, order, bags, starts] = embedding_bags_plan(ids, offsets, sizes, tables, padding);
  const FmBackward backward("embedding_fm_dense_grad", weights, linear, grad, sums, embeddings_grad, ids, offsets,
                            values, {rows, row_offsets, order, bags, starts}, tables, padding, need_values_grad);
  FmResults out;
  for (const Tensors* group : {&weights, &linear}) {
    for (const Tensor& w : *group) {
      out.add(w, w.size(0));
      const int64_t bytes = w.numel() * backward.element();
      const int64_t chunks = threads_for(bytes, 1 << 18);
      for_each_chunk(chunks, [&](int64_t chunk) {
        std::fill(out.data.back() + bytes * chunk / chunks, out.data.back() + bytes * (chunk + 1) / chunks, char{0});
      });
    }
  }
  const int64_t element = backward.element(), row_bytes = backward.all.dim * element;
  backward.each_block([&](int64_t, const RowBlock& block) {
    FmBlockBuffer buffer((block.end - block.begin) * backward.all.dim);
    backward.sum(block, buffer.rows, buffer.linear, false, backward.rows_ahead_of(block));
    for (int64_t u = 0; u < block.end - block.begin; ++u) {
      const int64_t row = backward.plan.row(block.begin + u);
      const size_t t = static_cast<size_t>(block.table);
      std::copy_n(static_cast<const char*>(buffer.rows) + u * row_bytes, row_bytes, out.data[t] + row * row_bytes);
      if (backward.has_linear()) {
        std::copy_n(reinterpret_cast<const char*>(buffer.linear) + u * element, element,
                    out.data[weights.size() + t] + row * element);
      }
    }
  });
  out.tensors.push_back(backward.values_grad);
  return out.tensors;
}

// first and second hold the states of the tables, then those of the linear weights.
Tensor embedding_fm_update_(const Tensors& weights, const Tensors& linear, const Tensors& first, const Tensors& second,
                            const Tensor& grad, const Tensor& sums, const std::optional<Tensor>& embeddings_grad,
                            const Tensor& ids, const std::optional<Tensor>& offsets,
                            const std::optional<Tensor>& values, const Tensor& rows, const Tensor& row_offsets,
                            const Tensor& order, const Tensor& bags, const Tensor& table_starts, const Ints& tables,
                            const Ints& padding, bool need_values_grad, int64_t rule, const Tensor& lr,
                            const Tensor& step, const std::vector<double>& options, double max_norm, int64_t seed) {
  const char* op = "embedding_fm_update_";
  Tensors both = weights;
  for (const Tensor& w : linear) {
    both.push_back(w.dim() == 1 ? torch::stable::unsqueeze(w, 1) : w);
  }
  Optimizer optimizer = optimizer_of(op, both, first, second, rule, lr, step, options, max_norm, seed);
  FmBackward backward(op, weights, linear, grad, sums, embeddings_grad, ids, offsets, values,
                      {rows, row_offsets, order, bags, table_starts}, tables, padding, need_values_grad);
  const int64_t num_tables = backward.num_tables();
  if (max_norm > 0) {
    backward.factor = backward.clip_factor(max_norm);
  }
  backward.each_block([&](int64_t, const RowBlock& block) {
    FmBlockBuffer buffer((block.end - block.begin) * backward.all.dim);
    const RowsAhead ahead = rows_ahead(optimizer, block.table, backward.plan, block);
    const RowsAhead linear_ahead =
        backward.has_linear() ? rows_ahead(optimizer, num_tables + block.table, backward.plan, block) : RowsAhead{};
    backward.sum(block, buffer.rows, buffer.linear, true, ahead, linear_ahead);
    update_block(optimizer, block.table, backward.plan, block, buffer.rows);
    if (backward.has_linear()) {
      update_block(optimizer, num_tables + block.table, backward.plan, block, buffer.linear);
    }
  });
  ++*optimizer.step;
  return backward.values_grad;
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("embedding_fm_grad", TORCH_BOX(&deeprec::embedding_fm_grad));
  m.impl("embedding_fm_dense_grad", TORCH_BOX(&deeprec::embedding_fm_dense_grad));
  m.impl("embedding_fm_update_", TORCH_BOX(&deeprec::embedding_fm_update_));
}
#endif
