// The gradients over several tables, embedding_bags_grad, embedding_bags_dense_grad and embedding_bags_update_: checks,
// allocation and the split of the work; the kernel is in embedding_bag_grad.cpp.
#include "embedding_bag.h"

#ifdef DEEPREC_ISA_portable
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bag_layout.h"
#include "embedding_bag_op.h"
#include "plan_check.h"
#include "row_blocks.h"

namespace deeprec {
namespace {

// What embedding_bags_grad and embedding_bags_update_ share; keeps alive whatever it had to copy.
struct Backward {
  Layout layout;
  Tensors weights;
  Tensor grad;
  Tensors sequences;
  Tensor argmax;
  std::optional<Tensor> scale;
  BagPlan plan;
  std::vector<FeatureGrad> features;
  std::vector<BagGradArgs> of_table;
  void (*kernel)(const BagGradArgs&) = DEEPREC_DISPATCH(sum_bag_grads);
  double factor = 1;  // on all gradients
  std::vector<double> inverse_wide;
  std::vector<float> inverse;
  Tensor scale_grad;
  BagGradArgs args{};

  Backward(const char* op, const Tensors& weights_in, const Tensor& grad_in, const Tensors& sequence_grads,
           const Tensor& argmax_in, const Tensor& ids, const std::optional<Tensor>& offsets,
           const std::optional<Tensor>& per_sample_weights, BagPlan plan_in, const Ints& tables, const Ints& modes,
           const Ints& padding, bool need_weights_grad)
      : layout(op, ids, offsets, tables.size()),
        weights(weights_in),
        grad(rows_adjacent(grad_in)),
        argmax(argmax_in),
        plan(std::move(plan_in)),
        scale_grad(empty_cpu({0}, weights_in.empty() ? ScalarType::Float : weights_in[0].scalar_type())) {
    check_tables(op, weights);
    check_features(op, tables, padding, weights.size());
    check_modes(op, modes, tables.size(), per_sample_weights.has_value());
    const ScalarType dtype = weights[0].scalar_type();
    require_safe(op, plan, layout, weights, tables);
    const auto [columns, width] = columns_of(layout, weights, tables, modes);
    DEEPREC_CHECK(grad.dim() == 2 && grad.size(0) == layout.batch && grad.size(1) == width &&
                      grad.scalar_type() == dtype && grad.is_cpu(),
                  "ValueError: ", op, ": grad must be [", layout.batch, ", ", width, "] in the dtype of the tables");
    const bool maxima = has_max(layout, modes);
    DEEPREC_CHECK(!maxima || (argmax.dim() == 2 && argmax.size(0) == layout.batch && argmax.size(1) == width &&
                              argmax.scalar_type() == layout.ids.scalar_type()),
                  "ValueError: ", op, ": argmax must be the second result of embedding_bags");
    args.element = element_of(op, dtype);
    args.grad = static_cast<const char*>(grad.data_ptr());
    args.grad_stride = grad.stride(0);
    args.batch = layout.batch;
    args.row_offsets = plan.row_offsets.data_ptr();
    args.order = plan.order.data_ptr();
    args.bags = layout.offsets ? plan.bags.data_ptr() : nullptr;
    args.wide_positions = plan.wide_positions;
    args.rows = plan.rows.data_ptr();
    args.wide_rows = plan.wide_rows;
    if (maxima) {
      argmax = argmax.is_contiguous() ? argmax : torch::stable::contiguous(argmax);
      args.argmax = static_cast<const char*>(argmax.data_ptr());
      args.argmax_stride = width;
      args.wide_argmax = layout.wide;
    }
    if (per_sample_weights) {
      scale = check_scale(op, layout, per_sample_weights, dtype);
      scale = scale->is_contiguous() ? *scale : torch::stable::contiguous(*scale);
      args.scale = scale->data_ptr();
      if (need_weights_grad) {
        scale_grad = empty_cpu(Ints(scale->sizes().begin(), scale->sizes().end()), dtype);
        std::fill_n(static_cast<char*>(scale_grad.data_ptr()), scale_grad.numel() * scale_grad.element_size(), char{0});
        args.scale_grad = scale_grad.data_ptr();
      }
    }
    if (layout.offsets && std::find(modes.begin(), modes.end(), 1) != modes.end()) {
      set_inverse_lengths(modes, padding);
    }
    set_features(op, columns, sequence_grads, tables, modes);
  }

