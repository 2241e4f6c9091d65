// deeprec::fm_interaction, bi_interaction and their gradient: one pass over [B, F, D].
// The pairwise products are summed as they are, p += s x; s += x for each field: as many operations as
// 0.5 [(sum x)^2 - sum x^2], without the difference of two large numbers (one field gives exactly 0).
// A row is summed by one thread, field after field: bitwise the same for any thread count.
#include "isa.h"
#include "lanes.h"

namespace deeprec {

struct FmArgs {
  Element element;
  const void* x;  // [B, F, D], columns adjacent
  int64_t batch_stride, field_stride;
  int64_t num_fields, dim;
  const void* grad;  // of the result; null in the forward pass
  int64_t grad_stride, grad_column_stride;
  void* out;       // [B, F, D] in the backward pass, else [B, D] or [B]
  bool is_vector;  // forward: [B, D], not summed over d
  int64_t begin, end;
};

}  // namespace deeprec

DEEPREC_DECLARE(void, fm_rows, (const FmArgs& a))
DEEPREC_DECLARE(void, fm_grad_rows, (const FmArgs& a))

namespace deeprec::DEEPREC_ISA {
namespace {

template <class T>
void forward(const FmArgs& a) {
  using A = typename Accumulator<T>::type;
  T* out = static_cast<T*>(a.out);
  for (int64_t b = a.begin; b < a.end; ++b) {
    const T* row = static_cast<const T*>(a.x) + b * a.batch_stride;
    A total = 0;
    each_block<A>(a.dim, [&]<int N, int K>(int64_t d) {
      Lanes<A, N> sum[K] = {}, pairs[K] = {};
      for (int64_t f = 0; f < a.num_fields; ++f) {
        const T* x = row + f * a.field_stride + d;
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          const Lanes<A, N> value = load_lanes<N>(x + k * N);
          pairs[k] += sum[k] * value;
          sum[k] += value;
        }
      }
      if (a.is_vector) {
        for (int k = 0; k < K; ++k) {
          store_lanes<N>(out + b * a.dim + d + k * N, pairs[k]);
        }
      } else {
        for (int k = 1; k < K; ++k) {
          pairs[0] += pairs[k];
        }
        total += sum_lanes<A, N>(pairs[0]);
      }
    });
    if (!a.is_vector) {
      narrow(total, out + b);
    }
  }
}

// N columns of a gradient row whose columns lie `stride` elements apart (0: one value for all).
template <int N, class A, class T>
Lanes<A, N> load_grad(const T* grad, int64_t d, int64_t stride) {
  if constexpr (N > 1) {
    if (stride == 1) {
      return load_lanes<N>(grad + d);
    }
    Lanes<A, N> v;
    for (int i = 0; i < N; ++i) {
      v[i] = widen(grad[(d + i) * stride]);
    }
    return v;
  } else {
    return widen(grad[d * stride]);
  }
}

template <class T>
void backward(const FmArgs& a) {
  using A = typename Accumulator<T>::type;
  for (int64_t b = a.begin; b < a.end; ++b) {
    const T* row = static_cast<const T*>(a.x) + b * a.batch_stride;
    const T* grad_row = static_cast<const T*>(a.grad) + b * a.grad_stride;
    T* out_row = static_cast<T*>(a.out) + b * a.num_fields * a.dim;
    each_block<A>(a.dim, [&]<int N, int K>(int64_t d) {
      Lanes<A, N> sum[K] = {}, grad[K];
      for (int64_t f = 0; f < a.num_fields; ++f) {
        const T* x = row + f * a.field_stride + d;
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          sum[k] += load_lanes<N>(x + k * N);
        }
      }
      for (int k = 0; k < K; ++k) {
        grad[k] = load_grad<N, A>(grad_row, d + k * N, a.grad_column_stride);
      }
      for (int64_t f = 0; f < a.num_fields; ++f) {
        const T* x = row + f * a.field_stride + d;
        T* out = out_row + f * a.dim + d;
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          store_lanes<N>(out + k * N, grad[k] * (sum[k] - load_lanes<N>(x + k * N)));
        }
      }
    });
  }
}

}  // namespace

void fm_rows(const FmArgs& a) { DEEPREC_BY_ELEMENT(a.element, forward, a); }

void fm_grad_rows(const FmArgs& a) { DEEPREC_BY_ELEMENT(a.element, backward, a); }

}  // namespace deeprec::DEEPREC_ISA

#ifdef DEEPREC_ISA_portable
#include "tensor.h"

namespace deeprec {
namespace {

constexpr int64_t kGrain = 1 << 15;  // values of x a thread should have

Tensor columns_adjacent(const char* op, const Tensor& x) {
  DEEPREC_CHECK(x.dim() == 3, op, ": x must be [B, F, D], got ", x.dim(), " dimensions");
  return x.size(2) <= 1 || x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

FmArgs fm_args(const char* op, const Tensor& x) {
  FmArgs args{};
  args.element = element_of(op, x.scalar_type());
  args.x = x.data_ptr();
  args.batch_stride = x.stride(0);
  args.field_stride = x.stride(1);
  args.num_fields = x.size(1);
  args.dim = x.size(2);
  args.end = x.size(0);
  return args;
}

template <class Kernel>
void run(const FmArgs& args, Kernel kernel) {
  const int64_t chunks = threads_for(args.end * (args.num_fields + 1) * args.dim, kGrain);
  for_each_chunk(chunks, [&](int64_t chunk) {
    FmArgs part = args;
    part.begin = args.end * chunk / chunks;
    part.end = args.end * (chunk + 1) / chunks;
    kernel(part);
  });
}

Tensor interaction(const char* op, const Tensor& x_in, bool is_vector) {
  const Tensor x = columns_adjacent(op, x_in);
  Tensor out = is_vector ? empty_cpu({x.size(0), x.size(2)}, x.scalar_type()) : empty_cpu({x.size(0)}, x.scalar_type());
  FmArgs args = fm_args(op, x);
  args.out = out.data_ptr();
  args.is_vector = is_vector;
  run(args, DEEPREC_DISPATCH(fm_rows));
  return out;
}

Tensor fm_interaction(const Tensor& x) { return interaction("fm_interaction", x, false); }
Tensor bi_interaction(const Tensor& x) { return interaction("bi_interaction", x, true); }

Tensor fm_interaction_grad(const Tensor& grad, const Tensor& x_in) {
  const Tensor x = columns_adjacent("fm_interaction_grad", x_in);
  DEEPREC_CHECK(grad.is_cpu() && grad.scalar_type() == x.scalar_type() && (grad.dim() == 1 || grad.dim() == 2) &&
                    grad.size(0) == x.size(0) && (grad.dim() == 1 || grad.size(1) == x.size(2)),
                "fm_interaction_grad: grad must be [", x.size(0), "] or [", x.size(0), ", ", x.size(2),
                "] on the device and in the dtype of x");
  Tensor out = empty_cpu({x.size(0), x.size(1), x.size(2)}, x.scalar_type());
  FmArgs args = fm_args("fm_interaction_grad", x);
  args.grad = grad.data_ptr();
  args.grad_stride = grad.stride(0);
  args.grad_column_stride = grad.dim() == 1 ? 0 : grad.stride(1);
  args.out = out.data_ptr();
  run(args, DEEPREC_DISPATCH(fm_grad_rows));
  return out;
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("fm_interaction", TORCH_BOX(&deeprec::fm_interaction));
  m.impl("bi_interaction", TORCH_BOX(&deeprec::bi_interaction));
  m.impl("fm_interaction_grad", TORCH_BOX(&deeprec::fm_interaction_grad));
}
#endif
