// What all row updates share: the arguments of a kernel and, in the portable pass, the checks of the wrappers.
#pragma once

#include "element.h"
#include "isa.h"

namespace deeprec {

// One update of rows [begin, end) of a gradient. States have the accumulator's type: float, or double for double.
struct RowUpdateArgs {
  Element element;
  void* weight;        // [R, D] contiguous
  void* first_state;   // momentum, squared-gradient sum, or first moment; may be null
  void* second_state;  // second moment, or FTRL's linear term; may be null
  const void* rows;    // [U] strictly ascending
  bool wide_rows;
  const void* grads;  // [U, D], rows grad_stride elements apart
  bool wide_grads;    // float gradients of a bfloat16 or float16 weight
  int64_t grad_stride;
  int64_t dim;
  int64_t begin, end;
  double lr, weight_decay, eps;            // FTRL: eps is its beta
  double beta1, beta2;                     // SGD: beta1 is the momentum; FTRL: l1 and l2
  double step_size, inv_sqrt_correction2;  // Adam: lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t)
  int64_t rounding_seed;                   // >= 0: bfloat16 weights are rounded stochastically
};

}  // namespace deeprec

DEEPREC_DECLARE(void, sgd_rows, (const RowUpdateArgs& a))
DEEPREC_DECLARE(void, adagrad_rows, (const RowUpdateArgs& a))
DEEPREC_DECLARE(void, rowwise_adagrad_rows, (const RowUpdateArgs& a))
DEEPREC_DECLARE(void, adam_rows, (const RowUpdateArgs& a))
DEEPREC_DECLARE(void, ftrl_rows, (const RowUpdateArgs& a))

namespace deeprec {

namespace DEEPREC_ISA {

static inline float root(float x) { return __builtin_sqrtf(x); }
static inline double root(double x) { return __builtin_sqrt(x); }

static DEEPREC_ALWAYS_INLINE void prefetch_for_write(const void* row, int64_t bytes) {
  const int64_t lines = bytes < 1024 ? bytes : 1024;  // the hardware prefetcher follows a longer row by itself
  for (int64_t b = 0; b < lines; b += 64) {
    __builtin_prefetch(static_cast<const char*>(row) + b, 1, 3);
  }
}

}  // namespace DEEPREC_ISA
}  // namespace deeprec

#ifdef DEEPREC_ISA_portable
#include <cmath>
#include <limits>

#include "tensor.h"

namespace deeprec {

constexpr int64_t kUpdateGrain = 16384;  // elements a thread should have

inline ScalarType state_type(ScalarType weight) {
  return weight == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_weight(const char* op, const Tensor& weight) {
  DEEPREC_CHECK(weight.dim() == 2 && weight.is_contiguous(), op, ": weight must be contiguous [R, D]");
}

inline void* state_data(const char* op, const char* name, const Tensor& state, const Tensor& weight, int64_t numel) {
  DEEPREC_CHECK(
      state.is_contiguous() && state.numel() == numel && state.scalar_type() == state_type(weight.scalar_type()), op,
      ": ", name, " must be contiguous with ", numel, " values in float32 (float64 for a float64 weight), got ",
      state.numel());
  return state.data_ptr();
}

// The numbers of a rule, as check_number and its kin in kernels/sparse_update/checks.py; NaN is in no domain.
inline void check_number(const char* op, const char* name, double value, bool holds, const char* requirement) {
  DEEPREC_CHECK(holds && std::isfinite(value), op, ": ", name, " must be ", requirement, ", got ", value);
}

inline void check_rates(const char* op, double lr, double weight_decay) {
  check_number(op, "lr", lr, true, "a finite number");
  check_number(op, "weight_decay", weight_decay, weight_decay >= 0, "a finite number >= 0");
}

inline void check_momentum(const char* op, double momentum) {
  check_number(op, "momentum", momentum, momentum >= 0, "a finite number >= 0");
}

inline void check_eps(const char* op, double eps) { check_number(op, "eps", eps, eps > 0, "a finite number > 0"); }

inline void check_betas(const char* op, double beta1, double beta2) {
  check_number(op, "beta1", beta1, beta1 >= 0 && beta1 < 1, "in [0, 1)");
  check_number(op, "beta2", beta2, beta2 >= 0 && beta2 < 1, "in [0, 1)");
}

inline void check_step(const char* op, int64_t step) {
  DEEPREC_CHECK(step >= 1 && step <= std::numeric_limits<int32_t>::max(), op, ": step must be in [1, 2^31), got ",
                step);
}

// The rule divides by lr.
inline void check_ftrl(const char* op, double lr, double l1, double l2, double beta) {
  DEEPREC_CHECK(lr > 0 && l1 >= 0 && l2 >= 0 && beta >= 0 && std::isfinite(lr) && std::isfinite(l1) &&
                    std::isfinite(l2) && std::isfinite(beta),
                op, ": FTRL needs lr > 0 and l1, l2, beta >= 0, all finite; a schedule of lr must not reach 0, got lr ",
                lr, ", l1 ", l1, ", l2 ", l2, ", beta ", beta);
}

template <class Id>
void check_rows_are(const char* op, const Id* rows, int64_t count, int64_t num_rows) {
  int64_t before = -1;
  bool ascending = true;
  for (int64_t i = 0; i < count; ++i) {
    ascending &= rows[i] > before;
    before = rows[i];
  }
  DEEPREC_CHECK(ascending && before < num_rows, op, ": rows must be strictly ascending in [0, ", num_rows,
                "); coalesce the gradient with embedding_plan");
}

// Fills what every update has in common after checking it; throws before anything is changed.
// Without grads for an operator that only reads rows.
inline RowUpdateArgs row_update_args(const char* op, const Tensor& weight, const Tensor& rows, const Tensor* grads) {
  check_weight(op, weight);
  const int64_t count = rows.numel(), dim = weight.size(1);
  DEEPREC_CHECK(is_index(rows.scalar_type()) && rows.dim() == 1 && (count <= 1 || rows.stride(0) == 1), op,
                ": rows must be one contiguous dimension of int32 or int64");
  DEEPREC_CHECK(!grads || (grads->dim() == 2 && grads->size(0) == count && grads->size(1) == dim &&
                           grads->scalar_type() == weight.scalar_type() && (dim <= 1 || grads->stride(1) == 1)),
                op, ": grads must be [", count, ", ", dim, "] in the dtype of weight, columns adjacent");
  RowUpdateArgs args{};
  args.element = element_of(op, weight.scalar_type());
  args.weight = weight.data_ptr();
  args.rounding_seed = -1;
  args.rows = rows.data_ptr();
  args.wide_rows = rows.scalar_type() == ScalarType::Long;
  if (grads) {
    args.grads = grads->data_ptr();
    args.grad_stride = grads->stride(0);
  }
  args.dim = dim;
  args.end = count;
  if (args.wide_rows) {
    check_rows_are(op, static_cast<const int64_t*>(args.rows), count, weight.size(0));
  } else {
    check_rows_are(op, static_cast<const int32_t*>(args.rows), count, weight.size(0));
  }
  return args;
}

// Rows are distinct, so each is written by one thread whatever the split.
template <class Kernel>
void run_rows(const RowUpdateArgs& args, Kernel kernel) {
  const int64_t chunks = threads_for(args.end * args.dim, kUpdateGrain);
  for_each_chunk(chunks, [&](int64_t chunk) {
    RowUpdateArgs part = args;
    part.begin = args.end * chunk / chunks;
    part.end = args.end * (chunk + 1) / chunks;
    kernel(part);
  });
}

}  // namespace deeprec
#endif
