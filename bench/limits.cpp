// Limits of this machine's memory, measured where the benches run: random rows read with software prefetch, the same
// with the rows written out, and a large copy. Compiled on the fly by machine.py with -march=native.
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

using Lane = float __attribute__((vector_size(32), aligned(4)));
constexpr int64_t kLane = sizeof(Lane);

template <typename Work>
void split(int64_t n, int threads, Work work) {
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) {
    others.emplace_back([=] { work(t, n * t / threads, n * (t + 1) / threads); });
  }
  work(0, 0, n / threads);
  for (std::thread& other : others) {
    other.join();
  }
}

// Streaming stores spare the read of a line that is overwritten whole.
inline void store(char* to, Lane value, bool streaming) {
#if defined(__AVX__)
  if (streaming) {
    _mm256_stream_ps(reinterpret_cast<float*>(to), value);
    return;
  }
#endif
  std::memcpy(to, &value, sizeof value);
}

inline Lane load(const char* from) {
  Lane value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

extern "C" {

// Rows of row_bytes (a multiple of 32) at ids[0 .. n). out is null (the rows are added up) or holds out_rows rows (a
// power of two) for each thread, aligned to 32 and written over and over, as a result is that the allocator hands out
// again. Returns a sum, so that the reads cannot be left out.
float gather(const char* table, const int64_t* ids, int64_t n, int64_t row_bytes, char* out, int64_t out_rows,
             int threads, int64_t distance, int streaming, int into_second_level) {
  std::vector<float> sums(threads, 0.0F);
  float* first_sum = sums.data();
  split(n, threads, [=](int t, int64_t begin, int64_t end) {
    Lane sum = {};
    char* mine = out + t * out_rows * row_bytes;
    for (int64_t i = begin; i < end; ++i) {
      if (i + distance < end) {
        const char* ahead = table + ids[i + distance] * row_bytes;
        for (int64_t byte = 0; byte < row_bytes; byte += 64) {
          if (into_second_level != 0) {  // more requests fit on the way to that cache
            __builtin_prefetch(ahead + byte, 0, 2);
          } else {
            __builtin_prefetch(ahead + byte);
          }
        }
      }
      const char* row = table + ids[i] * row_bytes;
      if (out == nullptr) {
        for (int64_t byte = 0; byte < row_bytes; byte += kLane) {
          sum += load(row + byte);
        }
      } else {
        char* to = mine + (i & (out_rows - 1)) * row_bytes;
        for (int64_t byte = 0; byte < row_bytes; byte += kLane) {
          store(to + byte, load(row + byte), streaming != 0);
        }
      }
    }
    first_sum[t] = sum[0];
  });
  return sums[0];
}

void copy(char* to, const char* from, int64_t bytes, int threads, int streaming) {
  split(bytes / kLane, threads, [=](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      store(to + i * kLane, load(from + i * kLane), streaming != 0);
    }
  });
}
}
