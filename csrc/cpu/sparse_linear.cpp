// deeprec::sparse_linear: activation(X W + b) for a sparse X, the encoder of an autoencoder on observed entries. A
// slice of the columns of W that fills the registers, and of its rows as many as fit in a cache (csr.h), serve all rows
// of X before the next ones are read. A sum is one thread's, in the order of the entries: bitwise the same for any
// thread count.
#include "isa.h"
#include "lanes.h"
#include "row_copy.h"

namespace deeprec {

struct SparseLinearArgs {
  Element element;
  const void *indptr, *indices;  // [B + 1], [nnz]
  bool wide_ids;
  const void* values;          // [nnz]
  const void *weight, *bias;   // [N, H], [H] or null
  int64_t weight_stride, dim;  // elements
  int64_t num_columns, tile;   // rows of the weight, and how many are worked on at a time
  bool asks;                   // for them: a tile is too large for the second-level cache
  int64_t activation;          // 0 identity, 1 sigmoid, 2 tanh
  void* out;                   // [B, H]
  void* sums;                  // [B, H], accumulator type: out where that is its type
  int64_t* next;               // [B] for this slice: the entry that each row has come to
  int64_t begin, end;          // rows of X
  int64_t column, width;       // of this slice of H
};

}  // namespace deeprec

DEEPREC_DECLARE(void, sparse_linear_slice, (const SparseLinearArgs& a))
DEEPREC_DECLARE(int64_t, sparse_linear_width, (Element element))