  void set_features(const char* op, const Ints& columns, const Tensors& sequence_grads, const Ints& tables,
                    const Ints& modes) {
    Ints feature_of_table(weights.size(), -2);  // the only one, or -1
    for (size_t i = 0; i < tables.size(); ++i) {
      const int64_t f = static_cast<int64_t>(i);
      int64_t& only = feature_of_table[static_cast<size_t>(tables[i])];
      only = only == -2 ? f : -1;
      FeatureGrad feature{columns[i], nullptr, layout.first_entry(f), static_cast<BagMode>(modes[i])};
      if (columns[i] < 0) {
        const int64_t dim = weights[static_cast<size_t>(tables[i])].size(1);
        DEEPREC_CHECK(sequences.size() < sequence_grads.size(), "ValueError: ", op,
                      ": one gradient for each unpooled feature");
        Tensor g = sequence_grads[sequences.size()];
        DEEPREC_CHECK(g.dim() == 2 && g.size(0) == layout.num_entries(f) && g.size(1) == dim &&
                          g.scalar_type() == weights[0].scalar_type() && g.is_cpu(),
                      "ValueError: ", op, ": the gradient of unpooled feature ", f, " must be [", layout.num_entries(f),
                      ", ", dim, "]");
        g = g.is_contiguous() ? g : torch::stable::contiguous(g);
        feature.sequence = static_cast<const char*>(g.data_ptr());
        sequences.push_back(g);
      }
      features.push_back(feature);
    }
    DEEPREC_CHECK(!layout.offsets || sequences.size() == sequence_grads.size(), "ValueError: ", op,
                  ": sequence_grads must be ", sequences.size(), ", one for each unpooled feature, got ",
                  sequence_grads.size());
    args.features = features.data();
    for (size_t t = 0; t < weights.size(); ++t) {
      args.weight = static_cast<const char*>(weights[t].data_ptr());
      args.row_stride = weights[t].stride(0);
      args.dim = weights[t].size(1);
      args.feature = feature_of_table[t];
      of_table.push_back(args);
    }
  }

  void set_inverse_lengths(const Ints& modes, const Ints& padding) {
    const bool is_double = args.element == Element::f64;
    const int64_t num_bags = layout.num_features * layout.batch;
    if (is_double) {
      inverse_wide.assign(static_cast<size_t>(num_bags), 1);
    } else {
      inverse.assign(static_cast<size_t>(num_bags), 1);
    }
    for (int64_t f = 0; f < layout.num_features; ++f) {
      if (modes[static_cast<size_t>(f)] != 1) {
        continue;
      }
      const int64_t pad = padding[static_cast<size_t>(f)], first = layout.first_entry(f);
      for (int64_t bag = f * layout.batch; bag < (f + 1) * layout.batch; ++bag) {
        int64_t length = layout.bound(bag + 1) - layout.bound(bag);
        for (int64_t p = layout.bound(bag); pad >= 0 && p < layout.bound(bag + 1); ++p) {
          length -= layout.id(f, p - first) == pad;
        }
        if (is_double) {
          inverse_wide[static_cast<size_t>(bag)] = 1.0 / static_cast<double>(std::max<int64_t>(length, 1));
        } else {
          inverse[static_cast<size_t>(bag)] = 1.0f / static_cast<float>(std::max<int64_t>(length, 1));
        }
      }
    }
    args.inverse_length = is_double ? static_cast<const void*>(inverse_wide.data()) : inverse.data();
  }

  int64_t dim(int64_t t) const { return of_table[static_cast<size_t>(t)].dim; }
  int64_t num_tables() const { return static_cast<int64_t>(weights.size()); }

  int64_t widest() const {
    int64_t out = 1;
    for (int64_t t = 0; t < num_tables(); ++t) {
      out = std::max(out, dim(t));
    }
    return out;
  }

  // Sums the gradients of a block's rows into `out`.
  void sum(const RowBlock& block, void* out, bool wide_out, const RowsAhead& ahead = {}) const {
    BagGradArgs part = of_table[static_cast<size_t>(block.table)];
    part.begin = block.begin;
    part.end = block.end;
    part.segment_end = block.segment_end;
    part.ahead = ahead;
    part.factor = factor;
    part.out = out;
    part.wide_out = wide_out;
    kernel(part);
  }

