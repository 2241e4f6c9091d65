// deeprec::embedding_bags: pools (or gathers) the rows of several tables in one call. Bound by random row reads, so
// rows are asked for some entries ahead, and a bag's sum stays in vector registers, a block of columns at a time.
#include "embedding_bag.h"

#include "lanes.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kSlice = 64;  // columns
#if defined(DEEPREC_ISA_avx512)
constexpr int64_t kRegisters = 16;  // for the sums of a bag
#else
constexpr int64_t kRegisters = 8;
#endif

// The next entry to ask for: some way ahead, further where rows are short.
inline int64_t entries_ahead(int64_t row_bytes) {
  const int64_t ahead = 5120 / (row_bytes + 64);
  return ahead < 4 ? 4 : ahead > 24 ? 24 : ahead;
}

template <class T, class Id, class Unsigned>
struct Pool {
  using A = typename Accumulator<T>::type;
  const PoolArgs& a;
  const Id* ids;
  const Id* offsets;
  const T* scale;
  int64_t last;  // entry after the last of this part
  int64_t ahead;
  bool plain;  // no weights, no padding, ids side by side

  explicit Pool(const PoolArgs& args)
      : a(args),
        ids(static_cast<const Id*>(args.ids)),
        offsets(static_cast<const Id*>(args.offsets)),
        scale(static_cast<const T*>(args.scale)),
        plain(!args.scale && args.padding < 0 && args.id_stride == 1) {
    last = entry(a.end);
    ahead = entries_ahead(a.dim * static_cast<int64_t>(sizeof(T)));
  }

  int64_t entry(int64_t bag) const {
    if (offsets) {
      return bag < a.num_offsets ? static_cast<int64_t>(offsets[bag]) : a.num_entries;
    }
    return bag * a.length;
  }
  bool pools() const { return offsets || a.length != 1; }
  int64_t id(int64_t j) const { return static_cast<int64_t>(ids[j * a.id_stride]); }
  const T* row(int64_t id) const { return reinterpret_cast<const T*>(a.weight + id * a.row_stride); }

  DEEPREC_ALWAYS_INLINE void ask(int64_t j) const {
    if (j < last) {
      prefetch_row(a.weight + id(j) * a.row_stride, a.dim * static_cast<int64_t>(sizeof(T)));
    }
  }

  // By the largest as an unsigned number, which a negative one exceeds: the compiler makes vectors of it.
  int64_t find_bad() const {
    const int64_t first = entry(a.begin);
    Unsigned largest = 0;
    if (a.id_stride == 1) {
      for (int64_t j = first; j < last; ++j) {
        const Unsigned id = static_cast<Unsigned>(ids[j]);
        largest = id > largest ? id : largest;
      }
    } else {
      for (int64_t j = first; j < last; ++j) {
        const Unsigned id = static_cast<Unsigned>(ids[j * a.id_stride]);
        largest = id > largest ? id : largest;
      }
    }
    const uint64_t rows = static_cast<uint64_t>(a.num_rows), positive = static_cast<Unsigned>(-1) >> 1;
    if (first >= last || largest < (rows <= positive ? rows : positive + 1)) {
      return -1;
    }
    int64_t j = first;
    while (static_cast<uint64_t>(id(j)) < rows) {
      ++j;
    }
    return j;
  }

  // Asks for the cache line of column d of a row, where one begins.
  static DEEPREC_ALWAYS_INLINE void ask_line(const T* row, int d) {
    if (d * static_cast<int>(sizeof(T)) % 64 == 0) {
      __builtin_prefetch(row + d, 0, 3);
    }
  }

