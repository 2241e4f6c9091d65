// The operators over several tables: embedding_bags, embedding_bags_plan, embedding_bags_grad, embedding_bags_update_.
// Checks, allocation and the split of the work; the kernels are in embedding_bag.cpp and embedding_bag_grad.cpp.
#include "embedding_bag.h"

#ifdef DEEPREC_ISA_portable
#include <atomic>
#include <cmath>
#include <cstring>
#include <tuple>

#include "bag_layout.h"
#include "plan_check.h"
#include "radix_sort.h"
#include "row_blocks.h"

namespace deeprec {
namespace {

void check_modes(const char* op, const Ints& modes, size_t num_features, bool has_scale) {
  DEEPREC_CHECK(modes.size() == num_features, "ValueError: ", op, ": modes must have one entry a feature (",
                num_features, "), got ", modes.size());
  for (const int64_t mode : modes) {
    DEEPREC_CHECK(mode >= 0 && mode <= 3, "ValueError: ", op,
                  ": modes must be 0 (sum), 1 (mean), 2 (max) or 3 (none), got ", mode);
    DEEPREC_CHECK(!has_scale || mode != 3, "ValueError: ", op, ": per_sample_weights go with pooled features only");
  }
}

void check_tables(const char* op, const Tensors& weights) {
  DEEPREC_CHECK(!weights.empty(), "ValueError: ", op, ": weights must hold at least one table");
  for (const Tensor& w : weights) {
    DEEPREC_CHECK(w.dim() == 2 && w.is_cpu() && w.scalar_type() == weights[0].scalar_type(), "ValueError: ", op,
                  ": weights must be [R, D] tables of one dtype on the CPU");
  }
}

bool is_pooled(const Layout& layout, int64_t mode) { return !layout.offsets || mode != 3; }

// The first column of each pooled feature (-1: unpooled), and the width of the result.
std::pair<Ints, int64_t> columns_of(const Layout& layout, const Tensors& weights, const Ints& tables,
                                    const Ints& modes) {
  Ints columns;
  int64_t width = 0;
  for (size_t f = 0; f < tables.size(); ++f) {
    const bool pooled = is_pooled(layout, modes[f]);
    columns.push_back(pooled ? width : -1);
    width += pooled ? weights[static_cast<size_t>(tables[f])].size(1) : 0;
  }
  return {columns, width};
}

bool has_max(const Layout& layout, const Ints& modes) {
  return layout.offsets && std::find(modes.begin(), modes.end(), 2) != modes.end();
}

Tensor check_scale(const char* op, const Layout& layout, const std::optional<Tensor>& scale, ScalarType dtype) {
  DEEPREC_CHECK(scale->scalar_type() == dtype && scale->numel() == layout.nnz && scale->dim() == layout.ids.dim() &&
                    scale->size(0) == layout.ids.size(0) && scale->is_cpu(),
                "ValueError: ", op, ": per_sample_weights must have the shape of ids and the dtype of the tables");
  return layout.offsets && !scale->is_contiguous() ? torch::stable::contiguous(*scale) : *scale;
}

// What is worth a thread, in bytes read; an entry costs as much as some bytes do, however short its row.
constexpr int64_t kPoolGrain = 1 << 17;
constexpr int64_t kEntryBytes = 32;

int64_t pool_work(int64_t entries, int64_t bags, int64_t row_bytes) {
  return (entries + bags) * (row_bytes + kEntryBytes);
}

void raise_bad(const char* op, const Layout& layout, const Tensors* weights, const Ints* sizes, const Ints& tables,
               int64_t position) {
  int64_t f = 0;
  while (f + 1 < layout.num_features && layout.first_entry(f + 1) <= position) {
    ++f;
  }
  const int64_t table = tables[static_cast<size_t>(f)];
  const int64_t rows = weights ? (*weights)[static_cast<size_t>(table)].size(0) : (*sizes)[static_cast<size_t>(table)];
  DEEPREC_CHECK(false, "IndexError: ", op, ": ids of table ", table, " must be in [0, ", rows, "), got ",
                layout.id(f, position - layout.first_entry(f)), " at position ", position);
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

// ---- the plan -------------------------------------------------------------------------------------------------------

template <class Key>
struct SortedTable {
  Entry<Key>* entries;
  int64_t count = 0, unique = 0;
};

// Entries of one table, padding left out, in the order of their numbers; returns the first bad entry or -1.
template <class Id, class Key>
int64_t read_table(const Layout& layout, const Ints& tables, const Ints& padding, int64_t table, int64_t num_rows,
                   SortedTable<Key>* out) {
  const Id* ids = static_cast<const Id*>(layout.ids.data_ptr());
  Entry<Key>* to = out->entries;
  int64_t n = 0;
  for (size_t i = 0; i < tables.size(); ++i) {
    if (tables[i] != table) {
      continue;
    }
    const int64_t f = static_cast<int64_t>(i), first = layout.first_entry(f), count = layout.num_entries(f);
    const int64_t start = layout.start(f), stride = layout.bag_stride, pad = padding[i];
    for (int64_t j = 0; j < count; ++j) {
      const int64_t id = ids[start + j * stride];
      if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(num_rows)) {
        return first + j;
      }
      to[n] = {static_cast<Key>(id), static_cast<Key>(first + j)};
      n += id != pad;
    }
  }
  out->count = n;
  return -1;
}

template <class Id, class Position, class Key>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> plan_as(const Layout& layout, const Ints& sizes, const Ints& tables,
                                                           const Ints& padding) {
  const int64_t num_tables = static_cast<int64_t>(sizes.size());
  std::vector<SortedTable<Key>> sorted(sizes.size());
  Ints most(sizes.size(), 0);
  for (size_t i = 0; i < tables.size(); ++i) {
    most[static_cast<size_t>(tables[i])] += layout.num_entries(static_cast<int64_t>(i));
  }
  // One allocation: what several threads allocate in turn, the system gives and takes page by page.
  std::unique_ptr<Entry<Key>[]> room(new Entry<Key>[static_cast<size_t>(2 * layout.nnz)]);
  Entry<Key>* next = room.get();
  for (size_t t = 0; t < sizes.size(); ++t) {
    sorted[t].entries = next;
    next += 2 * most[t];
  }
  std::atomic<int64_t> bad{-1};
  const bool many = num_tables >= torch::stable::get_num_threads();  // then a thread sorts whole tables
  const auto sort = [&](int64_t t) {
    SortedTable<Key>& table = sorted[static_cast<size_t>(t)];
    const int64_t rows = sizes[static_cast<size_t>(t)];
    const int64_t at = read_table<Id, Key>(layout, tables, padding, t, rows, &table);
    if (at >= 0) {
      int64_t seen = bad.load();
      while ((seen < 0 || at < seen) && !bad.compare_exchange_weak(seen, at)) {
      }
      return;
    }
    const int64_t chunks = many ? 1 : threads_for(table.count, 32768);
    table.entries = radix_sort(table.entries, table.entries + table.count, table.count, rows, chunks);
    table.unique = count_distinct(table.entries, table.count);
  };
  const bool parallel = many && threads_for(layout.nnz, 4096) > 1;
  for_each_chunk(parallel ? num_tables : 1, [&](int64_t chunk) {
    for (int64_t t = parallel ? chunk : 0; t < (parallel ? chunk + 1 : num_tables); ++t) {
      sort(t);
    }
  });
  if (bad >= 0) {
    raise_bad("embedding_bags_plan", layout, nullptr, &sizes, tables, bad);
  }

  Ints row_starts(sizes.size() + 1, 0), entry_starts(sizes.size() + 1, 0);
  for (size_t t = 0; t < sizes.size(); ++t) {
    row_starts[t + 1] = row_starts[t] + sorted[t].unique;
    entry_starts[t + 1] = entry_starts[t] + sorted[t].count;
  }
  const ScalarType position = sizeof(Position) == 4 ? ScalarType::Int : ScalarType::Long;
  Tensor rows = empty_cpu({row_starts.back()}, layout.ids.scalar_type());
  Tensor row_offsets = empty_cpu({row_starts.back() + 1}, position);
  Tensor order = empty_cpu({entry_starts.back()}, position);
  Tensor bags = empty_cpu({layout.offsets ? layout.nnz : 0}, position);
  Tensor table_starts = empty_cpu({num_tables + 1}, ScalarType::Long);
  std::copy(row_starts.begin(), row_starts.end(), static_cast<int64_t*>(table_starts.data_ptr()));
  Id* row_data = static_cast<Id*>(rows.data_ptr());
  Position* offset_data = static_cast<Position*>(row_offsets.data_ptr());
  Position* order_data = static_cast<Position*>(order.data_ptr());
  const auto write = [&](int64_t t) {
    const SortedTable<Key>& table = sorted[static_cast<size_t>(t)];
    int64_t row = row_starts[static_cast<size_t>(t)] - 1;
    const int64_t first = entry_starts[static_cast<size_t>(t)];
    const Entry<Key>* entries = table.entries;
    for (int64_t i = 0; i < table.count; ++i) {
      if (i == 0 || entries[i].id != entries[i - 1].id) {
        ++row;
        row_data[row] = static_cast<Id>(entries[i].id);
        offset_data[row] = static_cast<Position>(first + i);
      }
      order_data[first + i] = static_cast<Position>(entries[i].position);
    }
  };
  for_each_chunk(parallel ? num_tables : 1, [&](int64_t chunk) {
    for (int64_t t = parallel ? chunk : 0; t < (parallel ? chunk + 1 : num_tables); ++t) {
      write(t);
    }
  });
  offset_data[row_starts.back()] = static_cast<Position>(entry_starts.back());
  if (layout.offsets) {
    Position* bag_data = static_cast<Position*>(bags.data_ptr());
    const int64_t num_bags = layout.num_features * layout.batch;
    const int64_t chunks = threads_for(layout.nnz, 32768);
    for_each_chunk(chunks, [&](int64_t chunk) {
      for (int64_t bag = num_bags * chunk / chunks; bag < num_bags * (chunk + 1) / chunks; ++bag) {
        std::fill(bag_data + layout.bound(bag), bag_data + layout.bound(bag + 1), static_cast<Position>(bag));
      }
    });
  }
  return {rows, row_offsets, order, bags, table_starts};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> embedding_bags_plan(const Tensor& ids,
                                                                       const std::optional<Tensor>& offsets,
                                                                       const Ints& num_embeddings, const Ints& tables,
                                                                       const Ints& padding) {
  const char* op = "embedding_bags_plan";
  check_features(op, tables, padding, num_embeddings.size());
  const Layout layout(op, ids, offsets, tables.size());
  int64_t largest = 0;
  for (const int64_t size : num_embeddings) {
    DEEPREC_CHECK(size >= 0, "ValueError: ", op, ": num_embeddings must be >= 0, got ", size);
    largest = std::max(largest, size);
  }
  const bool small = layout.nnz < int64_t{1} << 31 && layout.num_features * layout.batch < int64_t{1} << 31;
  if (small && largest <= int64_t{1} << 32) {
    return layout.wide ? plan_as<int64_t, int32_t, uint32_t>(layout, num_embeddings, tables, padding)
                       : plan_as<int32_t, int32_t, uint32_t>(layout, num_embeddings, tables, padding);
  }
  if (small) {
    return layout.wide ? plan_as<int64_t, int32_t, uint64_t>(layout, num_embeddings, tables, padding)
                       : plan_as<int32_t, int32_t, uint64_t>(layout, num_embeddings, tables, padding);
  }
  return layout.wide ? plan_as<int64_t, int64_t, uint64_t>(layout, num_embeddings, tables, padding)
                     : plan_as<int32_t, int64_t, uint64_t>(layout, num_embeddings, tables, padding);
}

namespace {

// ---- the gradient ---------------------------------------------------------------------------------------------------

// What embedding_bags_grad and embedding_bags_update_ share; keeps alive whatever it had to copy.
struct Backward {
  Layout layout;
  Tensors weights;
  Tensor grad;
  Tensors sequences;
  Tensor argmax;
  std::optional<Tensor> scale;
  BagPlan plan;
  std::vector<FeatureGrad> features;
  std::vector<BagGradArgs> of_table;
  void (*kernel)(const BagGradArgs&) = DEEPREC_DISPATCH(sum_bag_grads);
  double factor = 1;  // on all gradients
  std::vector<double> inverse_wide;
  std::vector<float> inverse;
  Tensor scale_grad;
  BagGradArgs args{};

  Backward(const char* op, const Tensors& weights_in, const Tensor& grad_in, const Tensors& sequence_grads,
           const Tensor& argmax_in, const Tensor& ids, const std::optional<Tensor>& offsets,
           const std::optional<Tensor>& per_sample_weights, BagPlan plan_in, const Ints& tables, const Ints& modes,
           const Ints& padding, bool need_weights_grad)
      : layout(op, ids, offsets, tables.size()),
        weights(weights_in),
        grad(rows_adjacent(grad_in)),
        argmax(argmax_in),
        plan(std::move(plan_in)),
        scale_grad(empty_cpu({0}, weights_in.empty() ? ScalarType::Float : weights_in[0].scalar_type())) {
    check_tables(op, weights);
    check_features(op, tables, padding, weights.size());
    check_modes(op, modes, tables.size(), per_sample_weights.has_value());
    const ScalarType dtype = weights[0].scalar_type();
    require_safe(op, plan, layout, weights, tables);
    const auto [columns, width] = columns_of(layout, weights, tables, modes);
    DEEPREC_CHECK(grad.dim() == 2 && grad.size(0) == layout.batch && grad.size(1) == width &&
                      grad.scalar_type() == dtype && grad.is_cpu(),
                  "ValueError: ", op, ": grad must be [", layout.batch, ", ", width, "] in the dtype of the tables");
    const bool maxima = has_max(layout, modes);
    DEEPREC_CHECK(!maxima || (argmax.dim() == 2 && argmax.size(0) == layout.batch && argmax.size(1) == width &&
                              argmax.scalar_type() == layout.ids.scalar_type()),
                  "ValueError: ", op, ": argmax must be the second result of embedding_bags");
    args.element = element_of(op, dtype);
    args.grad = static_cast<const char*>(grad.data_ptr());
    args.grad_stride = grad.stride(0);
    args.batch = layout.batch;
    args.row_offsets = plan.row_offsets.data_ptr();
    args.order = plan.order.data_ptr();
    args.bags = layout.offsets ? plan.bags.data_ptr() : nullptr;
    args.wide_positions = plan.wide_positions;
    args.rows = plan.rows.data_ptr();
    args.wide_rows = plan.wide_rows;
    if (maxima) {
      argmax = argmax.is_contiguous() ? argmax : torch::stable::contiguous(argmax);
      args.argmax = static_cast<const char*>(argmax.data_ptr());
      args.argmax_stride = width;
      args.wide_argmax = layout.wide;
    }
    if (per_sample_weights) {
      scale = check_scale(op, layout, per_sample_weights, dtype);
      scale = scale->is_contiguous() ? *scale : torch::stable::contiguous(*scale);
      args.scale = scale->data_ptr();
      if (need_weights_grad) {
        scale_grad = empty_cpu(Ints(scale->sizes().begin(), scale->sizes().end()), dtype);
        std::fill_n(static_cast<char*>(scale_grad.data_ptr()), scale_grad.numel() * scale_grad.element_size(), char{0});
        args.scale_grad = scale_grad.data_ptr();
      }
    }
    if (layout.offsets && std::find(modes.begin(), modes.end(), 1) != modes.end()) {
      set_inverse_lengths(modes, padding);
    }
    set_features(op, columns, sequence_grads, tables, modes);
  }

  void set_features(const char* op, const Ints& columns, const Tensors& sequence_grads, const Ints& tables,
                    const Ints& modes) {
    Ints feature_of_table(weights.size(), -2);  // the only one, or -1
    for (size_t i = 0; i < tables.size(); ++i) {
      const int64_t f = static_cast<int64_t>(i);
      int64_t& only = feature_of_table[static_cast<size_t>(tables[i])];
      only = only == -2 ? f : -1;
      FeatureGrad feature{columns[i], nullptr, layout.first_entry(f), static_cast<BagMode>(modes[i])};
      if (columns[i] < 0) {
        const int64_t dim = weights[static_cast<size_t>(tables[i])].size(1);
        DEEPREC_CHECK(sequences.size() < sequence_grads.size(), "ValueError: ", op,
                      ": one gradient for each unpooled feature");
        Tensor g = sequence_grads[sequences.size()];
        DEEPREC_CHECK(g.dim() == 2 && g.size(0) == layout.num_entries(f) && g.size(1) == dim &&
                          g.scalar_type() == weights[0].scalar_type() && g.is_cpu(),
                      "ValueError: ", op, ": the gradient of unpooled feature ", f, " must be [", layout.num_entries(f),
                      ", ", dim, "]");
        g = g.is_contiguous() ? g : torch::stable::contiguous(g);
        feature.sequence = static_cast<const char*>(g.data_ptr());
        sequences.push_back(g);
      }
      features.push_back(feature);
    }
    DEEPREC_CHECK(!layout.offsets || sequences.size() == sequence_grads.size(), "ValueError: ", op,
                  ": sequence_grads must be ", sequences.size(), ", one for each unpooled feature, got ",
                  sequence_grads.size());
    args.features = features.data();
    for (size_t t = 0; t < weights.size(); ++t) {
      args.weight = static_cast<const char*>(weights[t].data_ptr());
      args.row_stride = weights[t].stride(0);
      args.dim = weights[t].size(1);
      args.feature = feature_of_table[t];
      of_table.push_back(args);
    }
  }

  void set_inverse_lengths(const Ints& modes, const Ints& padding) {
    const bool is_double = args.element == Element::f64;
    const int64_t num_bags = layout.num_features * layout.batch;
    if (is_double) {
      inverse_wide.assign(static_cast<size_t>(num_bags), 1);
    } else {
      inverse.assign(static_cast<size_t>(num_bags), 1);
    }
    for (int64_t f = 0; f < layout.num_features; ++f) {
      if (modes[static_cast<size_t>(f)] != 1) {
        continue;
      }
      const int64_t pad = padding[static_cast<size_t>(f)], first = layout.first_entry(f);
      for (int64_t bag = f * layout.batch; bag < (f + 1) * layout.batch; ++bag) {
        int64_t length = layout.bound(bag + 1) - layout.bound(bag);
        for (int64_t p = layout.bound(bag); pad >= 0 && p < layout.bound(bag + 1); ++p) {
          length -= layout.id(f, p - first) == pad;
        }
        if (is_double) {
          inverse_wide[static_cast<size_t>(bag)] = 1.0 / static_cast<double>(std::max<int64_t>(length, 1));
        } else {
          inverse[static_cast<size_t>(bag)] = 1.0f / static_cast<float>(std::max<int64_t>(length, 1));
        }
      }
    }
    args.inverse_length = is_double ? static_cast<const void*>(inverse_wide.data()) : inverse.data();
  }

  int64_t dim(int64_t t) const { return of_table[static_cast<size_t>(t)].dim; }
  int64_t num_tables() const { return static_cast<int64_t>(weights.size()); }

  int64_t widest() const {
    int64_t out = 1;
    for (int64_t t = 0; t < num_tables(); ++t) {
      out = std::max(out, dim(t));
    }
    return out;
  }

  // Sums the gradients of a block's rows into `out`.
  void sum(const RowBlock& block, void* out, bool wide_out, const RowsAhead& ahead = {}) const {
    BagGradArgs part = of_table[static_cast<size_t>(block.table)];
    part.begin = block.begin;
    part.end = block.end;
    part.segment_end = block.segment_end;
    part.ahead = ahead;
    part.factor = factor;
    part.out = out;
    part.wide_out = wide_out;
    kernel(part);
  }

  template <class Work>
  void each_block(const Work& work) const {
    for_each_row_block(plan, num_tables(), chunks_for(plan, widest()), [&](int64_t t) { return dim(t); }, work);
  }
};

Tensors embedding_bags_grad(const Tensors& weights_in, const Tensor& grad, const Tensors& sequence_grads,
                            const Tensor& argmax, const Tensor& ids, const std::optional<Tensor>& offsets,
                            const std::optional<Tensor>& per_sample_weights, const Tensor& rows,
                            const Tensor& row_offsets, const Tensor& order, const Tensor& bags,
                            const Tensor& table_starts, const Ints& tables, const Ints& modes, const Ints& padding,
                            bool need_weights_grad) {
  Tensors weights = weights_in;
  for (Tensor& w : weights) {
    w = rows_adjacent(w);
  }
  const Backward backward("embedding_bags_grad", weights, grad, sequence_grads, argmax, ids, offsets,
                          per_sample_weights, {rows, row_offsets, order, bags, table_starts}, tables, modes, padding,
                          need_weights_grad);
  Tensors out;
  std::vector<char*> data;
  for (int64_t t = 0; t < backward.num_tables(); ++t) {
    const int64_t count = backward.plan.table_start[t + 1] - backward.plan.table_start[t];
    out.push_back(empty_cpu({count, backward.dim(t)}, weights[0].scalar_type()));
    data.push_back(static_cast<char*>(out.back().data_ptr()));
  }
  const int64_t element = static_cast<int64_t>(weights[0].element_size());
  backward.each_block([&](int64_t, const RowBlock& block) {
    const int64_t row = block.begin - backward.plan.table_start[block.table];
    backward.sum(block, data[static_cast<size_t>(block.table)] + row * backward.dim(block.table) * element, false);
  });
  out.push_back(backward.scale_grad);
  return out;
}

Tensors embedding_bags_dense_grad(const Tensors& weights_in, const Tensor& grad, const Tensors& sequence_grads,
                                  const Tensor& argmax, const Tensor& ids, const std::optional<Tensor>& offsets,
                                  const std::optional<Tensor>& per_sample_weights, const Ints& tables,
                                  const Ints& modes, const Ints& padding, bool need_weights_grad) {
  Tensors weights = weights_in;
  Ints sizes;
  for (Tensor& w : weights) {
    w = rows_adjacent(w);
    sizes.push_back(w.size(0));
  }
  const auto [rows, row_offsets, order, bags, starts] = embedding_bags_plan(ids, offsets, sizes, tables, padding);
  const Backward backward("embedding_bags_dense_grad", weights, grad, sequence_grads, argmax, ids, offsets,
                          per_sample_weights, {rows, row_offsets, order, bags, starts}, tables, modes, padding,
                          need_weights_grad);
  const int64_t element = static_cast<int64_t>(weights[0].element_size());
  Tensors out;
  std::vector<char*> data;
  for (int64_t t = 0; t < backward.num_tables(); ++t) {
    out.push_back(empty_cpu({sizes[static_cast<size_t>(t)], backward.dim(t)}, weights[0].scalar_type()));
    data.push_back(static_cast<char*>(out.back().data_ptr()));
    const int64_t bytes = out.back().numel() * element;
    const int64_t chunks = threads_for(bytes, 1 << 18);
    for_each_chunk(chunks, [&](int64_t chunk) {
      const int64_t begin = bytes * chunk / chunks, end = bytes * (chunk + 1) / chunks;
      std::fill(data.back() + begin, data.back() + end, char{0});
    });
  }
  backward.each_block([&](int64_t, const RowBlock& block) {
    alignas(64) double fixed[kBlockElements];
    const int64_t bytes = backward.dim(block.table) * element, rows_here = block.end - block.begin;
    std::unique_ptr<char[]> large(rows_here * bytes > static_cast<int64_t>(sizeof(fixed))
                                      ? new char[static_cast<size_t>(rows_here * bytes)]
                                      : nullptr);
    char* sums = large ? large.get() : reinterpret_cast<char*>(fixed);
    backward.sum(block, sums, false);
    for (int64_t u = 0; u < rows_here; ++u) {
      const int64_t row = backward.plan.row(block.begin + u);
      std::copy_n(sums + u * bytes, bytes, data[static_cast<size_t>(block.table)] + row * bytes);
    }
  });
  out.push_back(backward.scale_grad);
  return out;
}

Tensor embedding_bags_update_(const Tensors& weights, const Tensors& first, const Tensors& second, const Tensor& grad,
                              const Tensors& sequence_grads, const Tensor& argmax, const Tensor& ids,
                              const std::optional<Tensor>& offsets, const std::optional<Tensor>& per_sample_weights,
                              const Tensor& rows, const Tensor& row_offsets, const Tensor& order, const Tensor& bags,
                              const Tensor& table_starts, const Ints& tables, const Ints& modes, const Ints& padding,
                              bool need_weights_grad, int64_t rule, const Tensor& lr, const Tensor& step,
                              const std::vector<double>& options, double max_norm, int64_t seed) {
  const char* op = "embedding_bags_update_";
  Optimizer optimizer = optimizer_of(op, weights, first, second, rule, lr, step, options, max_norm, seed);
  Backward backward(op, weights, grad, sequence_grads, argmax, ids, offsets, per_sample_weights,
                    {rows, row_offsets, order, bags, table_starts}, tables, modes, padding, need_weights_grad);
  if (max_norm > 0) {
    const auto sum = [&](const RowBlock& block, void* out) { backward.sum(block, out, true); };
    backward.factor = clip_factor(backward.plan, optimizer, backward.num_tables(), sum);
  }
  backward.each_block([&](int64_t, const RowBlock& block) {
    alignas(64) double fixed[kBlockElements];
    const int64_t size = (block.end - block.begin) * backward.dim(block.table);
    std::unique_ptr<double[]> large(size > kBlockElements ? new double[static_cast<size_t>(size)] : nullptr);
    void* grads = large ? large.get() : fixed;
    backward.sum(block, grads, true, rows_ahead(optimizer, block.table, backward.plan, block));
    update_block(optimizer, block.table, backward.plan, block, grads);
  });
  ++*optimizer.step;
  return backward.scale_grad;
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("embedding_bag", TORCH_BOX(&deeprec::embedding_bag));
  m.impl("embedding_bags", TORCH_BOX(&deeprec::embedding_bags));
  m.impl("embedding_bags_plan", TORCH_BOX(&deeprec::embedding_bags_plan));
  m.impl("embedding_bags_grad", TORCH_BOX(&deeprec::embedding_bags_grad));
  m.impl("embedding_bags_dense_grad", TORCH_BOX(&deeprec::embedding_bags_dense_grad));
  m.impl("embedding_bags_update_", TORCH_BOX(&deeprec::embedding_bags_update_));
}
#endif
