// The PyTorch side of prefilter_pack and prefilter_scan: checks, buffers, and the split into blocks of users and parts
// of the catalogue. The split follows the number of threads; the result, being exact, does not.
#include "prefilter_topk.h"

#ifdef DEEPREC_ISA_portable
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <tuple>

#include "tensor.h"

namespace deeprec {
namespace {

constexpr int64_t kUserBlock =
    192;                           // users that meet a tile of the copy together: theirs stays in the first-level cache
constexpr int64_t kMinBlock = 64;  // fewer share one block, each thread has a part of the catalogue
constexpr int64_t kMinTiles = 64;  // fewer are not worth a thread of their own
constexpr int32_t kNoItem = 0;     // what an empty list points to
constexpr int64_t kFewUsers = 4;   // up to here memory is what takes time: the user's second plane is free

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t words_of(bool is_int8, int64_t dim) { return divide_up(dim, is_int8 ? 4 : 2); }

// -- the copy --

std::tuple<Tensor, Tensor, Tensor> pack(const Tensor& items, const std::optional<Tensor>& tiles, bool is_int8) {
  DEEPREC_CHECK(items.dim() == 2 && items.scalar_type() == ScalarType::Float,
                "TypeError: prefilter_pack: items must be [N, D], float32");
  const int64_t num_items = items.size(0), dim = items.size(1), num_tiles = divide_up(num_items, kTileItems);
  DEEPREC_CHECK(dim <= kMaxPrefilterDim, "ValueError: prefilter_pack: at most ", kMaxPrefilterDim, " columns, got ",
                dim);
  const Tensor rows = as_contiguous(items);
  std::optional<Tensor> chosen;
  int64_t count = num_tiles;
  const int64_t* at = nullptr;
  if (tiles) {
    DEEPREC_CHECK(tiles->dim() == 1 && tiles->scalar_type() == ScalarType::Long,
                  "TypeError: prefilter_pack: tiles must be [n], int64");
    chosen = as_contiguous(*tiles);
    count = chosen->numel();
    at = chosen->const_data_ptr<int64_t>();
    DEEPREC_CHECK(!outside(at, 0, count, 0, num_tiles), "IndexError: prefilter_pack: tiles must lie in [0, ", num_tiles,
                  ")");
  }
  const int64_t num_words = words_of(is_int8, dim), per_word = is_int8 ? 4 : 2;
  Tensor words = empty_cpu({count, num_words, kTileItems, per_word}, is_int8 ? ScalarType::Byte : ScalarType::BFloat16);
  Tensor scales = empty_cpu({count, kTileItems}, ScalarType::Float), bounds = empty_cpu({count, 2}, ScalarType::Float);
  if (count > 0) {
    const float* from = rows.const_data_ptr<float>();
    uint32_t* to = static_cast<uint32_t*>(words.mutable_data_ptr());
    float *scale = scales.mutable_data_ptr<float>(), *bound = bounds.mutable_data_ptr<float>();
    const auto kernel = DEEPREC_DISPATCH(prefilter_pack);
    torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t first = (at ? at[t] : t) * kTileItems;
        kernel(from + first * dim, std::min(kTileItems, num_items - first), dim, is_int8,
               to + t * num_words * kTileItems, scale + t * kTileItems, bound + 2 * t);
      }
    });
  }
  return {words, scales, bounds};
}

// -- the scan --

// A job and the tensors that its pointers lie in.
struct OwnedPrefilter {
  PrefilterJob job{};
  std::vector<Tensor> kept;

  const float* keep(const Tensor& t) {
    kept.push_back(as_contiguous(t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float)));
    return kept.back().const_data_ptr<float>();
  }
  template <class T>
  const T* keep_as(const Tensor& t) {
    kept.push_back(as_contiguous(t));
    return kept.back().const_data_ptr<T>();
  }
};

void add_copy(OwnedPrefilter& owned, const Tensor& words, const Tensor& scales, const Tensor& bounds) {
  PrefilterJob& job = owned.job;
  const ScalarType type = words.scalar_type();
  DEEPREC_CHECK(type == ScalarType::Byte || type == ScalarType::BFloat16,
                "TypeError: prefilter_topk: words must be uint8 or bfloat16, as prefilter_pack gives them");
  job.is_int8 = type == ScalarType::Byte;
  const int64_t tiles = divide_up(job.num_items, kTileItems), steps = words_of(job.is_int8, job.dim);
  const int64_t per_word = job.is_int8 ? 4 : 2;
  DEEPREC_CHECK(words.dim() == 4 && words.size(0) == tiles && words.size(1) == steps && words.size(2) == kTileItems &&
                    words.size(3) == per_word,
                "ValueError: prefilter_topk: words must be [", tiles, ", ", steps, ", ", kTileItems, ", ", per_word,
                "]");
  DEEPREC_CHECK(scales.numel() == tiles * kTileItems && bounds.numel() == 2 * tiles &&
                    scales.scalar_type() == ScalarType::Float && bounds.scalar_type() == ScalarType::Float,
                "ValueError: prefilter_topk: scales must be [", tiles, ", ", kTileItems, "] and bounds [", tiles,
                ", 2], float32");
  owned.kept.push_back(as_contiguous(words));
  job.words = static_cast<const uint32_t*>(owned.kept.back().const_data_ptr());
  job.scales = owned.keep(scales);
  job.bounds = owned.keep(bounds);
}

