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
  const int64_t ahead = 4096 / (row_bytes + 64);
  return ahead < 4 ? 4 : ahead > 24 ? 24 : ahead;
}

template <class T, class Id>
struct Pool {
  using A = typename Accumulator<T>::type;
  const PoolArgs& a;
  const Id* ids;
  const Id* offsets;
  const T* scale;
  int64_t last;  // entry after the last of this part
  int64_t ahead;

  explicit Pool(const PoolArgs& args)
      : a(args),
        ids(static_cast<const Id*>(args.ids)),
        offsets(static_cast<const Id*>(args.offsets)),
        scale(static_cast<const T*>(args.scale)) {
    last = entry(a.end);
    ahead = entries_ahead(a.dim * static_cast<int64_t>(sizeof(T)));
  }

  int64_t entry(int64_t bag) const { return offsets ? static_cast<int64_t>(offsets[bag]) : bag; }
  int64_t id(int64_t j) const { return static_cast<int64_t>(ids[j * a.id_stride]); }
  const T* row(int64_t id) const { return reinterpret_cast<const T*>(a.weight + id * a.row_stride); }

  DEEPREC_ALWAYS_INLINE void ask(int64_t j) const {
    if (j < last) {
      prefetch_row(a.weight + id(j) * a.row_stride, a.dim * static_cast<int64_t>(sizeof(T)));
    }
  }

  int64_t find_bad() const {
    const uint64_t rows = static_cast<uint64_t>(a.num_rows);
    const int64_t first = entry(a.begin);
    bool bad = false;
    if (a.id_stride == 1) {  // the compiler makes vectors of it
      for (int64_t j = first; j < last; ++j) {
        bad |= static_cast<uint64_t>(ids[j]) >= rows;
      }
    } else {
      for (int64_t j = first; j < last; ++j) {
        bad |= static_cast<uint64_t>(id(j)) >= rows;
      }
    }
    for (int64_t j = first; bad && j < last; ++j) {
      if (static_cast<uint64_t>(id(j)) >= rows) {
        return j;
      }
    }
    return -1;
  }

  // Columns [column, column + width) of one bag in K registers of N lanes, width > N * (K - 3). The last two registers
  // may overlap those before them: such columns are summed, and stored, twice with the same result. On the way, the
  // first `lines` cache lines of the rows of later entries are asked for.
  template <int N, int K>
  void sum_lanes_of(int64_t begin, int64_t end, int64_t column, int64_t width, int64_t lines, T* out) const {
    const int64_t final = width - N;
    const int64_t second_last = K < 2 || (K - 2) * N > final ? final : (K - 2) * N;
    Lanes<A, N> sum[K] = {};
    int64_t count = 0;
    for (int64_t j = begin; j < end; ++j) {
      if (lines) {
        const int64_t next = j + ahead < last ? j + ahead : last - 1;
        const char* ahead_row = a.weight + id(next) * a.row_stride;
        for (int64_t line = 0; line < lines; ++line) {
          __builtin_prefetch(ahead_row + line * 64, 0, 3);
        }
      }
      const int64_t at = id(j);
      if (at == a.padding) {
        continue;
      }
      ++count;
      const T* from = row(at) + column;
      const A factor = scale ? A(widen(scale[j * a.scale_stride])) : A(1);
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) {
        const int64_t d = k == K - 1 ? final : k == K - 2 ? second_last : k * N;
        sum[k] += factor * load_lanes<N>(from + d);
      }
    }
    const A inverse = a.mode == BagMode::mean && count > 1 ? 1 / static_cast<A>(count) : A(1);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      const int64_t d = k == K - 1 ? final : k == K - 2 ? second_last : k * N;
      store_lanes<N>(out + column + d, inverse * sum[k]);
    }
  }

  // As many columns from `column` on as fit in registers; returns how many.
  int64_t sum_columns(int64_t begin, int64_t end, int64_t column, int64_t lines, T* out, int64_t most) const {
    constexpr int L = kFullLanes<A>;
    const int64_t left = a.dim - column;
    const int64_t width = left < most ? left : most;
    const auto run = [&]<int N, int K>() { sum_lanes_of<N, K>(begin, end, column, width, lines, out); };
    if (width >= L) {
      switch ((width + L - 1) / L) {
        case 1:
          run.template operator()<L, 1>();
          break;
        case 2:
          run.template operator()<L, 2>();
          break;
        case 3:
          run.template operator()<L, 3>();
          break;
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
  bool reads_slices() const { return offsets && a.dim >= 2 * kSlice && last - entry(a.begin) >= 4 * a.num_rows; }

  void sum_slices() const {
    for (int64_t column = 0; column < a.dim; column += kSlice) {
      for (int64_t bag = a.begin; bag < a.end; ++bag) {
        T* out = reinterpret_cast<T*>(a.out + bag * a.out_stride);
        sum_columns(entry(bag), entry(bag + 1), column, 0, out, kSlice);
      }
    }
  }

  void sum_bag(int64_t begin, int64_t end, T* out) const {
    const int64_t row_lines = (a.dim * static_cast<int64_t>(sizeof(T)) + 63) / 64;
    const int64_t lines = row_lines < kMaxLines ? row_lines : kMaxLines;
    for (int64_t column = 0; column < a.dim;) {
      column += sum_columns(begin, end, column, column == 0 ? lines : 0, out, kRegisters * kFullLanes<A>);
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
        argmax[column + k] = where[k];
      }
    }
  }

  void gather() const {
    const int64_t bytes = a.dim * static_cast<int64_t>(sizeof(T));
    for (int64_t j = a.begin; j < a.end; ++j) {
      ask(j + ahead);
      const int64_t at = id(j);
      char* to = a.out + j * a.out_stride;
      if (at == a.padding && a.mode != BagMode::none) {
        __builtin_memset(to, 0, static_cast<uint64_t>(bytes));
      } else {
        copy_row(to, reinterpret_cast<const char*>(row(at)), bytes);
      }
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
    if (!offsets && !scale) {
      gather();
      return -1;
    }
    if (a.mode != BagMode::max && reads_slices()) {
      sum_slices();
      return -1;
    }
    for (int64_t bag = a.begin; bag < a.end; ++bag) {
      const int64_t begin = entry(bag), end = offsets ? entry(bag + 1) : bag + 1;
      T* out = reinterpret_cast<T*>(a.out + bag * a.out_stride);
      if (a.mode == BagMode::max && offsets) {
        max_bag(begin, end, out, reinterpret_cast<Id*>(a.argmax + bag * a.argmax_stride));
      } else {
        sum_bag(begin, end, out);
      }
    }
    return -1;
  }
};

template <class T>
int64_t pool(const PoolArgs& a) {
  return a.wide_ids ? Pool<T, int64_t>(a).run() : Pool<T, int32_t>(a).run();
}

}  // namespace

int64_t pool_bags(const PoolArgs& a) {
  switch (a.element) {
    case Element::f32:
      return pool<float>(a);
    case Element::f64:
      return pool<double>(a);
    case Element::bf16:
      return pool<Bf16>(a);
    case Element::f16:
      return pool<F16>(a);
  }
  return -1;
}

}  // namespace deeprec::DEEPREC_ISA
