// Fused in-place updates of the rows that a coalesced gradient touches: sgd_update_, adagrad_update_,
// rowwise_adagrad_update_, adam_update_ (lazy). One read and one write of each touched row and of its state.
#include "sparse_update.h"

#include "isa.h"

DEEPREC_DECLARE(void, sgd_rows, (const RowUpdateArgs& a))
DEEPREC_DECLARE(void, adagrad_rows, (const RowUpdateArgs& a))
DEEPREC_DECLARE(void, rowwise_adagrad_rows, (const RowUpdateArgs& a))
DEEPREC_DECLARE(void, adam_rows, (const RowUpdateArgs& a))

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kAhead = 4;  // rows asked for before they are needed

// Calls update(weight row, gradient row, row number) for each row; Update is one of the structs below.
template <class T, class Id, class Update>
void each_row(const RowUpdateArgs& a, const Update& update) {
  using A = typename Accumulator<T>::type;
  const Id* rows = static_cast<const Id*>(a.rows);
  T* weight = static_cast<T*>(a.weight);
  const T* grads = static_cast<const T*>(a.grads);
  for (int64_t i = a.begin; i < a.end; ++i) {
    if (i + kAhead < a.end) {
      const int64_t next = static_cast<int64_t>(rows[i + kAhead]) * a.dim;
      prefetch_for_write(weight + next, a.dim * sizeof(T));
      if (update.first) {
        prefetch_for_write(update.first + (Update::kStatePerRow ? next / a.dim : next),
                           Update::kStatePerRow ? sizeof(A) : a.dim * sizeof(A));
      }
      if (update.second) {
        prefetch_for_write(update.second + next, a.dim * sizeof(A));
      }
    }
    const int64_t row = rows[i];
    update(weight + row * a.dim, grads + i * a.grad_stride, row, a.dim);
  }
}

template <class T, template <class> class Update>
void dispatch_rows(const RowUpdateArgs& a) {
  const Update<T> update(a);
  if (a.wide_rows) {
    each_row<T, int64_t>(a, update);
  } else {
    each_row<T, int32_t>(a, update);
  }
}

template <template <class> class Update>
void dispatch(const RowUpdateArgs& a) {
  switch (a.element) {
    case Element::f32:
      return dispatch_rows<float, Update>(a);
    case Element::f64:
      return dispatch_rows<double, Update>(a);
    case Element::bf16:
      return dispatch_rows<Bf16, Update>(a);
    case Element::f16:
      return dispatch_rows<F16, Update>(a);
  }
}

template <class T>
struct UpdateBase {
  using A = typename Accumulator<T>::type;
  static constexpr bool kStatePerRow = false;
  A *first, *second;
  A lr, decay, eps, beta1, beta2, step_size, inv_root2;
  A rest1, rest2;  // 1 - beta, in double: 1 - float(0.999) is off by 5e-5

  explicit UpdateBase(const RowUpdateArgs& a)
      : first(static_cast<A*>(a.first_state)),
        second(static_cast<A*>(a.second_state)),
        lr(static_cast<A>(a.lr)),
        decay(static_cast<A>(a.weight_decay)),
        eps(static_cast<A>(a.eps)),
        beta1(static_cast<A>(a.beta1)),
        beta2(static_cast<A>(a.beta2)),
        step_size(static_cast<A>(a.step_size)),
        inv_root2(static_cast<A>(a.inv_sqrt_correction2)),
        rest1(static_cast<A>(1 - a.beta1)),
        rest2(static_cast<A>(1 - a.beta2)) {}
};

template <class T>
struct Sgd : UpdateBase<T> {
  using typename UpdateBase<T>::A;
  using UpdateBase<T>::UpdateBase;
  void operator()(T* w, const T* grad, int64_t row, int64_t dim) const {
    const A lr = this->lr, decay = this->decay, momentum = this->beta1;
    if (!this->first) {
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) {
        const A x = widen(w[k]);
        narrow(x - lr * (widen(grad[k]) + decay * x), w + k);
      }
      return;
    }
    A* velocity = this->first + row * dim;
#pragma omp simd
    for (int64_t k = 0; k < dim; ++k) {
      const A x = widen(w[k]);
      const A v = momentum * velocity[k] + (widen(grad[k]) + decay * x);
      velocity[k] = v;
      narrow(x - lr * v, w + k);
    }
  }
};

template <class T>
struct Adagrad : UpdateBase<T> {
  using typename UpdateBase<T>::A;
  using UpdateBase<T>::UpdateBase;
  void operator()(T* w, const T* grad, int64_t row, int64_t dim) const {
    const A lr = this->lr, decay = this->decay, eps = this->eps;
    A* sum = this->first + row * dim;
#pragma omp simd
    for (int64_t k = 0; k < dim; ++k) {
      const A x = widen(w[k]);
      const A g = widen(grad[k]) + decay * x;
      const A s = sum[k] + g * g;
      sum[k] = s;
      narrow(x - lr * g / (root(s) + eps), w + k);
    }
  }
};

