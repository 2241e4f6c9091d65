// The PyTorch side of score_topk and score_items: checks, buffers, and the split into blocks of users and of items.
// The split depends on the shapes alone and a score does not depend on the split, so results are the same for any
// number of threads.
#include "score_topk.h"

#ifdef DEEPREC_ISA_portable
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <vector>

#include "../check.h"
#include "tensor.h"

namespace deeprec {
namespace {

constexpr int64_t kUserBlock = 128;      // a packed tile of items serves this many users of the dot scorer
constexpr int64_t kBlockKeys = 1 << 19;  // candidates of a block of users
// Each part of a catalogue has candidates of its own for each user: few users afford many short parts.
constexpr int64_t kMinChunk = 1024, kUsersAChunk = 16;
constexpr int64_t kFewUsers = 8, kEnoughUnits = 16, kEnoughUnitsOfFew = 64;
constexpr int64_t kMostPlaces = int64_t{1} << 31;  // of a scan: its candidates are numbered in 32 bits

Tensor as_float(const Tensor& t) {
  return as_contiguous(t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float));
}

// The items that may be recommended: all, a list, or a list for each user.
struct Allowed {
  const int64_t* indptr = nullptr;
  const int32_t* indices = nullptr;
  int64_t most = 0;  // items of the longest list
};

// A job and the tensors that its pointers lie in.
struct OwnedJob {
  ScoreJob job{};
  std::vector<Tensor> kept;
  std::vector<ScoreLayer> layers;
  std::vector<std::vector<uint32_t>> packed;
  std::vector<float> scaled_factors;
  Allowed allowed;

  const float* keep(const Tensor& t) {
    kept.push_back(as_float(t));
    return kept.back().const_data_ptr<float>();
  }
};

void check_rows(const char* what, const Tensor& t, int64_t rows, int64_t columns) {
  DEEPREC_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns, "ValueError: score_topk: ", what,
                " must be [", rows, ", ", columns, "]");
}

// Rows of unit length; a zero row stays one.
void normalise_users(OwnedJob& owned) {
  ScoreJob& job = owned.job;
  owned.scaled_factors.resize(static_cast<size_t>(job.num_users * job.num_factors));
  for (int64_t u = 0; u < job.num_users; ++u) {
    const float* from = job.user_factors + u * job.num_factors;
    double sum = 0.0;
    for (int64_t d = 0; d < job.num_factors; ++d) {
      sum += static_cast<double>(from[d]) * from[d];
    }
    const double scale = sum == 0.0 ? 0.0 : 1.0 / std::sqrt(sum);
    for (int64_t d = 0; d < job.num_factors; ++d) {
      owned.scaled_factors[static_cast<size_t>(u * job.num_factors + d)] = static_cast<float>(from[d] * scale);
    }
  }
  job.user_factors = owned.scaled_factors.data();
}

OwnedJob dot_job(const Tensor& users, const Tensor& items, const std::optional<Tensor>& item_bias,
                 int64_t similarity = 0) {
  DEEPREC_CHECK(users.dim() == 2 && items.dim() == 2, "ValueError: score_topk: users must be [B, D] and items [N, D]");
  check_rows("items", items, items.size(0), users.size(1));
  OwnedJob owned;
  ScoreJob& job = owned.job;
  job.num_users = users.size(0);
  job.num_items = items.size(0);
  job.num_factors = users.size(1);
  job.user_factors = owned.keep(users);
  job.item_factors = owned.keep(items);
  if (item_bias) {
    DEEPREC_CHECK(item_bias->numel() == job.num_items, "ValueError: score_topk: item_bias must be [", job.num_items,
                  "], got ", item_bias->numel(), " values");
    job.item_bias = owned.keep(*item_bias);
  }
  DEEPREC_CHECK(0 <= similarity && similarity <= 2,
                "ValueError: score_topk: similarity must be 0 (dot), 1 (cosine) or 2 (l2), got ", similarity);
  DEEPREC_CHECK(similarity == 0 || !item_bias, "ValueError: score_topk: item_bias goes with similarity 0 (dot) only");
  job.similarity = static_cast<Similarity>(similarity);
  if (job.similarity == Similarity::cosine) {
    normalise_users(owned);
  }
  return owned;
}

