// Adam on the dense gradient at a sparse price: deeprec::adam_catch_up_ and deeprec::adam_dense_update_.
//
// A row without a gradient still moves under dense Adam. After n such steps from step t0 its moments are m b1^n and
// v b2^n, and its weight has moved by
//     -m * sum_k a_k / (r s_k + eps),   r = sqrt(v), k = 1..n,
//     a_k = lr_{t0+k} b1^k / (1 - b1^{t0+k}),   s_k = sqrt(b2^k / (1 - b2^{t0+k})),
// where a_k and s_k are the same for all elements of all rows that missed the same steps. s_k hardly varies over the
// steps that count, so the sum is taken about the a-weighted mean s of the s_k, where the linear term vanishes:
//     sum_k a_k / (r s_k + eps) = q (A0 + u^2 (A2 - u A3)) + ...,   q = 1 / (r s + eps), u = r q < 1 / s,
// with A_p = sum_k a_k (s_k - s)^p. One root and one division per element, however many steps were missed. The
// fourth moment bounds what is left out; where that is not negligible (the first hundred or so steps of a training,
// when 1 - b2^t changes fast; float64) the steps are replayed one by one in registers.
#include "isa.h"
#include "sparse_update.h"

namespace deeprec {

// The replay of one number of missed steps.
struct Replay {
  bool closed;                    // the expansion above is accurate
  int64_t counted;                // steps whose a_k matters
  double s, a0, a2, a3;           // the expansion
  double decay1, decay2;          // b1^n, b2^n
  const double *alphas, *scales;  // a_k and s_k, k = 1..counted, or null: to be computed for the row
};

// b1^t, b2^t of a step t, and b1^k, b2^k of its number among the missed ones.
struct ReplayPowers {
  double p1, p2, k1, k2;
};

struct DenseAdamArgs {
  RowUpdateArgs row;   // rows null: all rows; grads null: catch up only
  int32_t* last_step;  // [R] step that each row has reached, 0 before its first gradient
  int64_t step;        // rows are brought to this step; the gradient's step, if any, follows
  const double* lr;    // lr[t - 1 - history_start] of step t
  int64_t history_start;
  const Replay* table;  // by missed steps, [0, table_size)
  int64_t table_size;
  int64_t max_counted;  // steps beyond which a_k vanishes in float32
  double tolerance;     // for `closed`
  int64_t part, parts;  // this call handles rows with (row / 16) % parts == part: duplicates meet in one thread
};

}  // namespace deeprec

DEEPREC_DECLARE(void, adam_dense_rows, (const DenseAdamArgs& a))
// a_k and s_k of `steps` missed steps, the first of them after step `before`; goes on from `powers`.
DEEPREC_DECLARE(void, adam_replay_coefficients,
                (const DenseAdamArgs& a, int64_t before, int64_t steps, ReplayPowers& powers, double* alphas,
                 double* scales))

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kAhead = 4;
constexpr int64_t kReplaySteps = 64;  // of a block of replay_steps

// Whether m vanished: below this it cannot move a weight, and subnormal numbers would make the loops crawl.
constexpr float kTiny = 1e-30f;

inline double power(double base, double exponent) { return __builtin_pow(base, exponent); }

// Central moments from raw ones (E_p = sum a s^p), and whether the expansion may be used.
inline void finish(const double* e, double tolerance, Replay* out) {
  const double s = e[0] > 0 ? e[1] / e[0] : 0;
  out->s = s;
  out->a0 = e[0];
  out->a2 = e[2] - s * e[1];
  out->a3 = e[3] - 3 * s * e[2] + 2 * s * s * e[1];
  const double a4 = e[4] - 4 * s * e[3] + 6 * s * s * e[2] - 3 * s * s * s * e[1];
  out->closed = e[0] == 0 || (s > 0 && a4 <= tolerance * e[0] * s * s * s * s);
}

