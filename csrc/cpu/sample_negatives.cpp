// sample_negatives on the CPU: 16 Philox blocks at a time in vector registers, then for each candidate one look at the
// user's bitmap (small catalogues, large batches) or a branch-free binary search in the user's list.
#include "sample_negatives.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int kLanes = 16;

struct BitmapSeen {
  const uint64_t* bits;
  int64_t words_per_user;
  bool operator()(const NegativeSource&, int64_t user, int64_t item) const {
    return bits[user * words_per_user + (item >> 6)] >> (item & 63) & 1;
  }
};

// Philox4x32-10 on kLanes counters; c[word][lane].
void philox_lanes(uint32_t c[4][kLanes], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      const uint64_t p0 = static_cast<uint64_t>(c[0][l]) * 0xD2511F53u;
      const uint64_t p1 = static_cast<uint64_t>(c[2][l]) * 0xCD9E8D57u;
      c[0][l] = static_cast<uint32_t>(p1 >> 32) ^ c[1][l] ^ key0;
      c[1][l] = static_cast<uint32_t>(p1);
      c[2][l] = static_cast<uint32_t>(p0 >> 32) ^ c[3][l] ^ key1;
      c[3][l] = static_cast<uint32_t>(p0);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// Philox blocks of consecutive groups, row after row.
struct Batch {
  alignas(64) uint32_t words[4][kLanes];
  int64_t rows[kLanes];
  uint32_t group_of[kLanes];
  int lanes;
};

// The next blocks from group `group` of `row` on; both move on. What they need of the alias table is asked for.
void next_batch(const NegativeJob& job, int64_t groups, int64_t end, int64_t& row, int64_t& group, Batch& batch) {
  const NegativeSource& s = job.source;
  auto& words = batch.words;
  for (batch.lanes = 0; batch.lanes < kLanes && row < end; ++batch.lanes) {
    const uint64_t example = job.offset + static_cast<uint64_t>(row);
    words[0][batch.lanes] = static_cast<uint32_t>(example);
    words[1][batch.lanes] = static_cast<uint32_t>(example >> 32);
    words[2][batch.lanes] = batch.group_of[batch.lanes] = static_cast<uint32_t>(group);
    words[3][batch.lanes] = 0;
    batch.rows[batch.lanes] = row;
    if (++group == groups) {
      group = 0;
      ++row;
    }
  }
  for (int l = batch.lanes; l < kLanes; ++l) {
    words[0][l] = words[1][l] = words[2][l] = words[3][l] = 0;
  }
  philox_lanes(words, s.key0, s.key1);
  for (int l = 0; is_weighted(s) && l < batch.lanes; ++l) {
    for (int slot = 0; slot < 4; slot += 2) {
      const uint64_t column = static_cast<uint64_t>(words[slot][l]) * static_cast<uint64_t>(s.num_items) >> 32;
      __builtin_prefetch(s.threshold + column);
      __builtin_prefetch(s.alias + column);
    }
  }
}

template <class Id, class Seen>
void draw_batch(const NegativeJob& job, const Seen& is_seen, const Batch& batch) {
  const NegativeSource& s = job.source;
  const int64_t per_block = negatives_per_block(s);
  const int step = is_weighted(s) ? 2 : 1;
  for (int l = 0; l < batch.lanes; ++l) {
    const int64_t row = batch.rows[l], user = static_cast<const Id*>(job.users)[row];
    const int64_t first = batch.group_of[l] * per_block;
    const int64_t left = job.num_negatives - first;
    const int count = static_cast<int>(left < per_block ? left : per_block);
    Id* to = static_cast<Id*>(job.out) + row * job.num_negatives + first;
    for (int t = 0; t < count; ++t) {
      const int slot = t * step;
      int64_t item = candidate(s, batch.words[slot][l], batch.words[(slot + 1) & 3][l]);
      if (__builtin_expect(item < 0 || is_seen(s, user, item), 0)) {
        const uint64_t example = job.offset + static_cast<uint64_t>(row);
        item = retry_negative(s, is_seen, user, example, batch.group_of[l], slot, 1);
      }
      to[t] = static_cast<Id>(item);
    }
  }
}

// A batch is drawn while what the next one needs is on its way.
template <class Id, class Seen>
void sample_rows(const NegativeJob& job, const Seen& is_seen, int64_t begin, int64_t end) {
  const int64_t per_block = negatives_per_block(job.source);
  const int64_t groups = (job.num_negatives + per_block - 1) / per_block;
  int64_t row = begin, group = 0;
  Batch batches[2];
  next_batch(job, groups, end, row, group, batches[0]);
  for (int turn = 0; batches[turn].lanes > 0; turn ^= 1) {
    next_batch(job, groups, end, row, group, batches[turn ^ 1]);
    draw_batch<Id>(job, is_seen, batches[turn]);
  }
}

template <class Seen>
void sample_typed(const NegativeJob& job, const Seen& is_seen, int64_t begin, int64_t end) {
  if (job.wide) {
    sample_rows<int64_t>(job, is_seen, begin, end);
  } else {
    sample_rows<int32_t>(job, is_seen, begin, end);
  }
}

}  // namespace

