// Sums the gradients of the entries that touched a row, one after another in the order of the plan: bitwise the same
// for any number of threads. The sums stay in vector registers, a block of columns at a time.
#include "embedding_bag.h"
#include "lanes.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kAhead = 12;  // entries asked for before they are needed
// Entries are looked up before they are added, a group at a time, where a row has many columns or many entries. Others
// ask for the entries of the rows after them instead: with few entries a row, gradients are mostly far away.
constexpr int64_t kLongRow = 128;    // columns
constexpr int64_t kManyEntries = 8;  // half to a quarter of the time with 20 to 60 entries a row of 16 to 64 columns
constexpr int64_t kHeld = 128;       // entries of a group
#if defined(DEEPREC_ISA_avx512)
constexpr int kRegisters = 16;  // for the sums of a row
#else
constexpr int kRegisters = 8;
#endif

// The gradient that one entry contributes: factor times `from`, or nothing where `argmax` names another entry.
template <class T>
struct Entry {
  using A = typename Accumulator<T>::type;
  const T* from;
  A factor;
  const char* argmax;  // of the first column, or null
  int64_t number;
};

template <class T, class Position, bool kPlain>
struct Sum {
  using A = typename Accumulator<T>::type;
  const BagGradArgs& a;
  const Position* row_offsets;
  const Position* order;
  const Position* bags;
  const T* grad;
  const A* inverse_length;
  const T* scale;
  FeatureGrad only;
  int64_t last;  // no entry from here on is asked for

  explicit Sum(const BagGradArgs& args)
      : a(args),
        row_offsets(static_cast<const Position*>(args.row_offsets)),
        order(static_cast<const Position*>(args.order)),
        bags(static_cast<const Position*>(args.bags)),
        grad(reinterpret_cast<const T*>(args.grad)),
        inverse_length(static_cast<const A*>(args.inverse_length)),
        scale(static_cast<const T*>(args.scale)),
        only(args.features[args.feature < 0 ? 0 : args.feature]),
        last(row_offsets[args.segment_end]) {}

  // kPlain: one feature, one id a bag, nothing but sums.
  const T* plain(int64_t j) const {
    const int64_t bag = static_cast<int64_t>(order[j]) - a.feature * a.batch;
    return grad + bag * a.grad_stride + only.column;
  }

  Entry<T> entry(int64_t j) const {
    if (kPlain) {
      return {plain(j), 1, nullptr, 0};
    }
    const int64_t number = order[j];
    const int64_t bag = bags ? static_cast<int64_t>(bags[number]) : number;
    const int64_t f = a.feature >= 0 ? a.feature : bag / a.batch;
    const FeatureGrad& feature = a.features[f];
    if (feature.sequence) {
      const T* from = reinterpret_cast<const T*>(feature.sequence) + (number - feature.first_entry) * a.dim;
      return {from, 1, nullptr, 0};
    }
    const int64_t b = bag - f * a.batch;
    Entry<T> out{grad + b * a.grad_stride + feature.column, 1, nullptr, number};
    if (feature.mode == BagMode::mean && inverse_length) {
      out.factor = inverse_length[bag];
    } else if (scale) {
      out.factor = widen(scale[number]);
    }
    if (feature.mode == BagMode::max && a.argmax) {
      out.argmax = a.argmax + (b * a.argmax_stride + feature.column) * (a.wide_argmax ? 8 : 4);
    }
    return out;
  }

  DEEPREC_ALWAYS_INLINE void ask(int64_t j) const {
    if (j < last) {
      prefetch_row(reinterpret_cast<const char*>(entry(j).from), a.dim * static_cast<int64_t>(sizeof(T)));
    }
  }

  bool counts(const Entry<T>& e, int64_t column) const {
    if (a.wide_argmax) {
      return reinterpret_cast<const int64_t*>(e.argmax)[column] == e.number;
    }
    return reinterpret_cast<const int32_t*>(e.argmax)[column] == e.number;
  }

  // Columns [column, column + width) of the row whose entries are [begin, end); W = width, or 0 for a width below 16.
  template <int W, bool kAsk>
  void block(int64_t begin, int64_t end, int64_t column, int64_t width, A* sum) const {
    constexpr int kWidth = W > 0 ? W : 16;
    for (int k = 0; k < kWidth; ++k) {
      sum[k] = 0;
    }
    for (int64_t j = begin; j < end; ++j) {
      if (kAsk) {
        ask(j + kAhead);
      }
      const Entry<T> e = entry(j);
      const T* from = e.from + column;
      const int64_t n = W > 0 ? W : width;
      if (!kPlain && e.argmax) {
        for (int64_t k = 0; k < n; ++k) {
          sum[k] += counts(e, column + k) ? widen(from[k]) : A(0);
        }
      } else if (W > 0) {
#pragma omp simd
        for (int k = 0; k < kWidth; ++k) {
          sum[k] += kPlain ? widen(from[k]) : e.factor * widen(from[k]);
        }
      } else {
        for (int64_t k = 0; k < n; ++k) {
          sum[k] += e.factor * widen(from[k]);
        }
      }
    }
  }