  template <class Work>
  void each_block(const Work& work) const {
    for_each_row_block(plan, num_tables(), chunks_for(plan, widest()), [&](int64_t t) { return dim(t); }, work);
  }
};

Tensors embedding_bags_grad(const Tensors& weights_in, const Tensor& grad, const Tensors& sequence_grads,
                            const Tensor& argmax, const Tensor& ids, const std::optional<Tensor>& offsets,
                            const std::optional<Tensor>& per_sample_weights, const Tensor& rows,
                            const Tensor& row_offsets, const Tensor& order, const Tensor& bags,
                            const Tensor& table_starts, const Ints& tables, const Ints& modes, const Ints& padding,
                            bool need_weights_grad) {
  Tensors weights = weights_in;
  for (Tensor& w : weights) {
    w = rows_adjacent(w);
  }
  const Backward backward("embedding_bags_grad", weights, grad, sequence_grads, argmax, ids, offsets,
                          per_sample_weights, {rows, row_offsets, order, bags, table_starts}, tables, modes, padding,
                          need_weights_grad);
  Tensors out;
  std::vector<char*> data;
  for (int64_t t = 0; t < backward.num_tables(); ++t) {
    const int64_t count = backward.plan.table_start[t + 1] - backward.plan.table_start[t];
    out.push_back(empty_cpu({count, backward.dim(t)}, weights[0].scalar_type()));
    data.push_back(static_cast<char*>(out.back().data_ptr()));
  }
  const int64_t element = static_cast<int64_t>(weights[0].element_size());
  backward.each_block([&](int64_t, const RowBlock& block) {
    const int64_t row = block.begin - backward.plan.table_start[block.table];
    backward.sum(block, data[static_cast<size_t>(block.table)] + row * backward.dim(block.table) * element, false);
  });
  out.push_back(backward.scale_grad);
  return out;
}

Tensors embedding_bags_dense_grad(const Tensors& weights_in, const Tensor& grad, const Tensors& sequence_grads,
                                  const Tensor& argmax, const Tensor& ids, const std::optional<Tensor>& offsets,
                                  const std::optional<Tensor>& per_sample_weights, const Ints& tables,
                                  const Ints& modes, const Ints& padding, bool need_weights_grad) {
  Tensors weights = weights_in;
  Ints sizes;
  for (Tensor& w : weights) {
    w = rows_adjacent(w);
    sizes.push_back(w.size(0));
  }
  const auto [rows, row_offsets, order, bags, starts] = embedding_bags_plan(ids, offsets, sizes, tables, padding);
  const Backward backward("embedding_bags_dense_grad", weights, grad, sequence_grads, argmax, ids, offsets,
                          per_sample_weights, {rows, row_offsets, order, bags, starts}, tables, modes, padding,
                          need_weights_grad);
  const int64_t element = static_cast<int64_t>(weights[0].element_size());
  Tensors out;
  std::vector<char*> data;
  for (int64_t t = 0; t < backward.num_tables(); ++t) {
    out.push_back(empty_cpu({sizes[static_cast<size_t>(t)], backward.dim(t)}, weights[0].scalar_type()));
    data.push_back(static_cast<char*>(out.back().data_ptr()));
    const int64_t bytes = out.back().numel() * element;
    const int64_t chunks = threads_for(bytes, 1 << 18);
    for_each_chunk(chunks, [&](int64_t chunk) {
      const int64_t begin = bytes * chunk / chunks, end = bytes * (chunk + 1) / chunks;
      std::fill(data.back() + begin, data.back() + end, char{0});
    });
  }
  backward.each_block([&](int64_t, const RowBlock& block) {
    alignas(64) double fixed[kBlockElements];
    const int64_t bytes = backward.dim(block.table) * element, rows_here = block.end - block.begin;
    std::unique_ptr<char[]> large(rows_here * bytes > static_cast<int64_t>(sizeof(fixed))
                                      ? new char[static_cast<size_t>(rows_here * bytes)]
                                      : nullptr);
    char* sums = large ? large.get() : reinterpret_cast<char*>(fixed);
    backward.sum(block, sums, false);
    for (int64_t u = 0; u < rows_here; ++u) {
      const int64_t row = backward.plan.row(block.begin + u);
      std::copy_n(sums + u * bytes, bytes, data[static_cast<size_t>(block.table)] + row * bytes);
    }
  });
  out.push_back(backward.scale_grad);
  return out;
}

Tensor embedding_bags_update_(const Tensors& weights, const Tensors& first, const Tensors& second, const Tensor& grad,
                              const Tensors& sequence_grads, const Tensor& argmax, const Tensor& ids,
                              const std::optional<Tensor>& offsets, const std::optional<Tensor>& per_sample_weights,
                              const Tensor& rows, const Tensor& row_offsets, const Tensor& order, const Tensor& bags,
                              const Tensor& table_starts, const Ints& tables, const Ints& modes, const Ints& padding,
                              bool need_weights_grad, int64_t rule, const Tensor& lr, const Tensor& step,
                              const std::vector<double>& options, double max_norm, int64_t seed) {
  const char* op = "embedding_bags_update_";
  Optimizer optimizer = optimizer_of(op, weights, first, second, rule, lr, step, options, max_norm, seed);
  Backward backward(op, weights, grad, sequence_grads, argmax, ids, offsets, per_sample_weights,
                    {rows, row_offsets, order, bags, table_starts}, tables, modes, padding, need_weights_grad);
  if (max_norm > 0) {
    const auto sum = [&](const RowBlock& block, void* out) { backward.sum(block, out, true); };
    backward.factor = clip_factor(backward.plan, optimizer, backward.num_tables(), sum);
  }
  backward.each_block([&](int64_t, const RowBlock& block) {
    alignas(64) double fixed[kBlockElements];
    const int64_t size = (block.end - block.begin) * backward.dim(block.table);
    std::unique_ptr<double[]> large(size > kBlockElements ? new double[static_cast<size_t>(size)] : nullptr);
    void* grads = large ? large.get() : fixed;
    backward.sum(block, grads, true, rows_ahead(optimizer, block.table, backward.plan, block));
    update_block(optimizer, block.table, backward.plan, block, grads);
  });
  ++*optimizer.step;
  return backward.scale_grad;
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("embedding_bags_grad", TORCH_BOX(&deeprec::embedding_bags_grad));
  m.impl("embedding_bags_dense_grad", TORCH_BOX(&deeprec::embedding_bags_dense_grad));
  m.impl("embedding_bags_update_", TORCH_BOX(&deeprec::embedding_bags_update_));
}
#endif