void add_layers(OwnedJob& owned, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
  ScoreJob& job = owned.job;
  DEEPREC_CHECK(weights.size() == biases.size(), "ValueError: score_topk: each weight needs its bias, got ",
                weights.size(), " and ", biases.size());
  int64_t width = job.num_hidden;
  for (size_t l = 0; l < weights.size(); ++l) {
    DEEPREC_CHECK(weights[l].dim() == 2, "ValueError: score_topk: weights must be [out, in]");
    const int64_t out = weights[l].size(0);
    check_rows("a hidden weight", weights[l], out, width);
    DEEPREC_CHECK(biases[l].numel() == out, "ValueError: score_topk: a hidden bias must be [", out, "]");
    owned.layers.push_back({owned.keep(weights[l]), nullptr, owned.keep(biases[l]), width, out});
    width = out;
  }
  if (job.use_bfloat16) {
    for (ScoreLayer& layer : owned.layers) {
      owned.packed.emplace_back(static_cast<size_t>(layer.out * ((layer.in + 1) / 2)));
      DEEPREC_DISPATCH_BF16(pack_score_weights)(layer.weight, layer.out, layer.in, owned.packed.back().data());
      layer.packed = owned.packed.back().data();
    }
  }
  job.layers = owned.layers.data();
  job.num_layers = static_cast<int64_t>(owned.layers.size());
}

OwnedJob ncf_job(const Tensor& user_hidden, const Tensor& item_hidden, const Tensor& user_factors,
                 const Tensor& item_factors, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                 const Tensor& out_weight, const std::optional<Tensor>& out_bias, bool use_bfloat16) {
  OwnedJob owned = dot_job(user_factors, item_factors, std::nullopt);
  ScoreJob& job = owned.job;
  DEEPREC_CHECK(user_hidden.dim() == 2, "ValueError: score_topk: user_hidden must be [B, H1]");
  job.num_hidden = user_hidden.size(1);
  job.use_bfloat16 = use_bfloat16;
  check_rows("user_hidden", user_hidden, job.num_users, job.num_hidden);
  check_rows("item_hidden", item_hidden, job.num_items, job.num_hidden);
  job.user_hidden = owned.keep(user_hidden);
  job.item_hidden = owned.keep(item_hidden);
  add_layers(owned, weights, biases);
  const int64_t last = owned.layers.empty() ? job.num_hidden : owned.layers.back().out;
  DEEPREC_CHECK(out_weight.numel() == job.num_factors + last, "ValueError: score_topk: out_weight must be [",
                job.num_factors + last, "], got ", out_weight.numel(), " values");
  const float* weight = owned.keep(out_weight);
  job.hidden_weight = weight + job.num_factors;
  if (out_bias) {
    DEEPREC_CHECK(out_bias->numel() == 1, "ValueError: score_topk: out_bias must be one value");
    job.bias = owned.keep(*out_bias)[0];
  }
  owned.scaled_factors.resize(static_cast<size_t>(job.num_users * job.num_factors));
  for (int64_t u = 0; u < job.num_users; ++u) {
    for (int64_t d = 0; d < job.num_factors; ++d) {
      owned.scaled_factors[static_cast<size_t>(u * job.num_factors + d)] =
          job.user_factors[u * job.num_factors + d] * weight[d];
    }
  }
  job.user_factors = owned.scaled_factors.data();
  return owned;
}

void add_seen(OwnedJob& owned, const std::optional<Tensor>& indptr, const std::optional<Tensor>& indices,
              const std::optional<Tensor>& rows) {
  if (!indptr) {
    return;
  }
  ScoreJob& job = owned.job;
  DEEPREC_CHECK(indices && indptr->numel() > 0, "ValueError: score_topk: seen_indptr needs seen_indices beside it");
  DEEPREC_CHECK(indptr->scalar_type() == ScalarType::Long && indices->scalar_type() == ScalarType::Int &&
                    (!rows || rows->scalar_type() == ScalarType::Long),
                "TypeError: score_topk: seen_indptr and seen_rows must be int64 and seen_indices int32");
  owned.kept.push_back(as_contiguous(*indptr));
  job.seen_indptr = owned.kept.back().const_data_ptr<int64_t>();
  owned.kept.push_back(as_contiguous(*indices));
  job.seen_indices = owned.kept.back().const_data_ptr<int32_t>();
  const int64_t num_rows = indptr->numel() - 1, nnz = indices->numel();
  if (rows) {
    DEEPREC_CHECK(rows->numel() == job.num_users, "ValueError: score_topk: seen_rows must be [", job.num_users, "]");
    owned.kept.push_back(as_contiguous(*rows));
    job.seen_rows = owned.kept.back().const_data_ptr<int64_t>();
  } else {
    DEEPREC_CHECK(num_rows == job.num_users, "ValueError: score_topk: seen_indptr must have ", job.num_users + 1,
                  " entries, got ", num_rows + 1, "; or name the rows with seen_rows");
  }
  for (int64_t u = 0; u < job.num_users; ++u) {
    const int64_t row = job.seen_rows ? job.seen_rows[u] : u;
    DEEPREC_CHECK(row >= 0 && row < num_rows, "IndexError: score_topk: seen_rows must lie in [0, ", num_rows, "), got ",
                  row, " at position ", u);
    const int64_t first = job.seen_indptr[row], last = job.seen_indptr[row + 1];
    DEEPREC_CHECK(0 <= first && first <= last && last <= nnz,
                  "ValueError: score_topk: seen_indptr must rise from 0 to ", nnz,
                  " (the length of seen_indices), got ", first, " and ", last, " in row ", row);
  }
}