  template <int W, bool kAsk>
  int64_t store(int64_t begin, int64_t end, int64_t column, int64_t width, int64_t at) const {
    constexpr int kWidth = W > 0 ? W : 16;
    A sum[kWidth];
    block<W, kAsk>(begin, end, column, width, sum);
    const A factor = static_cast<A>(a.factor);
    const int64_t start = at * a.dim + column;
    const int64_t n = W > 0 ? W : width;
    if (a.wide_out) {
      for (int64_t k = 0; k < n; ++k) {
        static_cast<A*>(a.out)[start + k] = factor * sum[k];
      }
    } else {
      for (int64_t k = 0; k < n; ++k) {
        narrow(factor * sum[k], static_cast<T*>(a.out) + start + k);
      }
    }
    return n;
  }

  template <bool kAsk>
  int64_t widest(int64_t begin, int64_t end, int64_t column, int64_t at) const {
    const int64_t left = a.dim - column;
    if (left >= 128) {
      return store<128, kAsk>(begin, end, column, 128, at);
    }
    if (left >= 64) {
      return store<64, kAsk>(begin, end, column, 64, at);
    }
    if (left >= 32) {
      return store<32, kAsk>(begin, end, column, 32, at);
    }
    if (left >= 16) {
      return store<16, kAsk>(begin, end, column, 16, at);
    }
    if (left == 8) {
      return store<8, kAsk>(begin, end, column, 8, at);
    }
    return store<0, kAsk>(begin, end, column, left, at);
  }

  // Entries of one row, looked up: their gradients, and what to multiply them with.
  struct Held {
    const T* from[kHeld];
    A factor[kHeld];
  };

  void look_up(int64_t begin, int64_t end, Held* held) const {
    if (a.feature >= 0 && bags && !only.sequence && only.mode == BagMode::sum) {  // nothing to decide for each entry
      const T* first = grad + only.column - a.feature * a.batch * a.grad_stride;
      const Position *order_at = order, *bag_at = bags;
      const T* scale_at = scale;
      const int64_t stride = a.grad_stride;
      for (int64_t j = begin; j < end; ++j) {
        const int64_t number = order_at[j];
        held->from[j - begin] = first + static_cast<int64_t>(bag_at[number]) * stride;
        held->factor[j - begin] = scale_at ? widen(scale_at[number]) : A(1);
      }
      return;
    }
    for (int64_t j = begin; j < end; ++j) {
      const Entry<T> e = entry(j);
      held->from[j - begin] = e.from;
      held->factor[j - begin] = e.factor;
    }
  }

  // The gradient of a row of one column: nothing to ask for, and no sum to keep apart.
  A sum_one(int64_t begin, int64_t end) const {
    Held held;
    A sum = 0;
    for (int64_t first = begin; first < end; first += kHeld) {
      const int64_t count = end - first < kHeld ? end - first : kHeld;
      look_up(first, first + count, &held);
      for (int64_t j = 0; j < count; ++j) {
        sum += held.factor[j] * widen(*held.from[j]);
      }
    }
    return static_cast<A>(a.factor) * sum;
  }

  // Sums columns [column, column + width) in K registers of N lanes, N * (K - 2) < width. The last two registers may
  // overlap those before them: such columns are summed, and stored, twice with the same result.
  template <int N, int K>
  void sum_held(int64_t begin, int64_t end, int64_t column, int64_t width, bool is_held, Held* held, A* out) const {
    const int64_t final = width - N;
    const int64_t second_last = (K - 2) * N > final ? final : (K - 2) * N;
    Lanes<A, N> sum[K] = {};
    for (int64_t first = begin; first < end; first += kHeld) {
      const int64_t count = end - first < kHeld ? end - first : kHeld;
      if (!is_held) {
        look_up(first, first + count, held);
      }
      for (int64_t j = 0; j < count; ++j) {
        const T* from = held->from[j] + column;
        const A factor = held->factor[j];
#pragma GCC unroll 16
        for (int k = 0; k < K - 2; ++k) {
          sum[k] += factor * load_lanes<N>(from + k * N);
        }
        sum[K - 2] += factor * load_lanes<N>(from + second_last);
        sum[K - 1] += factor * load_lanes<N>(from + final);
      }
    }
    const A factor = static_cast<A>(a.factor);
#pragma GCC unroll 16
    for (int k = 0; k < K - 2; ++k) {
      store_lanes<N>(out + k * N, factor * sum[k]);
    }
    store_lanes<N>(out + second_last, factor * sum[K - 2]);
    store_lanes<N>(out + final, factor * sum[K - 1]);
  }

