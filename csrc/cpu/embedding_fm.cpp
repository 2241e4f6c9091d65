// deeprec::embedding_fm: lookup, linear term and factorisation machine in one pass over the entries; the rows are asked
// for some samples ahead, across the borders of features, and the sums stay in registers.
// Pairwise products are added as they are, p += s v; s += v (see fm_interaction.cpp).
#include "embedding_fm.h"

#include "lanes.h"
#include "row_copy.h"

namespace deeprec::DEEPREC_ISA {
namespace {

// Where the row and the linear weight of an entry lie; row is null for padding.
struct Slot {
  const char* row;
  const char* linear;
};
static_assert(sizeof(Slot) + sizeof(double) <= kFmSlotBytes);

// The running sums of one sample over a block of columns.
template <class A, int N, int K>
struct Sums {
  Lanes<A, N> sum[K] = {}, pairs[K] = {};

  template <bool kScaled, class T>
  void add(const T* row, A x) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      Lanes<A, N> v = load_lanes<N>(row + k * N);
      if constexpr (kScaled) {
        v *= x;
      }
      pairs[k] += sum[k] * v;
      sum[k] += v;
    }
  }

  A finish(A* sums) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      store_lanes<N>(sums + k * N, sum[k]);
      if (k > 0) {
        pairs[0] += pairs[k];
      }
    }
    return sum_lanes<A, N>(pairs[0]);
  }
};

template <int N, int K, class T, class A>
void copy_scaled(T* to, const T* row, A x) {
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
    store_lanes<N>(to + k * N, x * load_lanes<N>(row + k * N));
  }
}

// One id a bag. While the samples of one tile are summed, the ids of the next become addresses and their rows are asked
// for, a part with each sample: features one after another where their ids lie together, else sample by sample.
// Padding and ids out of range read a row of zeros.
template <class T, class Id, bool kScaled, bool kOneLine>
struct OneHot {
  using A = typename Accumulator<T>::type;
  const FmForwardArgs& a;
  const Id* ids;
  const T* values;
  Slot* slots;  // [2 * tile, F]
  A* scale;     // [2 * tile, F]
  bool has_linear, by_feature;

  explicit OneHot(const FmForwardArgs& args)
      : a(args),
        ids(static_cast<const Id*>(args.ids)),
        values(static_cast<const T*>(args.values)),
        slots(static_cast<Slot*>(args.scratch)),
        scale(reinterpret_cast<A*>(slots + 2 * args.tile * args.num_features)),
        has_linear(args.num_features > 0 && args.features[0].linear),
        by_feature(args.bag_stride <= args.feature_stride) {}

  // The entry of feature f in sample b gets place `at`; returns whether its id is out of range.
  DEEPREC_ALWAYS_INLINE bool prepare_one(const FmFeature& feature, int64_t f, int64_t b, int64_t at) const {
    const int64_t id = ids[f * a.feature_stride + b * a.bag_stride];
    const bool is_bad = static_cast<uint64_t>(id) >= static_cast<uint64_t>(feature.num_rows);
    const bool counts = !is_bad && id != feature.padding;
    const char* row = counts ? feature.weight + id * feature.row_stride : a.zeros;
    slots[at].row = row;
    if (kOneLine) {
      __builtin_prefetch(row, 0, 3);
    } else {
      prefetch_row(row, a.dim * static_cast<int64_t>(sizeof(T)));
    }
    if (has_linear) {
      const char* linear = counts ? feature.linear + id * feature.linear_stride : a.zeros;
      slots[at].linear = linear;
      __builtin_prefetch(linear, 0, 3);
    }
    if constexpr (kScaled) {
      scale[at] = widen(values[f * a.value_feature_stride + b * a.value_bag_stride]);
    }
    return is_bad;
  }

  // Part `part` of a.tile of the tile of samples [first, end), with places from `at` on.
  DEEPREC_ALWAYS_INLINE bool prepare(int64_t first, int64_t end, int64_t part, int64_t at) const {
    const int64_t num_features = a.num_features;
    bool bad = false;
    if (by_feature) {
      for (int64_t f = num_features * part / a.tile; f < num_features * (part + 1) / a.tile; ++f) {
        const FmFeature feature = a.features[f];
        for (int64_t b = first; b < end; ++b) {
          bad |= prepare_one(feature, f, b, at + (b - first) * num_features + f);
        }
      }
    } else if (first + part < end) {
      for (int64_t f = 0; f < num_features; ++f) {
        bad |= prepare_one(a.features[f], f, first + part, at + part * num_features + f);
      }
    }
    return bad;
  }

