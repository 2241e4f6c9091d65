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
#include "sparse_update_adam_dense.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kAhead = 4;
constexpr int64_t kReplaySteps = 64;  // of a block of replay_steps

// Whether m vanished: below this it cannot move a weight, and subnormal numbers would make the loops crawl.
constexpr float kTiny = 1e-30f;

inline double power(double base, double exponent) { return __builtin_pow(base, exponent); }

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

void adam_dense_rows(const DenseAdamArgs& a) { DEEPREC_BY_ELEMENT(a.row.element, rows_of_any, a); }

}  // namespace deeprec::DEEPREC_ISA