void add_allowed(OwnedJob& owned, const std::optional<Tensor>& indptr, const std::optional<Tensor>& indices) {
  const ScoreJob& job = owned.job;
  Allowed& allowed = owned.allowed;
  allowed.most = job.num_items;
  if (!indices) {
    DEEPREC_CHECK(!indptr, "ValueError: score_topk: allow_indptr needs allow_indices beside it");
    return;
  }
  DEEPREC_CHECK(indices->scalar_type() == ScalarType::Int && (!indptr || indptr->scalar_type() == ScalarType::Long),
                "TypeError: score_topk: allow_indices must be int32 and allow_indptr int64");
  owned.kept.push_back(as_contiguous(*indices));
  allowed.indices = owned.kept.back().const_data_ptr<int32_t>();
  const int64_t nnz = indices->numel();
  int64_t rows = 1;
  const int64_t whole[] = {0, nnz};
  const int64_t* bounds = whole;
  if (indptr) {
    DEEPREC_CHECK(indptr->numel() == job.num_users + 1, "ValueError: score_topk: allow_indptr must have ",
                  job.num_users + 1, " entries, got ", indptr->numel());
    owned.kept.push_back(as_contiguous(*indptr));
    bounds = allowed.indptr = owned.kept.back().const_data_ptr<int64_t>();
    rows = job.num_users;
  }
  DEEPREC_CHECK(!outside(allowed.indices, 0, nnz, 0, job.num_items),
                "IndexError: score_topk: allow_indices must lie in [0, ", job.num_items, ")");
  allowed.most = 0;
  for (int64_t r = 0; r < rows; ++r) {
    DEEPREC_CHECK(0 <= bounds[r] && bounds[r] <= bounds[r + 1] && bounds[r + 1] <= nnz,
                  "ValueError: score_topk: allow_indptr must rise from 0 to ", nnz,
                  " (the length of allow_indices), got ", bounds[r], " and ", bounds[r + 1], " in row ", r);
    DEEPREC_CHECK(!falls(allowed.indices, bounds[r], bounds[r + 1]),
                  "ValueError: score_topk: allow_indices must ascend, each item once, in row ", r);
    allowed.most = std::max(allowed.most, bounds[r + 1] - bounds[r]);
  }
}

// One thread's buffers in one piece of memory, every part on a cache line of its own.
class Scratch {
 public:
  Scratch(const ScoreJob& job, int64_t block, int64_t capacity) {
    int64_t widest = job.num_hidden;
    for (int64_t l = 0; l < job.num_layers; ++l) {
      widest = std::max(widest, job.layers[l].out);
    }
    const bool has_rows = job.num_hidden || !capacity;
    const int64_t sizes[] = {job.num_factors * kTileItems,
                             job.num_hidden * kTileItems,
                             kTileItems,
                             kTileItems,
                             widest * kTileItems,
                             widest * kTileItems,
                             has_rows ? kScoreUsers * kTileItems : 0,
                             block * kCandidateBytes / 4,
                             2 * block * capacity};
    constexpr int kParts = sizeof(sizes) / sizeof(sizes[0]);
    int64_t starts[kParts], total = 0;
    for (int part = 0; part < kParts; ++part) {
      starts[part] = total;
      total += (sizes[part] + 31) / 16 * 16;
    }
    memory_.reset(static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(total) * sizeof(float))));
    if (!memory_) {
      throw std::bad_alloc();
    }
    float* base = memory_.get();
    view = {base + starts[0],
            base + starts[1],
            base + starts[2],
            base + starts[3],
            {base + starts[4], base + starts[5]},
            base + starts[6],
            base + starts[7],
            reinterpret_cast<uint64_t*>(base + starts[8])};
  }
  ScoreScratch view;

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a call is cut: blocks of users times parts of what they choose from. It depends on the shapes alone.
struct Plan {
  int64_t block, chunks, most;