PrefilterLists lists_of(OwnedPrefilter& owned, const char* name, const std::optional<Tensor>& indptr,
                        const std::optional<Tensor>& indices, const std::optional<Tensor>& rows) {
  if (!indices && !indptr) {
    return {};
  }
  DEEPREC_CHECK(indices && (!indptr || indptr->numel() > 0), "ValueError: prefilter_topk: ", name, "_indptr needs ",
                name, "_indices beside it");
  DEEPREC_CHECK((!indptr || indptr->scalar_type() == ScalarType::Long) && indices->scalar_type() == ScalarType::Int &&
                    (!rows || rows->scalar_type() == ScalarType::Long),
                "TypeError: prefilter_topk: ", name, "_indptr and ", name, "_rows must be int64 and ", name,
                "_indices int32");
  const int64_t nnz = indices->numel(), num_users = owned.job.num_users;
  PrefilterLists lists{nnz ? owned.keep_as<int32_t>(*indices) : &kNoItem, nnz, nullptr, nullptr};
  if (!indptr) {
    return lists;
  }
  const int64_t num_rows = indptr->numel() - 1;
  DEEPREC_CHECK((rows ? rows->numel() : num_rows) == num_users, "ValueError: prefilter_topk: ", name,
                "_indptr must have ", num_users + 1, " entries, or ", name, "_rows as many, got ", num_rows + 1);
  lists.indptr = owned.keep_as<int64_t>(*indptr);
  lists.rows = rows ? owned.keep_as<int64_t>(*rows) : nullptr;
  for (int64_t u = 0; u < num_users; ++u) {
    const int64_t row = lists.row(u);
    DEEPREC_CHECK(row >= 0 && row < num_rows, "IndexError: prefilter_topk: ", name, "_rows must lie in [0, ", num_rows,
                  "), got ", row, " at position ", u);
    const int64_t first = lists.begin(u), last = lists.end(u);
    DEEPREC_CHECK(0 <= first && first <= last && last <= nnz, "ValueError: prefilter_topk: ", name,
                  "_indptr must rise from 0 to ", nnz, ", got ", first, " and ", last, " in row ", row);
  }
  return lists;
}

void check_allowed(const PrefilterJob& job) {
  const PrefilterLists& lists = job.allow;
  DEEPREC_CHECK(!outside(lists.indices, 0, lists.count, 0, job.num_items),
                "IndexError: prefilter_topk: allow_indices must lie in [0, ", job.num_items, ")");
  for (int64_t u = 0; u < (lists.indptr ? job.num_users : 1); ++u) {
    DEEPREC_CHECK(!falls(lists.indices, lists.begin(u), lists.end(u)),
                  "ValueError: prefilter_topk: allow_indices must rise within a list");
  }
}

// One thread's buffers in one piece of memory, every part on a cache line of its own.
class Scratch {
 public:
  Scratch(const PrefilterJob& job, int64_t block) {
    const int64_t planes = block * job.num_planes, word = sizeof(float), wide = sizeof(int64_t);
    const int64_t sizes[] = {planes * words_of(job.is_int8, job.dim) * word,
                             block * word,
                             planes * word,
                             block * word,
                             block * word,
                             block * word,
                             block * wide,
                             block * kPendingItems * word,
                             block * wide,
                             block * wide,
                             block * wide,
                             block * wide,
                             block,
                             block * kCandidatesBytes,
                             job.dim * kTileItems * word};
    constexpr size_t kParts = sizeof(sizes) / sizeof(sizes[0]);
    size_t starts[kParts], total = 0;
    for (size_t part = 0; part < kParts; ++part) {
      starts[part] = total;
      total += (static_cast<size_t>(sizes[part]) + 127) / 64 * 64;
    }
    memory_.reset(static_cast<char*>(std::aligned_alloc(64, total)));
    if (!memory_) {
      throw std::bad_alloc();
    }
    size_t part = 0;
    const auto take = [&](auto*& to) {
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(memory_.get() + starts[part++]);
    };
    take(view.planes);
    take(view.steps);
    take(view.offsets);
    take(view.item_errors);
    take(view.user_errors);
    take(view.thresholds);
    take(view.masks);
    take(view.pending);
    take(view.num_pending);
    take(view.num_rescored);
    take(view.seen_at);
    take(view.allow_at);
    take(view.gave_up);
    take(view.candidates);
    take(view.tile);
  }
  PrefilterScratch view;

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> memory_;
};

// Blocks of users, and parts of the catalogue for each where there are fewer blocks than threads.
struct Split {
  int64_t block, blocks, parts, tiles, per_part;