// One row's replay computed directly, for those that missed more steps than the table holds.
inline Replay direct(const DenseAdamArgs& a, int64_t last, int64_t missed) {
  Replay out{};
  out.counted = missed < a.max_counted ? missed : a.max_counted;
  double e[5] = {0, 0, 0, 0, 0};
  const double b1 = a.row.beta1, b2 = a.row.beta2;
  double p1 = power(b1, static_cast<double>(last)), p2 = power(b2, static_cast<double>(last)), k1 = 1, k2 = 1;
  for (int64_t k = 1; k <= out.counted; ++k) {
    p1 *= b1, p2 *= b2, k1 *= b1, k2 *= b2;
    const double alpha = a.lr[last + k - 1 - a.history_start] * k1 / (1 - p1);
    const double s = __builtin_sqrt(k2 / (1 - p2));
    e[0] += alpha, e[1] += alpha * s, e[2] += alpha * s * s, e[3] += alpha * s * s * s, e[4] += alpha * s * s * s * s;
  }
  finish(e, a.tolerance, &out);
  out.decay1 = power(b1, static_cast<double>(missed));
  out.decay2 = power(b2, static_cast<double>(missed));
  return out;
}

inline ReplayPowers powers_at(const DenseAdamArgs& a, int64_t step) {
  const double t = static_cast<double>(step);
  return {power(a.row.beta1, t), power(a.row.beta2, t), 1, 1};
}

template <class T, class A>
void replay_closed(const Replay& p, A eps, T* w, A* m, A* v, int64_t dim) {
  const A s = static_cast<A>(p.s), a0 = static_cast<A>(p.a0), a2 = static_cast<A>(p.a2), a3 = static_cast<A>(p.a3);
  const A decay1 = static_cast<A>(p.decay1), decay2 = static_cast<A>(p.decay2);
#pragma omp simd
  for (int64_t k = 0; k < dim; ++k) {
    const A first = m[k], second = v[k];
    const A r = root(second);
    const A q = 1 / (r * s + eps);
    const A u = r * q;
    narrow(widen(w[k]) - first * q * (a0 + u * u * (a2 - u * a3)), w + k);
    const A left = first * decay1;
    m[k] = left < kTiny && left > -kTiny ? 0 : left;
    v[k] = second * decay2;
  }
}

// a_k and s_k of the steps after `last`, a block of steps at a time; then every element takes them one by one.
template <class T, class A, int64_t kLanes>
void replay_steps(const DenseAdamArgs& a, const Replay& p, int64_t last, T* w, A* m, A* v, int64_t dim) {
  const A eps = static_cast<A>(a.row.eps);
  ReplayPowers powers = powers_at(a, last);
  A alpha[kReplaySteps], scale[kReplaySteps];
  for (int64_t begin = 0; begin < p.counted; begin += kReplaySteps) {
    const int64_t steps = p.counted - begin < kReplaySteps ? p.counted - begin : kReplaySteps;
    double own[2][kReplaySteps];
    const double *alphas = own[0], *scales = own[1];
    if (p.alphas) {
      alphas = p.alphas + begin, scales = p.scales + begin;
    } else {
      adam_replay_coefficients(a, last + begin, steps, powers, own[0], own[1]);
    }
    for (int64_t k = 0; k < steps; ++k) {
      alpha[k] = static_cast<A>(alphas[k]);
      scale[k] = static_cast<A>(scales[k]);
    }
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int64_t lanes = dim - d < kLanes ? dim - d : kLanes;
      A sum[kLanes], r[kLanes];
      for (int64_t l = 0; l < kLanes; ++l) {
        sum[l] = 0;
        r[l] = l < lanes ? root(v[d + l]) : 0;
      }
      for (int64_t k = 0; k < steps; ++k) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) {
          sum[l] += alpha[k] / (r[l] * scale[k] + eps);
        }
      }
      for (int64_t l = 0; l < lanes; ++l) {
        // A padding lane may hold inf (eps = 0), a real one must not: 0 / 0 is a row without a gradient so far.
        const A moved = m[d + l] == 0 ? 0 : m[d + l] * sum[l];
        narrow(widen(w[d + l]) - moved, w + d + l);
      }
    }
  }
  const A decay1 = static_cast<A>(p.decay1), decay2 = static_cast<A>(p.decay2);
  for (int64_t k = 0; k < dim; ++k) {
    const A left = m[k] * decay1;
    m[k] = left < kTiny && left > -kTiny ? 0 : left;
    v[k] *= decay2;
  }
}