  Plan(const ScoreJob& job, const Allowed& allowed, int64_t k, int64_t capacity) : most(allowed.most) {
    int64_t widest = job.num_hidden ? kScoreUsers : kUserBlock;
    widest = allowed.indptr ? 1 : std::clamp<int64_t>(capacity ? kBlockKeys / capacity : widest, 1, widest);
    const int64_t blocks = divide_up(job.num_users, widest);
    block = divide_up(job.num_users, std::max<int64_t>(1, blocks));
    const int64_t enough = job.num_users <= kFewUsers ? kEnoughUnitsOfFew : kEnoughUnits;
    // Of each part the k best are put in order and merged.
    const int64_t least = std::max(kMinChunk * std::max<int64_t>(1, job.num_users / kUsersAChunk), 32 * k);
    const int64_t limit = std::min(enough / std::max<int64_t>(1, blocks), most / least);
    chunks = 1;
    while (2 * chunks <= limit || divide_up(most, chunks) > kMostPlaces) {
      chunks *= 2;  // so that they share out evenly among the usual numbers of threads
    }
  }

  int64_t blocks(const ScoreJob& job) const { return divide_up(job.num_users, std::max<int64_t>(1, block)); }
  int64_t length() const { return divide_up(divide_up(most, chunks), kTileItems) * kTileItems; }
};

// What unit `unit` of a plan covers.
ScoreRange range_of(const ScoreJob& job, const Allowed& allowed, const Plan& plan, int64_t unit) {
  const int64_t user = unit / plan.chunks * plan.block, chunk = unit % plan.chunks, length = plan.length();
  const int64_t first = allowed.indptr ? allowed.indptr[user] : 0;
  const int64_t count = allowed.indptr ? allowed.indptr[user + 1] - first : plan.most;
  return {user, std::min(user + plan.block, job.num_users), std::min(chunk * length, count),
          std::min((chunk + 1) * length, count), allowed.indices ? allowed.indices + first : nullptr};
}

// sink.values holds the best of each part of each user, one part after the other.
void run(const ScoreJob& job, const Allowed& allowed, const Plan& plan, const ScoreSink& sink) {
  const auto kernel = DEEPREC_DISPATCH_BF16(score_block);
  torch::stable::parallel_for(0, plan.blocks(job) * plan.chunks, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(job, plan.block, sink.capacity);
    for (int64_t unit = begin; unit < end; ++unit) {
      ScoreSink here = sink;
      here.values += sink.dense ? 0 : unit % plan.chunks * sink.k;
      here.ids += sink.dense ? 0 : unit % plan.chunks * sink.k;
      kernel(job, scratch.view, here, range_of(job, allowed, plan, unit));
    }
  });
}

Tensor score_all(const OwnedJob& owned) {
  const ScoreJob& job = owned.job;
  Tensor out = empty_cpu({job.num_users, job.num_items}, ScalarType::Float);
  if (out.numel() > 0) {
    const Allowed all{nullptr, nullptr, job.num_items};
    run(job, all, Plan(job, all, 0, 0), {out.mutable_data_ptr<float>(), nullptr, nullptr, 0, 0, 0});
  }
  return out;
}

// The k best of `count` lists of k, each in order; those of the earlier list first among equals, as its items are.
void merge_best(const float* values, const int64_t* ids, int64_t count, int64_t part, float* best_values,
                int64_t* best_ids, int64_t k) {
  std::vector<int64_t> heads(static_cast<size_t>(count));
  for (int64_t list = 0; list < count; ++list) {
    heads[static_cast<size_t>(list)] = list * part;
  }
  for (int64_t c = 0; c < k; ++c) {
    int64_t best = -1;
    for (int64_t list = 0; list < count; ++list) {
      const int64_t at = heads[static_cast<size_t>(list)];
      if (at < (list + 1) * part && ids[at] >= 0 &&
          (best < 0 || values[at] > values[heads[static_cast<size_t>(best)]])) {
        best = list;
      }
    }
    const int64_t from = best < 0 ? 0 : heads[static_cast<size_t>(best)]++;
    best_values[c] = best < 0 ? -std::numeric_limits<float>::infinity() : values[from];
    best_ids[c] = best < 0 ? -1 : ids[from];
  }
}