  explicit Split(const PrefilterJob& job) {
    const int64_t threads = torch::stable::get_num_threads();
    block = std::clamp(divide_up(job.num_users, threads), kMinBlock, kUserBlock);
    blocks = divide_up(job.num_users, block);
    tiles = job.k > 0 ? divide_up(job.num_items, kTileItems) : 0;
    parts = std::max<int64_t>(1, std::min(divide_up(threads, blocks), tiles / kMinTiles));
    per_part = divide_up(tiles, parts);
  }
};

// The best of all parts of the catalogue, or nothing; whether the user has to be served by score_topk.
bool finish_user(const PrefilterJob& job, int64_t parts, uint64_t* keys, const int64_t* counts, float* values,
                 int64_t* ids) {
  const bool gave_up = std::any_of(counts, counts + parts, [](int64_t count) { return count < 0; });
  int64_t count = 0;
  for (int64_t part = 0; part < parts && !gave_up; ++part) {
    std::copy_n(keys + part * job.capacity, counts[part], keys + count);
    count += counts[part];
  }
  DEEPREC_DISPATCH_BF16(prefilter_finish)(keys, count, job.k, values, ids);
  return gave_up;
}

void scan_all(const PrefilterJob& job, float* values, int64_t* ids, bool* gave_up) {
  const Split split(job);
  const int64_t stride = split.parts * job.capacity;
  const std::unique_ptr<uint64_t[]> keys(new uint64_t[static_cast<size_t>(job.num_users * stride)]);
  const std::unique_ptr<int64_t[]> counts(new int64_t[static_cast<size_t>(job.num_users * split.parts)]);
  const auto kernel = DEEPREC_DISPATCH_BF16(prefilter_scan);
  torch::stable::parallel_for(0, split.blocks * split.parts, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(job, std::min(split.block, job.num_users));
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t user = unit / split.parts * split.block, part = unit % split.parts;
      kernel(job, scratch.view, {keys.get() + part * job.capacity, counts.get() + part, stride, split.parts}, user,
             std::min(user + split.block, job.num_users), std::min(part * split.per_part, split.tiles),
             std::min((part + 1) * split.per_part, split.tiles));
    }
  });
  for (int64_t u = 0; u < job.num_users; ++u) {
    gave_up[u] = finish_user(job, split.parts, keys.get() + u * stride, counts.get() + u * split.parts,
                             values + u * job.k, ids + u * job.k);
  }
}

std::tuple<Tensor, Tensor, Tensor> scan(
    const Tensor& users, const Tensor& items, const std::optional<Tensor>& item_bias, const Tensor& words,
    const Tensor& scales, const Tensor& bounds, int64_t k, const std::optional<Tensor>& seen_indptr,
    const std::optional<Tensor>& seen_indices, const std::optional<Tensor>& seen_rows,
    const std::optional<Tensor>& allow_indptr, const std::optional<Tensor>& allow_indices) {
  DEEPREC_CHECK(users.dim() == 2 && items.dim() == 2 && users.size(1) == items.size(1),
                "ValueError: prefilter_topk: users must be [B, D] and items [N, D]");
  DEEPREC_CHECK(items.scalar_type() == ScalarType::Float, "TypeError: prefilter_topk: items must be float32");
  OwnedPrefilter owned;
  PrefilterJob& job = owned.job;
  job.num_users = users.size(0);
  job.num_items = items.size(0);
  job.dim = users.size(1);
  job.k = k;
  DEEPREC_CHECK(k >= 0 && job.num_items < int64_t{1} << 31 && k < int64_t{1} << 31 && job.dim <= kMaxPrefilterDim,
                "ValueError: prefilter_topk: k and N must be in [0, 2^31) and D at most ", kMaxPrefilterDim, ", got ",
                k, ", ", job.num_items, " and ", job.dim);
  job.users = owned.keep(users);
  job.items = owned.keep(items);
  if (item_bias) {
    DEEPREC_CHECK(item_bias->numel() == job.num_items, "ValueError: prefilter_topk: item_bias must be [", job.num_items,
                  "], got ", item_bias->numel(), " values");
    job.item_bias = owned.keep(*item_bias);
  }
  add_copy(owned, words, scales, bounds);
  job.num_planes = job.num_users <= kFewUsers ? 2 : 1;
  job.seen = lists_of(owned, "seen", seen_indptr, seen_indices, seen_rows);
  job.allow = lists_of(owned, "allow", allow_indptr, allow_indices, std::nullopt);
  check_allowed(job);
  job.capacity = std::min(job.k, job.num_items) + 16 + std::min(job.k, job.num_items) / 4;
  job.most_rescored = 1024 + 24 * job.k;
  Tensor values = empty_cpu({job.num_users, k}, ScalarType::Float),
         ids = empty_cpu({job.num_users, k}, ScalarType::Long);
  Tensor gave_up = empty_cpu({job.num_users}, ScalarType::Bool);
  if (job.num_users > 0) {
    scan_all(job, values.mutable_data_ptr<float>(), ids.mutable_data_ptr<int64_t>(), gave_up.mutable_data_ptr<bool>());
  }
  return {values, ids, gave_up};
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("prefilter_pack", TORCH_BOX(&deeprec::pack));
  m.impl("prefilter_scan", TORCH_BOX(&deeprec::scan));
}
#endif
