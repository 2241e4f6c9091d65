// Fused in-place updates of the rows that a coalesced gradient touches: sgd_update_, adagrad_update_,
// rowwise_adagrad_update_, adam_update_ (lazy), ftrl_update_. One read and one write of each touched row and of its
// state.
#include "sparse_update.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kAhead = 4;  // rows asked for before they are needed

// Stores new weights: rounded to nearest, or bfloat16 stochastically. The random bits of an element are a function of
// the seed and the element's number in the table (`round_stochastically` in kernels/sparse_update/reference.py).
template <class T, bool kStochastic>
struct Store {
  explicit Store(int64_t) {}
  template <class A>
  void operator()(A value, T* to, int64_t) const {
    narrow(value, to);
  }
};

template <>
struct Store<Bf16, true> {
  uint32_t low, high;
  explicit Store(int64_t seed) : low(static_cast<uint32_t>(seed)), high(static_cast<uint32_t>(seed >> 32)) {}

  static uint32_t mix(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
  }

  void operator()(float value, Bf16* to, int64_t element) const {
    const uint64_t number = static_cast<uint64_t>(element);
    const uint32_t random =
        mix(mix(static_cast<uint32_t>(number) ^ low) ^ (static_cast<uint32_t>(number >> 32) + high));
    const uint32_t bits = float_to_bits(value);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    const uint32_t quiet = value != value ? 0x40u : 0u;
    to->bits = static_cast<uint16_t>(finite ? (bits + (random & 0xffffu)) >> 16 : (bits >> 16) | quiet);
  }
};