void sample_negatives_rows(const NegativeJob& job, int64_t begin, int64_t end) {
  if (job.bitmap) {
    sample_typed(job, BitmapSeen{job.bitmap, job.words_per_user}, begin, end);
  } else {
    sample_typed(job, SearchSeen{}, begin, end);
  }
}

}  // namespace deeprec::DEEPREC_ISA

#ifdef DEEPREC_ISA_portable
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>

#include "../check.h"

namespace deeprec {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kBitmapBytes = int64_t{64} << 20;
constexpr int64_t kDrawsPerThread = 65536;  // about half a millisecond: below it, waking a thread costs more

int64_t user_at(const NegativeJob& job, int64_t row) {
  return job.wide ? static_cast<const int64_t*>(job.users)[row] : static_cast<const int32_t*>(job.users)[row];
}

// Every user known, every list inside `indices`, every user with something left to draw.
void check_users(const NegativeJob& job, int64_t num_rows, int64_t num_users, int64_t nnz) {
  const NegativeSource& s = job.source;
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t user = user_at(job, row);
    DEEPREC_CHECK(user >= 0 && user < num_users, "IndexError: sample_negatives: users must lie in [0, ", num_users,
                  "), got ", user, " at position ", row);
    const int64_t first = s.indptr[user], last = s.indptr[user + 1];
    DEEPREC_CHECK(0 <= first && first <= last && last <= nnz,
                  "ValueError: sample_negatives: indptr must rise from 0 to ", nnz, " (the length of indices), got ",
                  first, " and ", last, " for user ", user);
    DEEPREC_CHECK(last - first < s.num_items, "ValueError: sample_negatives: user ", user, " has seen all ",
                  s.num_items, " items, so no negative exists; leave the user out");
  }
}

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};
using Bitmap = std::unique_ptr<uint64_t, FreeMemory>;

// One bit an (user, item) pair. Worth its making only when the call draws about as many negatives as it costs to fill.
Bitmap make_bitmap(NegativeJob& job, int64_t num_rows, int64_t num_users, int64_t nnz) {
  const NegativeSource& s = job.source;
  const int64_t words = (s.num_items + 63) / 64;
  const int64_t draws = num_rows * job.num_negatives;
  if (num_users * words > kBitmapBytes / 8 || num_users * words > 8 * draws || nnz > 2 * draws) {
    return nullptr;
  }
  Bitmap bitmap(static_cast<uint64_t*>(std::calloc(static_cast<size_t>(num_users * words), 8)));
  if (!bitmap) {
    return nullptr;  // the binary search gives the same negatives
  }
  uint64_t* bits = bitmap.get();
  torch::stable::parallel_for(0, num_users, 256, [&](int64_t begin, int64_t end) {
    for (int64_t user = begin; user < end; ++user) {
      int64_t first = s.indptr[user], last = s.indptr[user + 1];
      if (first < 0 || first > last || last > nnz) {
        continue;  // not a user of this batch: check_users has looked at those
      }
      for (int64_t k = first; k < last; ++k) {
        const int64_t item = s.indices[k];
        if (item < 0 || item >= s.num_items) {
          continue;  // none that could be drawn
        }
        bits[user * words + (item >> 6)] |= uint64_t{1} << (item & 63);
      }
    }
  });
  job.bitmap = bits;
  job.words_per_user = words;
  return bitmap;
}

