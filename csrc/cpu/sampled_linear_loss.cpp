// deeprec::sampled_linear_loss: the decoder of an autoencoder at listed positions only. Predictions, loss, its slope at
// every entry and the gradient of the hidden rows come out of one pass over the rows of the decoder; nothing has the
// size of [B, N]. A hidden row is worked on by one thread, entry after entry: bitwise the same for any thread count.
//
// Where hidden rows share columns, a tile of the decoder stays in the second-level cache (in the third where they share
// few) while all of them use it: each row goes on up to the first column beyond the tile, so that entries keep their
// order whatever the tile, sorted or not.
#include "sampled_linear_loss.h"

#include "lanes.h"
#include "lanes_math.h"
#include "row_copy.h"

namespace deeprec::DEEPREC_ISA {
namespace {

// The lanes added up in halves: fewer steps in a row than one after another.
template <class A, int N>
static inline A add_halves(Lanes<A, N> v) {
  if constexpr (N == 1) {
    return v;
  } else {
    Lanes<A, N / 2> half[2];
    __builtin_memcpy(half, &v, sizeof(v));
    return add_halves<A, N / 2>(half[0] + half[1]);
  }
}

// Products of one hidden row with E rows of the decoder.
template <int E, class A, class T>
static inline void dots(const T* h, const T* const* w, int64_t dim, A* out) {
  constexpr int L = kFullLanes<A>;
  Lanes<A, L> sums[E] = {};
  int64_t d = 0;
  for (; d + L <= dim; d += L) {
    const Lanes<A, L> x = load_lanes<L>(h + d);
#pragma GCC unroll 8
    for (int e = 0; e < E; ++e) {
      sums[e] += x * load_lanes<L>(w[e] + d);
    }
  }
  for (int e = 0; e < E; ++e) {
    out[e] = add_halves<A, L>(sums[e]);
  }
  if constexpr (L > 4) {
    for (; d + 4 <= dim; d += 4) {
      const Lanes<A, 4> x = load_lanes<4>(h + d);
#pragma GCC unroll 8
      for (int e = 0; e < E; ++e) {
        out[e] += add_halves<A, 4>(x * load_lanes<4>(w[e] + d));
      }
    }
  }
  for (; d < dim; ++d) {
    for (int e = 0; e < E; ++e) {
      out[e] += widen(h[d]) * widen(w[e][d]);
    }
  }
}

// grad += sum of slope times row, over E rows, columns [d, d + L). The slopes are the caller's own: they stay in
// registers, whatever is stored.
template <int L, int E, class A, class T>
static inline void add_lanes(const T* const* w, const A (&slopes)[E], int64_t d, A* grad) {
  Lanes<A, L> sum = load_lanes<L>(grad + d);
#pragma GCC unroll 8
  for (int e = 0; e < E; ++e) {
    sum += slopes[e] * load_lanes<L>(w[e] + d);
  }
  store_lanes<L>(grad + d, sum);
}

template <int E, class A, class T>
static inline void add_rows(const T* const* w, const A* slopes_in, int64_t dim, A* grad) {
  constexpr int L = kFullLanes<A>;
  Lanes<A, L> wide[E];
  A slopes[E];
  for (int e = 0; e < E; ++e) {
    slopes[e] = slopes_in[e];
    wide[e] = slopes[e] - Lanes<A, L>{};
  }
  int64_t d = 0;
  for (; d + L <= dim; d += L) {
    Lanes<A, L> sum = load_lanes<L>(grad + d);
#pragma GCC unroll 8
    for (int e = 0; e < E; ++e) {
      sum += wide[e] * load_lanes<L>(w[e] + d);
    }
    store_lanes<L>(grad + d, sum);
  }
  if constexpr (L > 4) {
    for (; d + 4 <= dim; d += 4) {
      add_lanes<4, E, A>(w, slopes, d, grad);
    }
  }
  for (; d < dim; ++d) {
    for (int e = 0; e < E; ++e) {
      grad[d] += slopes[e] * widen(w[e][d]);
    }
  }
}

static inline double exp_of(double x) { return __builtin_exp(x); }
static inline float exp_of(float x) { return __builtin_expf(x); }
static inline double log1p_of(double x) { return __builtin_log1p(x); }
static inline float log1p_of(float x) { return __builtin_log1pf(x); }
static inline double tanh_of(double x) { return __builtin_tanh(x); }
static inline float tanh_of(float x) { return __builtin_tanhf(x); }

// 1 / (1 + exp(-x)) without overflow.
template <class A>
static inline A sigmoid_of(A x) {
  const A t = exp_of(x < 0 ? x : -x);
  return (x < 0 ? t : A(1)) / (1 + t);
}

// log(1 + exp(x)) without overflow.
template <class A>
static inline A softplus_of(A x) {
  return (x > 0 ? x : A(0)) + log1p_of(exp_of(x > 0 ? -x : x));
}

// Activation and loss of one entry: returns the loss, sets the prediction and the derivative by z.
template <class A>
static inline A entry_loss(const SampledArgs& a, A z, A y, A weight, A* prediction, A* slope) {
  A value = z, inner = 1;
  if (a.activation == Activation::sigmoid) {
    value = sigmoid_of(z);
    inner = value * (1 - value);
  } else if (a.activation == Activation::tanh) {
    value = tanh_of(z);
    inner = 1 - value * value;
  }
  *prediction = value;
  switch (a.loss) {
    case EntryLoss::squared: {
      const A error = value - y;
      *slope = 2 * weight * error * inner;
      return weight * error * error;
    }
    case EntryLoss::cross_entropy:  // of the sigmoid of z
      *slope = weight * (value - y);
      return weight * (softplus_of(z) - z * y);
    case EntryLoss::logistic:
      *slope = -weight * y * sigmoid_of(-y * value) * inner;
      return weight * softplus_of(-y * value);
    default: {
      const A margin = 1 - y * value;
      *slope = margin > 0 ? -weight * y * inner : A(0);
      return margin > 0 ? weight * margin : A(0);
    }
  }
}

// exp(x) for x <= 0; below -87 as at -87.
template <int N>
static inline Lanes<float, N> exp_negative(Lanes<float, N> x) {
  return exp_bounded<N>(x < -87.0f ? Lanes<float, N>{} - 87.0f : x);
}

// entry_loss of up to N cross-entropies at once; the lanes beyond hold zeros. Each lane is computed as any other, so an
// entry's result does not depend on its neighbours. NaN stays NaN.
template <int N>
static inline void cross_entropies(const float* logits, const float* targets, const float* weights, float* losses,
                                   float* predictions, float* slopes) {
  const auto z = load_lanes<N>(logits), y = load_lanes<N>(targets), c = load_lanes<N>(weights);
  const auto t = exp_negative<N>(z < 0.0f ? z : -z);
  const auto value = (z < 0.0f ? t : Lanes<float, N>{} + 1.0f) / (t + 1.0f);
  store_lanes<N>(predictions, value);
  store_lanes<N>(slopes, c * (value - y));
  store_lanes<N>(losses, c * ((z > 0.0f ? z : Lanes<float, N>{}) + log_one_plus<N>(t) - z * y));
}

template <class T, class Id>
struct Rows {
  using A = typename Accumulator<T>::type;
  const SampledArgs& a;
  const T *hidden, *weight, *bias;
  const Id *indptr, *indices;
  const A *targets, *entry_weights;
  A *predictions, *slopes, *grads;
  bool asks;