  // Columns of the bags [first_bag, last_bag) in K registers of N lanes, width > N * (K - 3). The last two registers
  // may overlap those before them: such columns are summed, and stored, twice with the same result. kChains: entries in
  // turn go to one of so many sums, which are added up at the end: an addition has to wait for the one before it.
  // Between the loads, the same columns of the entry `ask_ahead` further on are asked for.
  template <int N, int K, int kChains, bool kPlain>
  void sum_lanes_of(int64_t first_bag, int64_t last_bag, int64_t column, int64_t width, int64_t ask_ahead) const {
    const int64_t final = column + width - N;
    const int64_t second_last = K < 2 || (K - 2) * N > width - N ? final : column + (K - 2) * N;
    const auto place = [&](int k) { return k == K - 1 ? final : k == K - 2 ? second_last : column + k * N; };
    // Copies of what the loops read: a store to the result might change the originals, for all the compiler knows.
    const PoolArgs p = a;
    const Id *numbers = ids, *bounds = offsets;
    const T* weights = scale;
    const int64_t last_entry = last - 1;
    const bool is_mean = p.mode == BagMode::mean;
    int64_t begin = entry(first_bag);
    for (int64_t bag = first_bag; bag < last_bag; ++bag) {
      const int64_t end = !bounds                   ? begin + p.length
                          : bag + 1 < p.num_offsets ? static_cast<int64_t>(bounds[bag + 1])
                                                    : p.num_entries;
      Lanes<A, N> sum[kChains][K] = {};
      int64_t count = end - begin;
      const auto add = [&](int64_t j, Lanes<A, N>* to) __attribute__((always_inline)) {
        const int64_t next = j + ask_ahead < last_entry ? j + ask_ahead : last_entry;
        const int64_t next_id = static_cast<int64_t>(numbers[kPlain ? next : next * p.id_stride]);
        const T* later = reinterpret_cast<const T*>(p.weight + next_id * p.row_stride) + column;
        const int64_t at = numbers[kPlain ? j : j * p.id_stride];
        const T* from = reinterpret_cast<const T*>(p.weight + at * p.row_stride);
        if constexpr (kPlain) {
#pragma GCC unroll 16
          for (int k = 0; k < K; ++k) {
            to[k] += load_lanes<N>(from + place(k));
            ask_line(later, k * N);
          }
        } else {
          if (at == p.padding) {
            --count;
            return;
          }
          const A factor = weights ? A(widen(weights[j * p.scale_stride])) : A(1);
#pragma GCC unroll 16
          for (int k = 0; k < K; ++k) {
            to[k] += factor * load_lanes<N>(from + place(k));
            ask_line(later, k * N);
          }
        }
      };
      int64_t j = begin;
      if constexpr (kChains == 2) {
        for (; j + 1 < end; j += 2) {
          add(j, sum[0]);
          add(j + 1, sum[1]);
        }
      }
      for (; j < end; ++j) {
        add(j, sum[0]);
      }
      const A inverse = is_mean && count > 1 ? 1 / static_cast<A>(count) : A(1);
      T* out = reinterpret_cast<T*>(p.out + bag * p.out_stride);
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) {
        store_lanes<N>(out + place(k), inverse * (kChains == 2 ? sum[0][k] + sum[kChains - 1][k] : sum[0][k]));
      }
      begin = end;
    }
  }

  // As many columns from `column` on as fit in registers, of bags in a row; returns how many.
  int64_t sum_columns(int64_t first_bag, int64_t last_bag, int64_t column, int64_t ask_ahead, int64_t most) const {
    constexpr int L = kFullLanes<A>;
    const int64_t left = a.dim - column;
    const int64_t width = left < most ? left : most;
    const auto run = [&]<int N, int K>() {
      // By the whole row: a block of columns must sum as it would in one pass with the others.
      constexpr bool kShort = K <= 3;
      if (kShort && a.dim <= 2 * L) {
        plain ? sum_lanes_of<N, K, kShort ? 2 : 1, true>(first_bag, last_bag, column, width, ask_ahead)
              : sum_lanes_of<N, K, kShort ? 2 : 1, false>(first_bag, last_bag, column, width, ask_ahead);
      } else {
        plain ? sum_lanes_of<N, K, 1, true>(first_bag, last_bag, column, width, ask_ahead)
              : sum_lanes_of<N, K, 1, false>(first_bag, last_bag, column, width, ask_ahead);
      }
    };
    if (width >= L) {
      switch ((width + L - 1) / L) {
        case 1:
          run.template operator()<L, 1>();
          break;
        case 2:
          run.template operator()<L, 2>();
          break;
        case 3:
        case 4:
          run.template operator()<L, 4>();
          break;
        case 5:
        case 6:
          run.template operator()<L, 6>();
          break;
        case 7:
        case 8:
          run.template operator()<L, 8>();
          break;
        case 9:
        case 10:
          run.template operator()<L, 10>();
          break;
        case 11:
        case 12:
          run.template operator()<L, 12>();
          break;
        case 13:
        case 14:
          run.template operator()<L, 14>();
          break;
        default:
          run.template operator()<L, 16>();
      }
      return width;
    }
    if constexpr (L > 8) {
      if (width >= 8) {
        run.template operator()<8, 2>();
        return width;
      }
    }
    if constexpr (L > 4) {
      if (width >= 4) {
        run.template operator()<4, 2>();
        return width;
      }
    }
    if constexpr (L > 2) {
      if (width >= 2) {
        run.template operator()<1, 3>();
        return width;
      }
    }
    run.template operator()<1, 1>();
    return width;
  }

  // Where each row is read many times and is long: a slice of the columns of all bags after another, so that the slice
  // of the table stays in the second-level cache. The sums are the same.
  bool reads_slices() const { return pools() && a.dim >= 2 * kSlice && last - entry(a.begin) >= 4 * a.num_rows; }

  void sum_bags() const {
    const int64_t most = kRegisters * kFullLanes<A>;
    if (reads_slices()) {
      for (int64_t column = 0; column < a.dim;) {
        column += sum_columns(a.begin, a.end, column, ahead, kSlice);
      }
    } else if (a.dim <= most) {
      sum_columns(a.begin, a.end, 0, ahead, most);
    } else {
      for (int64_t bag = a.begin; bag < a.end; ++bag) {
        for (int64_t column = 0; column < a.dim;) {
          column += sum_columns(bag, bag + 1, column, ahead, most);
        }
      }
    }
  }

  // The first of equal values wins, as in torch.nn.EmbeddingBag; an empty bag gives 0 and entry -1.
  void max_bag(int64_t begin, int64_t end, T* out, Id* argmax) const {
    constexpr int64_t kBlock = 32;
    for (int64_t column = 0; column < a.dim; column += kBlock) {
      const int64_t width = a.dim - column < kBlock ? a.dim - column : kBlock;
      A best[kBlock] = {0};
      Id where[kBlock];
      for (int64_t k = 0; k < kBlock; ++k) {
        where[k] = -1;
      }
      for (int64_t j = begin; j < end; ++j) {
        if (column == 0) {
          ask(j + ahead);
        }
        const int64_t at = id(j);
        if (at == a.padding) {
          continue;
        }
        const T* from = row(at) + column;
        const Id entry = static_cast<Id>(j);
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const A x = widen(from[k]);
          const bool better = where[k] < 0 || x > best[k];
          best[k] = better ? x : best[k];
          where[k] = better ? entry : where[k];
        }
      }
      for (int64_t k = 0; k < width; ++k) {
        narrow(best[k], out + column + k);
        if (argmax) {
          argmax[column + k] = where[k];
        }
      }
    }
  }

  // kBytes: of a row; 0: any number.
  template <int kBytes>
  void gather_rows() const {
    const PoolArgs p = a;
    const Id* numbers = ids;
    const int64_t bytes = kBytes ? kBytes : p.dim * static_cast<int64_t>(sizeof(T)), distance = ahead;
    const bool pads = p.padding >= 0 && p.mode != BagMode::none;
    for (int64_t j = p.begin; j < p.end; ++j) {
      const int64_t next = j + distance < p.end ? j + distance : p.end - 1;
      prefetch_row(p.weight + static_cast<int64_t>(numbers[next * p.id_stride]) * p.row_stride, bytes);
      const int64_t at = numbers[j * p.id_stride];
      char* to = p.out + j * p.out_stride;
      const char* from = p.weight + at * p.row_stride;
      if (pads && at == p.padding) {
        __builtin_memset(to, 0, static_cast<uint64_t>(bytes));
      } else if constexpr (kBytes > 0) {
        copy_fixed<kBytes>(to, from);
      } else {
        copy_row(to, from, bytes);
      }
    }
  }

  void gather() const {
    switch (a.dim * static_cast<int64_t>(sizeof(T))) {
      case 4:
        return gather_rows<4>();
      case 32:
        return gather_rows<32>();
      case 64:
        return gather_rows<64>();
      default:
        return gather_rows<0>();
    }
  }

  int64_t run() const {
    const int64_t bad = find_bad();
    if (bad >= 0) {
      return bad;
    }
    for (int64_t j = entry(a.begin), end = j + ahead; j < end; ++j) {
      ask(j);
    }
    if (!pools() && !scale) {
      gather();
      return -1;
    }
    if (a.mode != BagMode::max || !pools()) {
      sum_bags();
      return -1;
    }
    for (int64_t bag = a.begin; bag < a.end; ++bag) {
      T* out = reinterpret_cast<T*>(a.out + bag * a.out_stride);
      Id* argmax = a.argmax ? reinterpret_cast<Id*>(a.argmax + bag * a.argmax_stride) : nullptr;
      max_bag(entry(bag), entry(bag + 1), out, argmax);
    }
    return -1;
  }
};

