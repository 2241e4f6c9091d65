// The gradient of embedding_fm by row: for each touched row its entries one after another in the order of the plan,
// bitwise the same for any number of threads. The row itself is read once; nothing of size [B, F, D] is built.
#include "embedding_fm.h"
#include "lanes.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kAhead = 12;  // entries asked for before they are needed

template <class T, class Position, bool kFull>
struct FmSum {
  using A = typename Accumulator<T>::type;
  const FmGradArgs& a;
  const Position* row_offsets;
  const Position* order;
  const Position* bags;
  const A* grad;
  const A* sums;
  const T* values;
  int64_t last;  // entry after the last of this segment

  explicit FmSum(const FmGradArgs& args)
      : a(args),
        row_offsets(static_cast<const Position*>(args.row_offsets)),
        order(static_cast<const Position*>(args.order)),
        bags(static_cast<const Position*>(args.bags)),
        grad(static_cast<const A*>(args.grad)),
        sums(static_cast<const A*>(args.sums)),
        values(static_cast<const T*>(args.values)),
        last(row_offsets[args.segment_end]) {}

  int64_t bag(int64_t j) const {
    const int64_t p = order[j];
    return bags ? static_cast<int64_t>(bags[p]) : p;
  }

  int64_t sample(int64_t bag) const {
    if (a.feature >= 0) {
      return bag - a.feature * a.batch;
    }
    if (sizeof(Position) == 4) {
      return static_cast<uint32_t>(bag) % static_cast<uint32_t>(a.batch);
    }
    return bag % a.batch;
  }

  const T* embedding_grad(int64_t bag, int64_t b) const {
    const int64_t f = a.feature >= 0 ? a.feature : bag / a.batch;
    return reinterpret_cast<const T*>(a.embeddings_grad) + b * a.grad_batch_stride + f * a.grad_feature_stride;
  }

  DEEPREC_ALWAYS_INLINE void ask(int64_t j) const {
    if (j < last) {
      const int64_t at = bag(j), b = sample(at);
      prefetch_row(reinterpret_cast<const char*>(sums + b * a.dim), a.dim * static_cast<int64_t>(sizeof(A)));
      if (kFull && a.embeddings_grad) {
        prefetch_row(reinterpret_cast<const char*>(embedding_grad(at, b)), a.dim * static_cast<int64_t>(sizeof(T)));
      }
    }
  }

  int64_t row_number(int64_t u) const {
    return a.wide_rows ? static_cast<const int64_t*>(a.rows)[u]
                       : static_cast<int64_t>(static_cast<const int32_t*>(a.rows)[u]);
  }

  template <int N>
  void store(Lanes<A, N> v, int64_t at) const {
    if (a.wide_out) {
      store_lanes<N>(static_cast<A*>(a.out) + at, v);
    } else {
      store_lanes<N>(static_cast<T*>(a.out) + at, v);
    }
  }

  void row(int64_t u, const T* weight) const {
    const int64_t begin = row_offsets[u], end = row_offsets[u + 1];
    const A factor = static_cast<A>(a.factor);
    A linear = 0;
    each_block<A>(a.dim, [&]<int N, int K>(int64_t d) {
      Lanes<A, N> sum[K] = {};
      A first = 0, second = 0;  // sum of g x and of g x^2
      for (int64_t j = begin; j < end; ++j) {
        if (d == 0) {
          ask(j + kAhead);
        }
        const int64_t at = bag(j), b = sample(at);
        const A x = kFull && values ? A(widen(values[order[j]])) : A(1);
        const A g = grad[b] * x;
        first += g;
        second += g * x;
        const A* from = sums + b * a.dim + d;
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          sum[k] += g * load_lanes<N>(from + k * N);
        }
        if (kFull && a.embeddings_grad) {
          const T* more = embedding_grad(at, b) + d;
#pragma GCC unroll 4
          for (int k = 0; k < K; ++k) {
            sum[k] += x * load_lanes<N>(more + k * N);
          }
        }
      }
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        store<N>(factor * (sum[k] - second * load_lanes<N>(weight + d + k * N)), (u - a.begin) * a.dim + d + k * N);
      }
      linear = first;
    });
    if (a.linear_out) {
      store_linear(factor * linear, u - a.begin);
    }
  }

  void store_linear(A value, int64_t at) const {
    if (a.wide_out) {
      static_cast<A*>(a.linear_out)[at] = value;
    } else {
      narrow(value, static_cast<T*>(a.linear_out) + at);
    }
  }

  // d loss / d x of each entry of a row.
  void values_grads(int64_t u, const T* weight) const {
    T* out = static_cast<T*>(a.values_grad);
    const A w = a.linear ? A(widen(*reinterpret_cast<const T*>(a.linear + row_number(u) * a.linear_stride))) : A(0);
    A square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t k = 0; k < a.dim; ++k) {
      square += widen(weight[k]) * widen(weight[k]);
    }
    for (int64_t j = row_offsets[u]; j < row_offsets[u + 1]; ++j) {
      const int64_t at = bag(j), b = sample(at);
      const A* from = sums + b * a.dim;
      A dot = 0, more = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t k = 0; k < a.dim; ++k) {
        dot += widen(weight[k]) * from[k];
      }
      if (a.embeddings_grad) {
        const T* e = embedding_grad(at, b);
#pragma omp simd reduction(+ : more)
        for (int64_t k = 0; k < a.dim; ++k) {
          more += widen(weight[k]) * widen(e[k]);
        }
      }
      narrow(grad[b] * (w + dot - A(widen(values[order[j]])) * square) + more, out + order[j]);
    }
  }

  void run() const {
    for (int64_t u = a.begin; u < a.end; ++u) {
      ask_ahead(a.ahead, u);
      ask_ahead(a.linear_ahead, u);
      const T* weight = reinterpret_cast<const T*>(a.weight + row_number(u) * a.row_stride);
      row(u, weight);
      if (kFull && a.values_grad) {
        values_grads(u, weight);
      }
    }
  }
};

template <class T, class Position>
void sum_as(const FmGradArgs& a) {
  if (a.values || a.embeddings_grad) {
    FmSum<T, Position, true>(a).run();
  } else {
    FmSum<T, Position, false>(a).run();
  }
}

template <class T>
void sum_of(const FmGradArgs& a) {
  if (a.wide_positions) {
    sum_as<T, int64_t>(a);
  } else {
    sum_as<T, int32_t>(a);
  }
}

}  // namespace

void fm_sum_grads(const FmGradArgs& a) { DEEPREC_BY_ELEMENT(a.element, sum_of, a); }

}  // namespace deeprec::DEEPREC_ISA