  explicit Rows(const SampledArgs& args)
      : a(args),
        hidden(static_cast<const T*>(args.hidden)),
        weight(static_cast<const T*>(args.weight)),
        bias(static_cast<const T*>(args.bias)),
        indptr(static_cast<const Id*>(args.indptr)),
        indices(static_cast<const Id*>(args.indices)),
        targets(static_cast<const A*>(args.targets)),
        entry_weights(static_cast<const A*>(args.entry_weights)),
        predictions(static_cast<A*>(args.predictions)),
        slopes(static_cast<A*>(args.slopes)),
        grads(static_cast<A*>(args.grads)),
        asks(args.asks) {}

  const T* row(int64_t p) const { return weight + static_cast<int64_t>(indices[p]) * a.weight_stride; }

  // Cross-entropies of E logits from p on; in lanes of four or eight.
  template <int E>
  void cross_entropies_at(const A* z, int64_t p, double* loss) const {
    if constexpr (sizeof(A) == sizeof(float)) {
      constexpr int N = E > 4 ? 8 : 4;
      A in[3][N] = {}, out[3][N];
      for (int e = 0; e < E; ++e) {
        in[0][e] = z[e];
        in[1][e] = targets[p + e];
        in[2][e] = entry_weights ? entry_weights[p + e] : A(1);
      }
      cross_entropies<N>(in[0], in[1], in[2], out[0], out[1], out[2]);
      for (int e = 0; e < E; ++e) {
        *loss += out[0][e];
        predictions[p + e] = out[1][e];
        slopes[p + e] = out[2][e];
      }
    }
  }