namespace deeprec::DEEPREC_ISA {
namespace {

#if defined(DEEPREC_ISA_avx512)
constexpr int kRegisters = 16;  // for the sums of a row
#else
constexpr int kRegisters = 8;
#endif
constexpr int64_t kAhead = 12;  // entries asked for before they are needed

static inline double exp_of(double x) { return __builtin_exp(x); }

// exp of x <= 0 to two units in the last place, in steps that the compiler makes vectors of: 2^n times a polynomial of
// degree six in the rest, |rest| <= ln 2 / 2.
static inline float exp_of(float x) {
  const float limited = x < -87.0f ? -87.0f : x;
  const int32_t n = static_cast<int32_t>(limited * 1.44269504f - 0.5f);
  const float whole = static_cast<float>(n);
  const float rest = (limited - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.3888889e-3f;
  p = p * rest + 8.3333333e-3f;
  p = p * rest + 4.1666667e-2f;
  p = p * rest + 1.6666667e-1f;
  p = p * rest + 0.5f;
  p = p * rest + 1.0f;
  p = p * rest + 1.0f;
  return p * bits_to_float(static_cast<uint32_t>(n + 127) << 23);
}

static inline double tanh_of(double x) { return __builtin_tanh(x); }
static inline float tanh_of(float x) { return __builtin_tanhf(x); }

template <class A>
static inline A sigmoid_of(A x) {
  const A t = exp_of(x < 0 ? x : -x);
  return (x < 0 ? t : A(1)) / (1 + t);
}

template <class T, class Id>
struct Slice {
  using A = typename Accumulator<T>::type;
  static constexpr int64_t L = kFullLanes<A>;
  const SparseLinearArgs& a;
  const Id *indptr, *indices;
  const T *values, *weight, *bias;
  A* sums;

  explicit Slice(const SparseLinearArgs& args)
      : a(args),
        indptr(static_cast<const Id*>(args.indptr)),
        indices(static_cast<const Id*>(args.indices)),
        values(static_cast<const T*>(args.values)),
        weight(static_cast<const T*>(args.weight) + args.column),
        bias(static_cast<const T*>(args.bias)),
        sums(static_cast<A*>(args.sums) + args.column) {}

  const T* row(int64_t p) const { return weight + static_cast<int64_t>(indices[p]) * a.weight_stride; }

  // sum += entries [p, end) in K registers, L * (K - 2) < width. The last two may overlap those before them: such
  // columns are calculated, and stored, twice with the same result.
  template <int K, bool kAsk>
  void add(int64_t p, int64_t end, int64_t stop, A* sum) const {
    const int64_t final = a.width - L;
    const int64_t second_last = (K - 2) * L > final ? final : (K - 2) * L;
    Lanes<A, L> total[K];
#pragma GCC unroll 16
    for (int k = 0; k < K - 2; ++k) {
      total[k] = load_lanes<L>(sum + k * L);
    }
    total[K - 2] = load_lanes<L>(sum + second_last);
    total[K - 1] = load_lanes<L>(sum + final);
    for (; p < end; ++p) {
      if (kAsk && p + kAhead < stop) {
        prefetch_row<2>(reinterpret_cast<const char*>(row(p + kAhead)), a.width * static_cast<int64_t>(sizeof(T)));
      }
      const T* from = row(p);
      const A factor = widen(values[p]);
#pragma GCC unroll 16
      for (int k = 0; k < K - 2; ++k) {
        total[k] += factor * load_lanes<L>(from + k * L);
      }
      total[K - 2] += factor * load_lanes<L>(from + second_last);
      total[K - 1] += factor * load_lanes<L>(from + final);
    }
#pragma GCC unroll 16
    for (int k = 0; k < K - 2; ++k) {
      store_lanes<L>(sum + k * L, total[k]);
    }
    store_lanes<L>(sum + second_last, total[K - 2]);
    store_lanes<L>(sum + final, total[K - 1]);
  }

  void add_narrow(int64_t p, int64_t end, A* sum) const {
    for (; p < end; ++p) {
      const T* from = row(p);
      const A factor = widen(values[p]);
      for (int64_t k = 0; k < a.width; ++k) {
        sum[k] += factor * widen(from[k]);
      }
    }
  }

  void start(int64_t b) const {
    A* sum = sums + b * a.dim;
    for (int64_t k = 0; k < a.width; ++k) {
      sum[k] = bias ? A(widen(bias[a.column + k])) : A(0);
    }
    a.next[b] = indptr[b];
  }

  void finish(int64_t b) const {
    A* sum = sums + b * a.dim;
    T* out = static_cast<T*>(a.out) + b * a.dim + a.column;
    if (a.activation == 1) {
#pragma omp simd
      for (int64_t k = 0; k < a.width; ++k) {
        sum[k] = sigmoid_of(sum[k]);
      }
    } else if (a.activation == 2) {
      for (int64_t k = 0; k < a.width; ++k) {
        sum[k] = tanh_of(sum[k]);
      }
    }
    for (int64_t k = 0; k < a.width && a.out != a.sums; ++k) {
      narrow(sum[k], out + k);
    }
  }

  template <int K>
  void run() const {
    if constexpr (K > 2) {
      if (a.width <= (K - 2) * L) {
        return run<K - 2>();
      }
    }
    const int64_t stop = indptr[a.end];
    for (int64_t b = a.begin; b < a.end; ++b) {
      start(b);
    }
    for (int64_t first = 0; first < a.num_columns; first += a.tile) {
      const bool is_last = first + a.tile >= a.num_columns;
      for (int64_t b = a.begin; b < a.end; ++b) {
        const int64_t begin = a.next[b], limit = indptr[b + 1];
        const int64_t end = is_last ? limit : first_at_least(indices, begin, limit, first + a.tile);
        a.next[b] = end;
        A* sum = sums + b * a.dim;
        if (a.width < L) {
          add_narrow(begin, end, sum);
        } else if (a.asks) {
          add<K, true>(begin, end, stop, sum);
        } else {
          add<K, false>(begin, end, stop, sum);
        }
      }
    }
    for (int64_t b = a.begin; b < a.end; ++b) {
      finish(b);
    }
  }
};

template <class T>
void run_slice(const SparseLinearArgs& a) {
  if (a.wide_ids) {
    Slice<T, int64_t>(a).template run<kRegisters>();
  } else {
    Slice<T, int32_t>(a).template run<kRegisters>();
  }
}

}  // namespace

void sparse_linear_slice(const SparseLinearArgs& a) { DEEPREC_BY_ELEMENT(a.element, run_slice, a); }

// Columns that the registers hold.
int64_t sparse_linear_width(Element element) {
  return kRegisters * (element == Element::f64 ? kFullLanes<double> : kFullLanes<float>);
}

}  // namespace deeprec::DEEPREC_ISA

#ifdef DEEPREC_ISA_portable
#include <optional>

#include "csr.h"

namespace deeprec {
namespace {

constexpr int64_t kGrain = 1 << 15;  // multiplications a thread should have

Tensor sparse_linear(const Tensor& indptr, const Tensor& indices, const Tensor& values_in, const Tensor& weight_in,
                     const std::optional<Tensor>& bias_in, int64_t activation) {
  const char* op = "sparse_linear";
  DEEPREC_CHECK(weight_in.dim() == 2 && weight_in.is_cpu() && indptr.dim() == 1 && indptr.numel() >= 1, op,
                ": weight must be [N, H] on the CPU and indptr [B + 1]");
  DEEPREC_CHECK(activation >= 0 && activation <= 2, op, ": activation must be 0 to 2, got ", activation);
  const ScalarType dtype = weight_in.scalar_type();
  const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor weight =
      weight_in.size(1) <= 1 || weight_in.stride(1) == 1 ? weight_in : torch::stable::contiguous(weight_in);
  const Csr csr(op, indptr, indices, indptr.numel() - 1, weight.size(0));
  const Tensor values = as_contiguous(values_in);
  DEEPREC_CHECK(values.dim() == 1 && values.numel() == csr.nnz && values.scalar_type() == dtype && values.is_cpu(), op,
                ": values must be [", csr.nnz, "] in the dtype of weight");
  const int64_t dim = weight.size(1);
  const int64_t element = static_cast<int64_t>(weight.element_size());
  std::optional<Tensor> bias;
  if (bias_in) {
    DEEPREC_CHECK(bias_in->numel() == dim && bias_in->scalar_type() == dtype && bias_in->is_cpu(), op,
                  ": bias must be [", dim, "] in the dtype of weight");
    bias = as_contiguous(*bias_in);
  }
  Tensor out = empty_cpu({csr.batch, dim}, dtype);
  const Tensor sums = wide == dtype ? out : empty_cpu({csr.batch, dim}, wide);
  SparseLinearArgs args{};
  args.element = element_of(op, dtype);
  args.indptr = csr.indptr.data_ptr();
  args.indices = csr.indices.data_ptr();
  args.wide_ids = csr.wide_ids;
  args.values = values.data_ptr();
  args.weight = weight.data_ptr();
  args.bias = bias ? bias->data_ptr() : nullptr;
  args.weight_stride = weight.stride(0);
  args.dim = dim;
  args.num_columns = csr.num_columns;
  args.activation = activation;
  args.out = out.data_ptr();
  args.sums = sums.data_ptr();

  const int64_t most = DEEPREC_DISPATCH(sparse_linear_width)(args.element);
  const int64_t slices = std::max<int64_t>((dim + most - 1) / most, 1);
  const int64_t threads = threads_for((csr.nnz + csr.batch) * (dim + 1), kGrain);
  const int64_t parts = threads == 1 ? 1 : (threads * 2 + slices - 1) / slices;
  args.tile = csr.tile(std::min(most, dim) * element);
  args.asks = Csr::asks(args.tile, std::min(most, dim) * element);
  std::vector<int64_t> next(static_cast<size_t>(csr.batch * slices));
  const auto kernel = DEEPREC_DISPATCH(sparse_linear_slice);
  const auto run = [&](int64_t task) {
    const int64_t slice = task / parts, part = task % parts;
    SparseLinearArgs mine = args;
    mine.column = dim * slice / slices;
    mine.width = dim * (slice + 1) / slices - mine.column;
    mine.next = next.data() + slice * csr.batch;
    mine.begin = csr.first_row(part, parts);
    mine.end = csr.first_row(part + 1, parts);
    kernel(mine);
  };
  if (threads == 1) {
    for (int64_t slice = 0; slice < slices; ++slice) {
      run(slice);
    }
  } else {
    for_each_chunk(slices * parts, run);
  }
  return out;
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) { m.impl("sparse_linear", TORCH_BOX(&deeprec::sparse_linear)); }
#endif