// Calls update(weight row, gradient row, row number) for each row; Update is one of the structs below.
template <class T, class G, class Id, class Update>
void each_row(const RowUpdateArgs& a, const Update& update) {
  using A = typename Accumulator<T>::type;
  const Id* rows = static_cast<const Id*>(a.rows);
  T* weight = static_cast<T*>(a.weight);
  const G* grads = static_cast<const G*>(a.grads);
  for (int64_t i = a.begin; i < a.end; ++i) {
    if (i + kAhead < a.end) {
      const int64_t next_row = static_cast<int64_t>(rows[i + kAhead]), next = next_row * a.dim;
      prefetch_for_write(weight + next, a.dim * sizeof(T));
      if (update.first) {
        prefetch_for_write(update.first + (Update::kStatePerRow ? next_row : next),
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

template <class T, class G, bool kStochastic, template <class, bool> class Update>
void dispatch_rows(const RowUpdateArgs& a) {
  const Update<T, kStochastic> update(a);
  if (a.wide_rows) {
    each_row<T, G, int64_t>(a, update);
  } else {
    each_row<T, G, int32_t>(a, update);
  }
}

template <class T, template <class, bool> class Update>
void dispatch_half(const RowUpdateArgs& a) {
  if (a.wide_grads) {
    dispatch_rows<T, float, false, Update>(a);
  } else {
    dispatch_rows<T, T, false, Update>(a);
  }
}

template <template <class, bool> class Update>
void dispatch(const RowUpdateArgs& a) {
  switch (a.element) {
    case Element::f32:
      return dispatch_rows<float, float, false, Update>(a);
    case Element::f64:
      return dispatch_rows<double, double, false, Update>(a);
    case Element::f16:
      return dispatch_half<F16, Update>(a);
    case Element::bf16:
      if (a.rounding_seed < 0) {
        dispatch_half<Bf16, Update>(a);
      } else if (a.wide_grads) {
        dispatch_rows<Bf16, float, true, Update>(a);
      } else {
        dispatch_rows<Bf16, Bf16, true, Update>(a);
      }
  }
}

template <class T, bool kStochastic>
struct UpdateBase {
  using A = typename Accumulator<T>::type;
  Store<T, kStochastic> store;
  static constexpr bool kStatePerRow = false;
  A *first, *second;
  A lr, decay, eps, beta1, beta2, step_size, inv_root2;
  A rest1, rest2;  // 1 - beta, in double: 1 - float(0.999) is off by 5e-5

  explicit UpdateBase(const RowUpdateArgs& a)
      : store(a.rounding_seed),
        first(static_cast<A*>(a.first_state)),
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

template <class T, bool kStochastic>
struct Sgd : UpdateBase<T, kStochastic> {
  using typename UpdateBase<T, kStochastic>::A;
  using UpdateBase<T, kStochastic>::UpdateBase;
  template <class G>
  void operator()(T* w, const G* grad, int64_t row, int64_t dim) const {
    const int64_t start = row * dim;
    const A lr = this->lr, decay = this->decay, momentum = this->beta1;
    if (!this->first) {
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) {
        const A x = widen(w[k]);
        this->store(x - lr * (widen(grad[k]) + decay * x), w + k, start + k);
      }
      return;
    }
    A* velocity = this->first + start;
#pragma omp simd
    for (int64_t k = 0; k < dim; ++k) {
      const A x = widen(w[k]);
      const A v = momentum * velocity[k] + (widen(grad[k]) + decay * x);
      velocity[k] = v;
      this->store(x - lr * v, w + k, start + k);
    }
  }
};

template <class T, bool kStochastic>
struct Adagrad : UpdateBase<T, kStochastic> {
  using typename UpdateBase<T, kStochastic>::A;
  using UpdateBase<T, kStochastic>::UpdateBase;
  template <class G>
  void operator()(T* w, const G* grad, int64_t row, int64_t dim) const {
    const int64_t start = row * dim;
    const A lr = this->lr, decay = this->decay, eps = this->eps;
    A* sum = this->first + start;
#pragma omp simd
    for (int64_t k = 0; k < dim; ++k) {
      const A x = widen(w[k]);
      const A g = widen(grad[k]) + decay * x;
      const A s = sum[k] + g * g;
      sum[k] = s;
      this->store(x - lr * g / (root(s) + eps), w + k, start + k);
    }
  }
};

template <class T, bool kStochastic>
struct RowwiseAdagrad : UpdateBase<T, kStochastic> {
  using typename UpdateBase<T, kStochastic>::A;
  using UpdateBase<T, kStochastic>::UpdateBase;
  static constexpr bool kStatePerRow = true;
  template <class G>
  void operator()(T* w, const G* grad, int64_t row, int64_t dim) const {
    const int64_t start = row * dim;
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
      this->store(x - scale * (widen(grad[k]) + decay * x), w + k, start + k);
    }
  }
};

template <class T, bool kStochastic>
struct Adam : UpdateBase<T, kStochastic> {
  using typename UpdateBase<T, kStochastic>::A;
  using UpdateBase<T, kStochastic>::UpdateBase;
  template <class G>
  void operator()(T* w, const G* grad, int64_t row, int64_t dim) const {
    const int64_t start = row * dim;
    const A decay = this->decay, eps = this->eps, beta1 = this->beta1, beta2 = this->beta2;
    const A step_size = this->step_size, inv_root2 = this->inv_root2, rest1 = this->rest1, rest2 = this->rest2;
    A* first = this->first + start;
    A* second = this->second + start;
#pragma omp simd
    for (int64_t k = 0; k < dim; ++k) {
      const A x = widen(w[k]);
      const A g = widen(grad[k]) + decay * x;
      const A m = beta1 * first[k] + rest1 * g;
      const A v = beta2 * second[k] + rest2 * (g * g);
      first[k] = m;
      second[k] = v;
      this->store(x - step_size * m / (root(v) * inv_root2 + eps), w + k, start + k);
    }
  }
};

// FTRL-proximal. The roots are those of the sums as they are stored, so that over the steps their differences add up to
// the root that divides. Before the first gradient of a weight its linear term follows from the weight.
template <class T, bool kStochastic>
struct Ftrl : UpdateBase<T, kStochastic> {
  using typename UpdateBase<T, kStochastic>::A;
  using UpdateBase<T, kStochastic>::UpdateBase;
  template <class G>
  void operator()(T* w, const G* grad, int64_t row, int64_t dim) const {
    const int64_t start = row * dim;
    const A inv_lr = A(1) / this->lr, beta = this->eps, l1 = this->beta1, l2 = this->beta2;
    const A at_start = beta * inv_lr + l2;
    A* sum = this->first + start;
    A* linear = this->second + start;
#pragma omp simd
    for (int64_t k = 0; k < dim; ++k) {
      const A x = widen(w[k]), g = widen(grad[k]), before = sum[k];
      const A n = before + g * g;
      const A root_n = root(n);
      const A first_z = -(x * at_start + (x > 0 ? l1 : x < 0 ? -l1 : A(0)));
      const A z = (before == 0 ? first_z : linear[k]) + (g - (root_n - root(before)) * inv_lr * x);
      const A size = z < 0 ? -z : z, excess = z < 0 ? z + l1 : z - l1;
      sum[k] = n;
      linear[k] = z;
      const A moved = size <= l1 ? A(0) : -excess / ((beta + root_n) * inv_lr + l2);
      this->store(n == 0 ? x : moved, w + k, start + k);
    }
  }
};

}  // namespace

void sgd_rows(const RowUpdateArgs& a) { dispatch<Sgd>(a); }
void adagrad_rows(const RowUpdateArgs& a) { dispatch<Adagrad>(a); }
void rowwise_adagrad_rows(const RowUpdateArgs& a) { dispatch<RowwiseAdagrad>(a); }
void adam_rows(const RowUpdateArgs& a) { dispatch<Adam>(a); }
void ftrl_rows(const RowUpdateArgs& a) { dispatch<Ftrl>(a); }

}  // namespace deeprec::DEEPREC_ISA

#ifdef DEEPREC_ISA_portable
#include <cmath>
#include <optional>

namespace deeprec {
namespace {

void sgd_update_(const Tensor& weight, const std::optional<Tensor>& momentum_buffer, const Tensor& rows,
                 const Tensor& grads, double lr, double momentum, double weight_decay, int64_t rounding_seed) {
  RowUpdateArgs args = row_update_args("sgd_update_", weight, rows, &grads);
  if (momentum_buffer) {
    args.first_state = state_data("sgd_update_", "momentum_buffer", *momentum_buffer, weight, weight.numel());
  }
  check_rates("sgd_update_", lr, weight_decay);
  check_momentum("sgd_update_", momentum);
  args.lr = lr;
  args.beta1 = momentum;
  args.weight_decay = weight_decay;
  args.rounding_seed = rounding_seed;
  run_rows(args, DEEPREC_DISPATCH(sgd_rows));
}

void adagrad_update_(const Tensor& weight, const Tensor& sum, const Tensor& rows, const Tensor& grads, double lr,
                     double eps, double weight_decay, int64_t rounding_seed) {
  RowUpdateArgs args = row_update_args("adagrad_update_", weight, rows, &grads);
  args.first_state = state_data("adagrad_update_", "sum", sum, weight, weight.numel());
  check_rates("adagrad_update_", lr, weight_decay);
  check_eps("adagrad_update_", eps);
  args.lr = lr;
  args.eps = eps;
  args.weight_decay = weight_decay;
  args.rounding_seed = rounding_seed;
  run_rows(args, DEEPREC_DISPATCH(adagrad_rows));
}

void rowwise_adagrad_update_(const Tensor& weight, const Tensor& sum, const Tensor& rows, const Tensor& grads,
                             double lr, double eps, double weight_decay, int64_t rounding_seed) {
  RowUpdateArgs args = row_update_args("rowwise_adagrad_update_", weight, rows, &grads);
  args.first_state = state_data("rowwise_adagrad_update_", "sum", sum, weight, weight.size(0));
  check_rates("rowwise_adagrad_update_", lr, weight_decay);
  check_eps("rowwise_adagrad_update_", eps);
  args.lr = lr;
  args.eps = eps;
  args.weight_decay = weight_decay;
  args.rounding_seed = rounding_seed;
  run_rows(args, DEEPREC_DISPATCH(rowwise_adagrad_rows));
}

void adam_update_(const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& rows,
                  const Tensor& grads, int64_t step, double lr, double beta1, double beta2, double eps,
                  double weight_decay, int64_t rounding_seed) {
  RowUpdateArgs args = row_update_args("adam_update_", weight, rows, &grads);
  args.first_state = state_data("adam_update_", "exp_avg", exp_avg, weight, weight.numel());
  args.second_state = state_data("adam_update_", "exp_avg_sq", exp_avg_sq, weight, weight.numel());
  check_step("adam_update_", step);
  check_rates("adam_update_", lr, weight_decay);
  check_betas("adam_update_", beta1, beta2);
  check_eps("adam_update_", eps);
  args.beta1 = beta1;
  args.beta2 = beta2;
  args.eps = eps;
  args.weight_decay = weight_decay;
  args.rounding_seed = rounding_seed;
  args.step_size = lr / (1.0 - std::pow(beta1, static_cast<double>(step)));
  args.inv_sqrt_correction2 = 1.0 / std::sqrt(1.0 - std::pow(beta2, static_cast<double>(step)));
  run_rows(args, DEEPREC_DISPATCH(adam_rows));
}

void ftrl_update_(const Tensor& weight, const Tensor& sum, const Tensor& linear, const Tensor& rows,
                  const Tensor& grads, double lr, double l1, double l2, double beta, int64_t rounding_seed) {
  RowUpdateArgs args = row_update_args("ftrl_update_", weight, rows, &grads);
  args.first_state = state_data("ftrl_update_", "sum", sum, weight, weight.numel());
  args.second_state = state_data("ftrl_update_", "linear", linear, weight, weight.numel());
  check_ftrl("ftrl_update_", lr, l1, l2, beta);
  args.lr = lr;
  args.eps = beta;
  args.beta1 = l1;
  args.beta2 = l2;
  args.rounding_seed = rounding_seed;
  run_rows(args, DEEPREC_DISPATCH(ftrl_rows));
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("sgd_update_", TORCH_BOX(&deeprec::sgd_update_));
  m.impl("adagrad_update_", TORCH_BOX(&deeprec::adagrad_update_));
  m.impl("rowwise_adagrad_update_", TORCH_BOX(&deeprec::rowwise_adagrad_update_));
  m.impl("adam_update_", TORCH_BOX(&deeprec::adam_update_));
  m.impl("ftrl_update_", TORCH_BOX(&deeprec::ftrl_update_));
}
#endif