  // E entries from p on. The rows of the next E are asked for meanwhile.
  template <int E>
  void entries(const T* h, int64_t p, int64_t end, A* grad, double* loss) const {
    const T* rows[E];
    A z[E];
    for (int e = 0; e < E; ++e) {
      rows[e] = row(p + e);
    }
    for (int64_t q = p + E; asks && q < p + 2 * E && q < end; ++q) {
      prefetch_row<2>(reinterpret_cast<const char*>(row(q)), a.dim * static_cast<int64_t>(sizeof(T)));
    }
    dots<E, A>(h, rows, a.dim, z);
    for (int e = 0; bias && e < E; ++e) {
      z[e] += A(widen(bias[indices[p + e]]));
    }
    if (sizeof(A) == sizeof(float) && a.loss == EntryLoss::cross_entropy) {
      cross_entropies_at<E>(z, p, loss);
    } else {
      for (int e = 0; e < E; ++e) {
        const A weight = entry_weights ? entry_weights[p + e] : A(1);
        *loss += entry_loss(a, z[e], targets[p + e], weight, predictions + p + e, slopes + p + e);
      }
    }
    if (grad) {
      add_rows<E, A>(rows, slopes + p, a.dim, grad);
    }
  }

  // Entries [p, end) of row b.
  void span(int64_t b, int64_t p, int64_t end) const {
    const T* h = hidden + b * a.hidden_stride;
    A* grad = grads ? grads + b * a.dim : nullptr;
    double loss = a.row_loss[b];
    for (; p + 8 <= end; p += 8) {
      entries<8>(h, p, end, grad, &loss);
    }
    if (p + 4 <= end) {
      entries<4>(h, p, end, grad, &loss);
      p += 4;
    }
    switch (end - p) {
      case 3:
        entries<3>(h, p, end, grad, &loss);
        break;
      case 2:
        entries<2>(h, p, end, grad, &loss);
        break;
      case 1:
        entries<1>(h, p, end, grad, &loss);
    }
    a.row_loss[b] = loss;
  }

  void run() const {
    for (int64_t b = a.begin; b < a.end; ++b) {
      a.next[b] = indptr[b];
      a.row_loss[b] = 0;
      for (int64_t d = 0; grads && d < a.dim; ++d) {
        grads[b * a.dim + d] = 0;
      }
    }
    for (int64_t first = 0; first < a.num_columns; first += a.tile) {
      const bool is_last = first + a.tile >= a.num_columns;
      for (int64_t b = a.begin; b < a.end; ++b) {
        const int64_t begin = a.next[b], stop = indptr[b + 1];
        const int64_t end = is_last ? stop : first_at_least(indices, begin, stop, first + a.tile);
        a.next[b] = end;
        span(b, begin, end);
      }
    }
    if (a.hidden_grad && a.hidden_grad != a.grads) {
      for (int64_t i = a.begin * a.dim; i < a.end * a.dim; ++i) {
        narrow(grads[i], static_cast<T*>(a.hidden_grad) + i);
      }
    }
  }
};

template <class T>
void run_rows(const SampledArgs& a) {
  a.wide_ids ? Rows<T, int64_t>(a).run() : Rows<T, int32_t>(a).run();
}

}  // namespace

void sampled_rows(const SampledArgs& a) { DEEPREC_BY_ELEMENT(a.element, run_rows, a); }

}  // namespace deeprec::DEEPREC_ISA