std::tuple<Tensor, Tensor> best_of(const OwnedJob& owned, int64_t k) {
  DEEPREC_CHECK(k >= 0 && k < int64_t{1} << 31, "ValueError: score_topk: k must be in [0, 2^31), got ", k);
  const ScoreJob& job = owned.job;
  Tensor values = empty_cpu({job.num_users, k}, ScalarType::Float);
  Tensor ids = empty_cpu({job.num_users, k}, ScalarType::Long);
  if (values.numel() == 0) {
    return {values, ids};
  }
  const int64_t capacity = std::min(k + std::max<int64_t>(k, 16), owned.allowed.most + 1);
  const Plan plan(job, owned.allowed, k, capacity);
  float* best_values = values.mutable_data_ptr<float>();
  int64_t* best_ids = ids.mutable_data_ptr<int64_t>();
  if (plan.chunks == 1) {
    run(job, owned.allowed, plan, {nullptr, best_values, best_ids, k, k, capacity});
    return {values, ids};
  }
  const int64_t part = std::min(k, plan.length()), stride = plan.chunks * part;
  const int64_t part_capacity = std::min(capacity, plan.length() + 1);
  const std::unique_ptr<float[]> part_values(new float[static_cast<size_t>(job.num_users * stride)]);
  const std::unique_ptr<int64_t[]> part_ids(new int64_t[static_cast<size_t>(job.num_users * stride)]);
  run(job, owned.allowed, plan, {nullptr, part_values.get(), part_ids.get(), part, stride, part_capacity});
  torch::stable::parallel_for(0, job.num_users, 16, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      merge_best(part_values.get() + u * stride, part_ids.get() + u * stride, plan.chunks, part, best_values + u * k,
                 best_ids + u * k, k);
    }
  });
  return {values, ids};
}

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor> score_topk(const Tensor& users, const Tensor& items, const Optional& item_bias, int64_t k,
                                      const Optional& seen_indptr, const Optional& seen_indices,
                                      const Optional& seen_rows, const Optional& allow_indptr,
                                      const Optional& allow_indices, int64_t similarity) {
  OwnedJob owned = dot_job(users, items, item_bias, similarity);
  add_seen(owned, seen_indptr, seen_indices, seen_rows);
  add_allowed(owned, allow_indptr, allow_indices);
  return best_of(owned, k);
}

Tensor score_items(const Tensor& users, const Tensor& items, const Optional& item_bias, int64_t similarity) {
  return score_all(dot_job(users, items, item_bias, similarity));
}

std::tuple<Tensor, Tensor> score_topk_ncf(const Tensor& user_hidden, const Tensor& item_hidden,
                                          const Tensor& user_factors, const Tensor& item_factors,
                                          const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                          const Tensor& out_weight, const Optional& out_bias, bool use_bfloat16,
                                          int64_t k, const Optional& seen_indptr, const Optional& seen_indices,
                                          const Optional& seen_rows, const Optional& allow_indptr,
                                          const Optional& allow_indices) {
  OwnedJob owned = ncf_job(user_hidden, item_hidden, user_factors, item_factors, weights, biases, out_weight, out_bias,
                           use_bfloat16);
  add_seen(owned, seen_indptr, seen_indices, seen_rows);
  add_allowed(owned, allow_indptr, allow_indices);
  return best_of(owned, k);
}

Tensor score_items_ncf(const Tensor& user_hidden, const Tensor& item_hidden, const Tensor& user_factors,
                       const Tensor& item_factors, const std::vector<Tensor>& weights,
                       const std::vector<Tensor>& biases, const Tensor& out_weight, const Optional& out_bias,
                       bool use_bfloat16) {
  const OwnedJob owned = ncf_job(user_hidden, item_hidden, user_factors, item_factors, weights, biases, out_weight,
                                 out_bias, use_bfloat16);
  return score_all(owned);
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("score_topk", TORCH_BOX(&deeprec::score_topk));
  m.impl("score_items", TORCH_BOX(&deeprec::score_items));
  m.impl("score_topk_ncf", TORCH_BOX(&deeprec::score_topk_ncf));
  m.impl("score_items_ncf", TORCH_BOX(&deeprec::score_items_ncf));
}
#endif