// Only a weighted draw can come back empty-handed (all items of positive weight seen); it left kNoNegative.
void check_drawn(const NegativeJob& job, int64_t num_rows) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t k = row * job.num_negatives;
    const int64_t item = job.wide ? static_cast<const int64_t*>(job.out)[k] : static_cast<const int32_t*>(job.out)[k];
    DEEPREC_CHECK(item != kNoNegative, "ValueError: sample_negatives: user ", user_at(job, row),
                  " has seen every item of positive weight, so no negative exists; leave the user out or give every "
                  "item some weight");
  }
}

Tensor sample_negatives(const Tensor& users, const Tensor& indptr, const Tensor& indices, int64_t num_items,
                        int64_t num_negatives, int64_t seed, int64_t offset, const std::optional<Tensor>& threshold,
                        const std::optional<Tensor>& alias, const std::optional<Tensor>& cumulative) {
  const int64_t num_rows = users.numel();
  DEEPREC_CHECK((users.scalar_type() == ScalarType::Long || users.scalar_type() == ScalarType::Int) &&
                    indptr.scalar_type() == ScalarType::Long && indices.scalar_type() == ScalarType::Int,
                "TypeError: sample_negatives: users must be int32 or int64, indptr int64 and indices int32");
  DEEPREC_CHECK(offset >= 0, "ValueError: sample_negatives: offset must be >= 0, got ", offset);
  DEEPREC_CHECK(num_items > 0 && num_items < (int64_t{1} << 31) && num_negatives >= 0 &&
                    num_negatives < (int64_t{1} << 31) && indptr.numel() > 0,
                "ValueError: sample_negatives: num_items must lie in [1, 2^31), num_negatives in [0, 2^31), and indptr "
                "needs num_users + 1 entries, got ",
                num_items, ", ", num_negatives, " and ", indptr.numel());
  const Tensor users_c = torch::stable::contiguous(users), indptr_c = torch::stable::contiguous(indptr),
               indices_c = torch::stable::contiguous(indices);
  Tensor out = torch::stable::new_empty(users, {num_rows, num_negatives});
  if (num_rows == 0 || num_negatives == 0) {
    return out;
  }
  NegativeJob job{};
  NegativeSource& s = job.source;
  s.indptr = indptr_c.const_data_ptr<int64_t>();
  s.indices = indices_c.const_data_ptr<int32_t>();
  s.num_items = num_items;
  s.key0 = static_cast<uint32_t>(seed);
  s.key1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  s.reject_below = static_cast<uint32_t>((uint64_t{1} << 32) % static_cast<uint64_t>(num_items));
  std::optional<Tensor> kept[3];
  if (threshold) {
    DEEPREC_CHECK(alias && cumulative && threshold->numel() == num_items && alias->numel() == num_items &&
                      cumulative->numel() == num_items + 1,
                  "ValueError: sample_negatives: the alias table must describe ", num_items, " items, got ",
                  threshold->numel(), "; build it with alias_table(weights)");
    DEEPREC_CHECK(threshold->scalar_type() == ScalarType::Long && alias->scalar_type() == ScalarType::Int &&
                      cumulative->scalar_type() == ScalarType::Long,
                  "TypeError: sample_negatives: the alias table must be int64, int32 and int64");
    kept[0] = torch::stable::contiguous(*threshold);
    kept[1] = torch::stable::contiguous(*alias);
    kept[2] = torch::stable::contiguous(*cumulative);
    s.threshold = kept[0]->const_data_ptr<int64_t>();
    s.alias = kept[1]->const_data_ptr<int32_t>();
    s.cumulative = kept[2]->const_data_ptr<int64_t>();
  }
  job.wide = users.scalar_type() == ScalarType::Long;
  job.users = users_c.const_data_ptr();
  job.out = out.mutable_data_ptr();
  job.num_negatives = num_negatives;
  job.offset = static_cast<uint64_t>(offset);

  const int64_t num_users = indptr.numel() - 1, nnz = indices.numel();
  check_users(job, num_rows, num_users, nnz);
  const Bitmap bitmap = make_bitmap(job, num_rows, num_users, nnz);
  const auto kernel = DEEPREC_DISPATCH(sample_negatives_rows);
  const int64_t grain = kDrawsPerThread / num_negatives + 1;
  torch::stable::parallel_for(0, num_rows, grain, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  if (threshold) {
    check_drawn(job, num_rows);
  }
  return out;
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) { m.impl("sample_negatives", TORCH_BOX(&deeprec::sample_negatives)); }
#endif