template <class T>
int64_t pool(const PoolArgs& a) {
  return a.wide_ids ? Pool<T, int64_t, uint64_t>(a).run() : Pool<T, int32_t, uint32_t>(a).run();
}

// Unsigned, as nobody has checked the offsets: steps between numbers up to num_entries do not wrap around. No branches:
// the compiler makes vectors of it.
template <class Id, class Unsigned>
OffsetSteps steps(const Id* offsets, int64_t count, int64_t num_entries) {
  const auto step = [&](int64_t i) {
    return static_cast<Unsigned>(static_cast<Unsigned>(offsets[i + 1]) - static_cast<Unsigned>(offsets[i]));
  };
  const Unsigned length = count > 1 ? step(0) : 0;
  Unsigned largest = 0, signs = 0, others = 0;
  for (int64_t i = 0; i + 1 < count; ++i) {
    const Unsigned to = static_cast<Unsigned>(offsets[i + 1]), difference = step(i);
    largest = to > largest ? to : largest;
    signs |= difference;
    others |= difference ^ length;
  }
  const bool ascend = largest <= static_cast<uint64_t>(num_entries) && !(signs >> (8 * sizeof(Id) - 1));
  return {ascend, count > 1 && others == 0 ? static_cast<int64_t>(length) : -1};
}

}  // namespace

OffsetSteps steps_of_offsets(const void* offsets, int64_t count, bool wide, int64_t num_entries) {
  return wide ? steps<int64_t, uint64_t>(static_cast<const int64_t*>(offsets), count, num_entries)
              : steps<int32_t, uint32_t>(static_cast<const int32_t*>(offsets), count, num_entries);
}

int64_t pool_bags(const PoolArgs& a) {
  DEEPREC_BY_ELEMENT(a.element, pool, a);
  return -1;
}

}  // namespace deeprec::DEEPREC_ISA
