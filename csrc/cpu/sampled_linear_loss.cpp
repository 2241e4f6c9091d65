// deeprec::sampled_linear_loss: the decoder of an autoencoder at listed positions only. Predictions, loss, its slope at
// every entry and the gradient of the hidden rows come out of one pass over the rows of the decoder; nothing has the
// size of [B, N]. A hidden row is worked on by one thread, entry after entry: bitwise the same for any thread count.
//
// Where hidden rows share columns, a tile of the decoder stays in the second-level cache (in the third where they share
// few) while all of them use it: each row goes on up to the first column beyond the tile, so that entries keep their
// order whatever the tile, sorted or not.
#include <cmath>

#include "isa.h"
#include "lanes.h"
#include "row_copy.h"

namespace deeprec {

enum class Activation : int64_t { identity = 0, sigmoid = 1, tanh = 2 };
enum class EntryLoss : int64_t { squared = 0, cross_entropy = 1, logistic = 2, hinge = 3 };

struct SampledArgs {
  Element element;
  const void *hidden, *weight, *bias;  // [B, H], [N, H], [N] or null; columns adjacent
  int64_t hidden_stride, weight_stride, dim;
  const void *indptr, *indices;  // [B + 1], [nnz]
  bool wide_ids;
  const void *targets, *entry_weights;  // [nnz], accumulator type; weights may be null
  Activation activation;
  EntryLoss loss;
  void *predictions, *slopes;  // [nnz], accumulator type
  void* hidden_grad;           // [B, H]; null: not wanted
  void* grads;                 // [B, H], accumulator type: hidden_grad where that is its type
  double* row_loss;            // [B]
  int64_t* next;               // [B]: the entry that each row has come to
  int64_t num_columns, tile;   // columns of the decoder, and how many of them are worked on at a time
  bool asks;                   // for rows of the decoder: a tile is too large for the second-level cache
  int64_t begin, end;          // rows
};

}  // namespace deeprec

DEEPREC_DECLARE(void, sampled_rows, (const SampledArgs& a))

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

// exp(x) for x <= 0 (Cephes' polynomial, 2 ulp); below -87 as at -87.
template <int N>
static inline Lanes<float, N> exp_negative(Lanes<float, N> x) {
  x = x < -87.0f ? Lanes<float, N>{} - 87.0f : x;
  const auto whole = __builtin_convertvector(x * 1.44269504f - 0.5f, Lanes<int32_t, N>);
  const auto n = __builtin_convertvector(whole, Lanes<float, N>);
  const auto r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  auto y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return y * (Lanes<float, N>)((Lanes<uint32_t, N>)(whole + 127) << 23);
}

// log(1 + t) for t in [0, 1]: 2 atanh(t / (2 + t)), whose argument is at most 1/3.
template <int N>
static inline Lanes<float, N> log_one_plus(Lanes<float, N> t) {
  const auto s = t / (t + 2.0f), q = s * s;
  auto y = q * (1.0f / 15) + 1.0f / 13;
  y = y * q + 1.0f / 11;
  y = y * q + 1.0f / 9;
  y = y * q + 1.0f / 7;
  y = y * q + 1.0f / 5;
  y = y * q + 1.0f / 3;
  return 2.0f * (s + s * q * y);
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

void sampled_rows(const SampledArgs& a) {
  switch (a.element) {
    case Element::f32:
      return run_rows<float>(a);
    case Element::f64:
      return run_rows<double>(a);
    case Element::bf16:
      return run_rows<Bf16>(a);
    case Element::f16:
      return run_rows<F16>(a);
  }
}

}  // namespace deeprec::DEEPREC_ISA

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
  for (const double some : row_loss) {
    sum += some;
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