template <class T>
struct RowwiseAdagrad : UpdateBase<T> {
  using typename UpdateBase<T>::A;
  using UpdateBase<T>::UpdateBase;
  static constexpr bool kStatePerRow = true;
  void operator()(T* w, const T* grad, int64_t row, int64_t dim) const {
    const A decay = this->decay;
    A squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t k = 0; k < dim; ++k) {
      const A g = widen(grad[k]) + decay * widen(w[k]);
      squares += g * g;
    }
    const A sum = this->first[row] + squares / static_cast<A>(dim);
    this->first[row] = sum;
    const A scale = this->lr / (root(sum) + this->eps);
#pragma omp simd
    for (int64_t k = 0; k < dim; ++k) {
      const A x = widen(w[k]);
      narrow(x - scale * (widen(grad[k]) + decay * x), w + k);
    }
  }
};

template <class T>
struct Adam : UpdateBase<T> {
  using typename UpdateBase<T>::A;
  using UpdateBase<T>::UpdateBase;
  void operator()(T* w, const T* grad, int64_t row, int64_t dim) const {
    const A decay = this->decay, eps = this->eps, beta1 = this->beta1, beta2 = this->beta2;
    const A step_size = this->step_size, inv_root2 = this->inv_root2, rest1 = this->rest1, rest2 = this->rest2;
    A* first = this->first + row * dim;
    A* second = this->second + row * dim;
#pragma omp simd
    for (int64_t k = 0; k < dim; ++k) {
      const A x = widen(w[k]);
      const A g = widen(grad[k]) + decay * x;
      const A m = beta1 * first[k] + rest1 * g;
      const A v = beta2 * second[k] + rest2 * (g * g);
      first[k] = m;
      second[k] = v;
      narrow(x - step_size * m / (root(v) * inv_root2 + eps), w + k);
    }
  }
};

}  // namespace

void sgd_rows(const RowUpdateArgs& a) { dispatch<Sgd>(a); }
void adagrad_rows(const RowUpdateArgs& a) { dispatch<Adagrad>(a); }
void rowwise_adagrad_rows(const RowUpdateArgs& a) { dispatch<RowwiseAdagrad>(a); }
void adam_rows(const RowUpdateArgs& a) { dispatch<Adam>(a); }

}  // namespace deeprec::DEEPREC_ISA

#ifdef DEEPREC_ISA_portable
#include <cmath>
#include <optional>

namespace deeprec {
namespace {

void sgd_update_(const Tensor& weight, const std::optional<Tensor>& momentum_buffer, const Tensor& rows,
                 const Tensor& grads, double lr, double momentum, double weight_decay) {
  RowUpdateArgs args = row_update_args("sgd_update_", weight, rows, grads);
  if (momentum_buffer) {
    args.first_state = state_data("sgd_update_", "momentum_buffer", *momentum_buffer, weight, weight.numel());
  }
  args.lr = lr;
  args.beta1 = momentum;
  args.weight_decay = weight_decay;
  run_rows(args, DEEPREC_DISPATCH(sgd_rows));
}

void adagrad_update_(const Tensor& weight, const Tensor& sum, const Tensor& rows, const Tensor& grads, double lr,
                     double eps, double weight_decay) {
  RowUpdateArgs args = row_update_args("adagrad_update_", weight, rows, grads);
  args.first_state = state_data("adagrad_update_", "sum", sum, weight, weight.numel());
  args.lr = lr;
  args.eps = eps;
  args.weight_decay = weight_decay;
  run_rows(args, DEEPREC_DISPATCH(adagrad_rows));
}

void rowwise_adagrad_update_(const Tensor& weight, const Tensor& sum, const Tensor& rows, const Tensor& grads,
                             double lr, double eps, double weight_decay) {
  RowUpdateArgs args = row_update_args("rowwise_adagrad_update_", weight, rows, grads);
  args.first_state = state_data("rowwise_adagrad_update_", "sum", sum, weight, weight.size(0));
  args.lr = lr;
  args.eps = eps;
  args.weight_decay = weight_decay;
  run_rows(args, DEEPREC_DISPATCH(rowwise_adagrad_rows));
}

void adam_update_(const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& rows,
                  const Tensor& grads, int64_t step, double lr, double beta1, double beta2, double eps,
                  double weight_decay) {
  RowUpdateArgs args = row_update_args("adam_update_", weight, rows, grads);
  args.first_state = state_data("adam_update_", "exp_avg", exp_avg, weight, weight.numel());
  args.second_state = state_data("adam_update_", "exp_avg_sq", exp_avg_sq, weight, weight.numel());
  args.beta1 = beta1;
  args.beta2 = beta2;
  args.eps = eps;
  args.weight_decay = weight_decay;
  args.step_size = lr / (1.0 - std::pow(beta1, static_cast<double>(step)));
  args.inv_sqrt_correction2 = 1.0 / std::sqrt(1.0 - std::pow(beta2, static_cast<double>(step)));
  run_rows(args, DEEPREC_DISPATCH(adam_rows));
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("sgd_update_", TORCH_BOX(&deeprec::sgd_update_));
  m.impl("adagrad_update_", TORCH_BOX(&deeprec::adagrad_update_));
  m.impl("rowwise_adagrad_update_", TORCH_BOX(&deeprec::rowwise_adagrad_update_));
  m.impl("adam_update_", TORCH_BOX(&deeprec::adam_update_));
}
#endif