  template <bool kLinear, int N, int K>
  DEEPREC_ALWAYS_INLINE Sums<A, N, K> sum(int64_t d, const Slot* mine, const A* x, A* total) const {
    const int64_t num_features = a.num_features;
    Sums<A, N, K> sums;
    A linear = 0;
    for (int64_t f = 0; f < num_features; ++f) {
      sums.template add<kScaled>(reinterpret_cast<const T*>(mine[f].row) + d, kScaled ? x[f] : A(1));
      if (kLinear) {
        const A w = widen(*reinterpret_cast<const T*>(mine[f].linear));
        linear += kScaled ? x[f] * w : w;
      }
    }
    *total += linear;
    return sums;
  }

  DEEPREC_ALWAYS_INLINE void sample(int64_t b, const Slot* mine, const A* x) const {
    A total = 0;
    each_block<A>(a.dim, [&]<int N, int K>(int64_t d) {
      Sums<A, N, K> sums =
          has_linear && d == 0 ? sum<true, N, K>(d, mine, x, &total) : sum<false, N, K>(d, mine, x, &total);
      total += sums.finish(static_cast<A*>(a.sums) + b * a.dim + d);
      if (a.embeddings) {
        for (int64_t f = 0; f < a.num_features; ++f) {
          T* to = static_cast<T*>(a.embeddings) + (b * a.num_features + f) * a.dim + d;
          copy_scaled<N, K>(to, reinterpret_cast<const T*>(mine[f].row) + d, kScaled ? x[f] : A(1));
        }
      }
    });
    narrow(total, static_cast<T*>(a.out) + b);
  }

  bool run() const {
    const int64_t tile = a.tile, half = tile * a.num_features;
    const auto border = [&](int64_t b) { return b < a.end ? b : a.end; };
    bool bad = false;
    int64_t at = 0;  // places of the current tile
    for (int64_t part = 0; part < tile; ++part) {
      bad |= prepare(a.begin, border(a.begin + tile), part, at);
    }
    for (int64_t first = a.begin; first < a.end; first += tile, at = half - at) {
      for (int64_t part = 0; part < tile; ++part) {
        bad |= prepare(border(first + tile), border(first + 2 * tile), part, half - at);
        if (first + part < a.end) {
          sample(first + part, slots + at + part * a.num_features, scale + at + part * a.num_features);
        }
      }
    }
    return bad;
  }
};

// Bags of any number of entries, read where they lie.
template <class T, class Id, bool kScaled>
struct MultiHot {
  using A = typename Accumulator<T>::type;
  const FmForwardArgs& a;
  const Id* ids;
  const Id* offsets;
  const T* values;
  bool has_linear;

  explicit MultiHot(const FmForwardArgs& args)
      : a(args),
        ids(static_cast<const Id*>(args.ids)),
        offsets(static_cast<const Id*>(args.offsets)),
        values(static_cast<const T*>(args.values)),
        has_linear(args.num_features > 0 && args.features[0].linear) {}

  int64_t bound(int64_t f, int64_t b) const { return offsets[f * a.batch + b]; }

  bool has_bad() const {
    bool bad = false;
    for (int64_t f = 0; f < a.num_features; ++f) {
      const uint64_t rows = static_cast<uint64_t>(a.features[f].num_rows);
      for (int64_t p = bound(f, a.begin), end = bound(f, a.end); p < end; ++p) {
        bad |= static_cast<uint64_t>(static_cast<int64_t>(ids[p])) >= rows;
      }
    }
    return bad;
  }

  DEEPREC_ALWAYS_INLINE void ask(const FmFeature& feature, int64_t p, int64_t end) const {
    if (p < end) {
      const int64_t id = ids[p];
      prefetch_row(feature.weight + id * feature.row_stride, a.dim * static_cast<int64_t>(sizeof(T)));
      if (has_linear) {
        __builtin_prefetch(feature.linear + id * feature.linear_stride, 0, 3);
      }
    }
  }