// With weight decay the missed gradients are not zero but weight_decay * w: there is no short cut.
template <class T, class A>
void replay_decayed(const DenseAdamArgs& a, int64_t last, T* w, A* m, A* v, int64_t dim) {
  constexpr int64_t kLanes = 32;
  const A beta1 = static_cast<A>(a.row.beta1), beta2 = static_cast<A>(a.row.beta2);
  const A rest1 = static_cast<A>(1 - a.row.beta1), rest2 = static_cast<A>(1 - a.row.beta2);
  const A eps = static_cast<A>(a.row.eps), decay = static_cast<A>(a.row.weight_decay);
  const double start1 = power(a.row.beta1, static_cast<double>(last));
  const double start2 = power(a.row.beta2, static_cast<double>(last));
  for (int64_t d = 0; d < dim; d += kLanes) {
    const int64_t lanes = dim - d < kLanes ? dim - d : kLanes;
    A x[kLanes], first[kLanes], second[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      x[l] = l < lanes ? widen(w[d + l]) : 0;
      first[l] = l < lanes ? m[d + l] : 0;
      second[l] = l < lanes ? v[d + l] : 1;
    }
    double p1 = start1, p2 = start2;
    for (int64_t t = last; t < a.step; ++t) {
      p1 *= a.row.beta1, p2 *= a.row.beta2;
      const A step_size = static_cast<A>(a.lr[t - a.history_start] / (1 - p1));
      const A scale = static_cast<A>(1 / __builtin_sqrt(1 - p2));
#pragma omp simd
      for (int64_t l = 0; l < kLanes; ++l) {
        const A g = decay * x[l];
        first[l] = beta1 * first[l] + rest1 * g;
        second[l] = beta2 * second[l] + rest2 * (g * g);
        x[l] -= step_size * first[l] / (root(second[l]) * scale + eps);
      }
    }
    for (int64_t l = 0; l < lanes; ++l) {
      narrow(x[l], w + d + l);
      m[d + l] = first[l];
      v[d + l] = second[l];
    }
  }
}

// Whether a row missed steps that would have moved it.
inline bool is_behind(const DenseAdamArgs& a, int64_t row) {
  const int64_t last = a.last_step[row];
  return last < a.step && (last != 0 || a.row.weight_decay != 0);
}

template <class T, class A>
void catch_up(const DenseAdamArgs& a, int64_t row, T* w, A* m, A* v) {
  if (!is_behind(a, row)) {
    return;
  }
  const int64_t last = a.last_step[row], missed = a.step - last;
  a.last_step[row] = static_cast<int32_t>(a.step);
  if (a.row.weight_decay != 0) {
    replay_decayed<T, A>(a, last, w, m, v, a.row.dim);
    return;
  }
  const Replay p = missed < a.table_size ? a.table[missed] : direct(a, last, missed);
  if (p.closed) {
    replay_closed<T, A>(p, static_cast<A>(a.row.eps), w, m, v, a.row.dim);
  } else if (a.row.dim <= 4) {
    replay_steps<T, A, 4>(a, p, last, w, m, v, a.row.dim);
  } else if (a.row.dim <= 16) {
    replay_steps<T, A, 16>(a, p, last, w, m, v, a.row.dim);
  } else {
    replay_steps<T, A, 32>(a, p, last, w, m, v, a.row.dim);
  }
}

template <class T, class A>
void take_gradient(const RowUpdateArgs& r, const T* grad, T* w, A* m, A* v) {
  const A decay = static_cast<A>(r.weight_decay), eps = static_cast<A>(r.eps);
  const A beta1 = static_cast<A>(r.beta1), beta2 = static_cast<A>(r.beta2);
  const A rest1 = static_cast<A>(1 - r.beta1), rest2 = static_cast<A>(1 - r.beta2);  // not 1 - float(beta): 5e-5 off
  const A step_size = static_cast<A>(r.step_size), inv_root2 = static_cast<A>(r.inv_sqrt_correction2);
#pragma omp simd
  for (int64_t k = 0; k < r.dim; ++k) {
    const A x = widen(w[k]);
    const A g = widen(grad[k]) + decay * x;
    const A first = beta1 * m[k] + rest1 * g;
    const A second = beta2 * v[k] + rest2 * (g * g);
    m[k] = first;
    v[k] = second;
    narrow(x - step_size * first / (root(second) * inv_root2 + eps), w + k);
  }
}