  template <int K>
  void sum_width(int registers, int64_t begin, int64_t end, int64_t column, int64_t width, bool is_held, Held* held,
                 A* out) const {
    if constexpr (K > 2) {
      if (registers <= K - 2) {
        return sum_width<K - 2>(registers, begin, end, column, width, is_held, held, out);
      }
    }
    sum_held<kFullLanes<A>, K>(begin, end, column, width, is_held, held, out);
  }

  // The gradient of a row without maxima, a group of entries at a time.
  void sum_in_groups(int64_t begin, int64_t end, int64_t at) const {
    constexpr int64_t L = kFullLanes<A>;
    Held held;
    const bool is_held = end - begin <= kHeld;
    if (is_held) {
      look_up(begin, end, &held);
    }
    alignas(64) A block[kRegisters * L];
    for (int64_t next = 0; next < a.dim;) {
      const int64_t column = a.dim - next < L ? a.dim - L : next;  // a few columns twice rather than one by one
      const int64_t left = a.dim - column, start = at * a.dim + column;
      const int64_t width = left < kRegisters * L ? left : kRegisters * L;
      A* out = a.wide_out ? static_cast<A*>(a.out) + start : block;
      sum_width<kRegisters>(static_cast<int>((width + L - 1) / L), begin, end, column, width, is_held, &held, out);
      for (int64_t k = 0; !a.wide_out && k < width; ++k) {
        narrow(block[k], static_cast<T*>(a.out) + start + k);
      }
      next = column + width;
    }
  }

  // d loss / d scale of each entry: the gradient of its bag times its row.
  void scale_grads(int64_t begin, int64_t end, const T* row) const {
    T* out = static_cast<T*>(a.scale_grad);
    for (int64_t j = begin; j < end; ++j) {
      const T* from = entry(j).from;
      A dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t k = 0; k < a.dim; ++k) {
        dot += widen(from[k]) * widen(row[k]);
      }
      narrow(dot, out + order[j]);
    }
  }

  int64_t row_number(int64_t u) const {
    return a.wide_rows ? static_cast<const int64_t*>(a.rows)[u]
                       : static_cast<int64_t>(static_cast<const int32_t*>(a.rows)[u]);
  }

  void run() const {
    for (int64_t u = a.begin; u < a.end; ++u) {
      const int64_t begin = row_offsets[u], end = row_offsets[u + 1];
      ask_ahead(a.ahead, u);
      if (!kPlain && !a.argmax && a.dim == 1) {
        const A sum = sum_one(begin, end);
        if (a.wide_out) {
          static_cast<A*>(a.out)[u - a.begin] = sum;
        } else {
          narrow(sum, static_cast<T*>(a.out) + u - a.begin);
        }
        if (a.scale_grad) {
          scale_grads(begin, end, reinterpret_cast<const T*>(a.weight) + row_number(u) * a.row_stride);
        }
        continue;
      }
      const bool in_groups = a.dim >= kLongRow || (end - begin >= kManyEntries && a.dim >= kFullLanes<A>);
      if (!kPlain && !a.argmax && in_groups) {
        sum_in_groups(begin, end, u - a.begin);
        if (a.scale_grad) {
          scale_grads(begin, end, reinterpret_cast<const T*>(a.weight) + row_number(u) * a.row_stride);
        }
        continue;
      }
      int64_t column = widest<true>(begin, end, 0, u - a.begin);
      while (column < a.dim) {
        column += widest<false>(begin, end, column, u - a.begin);
      }
      if (!kPlain && a.scale_grad) {
        scale_grads(begin, end, reinterpret_cast<const T*>(a.weight) + row_number(u) * a.row_stride);
      }
    }
  }
};

template <class T, class Position>
void sum_as(const BagGradArgs& a) {
  const bool plain = a.feature >= 0 && !a.bags && !a.scale && !a.features[a.feature].sequence;
  if (plain) {
    Sum<T, Position, true>(a).run();
  } else {
    Sum<T, Position, false>(a).run();
  }
}

template <class T>
void sum_of(const BagGradArgs& a) {
  if (a.wide_positions) {
    sum_as<T, int64_t>(a);
  } else {
    sum_as<T, int32_t>(a);
  }
}

}  // namespace

void sum_bag_grads(const BagGradArgs& a) { DEEPREC_BY_ELEMENT(a.element, sum_of, a); }

}  // namespace deeprec::DEEPREC_ISA
