// deeprec::ncf_loss, the operator: checks, allocation and the order of the passes in ncf_loss.cpp.
#include "ncf_loss.h"

#ifdef DEEPREC_ISA_portable
#include "tensor.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <optional>
#include <tuple>
#include <vector>

namespace deeprec {
namespace {

int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }
int64_t row_stride(int64_t n) { return (padded(n) / 16 | 1) * 16; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Hands out 64-byte aligned pieces of one block. The first walk over the layout (base 0) measures it.
struct Arena {
  uintptr_t at;
  template <class T>
  T* take(int64_t count) {
    T* out = reinterpret_cast<T*>(at);
    at += (static_cast<uintptr_t>(count) * sizeof(T) + 63) / 64 * 64;
    return out;
  }
};

// Memory for intermediate results, kept between calls of one thread: a fresh block of some megabytes would be returned
// to the system after each call, and its page faults cost a tenth of the time. More than 256 MiB is not kept.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(block_); }

  uintptr_t at_least(size_t bytes) {
    if (bytes > size_ || size_ > kMostKept) {
      std::free(block_);
      size_ = (bytes + bytes / 4 + kPage) / kPage * kPage;
      block_ = std::aligned_alloc(kPage, size_);
      if (!block_) {
        size_ = 0;
        throw std::bad_alloc();
      }
#if defined(__linux__)
      madvise(block_, size_, MADV_HUGEPAGE);  // rows are read in random order: spare the page walks
#endif
    }
    return reinterpret_cast<uintptr_t>(block_);
  }

 private:
  static constexpr size_t kPage = size_t{1} << 21, kMostKept = size_t{1} << 28;
  void* block_ = nullptr;
  size_t size_ = 0;
};

Tensor empty(const std::vector<int64_t>& sizes) { return empty_cpu(sizes, ScalarType::Float); }
const float* data(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
float* mutable_data(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

Tensor checked(const Tensor& t, int64_t dim, const char* name) {
  DEEPREC_CHECK(t.scalar_type() == ScalarType::Float, "ncf_loss: ", name, " must be float32 for the CPU kernel");
  DEEPREC_CHECK(t.dim() == dim, "ncf_loss: ", name, " must have ", dim, " dimensions, got ", t.dim());
  return as_contiguous(t);
}

template <class T>
void copy_indices(const Tensor& t, T* out, int64_t limit, const char* name) {
  const Tensor c = as_contiguous(t);
  const int64_t n = c.numel();
  const auto copy = [&](const auto* from) {
    bool is_bad = false;
    for (int64_t i = 0; i < n; ++i) {
      is_bad |= (from[i] < 0) | (from[i] >= limit);
      out[i] = static_cast<T>(from[i]);
    }
    for (int64_t i = 0; is_bad && i < n; ++i) {
      DEEPREC_CHECK(from[i] >= 0 && from[i] < limit, "ncf_loss: ", name, "[", i, "] must be in [0, ", limit, "), got ",
                    static_cast<int64_t>(from[i]), "; make the plan with embedding_plan");
    }
  };
  if (c.scalar_type() == ScalarType::Int) {
    copy(static_cast<const int32_t*>(c.const_data_ptr()));
  } else {
    DEEPREC_CHECK(c.scalar_type() == ScalarType::Long, "ncf_loss: ", name, " must be int32 or int64");
    copy(static_cast<const int64_t*>(c.const_data_ptr()));
  }
}

struct PlanArrays {
  int64_t* rows;
  int32_t *offsets, *order, *inverse;
};

void read_plan(const Tensor& rows, const Tensor& offsets, const Tensor& order, int64_t table_rows, const PlanArrays& to,
               const char* name) {
  const int64_t num_rows = rows.numel(), positions = order.numel();
  copy_indices(rows, to.rows, table_rows, name);
  copy_indices(offsets, to.offsets, positions + 1, name);
  copy_indices(order, to.order, positions, name);
  bool is_valid = to.offsets[0] == 0 && to.offsets[num_rows] == positions;
  for (int64_t r = 0; is_valid && r < num_rows; ++r) {
    is_valid = to.offsets[r] < to.offsets[r + 1];
  }
  DEEPREC_CHECK(is_valid, "ncf_loss: ", name, "' offsets must rise from 0 to ", positions,
                "; make the plan with embedding_plan");
  // Offsets rise from 0 to the number of positions, so `order` names each position once when none is left out.
  std::fill_n(to.inverse, positions, -1);
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int32_t k = to.offsets[r]; k < to.offsets[r + 1]; ++k) {
      to.inverse[to.order[k]] = static_cast<int32_t>(r);
    }
  }
  int32_t all = 0;
  for (int64_t i = 0; i < positions; ++i) {
    all |= to.inverse[i];
  }
  DEEPREC_CHECK(all >= 0, "ncf_loss: ", name,
                "' order must name every position once; make the plan with embedding_plan");
}

// Everything the passes need; `arrange` is walked twice, to measure and to place.
struct Call {
  NcfProblem p{};
  std::vector<NcfLayer> layers;
  PlanArrays user_plan{}, item_plan{};
  uint32_t* scratch = nullptr;
  int64_t scratch_words = 0, num_threads = 1;
  float *gmf_weight = nullptr, *mlp_weight = nullptr;
  std::vector<float*> biases;

