// deeprec::embedding_fm: lookup, linear term and factorisation machine in one pass over the entries.
// Ids become addresses a tile of samples at a time, so that ids and bags are read in the order in which they lie, and
// the loop that sums asks for the rows a fixed number of entries ahead, across features, bags and samples. It does the
// one in short turns with the other: the requests on their way must not run dry. The sums of a sample stay in
// registers. Pairwise products are added as they are, p += s v; s += v (see fm_interaction.cpp).
#include "embedding_fm.h"

#include "lanes.h"
#include "row_copy.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int kToL2 = 2;              // __builtin_prefetch's name of that cache: more requests fit on the way there
constexpr int64_t kMostAhead = 32;    // entries; what they touch must fit a first-level TLB of 64 pages
constexpr int64_t kLinesAhead = 128;  // of 64 bytes
constexpr int64_t kStrip = 8;         // entries summed before the next turn

// The running sums of one sample over a block of columns.
template <class A, int N, int K>
struct Sums {
  Lanes<A, N> sum[K] = {}, pairs[K] = {};

  template <bool kScaled, class T>
  DEEPREC_ALWAYS_INLINE void add(const T* row, A x) {
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

// Entries of the samples [first, end), sample after sample and feature after feature within one: where their rows and
// linear weights lie, and x. Behind the last entry follow the first ones of the next tile.
// Padding and ids out of range have a row of zeros and x = 0.
struct Tile {
  int which;
  int64_t capacity = -1;
  const char** rows = nullptr;
  const char** linear = nullptr;
  void* x = nullptr;  // in the accumulator's type
  int64_t first = 0, end = 0;
  int64_t starts[kFmTile + 1] = {};  // of each sample's entries
  int64_t units = 0, done = 0;       // of the work to find the addresses
  int64_t at[kFmTile] = {};          // bags: where a sample's next entry goes

  int64_t size() const { return starts[end - first]; }

  void reserve(const FmForwardArgs& a, int64_t entries) {
    if (entries <= capacity) {
      return;
    }
    capacity = entries;
    const int64_t slots = capacity + kMostAhead;
    char* slot_memory = a.get_memory(a.memory, which, slots * static_cast<int64_t>(2 * sizeof(char*) + sizeof(double)));
    rows = reinterpret_cast<const char**>(slot_memory);
    linear = rows + slots;
    x = linear + slots;
  }
};

// ---- ids become addresses -------------------------------------------------------------------------------------------

bool goes_by_feature(const FmForwardArgs& a) { return !a.offsets && a.bag_stride <= a.feature_stride; }

// Begins a tile with the samples from `first` on.
template <class Id>
void open_tile(const FmForwardArgs& a, Tile* t, int64_t first) {
  const Id* offsets = static_cast<const Id*>(a.offsets);
  const int64_t count = a.end - first < a.tile ? a.end - first : a.tile;
  t->first = first;
  t->end = first + count;
  t->done = 0;
  t->units = offsets || goes_by_feature(a) ? a.num_features : count * a.num_features;
  for (int64_t i = 0; i <= count; ++i) {
    t->starts[i] = offsets ? 0 : i * a.num_features;
  }
  if (offsets) {
    for (int64_t f = 0; f < a.num_features; ++f) {
      const Id* bounds = offsets + f * a.batch + first;
      __builtin_prefetch(bounds + 16);
      for (int64_t i = 0; i < count; ++i) {
        t->starts[i + 1] += bounds[i + 1] - bounds[i];
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      t->at[i] = t->starts[i];
      t->starts[i + 1] += t->starts[i];
    }
  }
  t->reserve(a, t->size());
}

template <class Id, class T, bool kScaled, bool kLinear>
struct Places {
  using A = typename Accumulator<T>::type;
  const FmForwardArgs& a;
  const Id* ids;
  const Id* offsets;
  const T* values;

  explicit Places(const FmForwardArgs& args)
      : a(args),
        ids(static_cast<const Id*>(args.ids)),
        offsets(static_cast<const Id*>(args.offsets)),
        values(static_cast<const T*>(args.values)) {}

  // Returns whether the id is out of range.
  DEEPREC_ALWAYS_INLINE bool place(const Tile& t, const FmFeature& feature, int64_t id, const T* value,
                                   int64_t at) const {
    const bool is_bad = static_cast<uint64_t>(id) >= static_cast<uint64_t>(feature.num_rows);
    const bool counts = !is_bad && id != feature.padding;
    t.rows[at] = counts ? feature.weight + id * feature.row_stride : a.zeros;
    if constexpr (kLinear) {
      t.linear[at] = counts ? feature.linear + id * feature.linear_stride : a.zeros;
    }
    if constexpr (kScaled) {
      static_cast<A*>(t.x)[at] = counts ? A(widen(*value)) : A(0);
    }
    return is_bad;
  }

  DEEPREC_ALWAYS_INLINE bool place_single(const Tile& t, const FmFeature& feature, int64_t f, int64_t i) const {
    const int64_t b = t.first + i;
    const T* value = kScaled ? values + f * a.value_feature_stride + b * a.value_bag_stride : nullptr;
    return place(t, feature, ids[f * a.feature_stride + b * a.bag_stride], value, i * a.num_features + f);
  }

  // The entries of one feature; of so many features the ids are more streams than a processor follows.
  bool place_column(const Tile& t, int64_t f) const {
    const FmFeature feature = a.features[f];
    const int64_t count = t.end - t.first;
    __builtin_prefetch(ids + f * a.feature_stride + (t.end + count) * a.bag_stride);
    if constexpr (kScaled) {
      __builtin_prefetch(values + f * a.value_feature_stride + (t.end + count) * a.value_bag_stride);
    }
    bool is_bad = false;
    for (int64_t i = 0; i < count; ++i) {
      is_bad |= place_single(t, feature, f, i);
    }
    return is_bad;
  }

  // Entries [begin, end) of a tile whose samples have their ids together.
  bool place_rows(const Tile& t, int64_t begin, int64_t end) const {
    bool is_bad = false;
    int64_t i = begin / a.num_features, f = begin % a.num_features;
    while (begin < end) {
      const int64_t stop = end - begin < a.num_features - f ? f + end - begin : a.num_features;
      begin += stop - f;
      for (; f < stop; ++f) {
        is_bad |= place_single(t, a.features[f], f, i);
      }
      f = 0;
      ++i;
    }
    return is_bad;
  }

  bool place_bags(Tile* t, int64_t f) const {
    const FmFeature feature = a.features[f];
    const int64_t count = t->end - t->first;
    const Id* bounds = offsets + f * a.batch + t->first;
    int64_t p = bounds[0];
    const int64_t length = bounds[count] - p;
    for (int64_t line = 0; line < length; line += 64 / static_cast<int64_t>(sizeof(Id))) {
      __builtin_prefetch(ids + p + 2 * length + line);
    }
    bool is_bad = false;
    for (int64_t i = 0; i < count; ++i) {
      int64_t to = t->at[i];
      for (const int64_t last = bounds[i + 1]; p < last; ++p, ++to) {
        is_bad |= place(*t, feature, ids[p], kScaled ? values + p : nullptr, to);
      }
      t->at[i] = to;
    }
    return is_bad;
  }

  bool run(Tile* t, int64_t units) const {
    int64_t u = t->done;
    t->done = units;
    bool is_bad = false;
    if (offsets) {
      for (; u < units; ++u) {
        is_bad |= place_bags(t, u);
      }
    } else if (goes_by_feature(a)) {
      for (; u < units; ++u) {
        is_bad |= place_column(*t, u);
      }
    } else {
      is_bad = place_rows(*t, u, units);
    }
    return is_bad;
  }
};

// Finds the addresses of a tile from unit t->done on; returns whether an id is out of range.
// Units of a tile: its features, or, where the ids of a sample lie together, its entries.
using Place = bool (*)(const FmForwardArgs& a, Tile* t, int64_t units);

template <class Id, class T, bool kScaled, bool kLinear>
bool place_units(const FmForwardArgs& a, Tile* t, int64_t units) {
  return Places<Id, T, kScaled, kLinear>(a).run(t, units);
}

template <class T, bool kScaled, bool kLinear>
Place place_of(const FmForwardArgs& a) {
  return a.wide_ids ? place_units<int64_t, T, kScaled, kLinear> : place_units<int32_t, T, kScaled, kLinear>;
}

// ---- the sums -------------------------------------------------------------------------------------------------------

// An instance for each type and for each block of columns: all else is decided when it runs.
template <class T, bool kScaled, bool kLinear>
struct Forward {
  using A = typename Accumulator<T>::type;
  const FmForwardArgs& a;
  int64_t row_bytes, ahead;
  void (*open)(const FmForwardArgs& a, Tile* t, int64_t first);
  Place place;
  bool bad = false;
  Tile tiles[3] = {{0}, {1}, {2}};
  Tile* later = nullptr;  // the tile to open while one is summed

  explicit Forward(const FmForwardArgs& args)
      : a(args),
        row_bytes(args.dim * static_cast<int64_t>(sizeof(T))),
        open(args.wide_ids ? open_tile<int64_t> : open_tile<int32_t>),
        place(kScaled ? place_of<T, true, kLinear>(args) : place_of<float, false, kLinear>(args)) {
    const int64_t lines = (row_bytes + 63) / 64, rows = kLinesAhead / lines;
    const int64_t most = kLinear ? kMostAhead / 2 : kMostAhead;
    ahead = rows < 4 ? 4 : rows > most ? most : rows;
  }

  __attribute__((noinline)) void place_until(Tile* t, int64_t units) {
    if (t->done < units) {
      bad |= place(a, t, units);
    }
  }

  // Behind the entries of t come those that follow: the next tile's, then rows of zeros.
  void continue_with(const Tile& t, const Tile& next) const {
    const int64_t size = t.size(), known = next.size();
    for (int64_t i = 0; i < ahead; ++i) {
      t.rows[size + i] = i < known ? next.rows[i] : a.zeros;
      if constexpr (kLinear) {
        t.linear[size + i] = i < known ? next.linear[i] : a.zeros;
      }
    }
  }

  DEEPREC_ALWAYS_INLINE void ask(const Tile& t, int64_t at) const {
    if (a.one_line) {
      __builtin_prefetch(t.rows[at], 0, kToL2);
    } else {
      prefetch_row<kToL2>(t.rows[at], row_bytes);
    }
    if constexpr (kLinear) {
      __builtin_prefetch(t.linear[at], 0, kToL2);
    }
  }

  // A block of columns of a sample; the first one asks for later rows and adds up the linear term.
  template <bool kFirst, int N, int K>
  DEEPREC_ALWAYS_INLINE Sums<A, N, K> sum(const Tile& t, int64_t begin, int64_t end, int64_t d, A* total) {
    Sums<A, N, K> sums;
    A linear = 0;
    const A* x = static_cast<const A*>(t.x);
    for (int64_t j = begin; j < end;) {
      const int64_t stop = end - j < kStrip ? end : j + kStrip;
      if constexpr (kFirst) {
        place_until(later, later->units * stop / t.size());
      }
      for (; j < stop; ++j) {
        if constexpr (kFirst) {
          ask(t, j + ahead);
          if constexpr (kLinear) {
            const A w = widen(*reinterpret_cast<const T*>(t.linear[j]));
            linear += kScaled ? x[j] * w : w;
          }
        }
        sums.template add<kScaled>(reinterpret_cast<const T*>(t.rows[j]) + d, kScaled ? x[j] : A(1));
      }
    }
    *total += linear;
    return sums;
  }

  int64_t offset(int64_t bag) const {
    return a.wide_ids ? static_cast<const int64_t*>(a.offsets)[bag] : static_cast<const int32_t*>(a.offsets)[bag];
  }

  template <int N, int K>
  void store_embeddings(const Tile& t, int64_t b, int64_t j, int64_t d) const {
    T* to = static_cast<T*>(a.embeddings) + b * a.num_features * a.dim + d;
    const A* x = static_cast<const A*>(t.x);
    for (int64_t f = 0; f < a.num_features; ++f, to += a.dim) {
      const int64_t bag = f * a.batch + b, end = a.offsets ? j + offset(bag + 1) - offset(bag) : j + 1;
      Lanes<A, N> sum[K] = {};
      for (; j < end; ++j) {
        const T* row = reinterpret_cast<const T*>(t.rows[j]) + d;
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          sum[k] += kScaled ? x[j] * load_lanes<N>(row + k * N) : load_lanes<N>(row + k * N);
        }
      }
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        store_lanes<N>(to + k * N, sum[k]);
      }
    }
  }

  void sample(const Tile& t, int64_t b) {
    const int64_t begin = t.starts[b - t.first], end = t.starts[b - t.first + 1];
    A total = 0;
    each_block<A>(a.dim, [&]<int N, int K>(int64_t d) {
      Sums<A, N, K> sums =
          d == 0 ? sum<true, N, K>(t, begin, end, d, &total) : sum<false, N, K>(t, begin, end, d, &total);
      total += sums.finish(static_cast<A*>(a.sums) + b * a.dim + d);
      if (a.embeddings) {
        store_embeddings<N, K>(t, b, begin, d);
      }
    });
    narrow(total, static_cast<T*>(a.out) + b);
  }

  bool run() {
    if (a.begin == a.end) {
      return false;
    }
    Tile *now = &tiles[0], *next = &tiles[1];
    later = &tiles[2];
    open(a, now, a.begin);
    place_until(now, now->units);
    for (int64_t i = 0; i < ahead && i < now->size(); ++i) {
      ask(*now, i);
    }
    open(a, next, now->end);
    place_until(next, next->units);
    while (now->first < a.end) {
      open(a, later, next->end);
      continue_with(*now, *next);
      for (int64_t b = now->first; b < now->end; ++b) {
        sample(*now, b);
      }
      place_until(later, later->units);
      Tile* done = now;
      now = next;
      next = later;
      later = done;
    }
    return bad;
  }
};

template <class T>
bool run_of(const FmForwardArgs& a) {
  const bool has_linear = a.num_features > 0 && a.features[0].linear;
  if (a.values) {
    return has_linear ? Forward<T, true, true>(a).run() : Forward<T, true, false>(a).run();
  }
  return has_linear ? Forward<T, false, true>(a).run() : Forward<T, false, false>(a).run();
}

}  // namespace

bool fm_forward(const FmForwardArgs& a) {
  DEEPREC_BY_ELEMENT(a.element, run_of, a);
  return false;
}

}  // namespace deeprec::DEEPREC_ISA
