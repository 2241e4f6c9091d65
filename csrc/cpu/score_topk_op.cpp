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
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <tuple>
#include <vector>

#include "../check.h"

namespace deeprec {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kUserBlock = 5 * kScoreUsers;  // a packed tile of items serves this many users of the dot scorer
constexpr int64_t kMinChunk = 1024;              // items; fewer are not worth a unit of work of their own
constexpr int64_t kEnoughUnits = 16;

Tensor as_float(const Tensor& t) {
  return torch::stable::contiguous(t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float));
}

// A job and the tensors that its pointers lie in.
struct OwnedJob {
  ScoreJob job{};
  std::vector<Tensor> kept;
  std::vector<ScoreLayer> layers;
  std::vector<std::vector<uint32_t>> packed;
  std::vector<float> scaled_factors;

  const float* keep(const Tensor& t) {
    kept.push_back(as_float(t));
    return kept.back().const_data_ptr<float>();
  }
};

void check_rows(const char* what, const Tensor& t, int64_t rows, int64_t columns) {
  DEEPREC_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns, "ValueError: score_topk: ", what,
                " must be [", rows, ", ", columns, "]");
}

OwnedJob dot_job(const Tensor& users, const Tensor& items, const std::optional<Tensor>& item_bias) {
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
      DEEPREC_DISPATCH(pack_score_weights)(layer.weight, layer.out, layer.in, owned.packed.back().data());
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
  owned.kept.push_back(torch::stable::contiguous(*indptr));
  job.seen_indptr = owned.kept.back().const_data_ptr<int64_t>();
  owned.kept.push_back(torch::stable::contiguous(*indices));
  job.seen_indices = owned.kept.back().const_data_ptr<int32_t>();
  const int64_t num_rows = indptr->numel() - 1, nnz = indices->numel();
  if (rows) {
    DEEPREC_CHECK(rows->numel() == job.num_users, "ValueError: score_topk: seen_rows must be [", job.num_users, "]");
    owned.kept.push_back(torch::stable::contiguous(*rows));
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

// One thread's buffers in one piece of memory, every part on a cache line of its own.
class Scratch {
 public:
  Scratch(const ScoreJob& job, int64_t block) {
    int64_t widest = job.num_hidden;
    for (int64_t l = 0; l < job.num_layers; ++l) {
      widest = std::max(widest, job.layers[l].out);
    }
    const int64_t sizes[] = {job.num_factors * kTileItems, job.num_hidden * kTileItems, kTileItems, widest * kTileItems,
                             widest * kTileItems,          kScoreUsers * kTileItems,    2 * block,  2 * block};
    int64_t starts[8], total = 0;
    for (int part = 0; part < 8; ++part) {
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
            {base + starts[3], base + starts[4]},
            base + starts[5],
            reinterpret_cast<int64_t*>(base + starts[6]),
            reinterpret_cast<int64_t*>(base + starts[7])};
  }
  ScoreScratch view;

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `chunks` parts of the catalogue for every block of users; sink.values holds those of each part of each user.
void run(const ScoreJob& job, ScoreSink sink, int64_t block, int64_t chunks) {
  const int64_t blocks = divide_up(job.num_users, block);
  const int64_t per_chunk = divide_up(divide_up(job.num_items, chunks), kTileItems) * kTileItems;
  const auto kernel = DEEPREC_DISPATCH(score_block);
  torch::stable::parallel_for(0, blocks * chunks, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(job, block);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t user = unit / chunks * block, chunk = unit % chunks;
      ScoreSink here = sink;
      here.values += sink.dense ? 0 : chunk * sink.k;
      here.ids += sink.dense ? 0 : chunk * sink.k;
      kernel(job, scratch.view, here, user, std::min(user + block, job.num_users),
             std::min(chunk * per_chunk, job.num_items), std::min((chunk + 1) * per_chunk, job.num_items));
    }
  });
}

int64_t block_of(const ScoreJob& job) { return job.num_hidden ? kScoreUsers : kUserBlock; }

int64_t chunks_of(const ScoreJob& job) {
  const int64_t blocks = divide_up(job.num_users, block_of(job));
  return std::max<int64_t>(1, std::min(divide_up(kEnoughUnits, blocks), job.num_items / kMinChunk));
}

Tensor score_all(const ScoreJob& job, const Tensor& like) {
  Tensor out = torch::stable::new_empty(like, {job.num_users, job.num_items}, ScalarType::Float);
  if (out.numel() > 0) {
    run(job, {out.mutable_data_ptr<float>(), nullptr, nullptr, 0, 0}, block_of(job), chunks_of(job));
  }
  return out;
}

std::tuple<Tensor, Tensor> best_of(const ScoreJob& job, int64_t k, const Tensor& like) {
  DEEPREC_CHECK(k >= 0 && k < int64_t{1} << 31, "ValueError: score_topk: k must be in [0, 2^31), got ", k);
  Tensor values = torch::stable::new_empty(like, {job.num_users, k}, ScalarType::Float);
  Tensor ids = torch::stable::new_empty(like, {job.num_users, k}, ScalarType::Long);
  if (values.numel() == 0) {
    return {values, ids};
  }
  const int64_t chunks = chunks_of(job);
  float* best_values = values.mutable_data_ptr<float>();
  int64_t* best_ids = ids.mutable_data_ptr<int64_t>();
  if (chunks == 1) {
    run(job, {nullptr, best_values, best_ids, k, k}, block_of(job), 1);
    return {values, ids};
  }
  const int64_t per_chunk = std::min(k, divide_up(job.num_items, chunks) + kTileItems), stride = chunks * per_chunk;
  const std::unique_ptr<float[]> part_values(new float[static_cast<size_t>(job.num_users * stride)]);
  const std::unique_ptr<int64_t[]> part_ids(new int64_t[static_cast<size_t>(job.num_users * stride)]);
  run(job, {nullptr, part_values.get(), part_ids.get(), per_chunk, stride}, block_of(job), chunks);
  const auto merge = DEEPREC_DISPATCH(merge_best);
  for (int64_t u = 0; u < job.num_users; ++u) {
    merge(part_values.get() + u * stride, part_ids.get() + u * stride, stride, best_values + u * k, best_ids + u * k,
          k);
  }
  return {values, ids};
}

std::tuple<Tensor, Tensor> score_topk(const Tensor& users, const Tensor& items, const std::optional<Tensor>& item_bias,
                                      int64_t k, const std::optional<Tensor>& seen_indptr,
                                      const std::optional<Tensor>& seen_indices,
                                      const std::optional<Tensor>& seen_rows) {
  OwnedJob owned = dot_job(users, items, item_bias);
  add_seen(owned, seen_indptr, seen_indices, seen_rows);
  return best_of(owned.job, k, users);
}

Tensor score_items(const Tensor& users, const Tensor& items, const std::optional<Tensor>& item_bias) {
  return score_all(dot_job(users, items, item_bias).job, users);
}

std::tuple<Tensor, Tensor> score_topk_ncf(const Tensor& user_hidden, const Tensor& item_hidden,
                                          const Tensor& user_factors, const Tensor& item_factors,
                                          const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                          const Tensor& out_weight, const std::optional<Tensor>& out_bias,
                                          bool use_bfloat16, int64_t k, const std::optional<Tensor>& seen_indptr,
                                          const std::optional<Tensor>& seen_indices,
                                          const std::optional<Tensor>& seen_rows) {
  OwnedJob owned = ncf_job(user_hidden, item_hidden, user_factors, item_factors, weights, biases, out_weight, out_bias,
                           use_bfloat16);
  add_seen(owned, seen_indptr, seen_indices, seen_rows);
  return best_of(owned.job, k, user_hidden);
}

Tensor score_items_ncf(const Tensor& user_hidden, const Tensor& item_hidden, const Tensor& user_factors,
                       const Tensor& item_factors, const std::vector<Tensor>& weights,
                       const std::vector<Tensor>& biases, const Tensor& out_weight,
                       const std::optional<Tensor>& out_bias, bool use_bfloat16) {
  const OwnedJob owned = ncf_job(user_hidden, item_hidden, user_factors, item_factors, weights, biases, out_weight,
                                 out_bias, use_bfloat16);
  return score_all(owned.job, user_hidden);
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
