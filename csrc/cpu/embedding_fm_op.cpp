// The forward operator of embedding_fm: checks, allocation and the split of the work; the kernel is in
// embedding_fm.cpp.
#include "embedding_fm.h"

#ifdef DEEPREC_ISA_portable
#include <atomic>
#include <tuple>

#include "embedding_fm_op.h"

namespace deeprec {
namespace {

constexpr int64_t kTileEntries = 256;  // whose addresses fit the first-level cache
constexpr int64_t kFmGrain = 1 << 14;  // bytes read that are worth a thread

// Names the first entry that is out of range, in the order of entries.
void raise_bad(const char* op, const Layout& layout, const FmTables& all, const Ints& tables) {
  for (int64_t f = 0; f < layout.num_features; ++f) {
    const int64_t num_rows = all.features[static_cast<size_t>(f)].num_rows;
    for (int64_t i = 0; i < layout.num_entries(f); ++i) {
      const int64_t id = layout.id(f, i);
      DEEPREC_CHECK(id >= 0 && id < num_rows, "IndexError: ", op, ": ids of table ", tables[static_cast<size_t>(f)],
                    " must be in [0, ", num_rows, "), got ", id, " at position ", layout.first_entry(f) + i);
    }
  }
}

// Samples whose ids become addresses together; where the ids of a feature lie together, whole lines of them.
int64_t samples_a_tile(const Layout& layout) {
  const int64_t entries = std::max<int64_t>(layout.nnz / std::max<int64_t>(layout.batch, 1), 1);
  const int64_t samples = std::clamp<int64_t>(kTileEntries / entries, 1, kFmTile);
  const bool by_feature = !layout.offsets && layout.bag_stride <= layout.feature_stride;
  return by_feature ? std::max<int64_t>(samples / 8 * 8, 8) : samples;
}

// Memory of one thread that the kernel asks for when it has seen how many entries its samples have.
struct FmMemory {
  std::vector<double> blocks[3];

  static char* get(void* self, int which, int64_t bytes) {
    std::vector<double>& block = static_cast<FmMemory*>(self)->blocks[which];
    block.resize(static_cast<size_t>((bytes + 7) / 8));
    return reinterpret_cast<char*>(block.data());
  }
};

std::tuple<Tensor, Tensor, Tensor> embedding_fm(const Tensors& weights, const Tensors& linear, const Tensor& ids,
                                                const std::optional<Tensor>& offsets,
                                                const std::optional<Tensor>& values_in, const Ints& tables,
                                                const Ints& padding, bool need_embeddings) {
  const char* op = "embedding_fm";
  const FmTables all(op, weights, linear, tables, padding);
  const Layout layout(op, ids, offsets, tables.size());
  const int64_t batch = layout.batch, num_features = layout.num_features, dim = all.dim;
  Tensor out = empty_cpu({batch}, all.dtype());
  Tensor sums = empty_cpu({batch, dim}, all.wide());
  Tensor embeddings = empty_cpu(need_embeddings ? Ints{batch, num_features, dim} : Ints{0}, all.dtype());
  const int64_t row_bytes = (dim + 1) * static_cast<int64_t>(out.element_size());
  std::optional<Tensor> values;
  FmForwardArgs args{};
  args.element = element_of(op, all.dtype());
  args.num_features = num_features;
  args.dim = dim;
  args.batch = batch;
  args.features = all.features.data();
  args.ids = layout.ids.data_ptr();
  args.wide_ids = layout.wide;
  args.feature_stride = layout.feature_stride;
  args.bag_stride = layout.bag_stride;
  args.offsets = layout.offsets ? layout.offsets->data_ptr() : nullptr;
  if (values_in) {
    values = check_values(op, layout, *values_in, all.dtype());
    args.values = values->data_ptr();
    args.value_feature_stride = layout.offsets ? 0 : values->stride(0);
    args.value_bag_stride = layout.offsets ? 1 : values->stride(1);
  }
  args.tile = samples_a_tile(layout);
  args.get_memory = &FmMemory::get;
  const std::vector<char> zeros(static_cast<size_t>(row_bytes));
  args.zeros = zeros.data();
  args.one_line = all.rows_lie_in_lines();
  args.out = out.data_ptr();
  args.sums = sums.data_ptr();
  args.embeddings = need_embeddings ? embeddings.data_ptr() : nullptr;

  const int64_t chunks = std::min(threads_for(layout.nnz * row_bytes, kFmGrain), std::max<int64_t>(batch, 1));
  const auto forward = DEEPREC_DISPATCH(fm_forward);
  std::atomic<bool> is_bad{false};
  for_each_chunk(chunks, [&](int64_t chunk) {
    FmMemory memory;
    FmForwardArgs part = args;
    part.memory = &memory;
    part.begin = batch * chunk / chunks;
    part.end = batch * (chunk + 1) / chunks;
    if (forward(part)) {
      is_bad = true;
    }
  });
  if (is_bad) {
    raise_bad(op, layout, all, tables);
  }
  return {out, sums, embeddings};
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) { m.impl("embedding_fm", TORCH_BOX(&deeprec::embedding_fm)); }
#endif