  void arrange_side(Arena& arena, NcfSide& side, PlanArrays& plan, bool is_user) {
    side.rows = plan.rows = arena.take<int64_t>(side.num_rows);
    side.offsets = plan.offsets = arena.take<int32_t>(side.num_rows + 1);
    side.order = plan.order = arena.take<int32_t>(side.num_positions);
    side.inverse = plan.inverse = arena.take<int32_t>(side.num_positions);
    side.d_gmf_weight = is_user ? arena.take<float>(side.num_chunks * p.gmf_width) : nullptr;
    if (layers.empty()) {
      return;
    }
    const int64_t out = layers[0].out, hidden = padded(out);
    side.forward = arena.take<uint32_t>(side.width * row_stride(out));
    side.backward = arena.take<uint32_t>(out * row_stride(side.width));
    side.hidden = arena.take<float>(side.num_rows * hidden);
    side.d_first = arena.take<float>(side.num_chunks * out * padded(side.width));
  }

  void arrange(Arena& arena) {
    const int64_t examples = p.num_groups * p.group_size, c = p.num_chunks;
    arrange_side(arena, p.user, user_plan, true);
    arrange_side(arena, p.item, item_plan, false);
    p.d_logits = arena.take<float>(examples);
    p.loss = arena.take<double>(c);
    p.d_out_bias = arena.take<double>(c);
    scratch = arena.take<uint32_t>(num_threads * scratch_words);
    biases.resize(layers.size());
    for (size_t l = 0; l < layers.size(); ++l) {
      NcfLayer& layer = layers[l];
      layer.bias = biases[l] = arena.take<float>(padded(layer.out));
      layer.d_bias = arena.take<float>(c * padded(layer.out));
      if (l > 0) {
        layer.forward = arena.take<uint32_t>(layer.in * row_stride(layer.out));
        layer.backward = arena.take<uint32_t>(layer.out * row_stride(layer.in));
        layer.d_weight = arena.take<float>(c * layer.out * padded(layer.in));
      }
    }
    if (layers.empty()) {
      return;
    }
    const int64_t hidden = padded(layers[0].out), last = padded(layers.back().out);
    p.mlp_weight = mlp_weight = arena.take<float>(last);
    p.d_mlp_weight = arena.take<float>(c * last);
    p.d_example = arena.take<float>(examples * hidden);
    p.d_group = p.group_size == 1 ? p.d_example : arena.take<float>(p.num_groups * hidden);
    p.user.d_hidden = p.d_group;
    p.item.d_hidden = p.d_example;
    p.user.bias = layers[0].bias;
    p.item.bias = nullptr;
  }
};

// Chunk sizes depend on the batch alone, never on the threads: enough for 8 cores early, 32 in large batches.
void choose_chunks(NcfProblem& p) {
  const int64_t examples = p.num_groups * p.group_size;
  const int64_t target =
      examples <= 4096 ? std::min<int64_t>(8, ceil_div(examples, 128)) : std::min<int64_t>(32, ceil_div(examples, 512));
  p.chunk_groups = std::max<int64_t>(1, ceil_div(p.num_groups, std::max<int64_t>(1, target)));
  p.num_chunks = ceil_div(p.num_groups, p.chunk_groups);
  // Even pieces of the rows of both sides, so that a few threads get equally many.
  const int64_t rows = p.user.num_rows + p.item.num_rows;
  const int64_t pieces = std::min<int64_t>(examples <= 4096 ? 8 : 64, ceil_div(rows, 64));
  for (NcfSide* side : {&p.user, &p.item}) {
    const int64_t share = rows ? (2 * pieces * side->num_rows + rows) / (2 * rows) : 0;
    side->chunk_rows = ceil_div(side->num_rows, std::max<int64_t>(1, share));
    side->num_chunks = side->num_rows ? ceil_div(side->num_rows, side->chunk_rows) : 0;
  }
}

// Starting and joining the threads costs as much as this many weights packed or chunks summed.
constexpr int64_t kSmall = 1 << 18;

// One range of jobs a thread, each range with a slot of scratch of its own; small work stays on this thread.
template <class F>
void run_jobs(const Call& call, int64_t num_jobs, const F& job, bool is_small = false) {
  std::atomic<int64_t> next_slot{0};
  torch::stable::parallel_for(0, num_jobs, is_small ? num_jobs : 1, [&](int64_t begin, int64_t end) {
    uint32_t* scratch = call.scratch + (next_slot++ % call.num_threads) * call.scratch_words;
    for (int64_t i = begin; i < end; ++i) {
      job(i, scratch);
    }
  });
}

int64_t num_weights(const Call& call) {
  int64_t count = 0;
  for (const NcfLayer& layer : call.layers) {
    count += layer.in * layer.out;
  }
  return count;
}

void run_passes(const Call& call) {
  const NcfProblem& p = call.p;
  const int64_t user_jobs = p.user.num_chunks, row_jobs = user_jobs + p.item.num_chunks;
  if (p.num_layers) {
    const auto pack = DEEPREC_DISPATCH_BF16(ncf_pack);
    run_jobs(call, 2 * p.num_layers, [&](int64_t job, uint32_t*) { pack(p, job); }, 2 * num_weights(call) < kSmall);
    const auto hidden = DEEPREC_DISPATCH_BF16(ncf_hidden);
    run_jobs(call, row_jobs, [&](int64_t job, uint32_t* scratch) {
      const NcfSide& side = job < user_jobs ? p.user : p.item;
      const int64_t begin = (job < user_jobs ? job : job - user_jobs) * side.chunk_rows;
      hidden(p, side, begin, std::min(begin + side.chunk_rows, side.num_rows), scratch);
    });
  }
  const auto tiles = DEEPREC_DISPATCH_BF16(ncf_tiles);
  run_jobs(call, p.num_chunks, [&](int64_t job, uint32_t* scratch) { tiles(p, job, scratch); });
  const auto rows = DEEPREC_DISPATCH_BF16(ncf_rows);
  run_jobs(call, row_jobs, [&](int64_t job, uint32_t* scratch) {
    rows(p, job < user_jobs ? p.user : p.item, job < user_jobs ? job : job - user_jobs, scratch);
  });
}

void sum_chunks(const Call& call, const std::vector<Tensor>& d_weights, const std::vector<Tensor>& d_biases,
                const Tensor& d_out_weight, const Tensor& d_out_bias, const Tensor& loss) {
  const NcfProblem& p = call.p;
  const auto sum = DEEPREC_DISPATCH_BF16(ncf_sum);
  std::vector<int64_t> ends;  // rows of all weights in one sequence
  for (const NcfLayer& layer : call.layers) {
    ends.push_back((ends.empty() ? 0 : ends.back()) + layer.out);
  }
  const int64_t num_rows = ends.empty() ? 0 : ends.back();
  const bool is_small = num_weights(call) * std::max(p.num_chunks, p.user.num_chunks + p.item.num_chunks) < kSmall;
  torch::stable::parallel_for(
      0, num_rows, is_small ? std::max<int64_t>(1, num_rows) : 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t l = std::upper_bound(ends.begin(), ends.end(), i) - ends.begin();
          const NcfLayer& layer = call.layers[l];
          const int64_t r = i - (ends[l] - layer.out);
          float* out = mutable_data(d_weights[l]) + r * layer.in;
          const auto row = [&](float* to, const float* chunks, int64_t num_chunks, int64_t width) {
            sum(to, chunks + r * padded(width), layer.out * padded(width), num_chunks, width);
          };
          if (l == 0) {
            row(out, p.user.d_first, p.user.num_chunks, p.user.width);
            row(out + p.user.width, p.item.d_first, p.item.num_chunks, p.item.width);
          } else {
            row(out, layer.d_weight, p.num_chunks, layer.in);
          }
        }
      });
  for (int64_t l = 0; l < p.num_layers; ++l) {
    const NcfLayer& layer = call.layers[l];
    sum(mutable_data(d_biases[l]), layer.d_bias, padded(layer.out), p.num_chunks, layer.out);
  }
  float* out_weight = mutable_data(d_out_weight);
  sum(out_weight, p.user.d_gmf_weight, p.gmf_width, p.user.num_chunks, p.gmf_width);
  if (p.num_layers) {
    const int64_t last = call.layers.back().out;
    sum(out_weight + p.gmf_width, p.d_mlp_weight, padded(last), p.num_chunks, last);
  }
  double total = 0, bias = 0;
  for (int64_t c = 0; c < p.num_chunks; ++c) {
    total += p.loss[c];
    bias += p.d_out_bias[c];
  }
  *mutable_data(loss) = static_cast<float>(total * p.scale);
  *mutable_data(d_out_bias) = static_cast<float>(bias);
}

