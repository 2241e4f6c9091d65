// deeprec::sampled_linear_loss: the decoder of an autoencoder at listed positions only. Predictions, loss, its slope at
// every entry and the gradient of the hidden rows come out of one pass over the rows of the decoder; nothing has the
// size of [B, N]. A hidden row is worked on by one thread, entry after entry: bitwise the same for any thread count.
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
  void* scratch;               // [H], accumulator type
  double* row_loss;            // [B]
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
  for (; d < dim; ++d) {
    for (int e = 0; e < E; ++e) {
      out[e] += widen(h[d]) * widen(w[e][d]);
    }
  }
}

// grad += sum of slope times row, over E rows.
template <int E, class A, class T>
static inline void add_rows(const T* const* w, const A* slopes, int64_t dim, A* grad) {
  constexpr int L = kFullLanes<A>;
  int64_t d = 0;
  for (; d + L <= dim; d += L) {
    Lanes<A, L> sum = load_lanes<L>(grad + d);
#pragma GCC unroll 8
    for (int e = 0; e < E; ++e) {
      sum += slopes[e] * load_lanes<L>(w[e] + d);
    }
    store_lanes<L>(grad + d, sum);
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

static inline int64_t index_at(const void* p, bool wide, int64_t i) {
  return wide ? static_cast<const int64_t*>(p)[i] : static_cast<const int32_t*>(p)[i];
}

template <class T>
struct Rows {
  using A = typename Accumulator<T>::type;
  const SampledArgs& a;
  const T *hidden, *weight, *bias;
  const A *targets, *entry_weights;
  A *predictions, *slopes, *grad;

  explicit Rows(const SampledArgs& args)
      : a(args),
        hidden(static_cast<const T*>(args.hidden)),
        weight(static_cast<const T*>(args.weight)),
        bias(static_cast<const T*>(args.bias)),
        targets(static_cast<const A*>(args.targets)),
        entry_weights(static_cast<const A*>(args.entry_weights)),
        predictions(static_cast<A*>(args.predictions)),
        slopes(static_cast<A*>(args.slopes)),
        grad(static_cast<A*>(args.scratch)) {}

  int64_t column(int64_t p) const { return index_at(a.indices, a.wide_ids, p); }

  // E entries from p on; returns their loss. The rows of the next E are asked for meanwhile.
  template <int E>
  double entries(const T* h, int64_t p, int64_t end) const {
    const T* rows[E];
    A z[E];
    for (int e = 0; e < E; ++e) {
      rows[e] = weight + column(p + e) * a.weight_stride;
    }
    for (int64_t q = p + E; q < p + 2 * E && q < end; ++q) {
      prefetch_row(reinterpret_cast<const char*>(weight + column(q) * a.weight_stride),
                   a.dim * static_cast<int64_t>(sizeof(T)));
    }
    dots<E, A>(h, rows, a.dim, z);
    double loss = 0;
    for (int e = 0; e < E; ++e) {
      const A logit = z[e] + (bias ? A(widen(bias[column(p + e)])) : A(0));
      loss += entry_loss(a, logit, targets[p + e], entry_weights ? entry_weights[p + e] : A(1), predictions + p + e,
                         slopes + p + e);
    }
    if (a.hidden_grad) {
      add_rows<E, A>(rows, slopes + p, a.dim, grad);
    }
    return loss;
  }

  void run() const {
    for (int64_t b = a.begin; b < a.end; ++b) {
      const int64_t first = index_at(a.indptr, a.wide_ids, b), end = index_at(a.indptr, a.wide_ids, b + 1);
      const T* h = hidden + b * a.hidden_stride;
      for (int64_t d = 0; a.hidden_grad && d < a.dim; ++d) {
        grad[d] = 0;
      }
      double loss = 0;
      int64_t p = first;
      for (; p + 8 <= end; p += 8) {
        loss += entries<8>(h, p, end);
      }
      if (p + 4 <= end) {
        loss += entries<4>(h, p, end);
        p += 4;
      }
      for (; p < end; ++p) {
        loss += entries<1>(h, p, end);
      }
      a.row_loss[b] = loss;
      for (int64_t d = 0; a.hidden_grad && d < a.dim; ++d) {
        narrow(grad[d], static_cast<T*>(a.hidden_grad) + b * a.dim + d);
      }
    }
  }
};

}  // namespace

void sampled_rows(const SampledArgs& a) {
  switch (a.element) {
    case Element::f32:
      return Rows<float>(a).run();
    case Element::f64:
      return Rows<double>(a).run();
    case Element::bf16:
      return Rows<Bf16>(a).run();
    case Element::f16:
      return Rows<F16>(a).run();
  }
}

}  // namespace deeprec::DEEPREC_ISA

#ifdef DEEPREC_ISA_portable
#include <optional>
#include <tuple>