  // Calls visit(row at column d, x) for the entries of a sample.
  template <class Visit>
  void each_entry(int64_t b, int64_t d, const Visit& visit) const {
    for (int64_t f = 0; f < a.num_features; ++f) {
      const FmFeature& feature = a.features[f];
      for (int64_t p = bound(f, b), end = bound(f, b + 1); p < end; ++p) {
        const int64_t id = ids[p];
        if (id != feature.padding) {
          const T* row = reinterpret_cast<const T*>(feature.weight + id * feature.row_stride);
          visit(row + d, kScaled ? A(widen(values[p])) : A(1));
        }
      }
    }
  }

  // The linear term; on the way, asks for the rows of later entries of each feature.
  A linear(int64_t b) const {
    A total = 0;
    for (int64_t f = 0; f < a.num_features; ++f) {
      const FmFeature& feature = a.features[f];
      const int64_t last = bound(f, a.end);
      for (int64_t p = bound(f, b), end = bound(f, b + 1); p < end; ++p) {
        ask(feature, p + a.ahead, last);
        const int64_t id = ids[p];
        if (has_linear && id != feature.padding) {
          const A w = widen(*reinterpret_cast<const T*>(feature.linear + id * feature.linear_stride));
          total += kScaled ? A(widen(values[p])) * w : w;
        }
      }
    }
    return total;
  }

  template <int N, int K>
  void store_embeddings(int64_t b, int64_t d) const {
    for (int64_t f = 0; f < a.num_features; ++f) {
      T* to = static_cast<T*>(a.embeddings) + (b * a.num_features + f) * a.dim + d;
      Lanes<A, N> sum[K] = {};
      const FmFeature& feature = a.features[f];
      for (int64_t p = bound(f, b), end = bound(f, b + 1); p < end; ++p) {
        const int64_t id = ids[p];
        if (id == feature.padding) {
          continue;
        }
        const T* row = reinterpret_cast<const T*>(feature.weight + id * feature.row_stride) + d;
        const A x = kScaled ? A(widen(values[p])) : A(1);
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          sum[k] += x * load_lanes<N>(row + k * N);
        }
      }
      for (int k = 0; k < K; ++k) {
        store_lanes<N>(to + k * N, sum[k]);
      }
    }
  }

  void sample(int64_t b) const {
    A total = linear(b);
    each_block<A>(a.dim, [&]<int N, int K>(int64_t d) {
      Sums<A, N, K> sums;
      each_entry(b, d, [&](const T* row, A x) { sums.template add<kScaled>(row, x); });
      total += sums.finish(static_cast<A*>(a.sums) + b * a.dim + d);
      if (a.embeddings) {
        store_embeddings<N, K>(b, d);
      }
    });
    narrow(total, static_cast<T*>(a.out) + b);
  }

  bool run() const {
    if (has_bad()) {
      return true;
    }
    for (int64_t f = 0; f < a.num_features; ++f) {
      const int64_t first = bound(f, a.begin), last = bound(f, a.end);
      for (int64_t p = first; p < first + a.ahead; ++p) {
        ask(a.features[f], p, last);
      }
    }
    for (int64_t b = a.begin; b < a.end; ++b) {
      sample(b);
    }
    return false;
  }
};

template <class T, class Id>
bool run_as(const FmForwardArgs& a) {
  if (a.offsets) {
    return a.values ? MultiHot<T, Id, true>(a).run() : MultiHot<T, Id, false>(a).run();
  }
  if (a.values) {
    return OneHot<T, Id, true, false>(a).run();
  }
  return a.one_line ? OneHot<T, Id, false, true>(a).run() : OneHot<T, Id, false, false>(a).run();
}

template <class T>
bool run_of(const FmForwardArgs& a) {
  return a.wide_ids ? run_as<T, int64_t>(a) : run_as<T, int32_t>(a);
}

}  // namespace

bool fm_forward(const FmForwardArgs& a) {
  switch (a.element) {
    case Element::f32:
      return run_of<float>(a);
    case Element::f64:
      return run_of<double>(a);
    case Element::bf16:
      return run_of<Bf16>(a);
    case Element::f16:
      return run_of<F16>(a);
  }
  return false;
}

}  // namespace deeprec::DEEPREC_ISA
