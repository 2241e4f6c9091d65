// Asking for a row of a table, and copying it.
#pragma once

#include <cstdint>

#include "isa.h"

namespace deeprec {

// Rows of a weight and its states that an optimizer will need after the rows now being summed: asked for one by one in
// between, because a processor holds a few dozen requests only.
struct RowsAhead {
  const void* rows;  // of the plan; null: nothing to ask for
  bool wide_rows;
  int64_t distance, end;  // row u asks for row u + distance of the plan, up to end
  struct Target {
    const char* data;  // null: none
    int64_t bytes;     // of a row
  } targets[3];
};

}  // namespace deeprec

namespace deeprec::DEEPREC_ISA {

constexpr int64_t kMaxLines = 16;  // of 64 bytes; the hardware prefetcher follows a longer row by itself

template <int kLocality = 3>
static DEEPREC_ALWAYS_INLINE void prefetch_row(const char* row, int64_t bytes) {
  const int64_t lines = bytes < kMaxLines * 64 ? bytes : kMaxLines * 64;
  for (int64_t b = 0; b < lines; b += 64) {
    __builtin_prefetch(row + b, 0, kLocality);
  }
  if (bytes % 64 != 0 && lines == bytes) {
    __builtin_prefetch(row + bytes - 1, 0, kLocality);  // such a row need not begin at a line's border
  }
}

static DEEPREC_ALWAYS_INLINE void ask_ahead(const RowsAhead& a, int64_t u) {
  if (!a.rows || u + a.distance >= a.end) {
    return;
  }
  const int64_t row = a.wide_rows ? static_cast<const int64_t*>(a.rows)[u + a.distance]
                                  : static_cast<const int32_t*>(a.rows)[u + a.distance];
  // Into the second-level cache: more requests fit on the way there, and rows of a block are more than the first holds.
  for (int i = 0; i < 3; ++i) {
    if (a.targets[i].data) {
      prefetch_row<2>(a.targets[i].data + row * a.targets[i].bytes, a.targets[i].bytes);
    }
  }
}

template <int N>
static inline void copy_fixed(char* to, const char* from) {
  __builtin_memcpy(to, from, N);
}

// Copies with the longest moves that fit into the row; the last move overlaps the one before.
static inline void copy_row(char* to, const char* from, int64_t n) {
  if (n >= 64) {
    int64_t b = 0;
    for (; b + 64 <= n; b += 64) {
      copy_fixed<64>(to + b, from + b);
    }
    if (b < n) {
      copy_fixed<64>(to + n - 64, from + n - 64);
    }
  } else if (n >= 32) {
    copy_fixed<32>(to, from);
    copy_fixed<32>(to + n - 32, from + n - 32);
  } else if (n >= 16) {
    copy_fixed<16>(to, from);
    copy_fixed<16>(to + n - 16, from + n - 16);
  } else if (n >= 8) {
    copy_fixed<8>(to, from);
    copy_fixed<8>(to + n - 8, from + n - 8);
  } else if (n >= 4) {
    copy_fixed<4>(to, from);
    copy_fixed<4>(to + n - 4, from + n - 4);
  } else {
    for (int64_t b = 0; b < n; ++b) {
      to[b] = from[b];
    }
  }
}

}  // namespace deeprec::DEEPREC_ISA
