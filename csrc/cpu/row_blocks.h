// The loop that turns the entries of each touched row of several tables into a summed gradient and hands it to an
// optimizer, a block of rows at a time: gradients wait in the first-level cache and are never stored. Portable pass
// only; `embedding_bags` and `embedding_fm` bring the kernels that sum.
#pragma once

#include <cmath>
#include <optional>

#include "sparse_update.h"
#include "tensor.h"

namespace deeprec {

// The plan of a batch, as embedding_bags_plan returns it. Reading a stable tensor's fields costs a call: kept here.
struct BagPlan {
  Tensor rows, row_offsets, order, bags, table_starts;
  int64_t num_rows, num_entries;
  bool wide_rows, wide_positions;
  const void *row_data, *offset_data;
  const int64_t* table_start;

  BagPlan(const Tensor& rows_in, const Tensor& row_offsets_in, const Tensor& order_in, const Tensor& bags_in,
          const Tensor& table_starts_in)
      : rows(rows_in),
        row_offsets(row_offsets_in),
        order(order_in),
        bags(bags_in),
        table_starts(table_starts_in),
        num_rows(rows.numel()),
        num_entries(order.numel()),
        wide_rows(rows.scalar_type() == ScalarType::Long),
        wide_positions(order.scalar_type() == ScalarType::Long),
        row_data(rows.data_ptr()),
        offset_data(row_offsets.data_ptr()),
        table_start(static_cast<const int64_t*>(table_starts.data_ptr())) {}

  int64_t row_offset(int64_t u) const {
    return wide_positions ? static_cast<const int64_t*>(offset_data)[u] : static_cast<const int32_t*>(offset_data)[u];
  }

  int64_t row(int64_t u) const {
    return wide_rows ? static_cast<const int64_t*>(row_data)[u] : static_cast<const int32_t*>(row_data)[u];
  }

  const void* rows_from(int64_t u) const { return static_cast<const char*>(row_data) + u * (wide_rows ? 8 : 4); }

