// What lies between the matrix products of a step of GRU4Rec, in float32:
//   deeprec::session_columns(ids, num_embeddings) -> (rows, places, counts)
//   deeprec::session_softmax(scores, targets, own, is_masked) -> (loss, slopes)
//   deeprec::session_gates(given, recurrent, before) -> (after, gates)
//   deeprec::session_gates_grad(grad, gates, recurrent, before) -> (d_given, d_recurrent)
// Lanes are independent of each other and their losses are added in order: the same for any number of threads.
#include "isa.h"
#include "lanes_math.h"

namespace deeprec {

struct SessionSoftmaxArgs {
  const float* scores;  // [m, U] contiguous
  float* slopes;        // [m, U]
  const int64_t* targets;
  const float* own;
  float* losses;  // [m]
  int64_t width;
  bool is_masked;
  int64_t begin, end;
};

struct SessionGateArgs {
  const float *given, *recurrent, *before;  // [m, 3H], [m, 3H], [m, H]
  const float* grad;                        // [m, H], of the backward pass alone
  float *after, *gates;                     // [m, H], [m, 3H]
  float *d_given, *d_recurrent;             // [m, 3H]
  int64_t before_stride, width;
  int64_t begin, end;
};

}  // namespace deeprec

DEEPREC_DECLARE(void, session_softmax_rows, (const SessionSoftmaxArgs& a))
DEEPREC_DECLARE(void, session_gate_rows, (const SessionGateArgs& a))
DEEPREC_DECLARE(void, session_gate_grad_rows, (const SessionGateArgs& a))

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int kWide = kFullLanes<float>;
using Wide = Lanes<float, kWide>;

// Up to kWide values from p on, `rest` in the other lanes.
inline Wide load_some(const float* p, int64_t count, float rest = 0) {
  Wide v = Wide{} + rest;
  __builtin_memcpy(&v, p, static_cast<uint64_t>(count < kWide ? count : kWide) * sizeof(float));
  return v;
}

inline void store_some(float* p, Wide v, int64_t count) {
  __builtin_memcpy(p, &v, static_cast<uint64_t>(count < kWide ? count : kWide) * sizeof(float));
}

// body(d, count) for the blocks of kWide columns; count is a constant for all but the last.
template <class Body>
inline void each_wide(int64_t width, const Body& body) {
  int64_t d = 0;
  for (; d + kWide <= width; d += kWide) {
    body(d, int64_t{kWide});
  }
  if (d < width) {
    body(d, width - d);
  }
}

// exp(x) for x <= 0; 0 below -87.
inline Wide exp_negative(Wide x) {
  const Wide bounded = x < -87.0f ? Wide{} - 87.0f : x;
  return x < -87.0f ? Wide{} : exp_bounded<kWide>(bounded);
}

inline Wide sigma(Wide x) {
  const Wide e = exp_negative(x > 0.0f ? -x : x);
  return (x > 0.0f ? Wide{} + 1.0f : e) / (e + 1.0f);
}

// Cephes: a polynomial for |x| < 0.625, where 1 - exp would cancel.
inline Wide hyperbolic_tangent(Wide x) {
  const Wide size = x < 0.0f ? -x : x, e = exp_negative(size * -2.0f), far = (1.0f - e) / (1.0f + e);
  const Wide s = x * x;
  Wide y = s * -5.70498872745e-3f + 2.06390887954e-2f;
  y = y * s - 5.37397155531e-2f;
  y = y * s + 1.33314422036e-1f;
  y = y * s - 3.33332819422e-1f;
  return size < 0.625f ? y * s * x + x : x < 0.0f ? -far : far;
}

}  // namespace

