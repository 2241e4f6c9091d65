// deeprec::embedding_bags: pools (or gathers) the rows of several tables in one call. Bound by random row reads, so
// rows are asked for some entries ahead, and a bag's sum stays in vector registers, a block of columns at a time.
#include "embedding_bag.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kSlice = 64;  // columns

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
    for (int64_t j = first; j < last; ++j) {
      bad |= static_cast<uint64_t>(id(j)) >= rows;
    }
    for (int64_t j = first; bad && j < last; ++j) {
      if (static_cast<uint64_t>(id(j)) >= rows) {
        return j;
      }
    }
    return -1;
  }

  // Columns [column, column + W) of one bag; kAsk: on the way, ask for the rows of later entries.
  template <int W, bool kAsk>
  void sum_block(int64_t begin, int64_t end, int64_t column, T* out) const {
    A sum[W];
    for (int k = 0; k < W; ++k) {
      sum[k] = 0;
    }
    int64_t count = 0;
    for (int64_t j = begin; j < end; ++j) {
      if (kAsk) {
        ask(j + ahead);
      }
      const int64_t at = id(j);
      if (at == a.padding) {
        continue;
      }
      ++count;
      const T* from = row(at) + column;
      if (scale) {
        const A factor = widen(scale[j * a.scale_stride]);
#pragma omp simd
        for (int k = 0; k < W; ++k) {
          sum[k] += factor * widen(from[k]);
        }
      } else {
#pragma omp simd
        for (int k = 0; k < W; ++k) {
          sum[k] += widen(from[k]);
        }
      }
    }
    const A inverse = a.mode == BagMode::mean && count > 1 ? 1 / static_cast<A>(count) : 1;
#pragma omp simd
    for (int k = 0; k < W; ++k) {
      narrow(inverse * sum[k], out + column + k);
    }
  }

  // Up to 15 columns.
  template <bool kAsk>
  void sum_rest(int64_t begin, int64_t end, int64_t column, int64_t width, T* out) const {
    A sum[16] = {0};
    int64_t count = 0;
    for (int64_t j = begin; j < end; ++j) {
      if (kAsk) {
        ask(j + ahead);
      }
      const int64_t at = id(j);
      if (at == a.padding) {
        continue;
      }
      ++count;
      const T* from = row(at) + column;
      const A factor = scale ? widen(scale[j * a.scale_stride]) : A(1);
      for (int64_t k = 0; k < width; ++k) {
        sum[k] += factor * widen(from[k]);
      }
    }
    const A inverse = a.mode == BagMode::mean && count > 1 ? 1 / static_cast<A>(count) : 1;
    for (int64_t k = 0; k < width; ++k) {
      narrow(inverse * sum[k], out + column + k);
    }
  }

  template <bool kAsk>
  int64_t sum_widest(int64_t begin, int64_t end, int64_t column, T* out) const {
    const int64_t left = a.dim - column;
    if (left >= 128) {
      sum_block<128, kAsk>(begin, end, column, out);
      return 128;
    }
    if (left >= 64) {
      sum_block<64, kAsk>(begin, end, column, out);
      return 64;
    }
    if (left >= 32) {
      sum_block<32, kAsk>(begin, end, column, out);
      return 32;
    }
    if (left >= 16) {
      sum_block<16, kAsk>(begin, end, column, out);
      return 16;
    }
    if (left >= 8) {
      sum_block<8, kAsk>(begin, end, column, out);
      return 8;
    }
    if (left == 4) {
      sum_block<4, kAsk>(begin, end, column, out);
      return 4;
    }
    sum_rest<kAsk>(begin, end, column, left, out);
    return left;
  }

  // Where each row is read many times and is long: a slice of the columns of all bags after another, so that the slice
  // of the table stays in the second-level cache. The sums are the same.
  bool reads_slices() const { return offsets && a.dim >= 2 * kSlice && last - entry(a.begin) >= 4 * a.num_rows; }

  void sum_slices() const {
    for (int64_t column = 0; column < a.dim;) {
      const int64_t width = a.dim - column;
      int64_t done = 0;
      for (int64_t bag = a.begin; bag < a.end; ++bag) {
        T* out = reinterpret_cast<T*>(a.out + bag * a.out_stride);
        if (width >= kSlice) {
          sum_block<kSlice, false>(entry(bag), entry(bag + 1), column, out);
          done = kSlice;
        } else {
          done = sum_widest<false>(entry(bag), entry(bag + 1), column, out);
        }
      }
      column += done;
    }
  }

  void sum_bag(int64_t begin, int64_t end, T* out) const {
    int64_t column = sum_widest<true>(begin, end, 0, out);
    while (column < a.dim) {
      column += sum_widest<false>(begin, end, column, out);
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