template <class T, class Id>
void rows_of(const DenseAdamArgs& a) {
  using A = typename Accumulator<T>::type;
  const RowUpdateArgs& r = a.row;
  const Id* rows = static_cast<const Id*>(r.rows);
  T* weight = static_cast<T*>(r.weight);
  A* m = static_cast<A*>(r.first_state);
  A* v = static_cast<A*>(r.second_state);
  const T* grads = static_cast<const T*>(r.grads);
  const auto row_at = [&](int64_t i) { return rows ? static_cast<int64_t>(rows[i]) : i; };
  const auto mine = [&](int64_t row) { return a.parts == 1 || (row / 16) % a.parts == a.part; };
  // Short rows are done before memory answers for those a few further on.
  const int64_t ahead = r.dim < 8 ? 4 * kAhead : kAhead;
  for (int64_t i = r.begin; i < r.end; ++i) {
    if (i + 2 * ahead < r.end) {
      const int64_t later = row_at(i + 2 * ahead);
      if (mine(later)) {
        __builtin_prefetch(a.last_step + later, 1, 3);
      }
    }
    if (i + ahead < r.end) {
      const int64_t next = row_at(i + ahead);
      if (mine(next) && (grads || is_behind(a, next))) {
        prefetch_for_write(weight + next * r.dim, r.dim * sizeof(T));
        prefetch_for_write(m + next * r.dim, r.dim * sizeof(A));
        prefetch_for_write(v + next * r.dim, r.dim * sizeof(A));
      }
    }
    const int64_t row = row_at(i);
    if (!mine(row)) {
      continue;
    }
    T* w = weight + row * r.dim;
    catch_up<T, A>(a, row, w, m + row * r.dim, v + row * r.dim);
    if (grads) {
      take_gradient<T, A>(r, grads + i * r.grad_stride, w, m + row * r.dim, v + row * r.dim);
      a.last_step[row] = static_cast<int32_t>(a.step + 1);
    }
  }
}

template <class T>
void rows_of_any(const DenseAdamArgs& a) {
  if (a.row.wide_rows) {
    rows_of<T, int64_t>(a);
  } else {
    rows_of<T, int32_t>(a);
  }
}

}  // namespace

// One piece of code for rows and for the table, so that both have the same bits.
__attribute__((noinline)) void adam_replay_coefficients(const DenseAdamArgs& a, int64_t before, int64_t steps,
                                                        ReplayPowers& powers, double* alphas, double* scales) {
  ReplayPowers p = powers;
  for (int64_t k = 0; k < steps; ++k) {
    p.p1 *= a.row.beta1, p.p2 *= a.row.beta2, p.k1 *= a.row.beta1, p.k2 *= a.row.beta2;
    alphas[k] = a.lr[before + k - a.history_start] * p.k1 / (1 - p.p1);
    scales[k] = __builtin_sqrt(p.k2 / (1 - p.p2));
  }
  powers = p;
}

void adam_dense_rows(const DenseAdamArgs& a) {
  switch (a.row.element) {
    case Element::f32:
      return rows_of_any<float>(a);
    case Element::f64:
      return rows_of_any<double>(a);
    case Element::bf16:
      return rows_of_any<Bf16>(a);
    case Element::f16:
      return rows_of_any<F16>(a);
  }
}

}  // namespace deeprec::DEEPREC_ISA

#ifdef DEEPREC_ISA_portable
#include <cmath>
#include <exception>
#include <initializer_list>
#include <limits>
#include <optional>

namespace deeprec {
namespace {

constexpr int64_t kMaxTable = 512;
constexpr int64_t kSharedSteps = 128, kSharingRows = 512;  // a table of coefficients costs about as much as 128 rows
constexpr int64_t kLooksGrain = 8192;                      // random reads of last_step worth a thread

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
  int64_t work = 0, looks = 0;
  bool has_grads = false;
  for (size_t t = 0; t < tables.size(); ++t) {
    DEEPREC_CHECK(tables[t].row.element == tables[0].row.element, op, ": tables must have one dtype");
    work += tables[t].row.end * tables[t].row.dim;
    looks += tables[t].row.end;
    has_grads = has_grads || tables[t].row.grads;
  }
  const int64_t count = static_cast<int64_t>(tables.size()), pieces = std::min(threads_for(looks, kLooksGrain), count);
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
      replay = plan_replay(a, missed, looks);
    } else {
      a.max_counted = tables[0].max_counted, a.tolerance = tables[0].tolerance;
      a.table = tables[0].table, a.table_size = tables[0].table_size;
    }
    const auto same_rows = [&](const auto& group) { return group[0]->row.rows == a.row.rows; };
    const auto found = std::find_if(groups.begin(), groups.end(), same_rows);
    found == groups.end() ? groups.push_back({&a}) : found->push_back(&a);
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