#include "tensor.h"

namespace deeprec {
namespace {

constexpr const char* kOp = "sampled_linear_loss";
constexpr int64_t kGrain = 1 << 15;  // multiplications a thread should have

Tensor columns_adjacent(const char* name, const Tensor& x, ScalarType dtype) {
  STD_TORCH_CHECK(x.dim() == 2 && x.is_cpu() && x.scalar_type() == dtype, kOp, ": ", name,
                  " must be a matrix on the CPU in the dtype of hidden");
  return x.size(1) <= 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
}

int64_t at(const Tensor& t, int64_t i) {
  return t.scalar_type() == ScalarType::Long ? static_cast<const int64_t*>(t.data_ptr())[i]
                                             : static_cast<const int32_t*>(t.data_ptr())[i];
}

// The rows of a batch must be whole, and every column one of the decoder's, before anything is computed.
void check_positions(const Tensor& indptr, const Tensor& indices, int64_t batch, int64_t num_columns) {
  STD_TORCH_CHECK(indptr.dim() == 1 && indices.dim() == 1 && is_index(indices.scalar_type()) &&
                      indptr.scalar_type() == indices.scalar_type() && indptr.size(0) == batch + 1,
                  kOp, ": indptr must be [", batch + 1, "] and indices [nnz], both int32 or both int64");
  const int64_t nnz = indices.size(0);
  STD_TORCH_CHECK(at(indptr, 0) == 0 && at(indptr, batch) == nnz, kOp, ": indptr must begin with 0 and end with ", nnz,
                  ", got ", at(indptr, 0), " and ", at(indptr, batch));
  for (int64_t b = 0; b < batch; ++b) {
    STD_TORCH_CHECK(at(indptr, b) <= at(indptr, b + 1), kOp, ": indptr must ascend, got ", at(indptr, b + 1), " after ",
                    at(indptr, b), " at position ", b + 1);
  }
  for (int64_t p = 0; p < nnz; ++p) {
    const int64_t column = at(indices, p);
    STD_TORCH_CHECK(column >= 0 && column < num_columns, "IndexError: ", kOp, ": indices must be in [0, ", num_columns,
                    "), got ", column, " at position ", p);
  }
}

const void* entry_values(const char* name, const Tensor& t, int64_t nnz, ScalarType wide) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == nnz && t.scalar_type() == wide && t.is_cpu() && t.is_contiguous(), kOp,
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
  STD_TORCH_CHECK(weight.size(1) == dim, kOp, ": weight must be [N, ", dim, "], got [", num_columns, ", ",
                  weight.size(1), "]");
  STD_TORCH_CHECK(activation >= 0 && activation <= 2 && loss >= 0 && loss <= 3 && (loss != 1 || activation == 1), kOp,
                  ": activation must be 0 to 2, loss 0 to 3, and loss 1 goes with activation 1");
  const Tensor indptr = as_contiguous(indptr_in), indices = as_contiguous(indices_in);
  check_positions(indptr, indices, batch, num_columns);
  const int64_t nnz = indices.size(0);
  SampledArgs args{};
  args.element = element_of(kOp, dtype);
  args.hidden = hidden.data_ptr();
  args.weight = weight.data_ptr();
  args.hidden_stride = hidden.stride(0);
  args.weight_stride = weight.stride(0);
  args.dim = dim;
  std::optional<Tensor> adjacent_bias, weights;
  if (bias) {
    STD_TORCH_CHECK(bias->numel() == num_columns && bias->scalar_type() == dtype && bias->is_cpu(), kOp,
                    ": bias must be [", num_columns, "] in the dtype of hidden");
    adjacent_bias = as_contiguous(*bias);
    args.bias = adjacent_bias->data_ptr();
  }
  args.indptr = indptr.data_ptr();
  args.indices = indices.data_ptr();
  args.wide_ids = indices.scalar_type() == ScalarType::Long;
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
  args.row_loss = row_loss.data();

  // Threads get rows with about as many entries.
  const int64_t chunks = threads_for((nnz + batch) * (dim + 1), kGrain);
  const Tensor scratch = empty_cpu({chunks, dim}, wide);
  const auto row_of = [&](int64_t chunk) {
    int64_t low = 0, high = batch;
    const int64_t wanted = (nnz + batch) * chunk / chunks;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      (at(indptr, middle) + middle < wanted ? low : high) = at(indptr, middle) + middle < wanted ? middle + 1 : middle;
    }
    return chunk == chunks ? batch : low;
  };
  for_each_chunk(chunks, [&](int64_t chunk) {
    SampledArgs part = args;
    part.scratch = static_cast<char*>(scratch.data_ptr()) + chunk * dim * static_cast<int64_t>(scratch.element_size());
    part.begin = row_of(chunk);
    part.end = row_of(chunk + 1);
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
