// The lookups over several tables, embedding_bags and embedding_bag: checks, allocation and the split of the work; the
// kernel is in embedding_bag.cpp.
#include "embedding_bag.h"

#ifdef DEEPREC_ISA_portable
#include <atomic>
#include <cstring>
#include <optional>
#include <vector>

#include "bag_layout.h"
#include "embedding_bag_op.h"

namespace deeprec {
namespace {

// What is worth a thread, in bytes read; an entry costs as much as some bytes do, however short its row.
constexpr int64_t kPoolGrain = 1 << 17;
constexpr int64_t kEntryBytes = 32;

int64_t pool_work(int64_t entries, int64_t bags, int64_t row_bytes) {
  return (entries + bags) * (row_bytes + kEntryBytes);
}

// Pools every feature on as many threads as `work` is worth; returns the first bad entry, whoever finds it, or -1.
template <class FirstEntry>
int64_t pool_features(const std::vector<PoolArgs>& features, int64_t work, const FirstEntry& first_entry) {
  const int64_t count = static_cast<int64_t>(features.size());
  const int64_t threads = threads_for(work, kPoolGrain);
  const int64_t parts = threads == 1 ? 1 : count == 1 ? threads : (threads * 8 + count - 1) / count;
  const auto pool = DEEPREC_DISPATCH(pool_bags);
  std::atomic<int64_t> bad{-1};
  const auto run = [&](int64_t task) {
    const int64_t f = task / parts, part = task % parts;
    PoolArgs args = features[static_cast<size_t>(f)];
    const int64_t end = args.end;
    args.begin = end * part / parts;
    args.end = end * (part + 1) / parts;
    if (args.argmax && args.mode != BagMode::max) {  // beside a feature of maxima: no entry, as nothing reads it
      const size_t index_bytes = args.wide_ids ? 8 : 4;
      for (int64_t bag = args.begin; bag < args.end; ++bag) {
        std::memset(args.argmax + bag * args.argmax_stride, 0xff, static_cast<size_t>(args.dim) * index_bytes);
      }
    }
    int64_t at = pool(args);
    if (at >= 0) {
      at += first_entry(f);
      int64_t seen = bad.load();
      while ((seen < 0 || at < seen) && !bad.compare_exchange_weak(seen, at)) {
      }
    }
  };
  const int64_t tasks = count * parts;
  if (threads == 1) {
    for (int64_t task = 0; task < tasks; ++task) {
      run(task);
    }
  } else {
    for_each_chunk(tasks, run);
  }
  return bad;
}

Tensors embedding_bags(Tensors weights, const Tensor& ids, const std::optional<Tensor>& offsets,
                       const std::optional<Tensor>& per_sample_weights, const Ints& tables, const Ints& modes,
                       const Ints& padding) {
  const char* op = "embedding_bags";
  check_tables(op, weights);
  check_features(op, tables, padding, weights.size());
  check_modes(op, modes, tables.size(), per_sample_weights.has_value());
  const Layout layout(op, ids, offsets, tables.size());
  for (Tensor& w : weights) {
    w = rows_adjacent(w);
  }
  const ScalarType dtype = weights[0].scalar_type();
  const int64_t element = static_cast<int64_t>(weights[0].element_size());
  const auto [columns, width] = columns_of(layout, weights, tables, modes);
  const bool maxima = has_max(layout, modes);
  const int64_t index_bytes = layout.wide ? 8 : 4;
  Tensor pooled = empty_cpu({layout.batch, width}, dtype);
  Tensor argmax = empty_cpu(maxima ? Ints{layout.batch, width} : Ints{0}, layout.ids.scalar_type());
  std::optional<Tensor> scale;
  if (per_sample_weights) {
    scale = check_scale(op, layout, per_sample_weights, dtype);
  }
  Tensors out{pooled, argmax};

  std::vector<PoolArgs> features;
  int64_t work = 0;
  for (size_t i = 0; i < tables.size(); ++i) {
    const int64_t f = static_cast<int64_t>(i);
    const Tensor& weight = weights[static_cast<size_t>(tables[i])];
    const int64_t dim = weight.size(1);
    PoolArgs args{};
    args.element = element_of(op, dtype);
    args.weight = static_cast<const char*>(weight.data_ptr());
    args.row_stride = weight.stride(0) * element;
    args.num_rows = weight.size(0);
    args.dim = dim;
    args.wide_ids = layout.wide;
    args.id_stride = layout.bag_stride;
    args.length = 1;
    args.mode = static_cast<BagMode>(modes[i]);
    args.padding = padding[i];
    if (columns[i] < 0) {
      Tensor sequence = empty_cpu({layout.num_entries(f), dim}, dtype);
      args.ids = layout.ids_from(layout.start(f));
      args.out = static_cast<char*>(sequence.data_ptr());
      args.out_stride = dim * element;
      args.end = layout.num_entries(f);
      out.push_back(sequence);
    } else {
      args.out = static_cast<char*>(pooled.data_ptr()) + columns[i] * element;
      args.out_stride = width * element;
      args.end = layout.batch;
      if (layout.offsets) {
        args.ids = layout.ids.data_ptr();
        args.offsets = static_cast<const char*>(layout.offsets->data_ptr()) + f * layout.batch * index_bytes;
        args.num_offsets = layout.batch + 1;
      } else {
        args.ids = layout.ids_from(layout.start(f));
      }
      if (maxima) {
        args.argmax = static_cast<char*>(argmax.data_ptr()) + columns[i] * index_bytes;
        args.argmax_stride = width * index_bytes;
      }
      if (scale) {
        const int64_t start = layout.offsets ? 0 : f * scale->stride(0);
        args.scale = static_cast<const char*>(scale->data_ptr()) + start * element;
        args.scale_stride = layout.offsets ? 1 : scale->stride(1);
      }
    }
    work += pool_work(layout.num_entries(f), args.end, dim * element);
    features.push_back(args);
  }

  // A pooled feature with offsets reads all ids from the first on; any other begins with its own.
  const int64_t bad = pool_features(features, work, [&](int64_t f) {
    return layout.offsets && columns[static_cast<size_t>(f)] >= 0 ? int64_t{0} : layout.first_entry(f);
  });
  if (bad >= 0) {
    raise_bad(op, layout, &weights, nullptr, tables, bad);
  }
  return out;
}

// The first offset must be 0, the last one (or the number of ids) the end, and none may descend. Bags of equal length
// are then told by it: the kernel need not read their offsets.
template <class Id>
void set_bags(PoolArgs* args, const void* offsets, int64_t count, bool include_last_offset) {
  const Id* o = static_cast<const Id*>(offsets);
  const auto [ascend, length] = DEEPREC_DISPATCH(steps_of_offsets)(o, count, sizeof(Id) == 8, args->num_entries);
  const int64_t first = count ? static_cast<int64_t>(o[0]) : 0, last = count ? static_cast<int64_t>(o[count - 1]) : 0;
  const int64_t rest = args->num_entries - last;
  DEEPREC_CHECK(ascend && first == 0 && (include_last_offset || count == 0 ? rest == 0 : rest >= 0),
                "ValueError: embedding_bag: offsets must ascend from 0 to the number of ids (", args->num_entries,
                "), got ", first, " to ", last);
  if (length >= 0 && (include_last_offset || rest == length)) {
    args->length = length;
  } else {
    args->offsets = offsets;
    args->num_offsets = count;
  }
}

// The pooled rows of one table, with nothing kept for a gradient. Apart from embedding_bags because of what a call
// costs: lists of tensors, and offsets made for bags of equal length, take longer than pooling a thousand short rows.
Tensor embedding_bag(const Tensor& weight_in, const Tensor& ids_in, const std::optional<Tensor>& offsets_in,
                     const std::optional<Tensor>& per_sample_weights, int64_t mode, int64_t padding,
                     bool include_last_offset) {
  const char* op = "embedding_bag";
  DEEPREC_CHECK(weight_in.dim() == 2 && weight_in.is_cpu(), "ValueError: ", op,
                ": weight must be a [R, D] table on the CPU");
  DEEPREC_CHECK(mode >= 0 && mode <= 2, "ValueError: ", op, ": mode must be 0 (sum), 1 (mean) or 2 (max), got ", mode);
  DEEPREC_CHECK(padding >= -1 && padding < weight_in.size(0), "ValueError: ", op, ": padding must be -1 or a row, got ",
                padding);
  const ScalarType dtype = weight_in.scalar_type(), index = ids_in.scalar_type();
  DEEPREC_CHECK(is_index(index) && ids_in.is_cpu() && ids_in.dim() == (offsets_in ? 1 : 2), "ValueError: ", op,
                ": ids must be [B, L], or [nnz] with offsets; int32 or int64");
  const Tensor weight = rows_adjacent(weight_in), ids = as_contiguous(ids_in);
  const int64_t element = static_cast<int64_t>(weight.element_size());
  PoolArgs args{};
  args.element = element_of(op, dtype);
  args.weight = static_cast<const char*>(weight.data_ptr());
  args.row_stride = weight.stride(0) * element;
  args.num_rows = weight.size(0);
  args.dim = weight.size(1);
  args.ids = ids.data_ptr();
  args.num_entries = ids.numel();
  args.wide_ids = index == ScalarType::Long;
  args.id_stride = 1;
  args.mode = static_cast<BagMode>(mode);
  args.padding = padding;
  std::optional<Tensor> offsets, scale;
  if (offsets_in) {
    offsets = as_contiguous(*offsets_in);
    const int64_t count = offsets->numel();
    args.end = count - include_last_offset;
    DEEPREC_CHECK(offsets->dim() == 1 && offsets->scalar_type() == index && args.end >= 0, "ValueError: ", op,
                  ": offsets must be [B], or [B + 1] with include_last_offset, in the dtype of ids");
    args.wide_ids ? set_bags<int64_t>(&args, offsets->data_ptr(), count, include_last_offset)
                  : set_bags<int32_t>(&args, offsets->data_ptr(), count, include_last_offset);
  } else {
    args.end = ids.size(0);
    args.length = ids.size(1);
  }
  if (per_sample_weights) {
    DEEPREC_CHECK(mode == 0 && per_sample_weights->scalar_type() == dtype && per_sample_weights->is_cpu() &&
                      per_sample_weights->dim() == ids.dim() && per_sample_weights->numel() == args.num_entries &&
                      per_sample_weights->size(0) == ids.size(0),
                  "ValueError: ", op, ": per_sample_weights must have the shape of ids and the dtype of weight");
    scale = as_contiguous(*per_sample_weights);
    args.scale = static_cast<const char*>(scale->data_ptr());
    args.scale_stride = 1;
  }
  Tensor out = empty_cpu({args.end, args.dim}, dtype);
  args.out = static_cast<char*>(out.data_ptr());
  args.out_stride = args.dim * element;
  const int64_t work = pool_work(args.num_entries, args.end, args.dim * element);
  const int64_t bad = pool_features({args}, work, [](int64_t) { return int64_t{0}; });
  if (bad >= 0) {
    const int64_t id = args.wide_ids ? static_cast<const int64_t*>(args.ids)[bad]
                                     : static_cast<int64_t>(static_cast<const int32_t*>(args.ids)[bad]);
    DEEPREC_CHECK(false, "IndexError: ", op, ": ids of table 0 must be in [0, ", args.num_rows, "), got ", id,
                  " at position ", bad);
  }
  return out;
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("embedding_bag", TORCH_BOX(&deeprec::embedding_bag));
  m.impl("embedding_bags", TORCH_BOX(&deeprec::embedding_bags));
}
#endif
