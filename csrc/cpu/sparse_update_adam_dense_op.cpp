// The wrappers of Adam on the dense gradient, adam_catch_up_ and adam_dense_update_, of one table and of several:
// checks, the table of replays, and the split of the work. The kernel is in sparse_update_adam_dense.cpp.
#include "sparse_update_adam_dense.h"

#ifdef DEEPREC_ISA_portable
#include <algorithm>
#include <cmath>
#include <exception>
#include <initializer_list>
#include <limits>
#include <optional>
#include <vector>

namespace deeprec {
namespace {

constexpr int64_t kMaxTable = 512;
constexpr int64_t kSharedSteps = 128, kSharingRows = 512;  // a table of coefficients costs about as much as 128 rows
constexpr int64_t kReadsGrain = 8192;                      // random reads of last_step worth a thread

// Steps after which what is left of a_k / s_k cannot be seen in float32; all of them where it does not shrink.
int64_t max_counted(const RowUpdateArgs& row) {
  const double ratio = row.beta2 > 0 ? row.beta1 / std::sqrt(row.beta2) : 1.0;
  if (row.element == Element::f64 || ratio > 0.99) {
    return std::numeric_limits<int64_t>::max();
  }
  return ratio <= 0 ? 1 : static_cast<int64_t>(std::ceil(-23.0 / std::log(ratio)));  // e^-23 = 1e-10
}

// Replays of 0, 1, 2... missed steps that all end at a.step. One more missed step in front changes the raw moments by
// E_p <- b1 b2^(p/2) E_p + a_1 s_1^p, so the table costs a few operations an entry.
std::vector<Replay> replay_table(const DenseAdamArgs& a, int64_t max_missed) {
  const double b1 = a.row.beta1, b2 = a.row.beta2, root2 = std::sqrt(b2);
  const int64_t size = std::min({max_missed, a.max_counted, kMaxTable}) + 1;
  std::vector<Replay> table(size);
  table[0] = Replay{true, 0, 0, 0, 0, 0, 1, 1, nullptr, nullptr};
  double e[5] = {0, 0, 0, 0, 0}, decay1 = 1, decay2 = 1, p1 = 0, p2 = 0;
  for (int64_t missed = 1; missed < size; ++missed) {
    const int64_t step = a.step - missed + 1;  // the first missed step
    if (missed % 64 == 1 || b1 == 0 || b2 == 0) {
      p1 = std::pow(b1, static_cast<double>(step)), p2 = std::pow(b2, static_cast<double>(step));
    } else {
      p1 /= b1, p2 /= b2;
    }
    const double alpha = a.lr[step - 1 - a.history_start] * b1 / (1 - p1);
    const double s = root2 / std::sqrt(1 - p2);
    double shrink = b1, power = alpha;
    for (double& moment : e) {
      moment = shrink * moment + power;
      shrink *= root2;
      power *= s;
    }
    Replay& out = table[missed];
    out.counted = missed;
    out.decay1 = decay1 *= b1;
    out.decay2 = decay2 *= b2;
    portable::finish(e, a.tolerance, &out);
  }
  return table;
}

// Longest absence among the rows; checks them all before anything is changed.
template <class Id>
int64_t longest_absence(const char* op, const DenseAdamArgs& a, const Id* rows, int64_t count, int64_t num_rows) {
  int64_t oldest = a.step;
  const bool skips_untouched = a.row.weight_decay == 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows ? static_cast<int64_t>(rows[i]) : i;
    DEEPREC_CHECK(row >= 0 && row < num_rows, op, ": rows must be in [0, ", num_rows, "), got ", row, " at position ",
                  i);
    const int64_t last = a.last_step[row];
    if (last < oldest && !(skips_untouched && last == 0)) {
      oldest = last;
    }
  }
  DEEPREC_CHECK(oldest >= a.history_start, op, ": a row reached step ", oldest,
                " only, but lr_history begins after step ", a.history_start);
  return a.step - oldest;
}

int64_t longest_absence(const char* op, const DenseAdamArgs& a, int64_t num_rows) {
  return a.row.wide_rows ? longest_absence(op, a, static_cast<const int64_t*>(a.row.rows), a.row.end, num_rows)
                         : longest_absence(op, a, static_cast<const int32_t*>(a.row.rows), a.row.end, num_rows);
}

// The learning rates of the steps that the row behind the others has missed.
void check_history(const char* op, const DenseAdamArgs& a, int64_t missed) {
  const double* rates = a.lr + (a.step - missed - a.history_start);
  double sum = 0;  // of x - x, which is 0 for a finite x and NaN for another
  for (int64_t k = 0; k < missed; ++k) {
    sum += rates[k] - rates[k];
  }
  check_number(op, "lr_history", sum, true, "finite in every step");
}

// What many rows share: the replay of each number of missed steps, and the coefficients of short ones taken by step.
struct ReplayPlan {
  std::vector<Replay> table;
  std::vector<double> coefficients;
};

// What the longest absence decides; the plan lives as long as the caller keeps it.
ReplayPlan plan_replay(DenseAdamArgs& a, int64_t missed, int64_t rows) {
  a.max_counted = max_counted(a.row);
  a.tolerance = a.row.element == Element::f64 ? 1e-13 : 1e-6;
  ReplayPlan plan{replay_table(a, a.row.weight_decay == 0 ? missed : 0), {}};
  const int64_t size = static_cast<int64_t>(plan.table.size()), last = std::min(size - 1, kSharedSteps);
  const auto is_shared = [&](int64_t n) { return !plan.table[static_cast<size_t>(n)].closed && n <= a.step; };
  if (rows >= kSharingRows && last > 0) {
    plan.coefficients.resize(static_cast<size_t>(last * (last + 1)));
    double* out = plan.coefficients.data();
    const auto coefficients = DEEPREC_DISPATCH(adam_replay_coefficients);
    for (int64_t n = 1; n <= last; ++n) {
      if (is_shared(n)) {
        const double before = static_cast<double>(a.step - n);
        ReplayPowers powers{std::pow(a.row.beta1, before), std::pow(a.row.beta2, before), 1, 1};
        coefficients(a, a.step - n, n, powers, out, out + n);
        plan.table[static_cast<size_t>(n)].alphas = out;
        plan.table[static_cast<size_t>(n)].scales = out + n;
        out += 2 * n;
      }
    }
  }
  a.table = plan.table.data();
  a.table_size = size;
  return plan;
}

void run(const char* op, DenseAdamArgs& a, int64_t num_rows) {
  const int64_t missed = longest_absence(op, a, num_rows);
  check_history(op, a, missed);
  if (missed <= 0 && !a.row.grads) {
    return;
  }
  const ReplayPlan plan = plan_replay(a, missed, a.row.end);
  const auto kernel = DEEPREC_DISPATCH(adam_dense_rows);
  const int64_t parts = threads_for(a.row.end * a.row.dim, kUpdateGrain);
  for_each_chunk(parts, [&](int64_t part) {
    DenseAdamArgs mine = a;
    if (a.row.grads || !a.row.rows) {  // distinct rows: neighbours stay together
      mine.row.begin = a.row.end * part / parts;
      mine.row.end = a.row.end * (part + 1) / parts;
      mine.part = 0, mine.parts = 1;
    } else {
      mine.part = part, mine.parts = parts;
    }
    kernel(mine);
  });
}

// Several tables in one pass. The rows of all of them are one sequence, tables that share their rows side by side, and
// each thread takes a piece of it: the threads are started once, and a thread meets much the same rows in every call
// and in the passes of ncf_loss, so that they are still in its own cache.
void run_tables(const char* op, std::vector<DenseAdamArgs>& tables, const std::vector<int64_t>& num_rows) {
  int64_t work = 0, reads = 0;
  bool has_grads = false;
  for (size_t t = 0; t < tables.size(); ++t) {
    DEEPREC_CHECK(tables[t].row.element == tables[0].row.element, op, ": tables must have one dtype");
    work += tables[t].row.end * tables[t].row.dim;
    reads += tables[t].row.end;
    has_grads = has_grads || tables[t].row.grads;
  }
  const int64_t count = static_cast<int64_t>(tables.size()), pieces = std::min(threads_for(reads, kReadsGrain), count);
  std::vector<int64_t> absences(tables.size());
  std::vector<std::exception_ptr> errors(tables.size());  // to be thrown by this thread, that of the first table
  for_each_chunk(pieces, [&](int64_t piece) {
    for (int64_t t = count * piece / pieces; t < count * (piece + 1) / pieces; ++t) {
      const size_t at = static_cast<size_t>(t);
      try {
        absences[at] = longest_absence(op, tables[at], num_rows[at]);
        check_history(op, tables[at], absences[at]);
      } catch (...) {
        errors[at] = std::current_exception();
      }
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error) {
      std::rethrow_exception(error);
    }
  }
  const int64_t missed = count ? std::max<int64_t>(0, *std::max_element(absences.begin(), absences.end())) : 0;
  if (work == 0 || (missed <= 0 && !has_grads)) {
    return;
  }
  ReplayPlan replay;
  std::vector<std::vector<const DenseAdamArgs*>> groups;  // of tables with the same rows
  for (size_t t = 0; t < tables.size(); ++t) {
    DenseAdamArgs& a = tables[t];
    if (t == 0) {
      replay = plan_replay(a, missed, reads);
    } else {
      a.max_counted = tables[0].max_counted, a.tolerance = tables[0].tolerance;
      a.table = tables[0].table, a.table_size = tables[0].table_size;
    }
    const auto same_rows = [&](const auto& group) { return group[0]->row.rows == a.row.rows; };
    const auto group = std::find_if(groups.begin(), groups.end(), same_rows);
    group == groups.end() ? groups.push_back({&a}) : group->push_back(&a);
  }
  const auto kernel = DEEPREC_DISPATCH(adam_dense_rows);
  const int64_t parts = threads_for(work, kUpdateGrain);
  for_each_chunk(parts, [&](int64_t part) {
    const int64_t first = work * part / parts, last = work * (part + 1) / parts;
    int64_t at = 0;  // work before this group
    for (const auto& group : groups) {
      int64_t width = 0;
      for (const DenseAdamArgs* a : group) {
        width += a->row.dim;
      }
      const int64_t count = group[0]->row.end;
      const auto row_of = [&](int64_t w) { return std::clamp<int64_t>(width ? (w - at) / width : 0, 0, count); };
      for (const DenseAdamArgs* a : group) {
        DenseAdamArgs mine = *a;
        mine.row.begin = row_of(first);
        mine.row.end = part + 1 == parts ? count : row_of(last);
        kernel(mine);
      }
      at += count * width;
    }
  });
}

void set_states(const char* op, DenseAdamArgs& a, const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                const Tensor& last_step, const Tensor& lr_history, int64_t history_start, int64_t steps) {
  a.row.first_state = state_data(op, "exp_avg", exp_avg, weight, weight.numel());
  a.row.second_state = state_data(op, "exp_avg_sq", exp_avg_sq, weight, weight.numel());
  DEEPREC_CHECK(
      last_step.scalar_type() == ScalarType::Int && last_step.is_contiguous() && last_step.numel() == weight.size(0),
      op, ": last_step must be int32 [", weight.size(0), "]");
  DEEPREC_CHECK(lr_history.scalar_type() == ScalarType::Double && lr_history.is_contiguous() &&
                    lr_history.numel() >= steps - history_start && steps >= history_start && history_start >= 0,
                op, ": lr_history must be float64 with the learning rate of each step from ", history_start + 1, " to ",
                steps, ", got ", lr_history.numel());
  a.last_step = static_cast<int32_t*>(last_step.data_ptr());
  a.lr = static_cast<const double*>(lr_history.data_ptr());
  a.history_start = history_start;
}

void set_rule(const char* op, DenseAdamArgs& a, double beta1, double beta2, double eps, double weight_decay) {
  check_number(op, "weight_decay", weight_decay, weight_decay >= 0, "a finite number >= 0");
  check_betas(op, beta1, beta2);
  check_eps(op, eps);
  a.row.beta1 = beta1;
  a.row.beta2 = beta2;
  a.row.eps = eps;
  a.row.weight_decay = weight_decay;
}

// The gradient is that of step `step`; before it, rows catch up to the step before.
void set_step(const char* op, DenseAdamArgs& a, int64_t step) {
  DEEPREC_CHECK(step > a.history_start, op, ": step must be after history_start, got ", step);
  a.step = step - 1;
  const double lr = a.lr[step - 1 - a.history_start];
  check_number(op, "lr_history", lr, true, "finite in every step");
  a.row.step_size = lr / (1.0 - std::pow(a.row.beta1, static_cast<double>(step)));
  a.row.inv_sqrt_correction2 = 1.0 / std::sqrt(1.0 - std::pow(a.row.beta2, static_cast<double>(step)));
}

void adam_catch_up_(const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& last_step,
                    const std::optional<Tensor>& rows, const Tensor& lr_history, int64_t history_start, int64_t step,
                    double beta1, double beta2, double eps, double weight_decay) {
  const char* op = "adam_catch_up_";
  check_weight(op, weight);
  DenseAdamArgs a{};
  set_rule(op, a, beta1, beta2, eps, weight_decay);
  Tensor ids = weight;  // holds a contiguous copy of rows while the kernel reads it
  a.row.element = element_of(op, weight.scalar_type());
  a.row.weight = weight.data_ptr();
  a.row.dim = weight.size(1);
  a.row.end = weight.size(0);
  if (rows) {
    DEEPREC_CHECK(is_index(rows->scalar_type()), op, ": rows must be int32 or int64");
    ids = rows->is_contiguous() ? *rows : torch::stable::contiguous(*rows);
    a.row.rows = ids.data_ptr();
    a.row.wide_rows = ids.scalar_type() == ScalarType::Long;
    a.row.end = ids.numel();
  }
  a.step = step;
  set_states(op, a, weight, exp_avg, exp_avg_sq, last_step, lr_history, history_start, step);
  run(op, a, weight.size(0));
}

// One table's arguments of an operator over several; everything is checked before anything is changed.
DenseAdamArgs table_args(const char* op, const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                         const Tensor& last_step, const Tensor& rows, const Tensor* grads, const Tensor& lr_history,
                         int64_t history_start, int64_t steps) {
  DenseAdamArgs a{};
  a.row = row_update_args(op, weight, rows, grads);
  a.parts = 1;
  set_states(op, a, weight, exp_avg, exp_avg_sq, last_step, lr_history, history_start, steps);
  return a;
}

void check_same_length(const char* op, size_t tables, std::initializer_list<size_t> others) {
  for (const size_t other : others) {
    DEEPREC_CHECK(other == tables, op, ": needs one tensor of each kind for each of ", tables, " tables, got ", other);
  }
}

void adam_catch_up_tables_(const std::vector<Tensor> weights, const std::vector<Tensor> exp_avgs,
                           const std::vector<Tensor> exp_avg_sqs, const std::vector<Tensor> last_steps,
                           const std::vector<Tensor> rows, const Tensor& lr_history, int64_t history_start,
                           int64_t step, double beta1, double beta2, double eps, double weight_decay) {
  const char* op = "adam_catch_up_tables_";
  check_same_length(op, weights.size(), {exp_avgs.size(), exp_avg_sqs.size(), last_steps.size(), rows.size()});
  std::vector<DenseAdamArgs> tables;
  std::vector<int64_t> num_rows;
  for (size_t t = 0; t < weights.size(); ++t) {
    DenseAdamArgs& a = tables.emplace_back(table_args(op, weights[t], exp_avgs[t], exp_avg_sqs[t], last_steps[t],
                                                      rows[t], nullptr, lr_history, history_start, step));
    a.step = step;
    set_rule(op, a, beta1, beta2, eps, weight_decay);
    num_rows.push_back(weights[t].size(0));
  }
  run_tables(op, tables, num_rows);
}

void adam_dense_update_tables_(const std::vector<Tensor> weights, const std::vector<Tensor> exp_avgs,
                               const std::vector<Tensor> exp_avg_sqs, const std::vector<Tensor> last_steps,
                               const std::vector<Tensor> rows, const std::vector<Tensor> grads,
                               const Tensor& lr_history, int64_t history_start, int64_t step, double beta1,
                               double beta2, double eps, double weight_decay) {
  const char* op = "adam_dense_update_tables_";
  check_same_length(op, weights.size(),
                    {exp_avgs.size(), exp_avg_sqs.size(), last_steps.size(), rows.size(), grads.size()});
  check_step(op, step);
  std::vector<DenseAdamArgs> tables;
  std::vector<int64_t> num_rows;
  for (size_t t = 0; t < weights.size(); ++t) {
    DenseAdamArgs& a = tables.emplace_back(table_args(op, weights[t], exp_avgs[t], exp_avg_sqs[t], last_steps[t],
                                                      rows[t], &grads[t], lr_history, history_start, step));
    set_rule(op, a, beta1, beta2, eps, weight_decay);
    set_step(op, a, step);
    num_rows.push_back(weights[t].size(0));
  }
  run_tables(op, tables, num_rows);
}

void adam_dense_update_(const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& last_step,
                        const Tensor& rows, const Tensor& grads, const Tensor& lr_history, int64_t history_start,
                        int64_t step, double beta1, double beta2, double eps, double weight_decay) {
  const char* op = "adam_dense_update_";
  DenseAdamArgs a{};
  a.row = row_update_args(op, weight, rows, &grads);
  check_step(op, step);
  set_rule(op, a, beta1, beta2, eps, weight_decay);
  set_states(op, a, weight, exp_avg, exp_avg_sq, last_step, lr_history, history_start, step);
  set_step(op, a, step);
  run(op, a, weight.size(0));
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("adam_catch_up_", TORCH_BOX(&deeprec::adam_catch_up_));
  m.impl("adam_dense_update_", TORCH_BOX(&deeprec::adam_dense_update_));
  m.impl("adam_catch_up_tables_", TORCH_BOX(&deeprec::adam_catch_up_tables_));
  m.impl("adam_dense_update_tables_", TORCH_BOX(&deeprec::adam_dense_update_tables_));
}
#endif