void session_softmax_rows(const SessionSoftmaxArgs& a) {
  constexpr float kLowest = -__builtin_inff();
  for (int64_t b = a.begin; b < a.end; ++b) {
    const float* scores = a.scores + b * a.width;
    float* slopes = a.slopes + b * a.width;
    const int64_t target = a.targets[b];
    const float own_score = scores[target] + a.own[b];
    if (a.is_masked) {
      __builtin_memcpy(slopes, scores, static_cast<uint64_t>(a.width) * sizeof(float));
      slopes[target] = own_score;
      scores = slopes;
    }
    Wide largest = Wide{} + kLowest;
    each_wide(a.width, [&](int64_t d, int64_t count) {
      const Wide x = load_some(scores + d, count, kLowest);
      largest = x > largest ? x : largest;
    });
    float top = largest[0];
    for (int i = 1; i < kWide; ++i) {
      top = largest[i] > top ? largest[i] : top;
    }
    Wide sums = {};
    each_wide(a.width, [&](int64_t d, int64_t count) {
      const Wide e = exp_negative(load_some(scores + d, count, kLowest) - top);
      sums += e;
      store_some(slopes + d, e, count);
    });
    const float total = sum_lanes<float, kWide>(sums);
    const float scale = 1.0f / total;
    each_wide(a.width,
              [&](int64_t d, int64_t count) { store_some(slopes + d, load_some(slopes + d, count) * scale, count); });
    slopes[target] -= 1.0f;
    const float log_total = total == total ? log_positive<kWide>(Wide{} + total)[0] : total;  // which knows no NaN
    a.losses[b] = log_total - (own_score - top);
  }
}

void session_gate_rows(const SessionGateArgs& a) {
  const int64_t width = a.width;
  for (int64_t b = a.begin; b < a.end; ++b) {
    const float *given = a.given + b * 3 * width, *recurrent = a.recurrent + b * 3 * width;
    const float* before = a.before + b * a.before_stride;
    float *gates = a.gates + b * 3 * width, *after = a.after + b * width;
    each_wide(width, [&](int64_t d, int64_t count) {
      const auto sum = [&](int64_t at) { return load_some(given + at, count) + load_some(recurrent + at, count); };
      const Wide reset = sigma(sum(d)), update = sigma(sum(width + d));
      const int64_t last = 2 * width + d;
      const Wide fresh =
          hyperbolic_tangent(load_some(given + last, count) + reset * load_some(recurrent + last, count));
      store_some(gates + d, reset, count);
      store_some(gates + width + d, update, count);
      store_some(gates + last, fresh, count);
      store_some(after + d, fresh + update * (load_some(before + d, count) - fresh), count);
    });
  }
}

void session_gate_grad_rows(const SessionGateArgs& a) {
  const int64_t width = a.width;
  for (int64_t b = a.begin; b < a.end; ++b) {
    const float *gates = a.gates + b * 3 * width, *recurrent = a.recurrent + b * 3 * width;
    const float *before = a.before + b * a.before_stride, *grads = a.grad + b * width;
    float *d_given = a.d_given + b * 3 * width, *d_recurrent = a.d_recurrent + b * 3 * width;
    each_wide(width, [&](int64_t d, int64_t count) {
      const int64_t last = 2 * width + d;
      const Wide grad = load_some(grads + d, count), reset = load_some(gates + d, count);
      const Wide update = load_some(gates + width + d, count), fresh = load_some(gates + last, count);
      const Wide d_fresh = grad * (1.0f - update) * (1.0f - fresh * fresh);
      const Wide d_reset = d_fresh * load_some(recurrent + last, count) * reset * (1.0f - reset);
      const Wide d_update = grad * (load_some(before + d, count) - fresh) * update * (1.0f - update);
      store_some(d_given + d, d_reset, count);
      store_some(d_recurrent + d, d_reset, count);
      store_some(d_given + width + d, d_update, count);
      store_some(d_recurrent + width + d, d_update, count);
      store_some(d_given + last, d_fresh, count);
      store_some(d_recurrent + last, d_fresh * reset, count);
    });
  }
}

}  // namespace deeprec::DEEPREC_ISA

#ifdef DEEPREC_ISA_portable
#include <tuple>

#include "radix_sort.h"