using Result =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor, Tensor>;

Result ncf_loss(Tensor gmf_user, Tensor gmf_item, Tensor mlp_user, Tensor mlp_item, Tensor user_rows,
                Tensor user_offsets, Tensor user_order, Tensor item_rows, Tensor item_offsets, Tensor item_order,
                Tensor labels, std::vector<Tensor> weights, std::vector<Tensor> biases, Tensor out_weight,
                Tensor out_bias, double scale, bool bfloat16) {
  gmf_user = checked(gmf_user, 2, "gmf_user");
  gmf_item = checked(gmf_item, 2, "gmf_item");
  mlp_user = checked(mlp_user, 2, "mlp_user");
  mlp_item = checked(mlp_item, 2, "mlp_item");
  labels = checked(labels, 2, "labels");
  out_weight = checked(out_weight, 1, "out_weight");
  out_bias = checked(out_bias, 1, "out_bias");
  Call call;
  NcfProblem& p = call.p;
  const int64_t num_layers = static_cast<int64_t>(weights.size());
  DEEPREC_CHECK(num_layers <= kNcfMaxLayers && biases.size() == weights.size(), "ncf_loss: needs as many biases as ",
                "weights and at most ", kNcfMaxLayers, " of them, got ", num_layers, " and ", biases.size());
  p.gmf_width = gmf_user.size(1);
  p.num_groups = labels.size(0);
  p.group_size = labels.size(1);
  p.num_layers = num_layers;
  const auto read_side = [](NcfSide& side, const Tensor& gmf, const Tensor& mlp, const Tensor& rows,
                            const Tensor& order) {
    side.gmf = data(gmf);
    side.mlp = data(mlp);
    side.width = mlp.size(1);
    side.num_rows = rows.numel();
    side.num_positions = order.numel();
  };
  read_side(p.user, gmf_user, mlp_user, user_rows, user_order);
  read_side(p.item, gmf_item, mlp_item, item_rows, item_order);
  const int64_t examples = p.num_groups * p.group_size;
  DEEPREC_CHECK(p.group_size > 0 || p.num_groups == 0, "ncf_loss: labels must be [groups, 1 + n]");
  DEEPREC_CHECK(examples < INT32_MAX, "ncf_loss: needs fewer than 2^31 examples in a batch, got ", examples);
  DEEPREC_CHECK(p.user.num_positions == p.num_groups && p.item.num_positions == examples &&
                    user_offsets.numel() == p.user.num_rows + 1 && item_offsets.numel() == p.item.num_rows + 1,
                "ncf_loss: the plans must cover ", p.num_groups, " users and ", examples, " items");
  DEEPREC_CHECK(gmf_item.size(1) == p.gmf_width, "ncf_loss: GMF tables must be equally wide");
  DEEPREC_CHECK(
      !p.gmf_width || !num_layers || (gmf_user.size(0) == mlp_user.size(0) && gmf_item.size(0) == mlp_item.size(0)),
      "ncf_loss: the GMF and MLP tables must have equally many rows");
  for (int64_t l = 0; l < num_layers; ++l) {
    weights[l] = checked(weights[l], 2, "weights");
    biases[l] = checked(biases[l], 1, "biases");
    const int64_t in = l ? call.layers[l - 1].out : p.user.width + p.item.width;
    DEEPREC_CHECK(weights[l].size(1) == in && weights[l].size(0) == biases[l].numel() && biases[l].numel() > 0,
                  "ncf_loss: weights[", l, "] must be [", biases[l].numel(), ", ", in, "]");
    NcfLayer& layer = call.layers.emplace_back();
    layer.in = in;
    layer.out = weights[l].size(0);
    layer.weight = data(weights[l]);
  }
  const int64_t last = num_layers ? call.layers.back().out : 0;
  DEEPREC_CHECK(out_weight.numel() == p.gmf_width + last && out_bias.numel() == 1, "ncf_loss: out_weight must be [",
                p.gmf_width + last, "] and out_bias [1]");
  choose_chunks(p);
  p.layers = call.layers.data();
  p.labels = data(labels);
  p.gmf_weight = data(out_weight);
  p.out_bias = *data(out_bias);
  p.scale = static_cast<float>(scale);
  p.bfloat16 = bfloat16;
  call.num_threads = torch::stable::get_num_threads();
  call.scratch_words = ncf_scratch_words(p);

  const Tensor d_gmf_user = empty({p.user.num_rows, p.gmf_width}), d_gmf_item = empty({p.item.num_rows, p.gmf_width});
  const Tensor d_mlp_user = empty({p.user.num_rows, p.user.width}), d_mlp_item = empty({p.item.num_rows, p.item.width});
  p.user.d_gmf = mutable_data(d_gmf_user);
  p.item.d_gmf = mutable_data(d_gmf_item);
  p.user.d_mlp = mutable_data(d_mlp_user);
  p.item.d_mlp = mutable_data(d_mlp_item);
  std::vector<Tensor> d_weights, d_biases;
  for (const NcfLayer& layer : call.layers) {
    d_weights.push_back(empty({layer.out, layer.in}));
    d_biases.push_back(empty({layer.out}));
  }
  const Tensor d_out_weight = empty({p.gmf_width + last}), d_out_bias = empty({1}), loss = empty({});

  Arena measure{0};
  call.arrange(measure);
  thread_local Workspace workspace;
  Arena arena{workspace.at_least(measure.at)};
  call.arrange(arena);
  read_plan(user_rows, user_offsets, user_order, num_layers ? mlp_user.size(0) : gmf_user.size(0), call.user_plan,
            "users");
  read_plan(item_rows, item_offsets, item_order, num_layers ? mlp_item.size(0) : gmf_item.size(0), call.item_plan,
            "items");
  for (int64_t l = 0; l < num_layers; ++l) {
    std::fill_n(std::copy_n(data(biases[l]), call.layers[l].out, call.biases[l]),
                padded(call.layers[l].out) - call.layers[l].out, 0.0f);
  }
  if (num_layers) {
    std::fill_n(std::copy_n(p.gmf_weight + p.gmf_width, last, call.mlp_weight), padded(last) - last, 0.0f);
  }
  run_passes(call);
  sum_chunks(call, d_weights, d_biases, d_out_weight, d_out_bias, loss);
  return {loss, d_gmf_user, d_gmf_item, d_mlp_user, d_mlp_item, d_weights, d_biases, d_out_weight, d_out_bias};
}

}  // namespace

int64_t ncf_scratch_words(const NcfProblem& p) {
  // An upper bound over both instruction widths and both precisions: a tile of width w takes at most `tile(w)`.
  const auto tile = [](int64_t width) { return kNcfTile * (row_stride(width) + row_stride(width)) + 64; };
  int64_t words = 8 * 128, widest = 0;
  for (int64_t l = 0; l < p.num_layers; ++l) {
    words += tile(p.layers[l].out);
    widest = std::max(widest, p.layers[l].out);
  }
  const int64_t hidden = p.num_layers ? p.layers[0].out : 0, embedding = std::max(p.user.width, p.item.width);
  const int64_t rows = 2 * tile(hidden) + 2 * tile(embedding) + 1024;
  return std::max(words + 2 * tile(widest), rows);
}

}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) { m.impl("ncf_loss", TORCH_BOX(&deeprec::ncf_loss)); }
#endif