  // The first row whose entries begin at `position` or later.
  int64_t first_row_from(int64_t position) const {
    int64_t low = 0, high = num_rows;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (row_offset(middle) < position) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// Rows [begin, end) of the plan, all of one table; the same thread goes on with it up to segment_end.
struct RowBlock {
  int64_t table, begin, end, segment_end;
};

constexpr int64_t kBlockElements = 4096;  // of the gradients that wait in the first-level cache for the optimizer
constexpr int64_t kMaxBlockRows = 64;
constexpr int64_t kRowsGrain = 1 << 14;  // elements of gradient worth a thread

// Calls work(chunk number, block) for all rows in blocks; chunks run in parallel, the blocks of a chunk one after
// another. Threads share the entries evenly, not the rows: one popular row may hold most of them.
template <class DimOf, class Work>
void for_each_row_block(const BagPlan& plan, int64_t num_tables, int64_t chunks, const DimOf& dim_of,
                        const Work& work) {
  const int64_t nnz = plan.num_entries;
  for_each_chunk(chunks, [&](int64_t chunk) {
    const int64_t first = plan.first_row_from(nnz * chunk / chunks);
    const int64_t last = chunk + 1 == chunks ? plan.num_rows : plan.first_row_from(nnz * (chunk + 1) / chunks);
    for (int64_t t = 0; t < num_tables; ++t) {
      const int64_t begin = std::max(first, plan.table_start[t]), end = std::min(last, plan.table_start[t + 1]);
      const int64_t step = std::clamp<int64_t>(kBlockElements / std::max<int64_t>(dim_of(t), 1), 1, kMaxBlockRows);
      for (int64_t u = begin; u < end; u += step) {
        work(chunk, RowBlock{t, u, std::min(end, u + step), end});
      }
    }
  });
}

inline int64_t chunks_for(const BagPlan& plan, int64_t dim) {
  const int64_t threads = threads_for((plan.num_entries + plan.num_rows) * dim, kRowsGrain);
  return threads == 1 ? 1 : threads * 4;  // some parts of the tables are slower than others
}

// One step of an optimizer for every table of a call.
enum class Rule : int64_t { sgd = 0, adagrad = 1, rowwise_adagrad = 2, adam = 3, ftrl = 4 };

struct Optimizer {
  std::vector<RowUpdateArgs> tables;
  void (*kernel)(const RowUpdateArgs&);
  bool state_per_row;  // of the first state: one number a row
  int64_t* step;       // steps taken before this one
  double max_norm;     // of the gradients of all tables together; 0: any
};

// The stream of random bits of one step and table; `rounding_seed` in kernels/sparse_update/reference.py.
inline int64_t rounding_seed(int64_t seed, int64_t step, int64_t table) {
  if (seed < 0) {
    return -1;
  }
  const uint64_t mixed = static_cast<uint64_t>(seed) + static_cast<uint64_t>(step) * 0x9E3779B97F4A7C15u +
                         static_cast<uint64_t>(table) * 0xBF58476D1CE4E5B9u;
  return static_cast<int64_t>(mixed & 0x7fffffffffffffffu);
}

// Each number that the rule uses is in its domain.
inline void check_options(const char* op, Rule rule, double lr, const std::vector<double>& options) {
  if (rule == Rule::ftrl) {
    check_ftrl(op, lr, options[2], options[3], options[0]);
    DEEPREC_CHECK(options[1] == 0, op, ": FTRL takes no weight_decay but l2, got ", options[1]);
    return;
  }
  check_rates(op, lr, options[1]);
  if (rule == Rule::sgd) {
    check_momentum(op, options[2]);
  } else {
    check_eps(op, options[0]);
  }
  if (rule == Rule::adam) {
    check_betas(op, options[2], options[3]);
  }
}

// Checks everything and changes nothing. options: eps, weight_decay, beta1 (momentum), beta2; of FTRL beta, 0, l1, l2.
inline Optimizer optimizer_of(const char* op, const std::vector<Tensor>& weights, const std::vector<Tensor>& first,
                              const std::vector<Tensor>& second, int64_t rule, const Tensor& lr, const Tensor& step,
                              const std::vector<double>& options, double max_norm, int64_t seed) {
  DEEPREC_CHECK(rule >= 0 && rule <= 4, op,
                ": rule must be 0 (SGD), 1 (Adagrad), 2 (row-wise Adagrad), 3 (Adam) or 4 (FTRL), got ", rule);
  DEEPREC_CHECK(lr.numel() == 1 && lr.scalar_type() == ScalarType::Double && lr.is_cpu(), op,
                ": lr must be one float64 on the CPU");
  DEEPREC_CHECK(step.numel() == 1 && step.scalar_type() == ScalarType::Long && step.is_cpu(), op,
                ": step must be one int64 on the CPU");
  DEEPREC_CHECK(options.size() == 4, op, ": options must be eps, weight_decay, beta1, beta2");
  const auto kind = static_cast<Rule>(rule);
  const bool has_first = kind != Rule::sgd || !first.empty();
  const bool has_second = kind == Rule::adam || kind == Rule::ftrl;
  DEEPREC_CHECK(first.size() == (has_first ? weights.size() : 0) && second.size() == (has_second ? weights.size() : 0),
                op, ": this rule needs other states for ", weights.size(), " tables, got ", first.size(), " and ",
                second.size());
  Optimizer out{{}, nullptr, kind == Rule::rowwise_adagrad, static_cast<int64_t*>(step.data_ptr()), max_norm};
  out.kernel = kind == Rule::sgd       ? DEEPREC_DISPATCH(sgd_rows)
               : kind == Rule::adagrad ? DEEPREC_DISPATCH(adagrad_rows)
               : kind == Rule::adam    ? DEEPREC_DISPATCH(adam_rows)
               : kind == Rule::ftrl    ? DEEPREC_DISPATCH(ftrl_rows)
                                       : DEEPREC_DISPATCH(rowwise_adagrad_rows);
  const double rate = *static_cast<const double*>(lr.data_ptr()), count = static_cast<double>(*out.step + 1);
  check_options(op, kind, rate, options);
  if (kind == Rule::adam) {
    check_step(op, *out.step + 1);
  }
  for (size_t t = 0; t < weights.size(); ++t) {
    check_weight(op, weights[t]);
    RowUpdateArgs args{};
    args.element = element_of(op, weights[t].scalar_type());
    args.weight = weights[t].data_ptr();
    args.dim = weights[t].size(1);
    args.wide_grads = true;
    args.lr = rate;
    args.eps = options[0];
    args.weight_decay = options[1];
    args.beta1 = options[2];
    args.beta2 = options[3];
    if (kind == Rule::adam) {
      args.step_size = rate / (1.0 - std::pow(args.beta1, count));
      args.inv_sqrt_correction2 = 1.0 / std::sqrt(1.0 - std::pow(args.beta2, count));
    }
    args.rounding_seed = rounding_seed(seed, *out.step + 1, static_cast<int64_t>(t));
    if (has_first) {
      const int64_t numel = out.state_per_row ? weights[t].size(0) : weights[t].numel();
      args.first_state = state_data(op, "the first state", first[t], weights[t], numel);
    }
    if (has_second) {
      args.second_state = state_data(op, "the second state", second[t], weights[t], weights[t].numel());
    }
    out.tables.push_back(args);
  }
  return out;
}

// Takes the step for a block of rows of table `t`, whose gradients lie in `grads`, [rows, D] in the accumulator's type.
inline void update_block(const Optimizer& optimizer, int64_t t, const BagPlan& plan, const RowBlock& block,
                         const void* grads) {
  RowUpdateArgs args = optimizer.tables[static_cast<size_t>(t)];
  args.rows = plan.rows_from(block.begin);
  args.wide_rows = plan.wide_rows;
  args.grads = grads;
  args.grad_stride = args.dim;
  args.begin = 0;
  args.end = block.end - block.begin;
  optimizer.kernel(args);
}

// What to ask for while the gradients of a block are summed: weights and states of the block after it.
inline RowsAhead rows_ahead(const Optimizer& optimizer, int64_t t, const BagPlan& plan, const RowBlock& block) {
  const RowUpdateArgs& args = optimizer.tables[static_cast<size_t>(t)];
  const int64_t wide = args.element == Element::f64 ? 8 : 4;
  const int64_t element = args.element == Element::f64 ? 8 : args.element == Element::f32 ? 4 : 2;
  RowsAhead out{plan.row_data, plan.wide_rows, block.end - block.begin, block.segment_end, {}};
  out.targets[0] = {static_cast<const char*>(args.weight), args.dim * element};
  out.targets[1] = {static_cast<const char*>(args.first_state), (optimizer.state_per_row ? 1 : args.dim) * wide};
  out.targets[2] = {static_cast<const char*>(args.second_state), args.dim * wide};
  return out;
}

// What the gradients of all tables must be multiplied with so that their norm is at most optimizer.max_norm. The
// squares are added block by block in the order of the plan: the same for any number of threads.
template <class Sum>
double clip_factor(const BagPlan& plan, const Optimizer& optimizer, int64_t num_tables, const Sum& sum) {
  const auto dim_of = [&](int64_t t) { return optimizer.tables[static_cast<size_t>(t)].dim; };
  std::vector<double> squares(static_cast<size_t>(plan.num_rows));  // of each row: blocks depend on the threads
  int64_t widest = 1;
  for (int64_t t = 0; t < num_tables; ++t) {
    widest = std::max(widest, dim_of(t));
  }
  for_each_row_block(plan, num_tables, chunks_for(plan, widest), dim_of, [&](int64_t, const RowBlock& block) {
    const int64_t dim = dim_of(block.table);
    std::vector<double> scratch(static_cast<size_t>((block.end - block.begin) * dim));
    sum(block, scratch.data());
    const bool is_double = optimizer.tables[static_cast<size_t>(block.table)].element == Element::f64;
    for (int64_t u = block.begin; u < block.end; ++u) {
      double total = 0;
      for (int64_t k = 0; k < dim; ++k) {
        const int64_t at = (u - block.begin) * dim + k;
        const double g = is_double ? scratch[static_cast<size_t>(at)]
                                   : static_cast<double>(reinterpret_cast<const float*>(scratch.data())[at]);
        total += g * g;
      }
      squares[static_cast<size_t>(u)] = total;
    }
  });
  double total = 0;
  for (const double s : squares) {
    total += s;
  }
  const double norm = std::sqrt(total);
  return norm > optimizer.max_norm ? optimizer.max_norm / norm : 1.0;
}

}  // namespace deeprec