namespace deeprec {
namespace {

constexpr int64_t kGrain = 1 << 14;  // exponentials a thread should have

template <class Id, class Key>
std::tuple<Tensor, Tensor, Tensor> columns(const Tensor& ids, int64_t nnz, int64_t num_embeddings) {
  const Id* values = static_cast<const Id*>(ids.data_ptr());
  const std::unique_ptr<Entry<Key>[]> first(new Entry<Key>[nnz]), second(new Entry<Key>[nnz]);
  for (int64_t i = 0; i < nnz; ++i) {
    DEEPREC_CHECK(static_cast<uint64_t>(values[i]) < static_cast<uint64_t>(num_embeddings),
                  "session_columns: ids must be in [0, ", num_embeddings, "), got ", values[i], " at position ", i);
    first[i] = {static_cast<Key>(values[i]), static_cast<Key>(i)};
  }
  const Entry<Key>* sorted = radix_sort(first.get(), second.get(), nnz, num_embeddings, threads_for(nnz, 32768));
  const int64_t unique = count_distinct(sorted, nnz);
  Tensor rows = empty_cpu({unique}, ids.scalar_type());
  Tensor places = empty_cpu({nnz}, ScalarType::Long), counts = empty_cpu({unique}, ScalarType::Long);
  Id* row_at = static_cast<Id*>(rows.data_ptr());
  int64_t* place_at = static_cast<int64_t*>(places.data_ptr());
  int64_t* count_at = static_cast<int64_t*>(counts.data_ptr());
  for (int64_t i = 0, row = -1; i < nnz; ++i) {
    if (i == 0 || sorted[i].id != sorted[i - 1].id) {
      row_at[++row] = static_cast<Id>(sorted[i].id);
      count_at[row] = 0;
    }
    ++count_at[row];
    place_at[sorted[i].position] = row;
  }
  return {rows, places, counts};
}

std::tuple<Tensor, Tensor, Tensor> session_columns(const Tensor& ids_in, int64_t num_embeddings) {
  DEEPREC_CHECK(is_index(ids_in.scalar_type()) && ids_in.dim() == 1,
                "session_columns: ids must be [nnz] in int32 or int64");
  DEEPREC_CHECK(num_embeddings >= 0, "session_columns: num_embeddings must be >= 0, got ", num_embeddings);
  const Tensor ids = as_contiguous(ids_in);
  const int64_t nnz = ids.numel();
  const bool is_narrow = nnz < int64_t{1} << 31 && num_embeddings <= int64_t{1} << 32;
  if (ids.scalar_type() == ScalarType::Long) {
    return is_narrow ? columns<int64_t, uint32_t>(ids, nnz, num_embeddings)
                     : columns<int64_t, uint64_t>(ids, nnz, num_embeddings);
  }
  return is_narrow ? columns<int32_t, uint32_t>(ids, nnz, num_embeddings)
                   : columns<int32_t, uint64_t>(ids, nnz, num_embeddings);
}

void check_matrix(const char* op, const char* name, const Tensor& x, int64_t rows, int64_t columns) {
  DEEPREC_CHECK(
      x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 2 && x.size(0) == rows && x.size(1) == columns,
      op, ": ", name, " must be [", rows, ", ", columns, "] in float32");
}

const float* data(const Tensor& x) { return static_cast<const float*>(x.data_ptr()); }

template <class Args, class Kernel>
void run_lanes(const Args& args, int64_t work, Kernel kernel) {
  const int64_t chunks = std::min(threads_for(work, kGrain), std::max<int64_t>(args.end, 1));
  for_each_chunk(chunks, [&](int64_t chunk) {
    Args part = args;
    part.begin = args.end * chunk / chunks;
    part.end = args.end * (chunk + 1) / chunks;
    kernel(part);
  });
}

std::tuple<Tensor, Tensor> session_softmax(const Tensor& scores_in, const Tensor& targets_in, const Tensor& own_in,
                                           bool is_masked) {
  const char* op = "session_softmax";
  DEEPREC_CHECK(scores_in.dim() == 2, op, ": scores must be [m, U], got ", scores_in.dim(), " dimensions");
  const int64_t lanes = scores_in.size(0), width = scores_in.size(1);
  check_matrix(op, "scores", scores_in, lanes, width);
  DEEPREC_CHECK(targets_in.dim() == 1 && targets_in.numel() == lanes && targets_in.scalar_type() == ScalarType::Long &&
                    own_in.dim() == 1 && own_in.numel() == lanes && own_in.scalar_type() == ScalarType::Float,
                op, ": targets must be [", lanes, "] in int64 and own [", lanes, "] in float32");
  const Tensor scores = as_contiguous(scores_in), targets = as_contiguous(targets_in), own = as_contiguous(own_in);
  SessionSoftmaxArgs args{};
  args.targets = static_cast<const int64_t*>(targets.data_ptr());
  for (int64_t b = 0; b < lanes; ++b) {
    DEEPREC_CHECK(args.targets[b] >= 0 && args.targets[b] < width, op, ": targets must be in [0, ", width, "), got ",
                  args.targets[b], " at position ", b);
  }
  Tensor slopes = empty_cpu({lanes, width}, ScalarType::Float), loss = empty_cpu({}, ScalarType::Float);
  std::vector<float> losses(static_cast<size_t>(lanes));
  args.scores = data(scores);
  args.slopes = static_cast<float*>(slopes.data_ptr());
  args.own = data(own);
  args.losses = losses.data();
  args.width = width;
  args.is_masked = is_masked;
  args.end = lanes;
  run_lanes(args, lanes * width, DEEPREC_DISPATCH(session_softmax_rows));
  double total = 0;
  for (const float each : losses) {
    total += each;
  }
  *static_cast<float*>(loss.data_ptr()) = static_cast<float>(total);
  return {loss, slopes};
}

SessionGateArgs gate_args(const char* op, const Tensor& recurrent, const Tensor& before) {
  DEEPREC_CHECK(before.dim() == 2, op, ": before must be [m, H], got ", before.dim(), " dimensions");
  const int64_t lanes = before.size(0), width = before.size(1);
  check_matrix(op, "before", before, lanes, width);
  check_matrix(op, "recurrent", recurrent, lanes, 3 * width);
  SessionGateArgs args{};
  args.recurrent = data(recurrent);
  args.before = data(before);
  args.before_stride = before.stride(0);
  args.width = width;
  args.end = lanes;
  return args;
}

Tensor columns_adjacent(const Tensor& x) { return x.dim() == 2 && x.stride(1) == 1 ? x : as_contiguous(x); }

std::tuple<Tensor, Tensor> session_gates(const Tensor& given_in, const Tensor& recurrent_in, const Tensor& before_in) {
  const Tensor given = as_contiguous(given_in), recurrent = as_contiguous(recurrent_in);
  const Tensor before = columns_adjacent(before_in);
  SessionGateArgs args = gate_args("session_gates", recurrent, before);
  check_matrix("session_gates", "given", given, args.end, 3 * args.width);
  Tensor after = empty_cpu({args.end, args.width}, ScalarType::Float);
  Tensor gates = empty_cpu({args.end, 3 * args.width}, ScalarType::Float);
  args.given = data(given);
  args.after = static_cast<float*>(after.data_ptr());
  args.gates = static_cast<float*>(gates.data_ptr());
  run_lanes(args, 3 * args.end * args.width, DEEPREC_DISPATCH(session_gate_rows));
  return {after, gates};
}

std::tuple<Tensor, Tensor> session_gates_grad(const Tensor& grad_in, const Tensor& gates_in, const Tensor& recurrent_in,
                                              const Tensor& before_in) {
  const char* op = "session_gates_grad";
  const Tensor grad = as_contiguous(grad_in), gates = as_contiguous(gates_in), recurrent = as_contiguous(recurrent_in);
  const Tensor before = columns_adjacent(before_in);
  SessionGateArgs args = gate_args(op, recurrent, before);
  check_matrix(op, "grad", grad, args.end, args.width);
  check_matrix(op, "gates", gates, args.end, 3 * args.width);
  Tensor d_given = empty_cpu({args.end, 3 * args.width}, ScalarType::Float);
  Tensor d_recurrent = empty_cpu({args.end, 3 * args.width}, ScalarType::Float);
  args.grad = data(grad);
  args.gates = static_cast<float*>(gates.data_ptr());
  args.d_given = static_cast<float*>(d_given.data_ptr());
  args.d_recurrent = static_cast<float*>(d_recurrent.data_ptr());
  run_lanes(args, args.end * args.width, DEEPREC_DISPATCH(session_gate_grad_rows));
  return {d_given, d_recurrent};
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("session_columns", TORCH_BOX(&deeprec::session_columns));
  m.impl("session_softmax", TORCH_BOX(&deeprec::session_softmax));
  m.impl("session_gates", TORCH_BOX(&deeprec::session_gates));
  m.impl("session_gates_grad", TORCH_BOX(&deeprec::session_gates_grad));
}
#endif
