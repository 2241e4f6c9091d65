// deeprec::embedding(weight, ids) -> rows of weight, and deeprec::embedding_grad(grad, rows, offsets, order) -> the
// coalesced gradient. Both are bound by random row reads, so both ask for rows a few ids ahead.
// embedding_grad sums each row's contributions one after another in `order`: bitwise the same for any thread count.
#include "element.h"
#include "isa.h"
#include "row_copy.h"

namespace deeprec {

struct GatherArgs {
  const char* weight;
  int64_t row_stride;  // bytes
  int64_t row_bytes;
  int64_t num_rows;
  const void* ids;
  bool wide_ids;
  char* out;
  int64_t begin, end;
};

struct SegmentSumArgs {
  Element element;
  const void* grad;
  int64_t row_stride;  // elements; columns are adjacent
  int64_t dim;
  const void* offsets;
  const void* order;
  bool wide_positions;
  void* out;
  int64_t begin, end;  // rows of out
};

}  // namespace deeprec

// Returns the first position in [begin, end) whose id is out of range, or -1.
DEEPREC_DECLARE(int64_t, gather_rows, (const GatherArgs& a))
DEEPREC_DECLARE(void, segment_sum, (const SegmentSumArgs& a))

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kAhead = 8;  // rows asked for before they are needed

template <class Id>
int64_t gather(const GatherArgs& a) {
  const Id* ids = static_cast<const Id*>(a.ids);
  const uint64_t num_rows = static_cast<uint64_t>(a.num_rows);
  const int64_t ahead = a.row_bytes <= 128 ? 24 : kAhead;  // short rows keep fewer requests under way
  for (int64_t i = a.begin; i < a.end; ++i) {
    if (i + ahead < a.end) {
      // A prefetch of a wild address is harmless, but computing one is not defined: clamp.
      const uint64_t next = static_cast<uint64_t>(static_cast<int64_t>(ids[i + ahead]));
      prefetch_row(a.weight + static_cast<int64_t>(next < num_rows ? next : 0) * a.row_stride, a.row_bytes);
    }
    const uint64_t id = static_cast<uint64_t>(static_cast<int64_t>(ids[i]));
    if (id >= num_rows) {
      return i;
    }
    copy_row(a.out + i * a.row_bytes, a.weight + static_cast<int64_t>(id) * a.row_stride, a.row_bytes);
  }
  return -1;
}

template <class T, class Position>
void sum_segments(const SegmentSumArgs& a) {
  using A = typename Accumulator<T>::type;
  constexpr int64_t kBlock = 512;
  const T* grad = static_cast<const T*>(a.grad);
  const Position* offsets = static_cast<const Position*>(a.offsets);
  const Position* order = static_cast<const Position*>(a.order);
  T* out = static_cast<T*>(a.out);
  const int64_t last = offsets[a.end];
  A sum[kBlock];
  for (int64_t u = a.begin; u < a.end; ++u) {
    const int64_t begin = offsets[u], end = offsets[u + 1];
    for (int64_t d = 0; d < a.dim; d += kBlock) {
      const int64_t width = a.dim - d < kBlock ? a.dim - d : kBlock;
      for (int64_t j = begin; j < end; ++j) {
        if (j + kAhead < last) {
          prefetch_row(reinterpret_cast<const char*>(grad + order[j + kAhead] * a.row_stride + d), width * sizeof(T));
        }
        const T* row = grad + order[j] * a.row_stride + d;
        if (j == begin) {
#pragma omp simd
          for (int64_t k = 0; k < width; ++k) {
            sum[k] = widen(row[k]);
          }
        } else {
#pragma omp simd
          for (int64_t k = 0; k < width; ++k) {
            sum[k] += widen(row[k]);
          }
        }
      }
      T* to = out + u * a.dim + d;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        narrow(sum[k], to + k);
      }
    }
  }
}

template <class T>
void sum_segments_of(const SegmentSumArgs& a) {
  if (a.wide_positions) {
    sum_segments<T, int64_t>(a);
  } else {
    sum_segments<T, int32_t>(a);
  }
}

}  // namespace

int64_t gather_rows(const GatherArgs& a) { return a.wide_ids ? gather<int64_t>(a) : gather<int32_t>(a); }

void segment_sum(const SegmentSumArgs& a) { DEEPREC_BY_ELEMENT(a.element, sum_segments_of, a); }

}  // namespace deeprec::DEEPREC_ISA

#ifdef DEEPREC_ISA_portable
#include <atomic>

#include "tensor.h"

namespace deeprec {
namespace {

constexpr int64_t kGrainBytes = 1 << 16;  // below this much a second thread costs more than it brings

Tensor embedding(const Tensor& weight_in, const Tensor& ids_in) {
  DEEPREC_CHECK(weight_in.dim() == 2, "embedding: weight must be [R, D], got ", weight_in.dim(), " dimensions");
  DEEPREC_CHECK(is_index(ids_in.scalar_type()), "embedding: ids must be int32 or int64");
  DEEPREC_CHECK(ids_in.is_cpu(), "embedding: ids must be on the CPU like the weight");
  const int64_t dim = weight_in.size(1);
  const Tensor weight = dim <= 1 || weight_in.stride(1) == 1 ? weight_in : torch::stable::contiguous(weight_in);
  const Tensor ids = ids_in.is_contiguous() ? ids_in : torch::stable::contiguous(ids_in);
  const int64_t nnz = ids.numel();
  const int64_t element = static_cast<int64_t>(weight.element_size());

  std::vector<int64_t> shape(ids.sizes().begin(), ids.sizes().end());
  shape.push_back(dim);
  Tensor out = empty_cpu(shape, weight.scalar_type());
  GatherArgs args{static_cast<const char*>(weight.data_ptr()),
                  weight.stride(0) * element,
                  dim * element,
                  weight.size(0),
                  ids.data_ptr(),
                  ids.scalar_type() == ScalarType::Long,
                  static_cast<char*>(out.data_ptr()),
                  0,
                  nnz};
  const int64_t chunks = threads_for(nnz * args.row_bytes, kGrainBytes);
  const auto gather = DEEPREC_DISPATCH(gather_rows);
  std::atomic<int64_t> bad{nnz};  // the smallest of the chunks' first offenders, whoever finds it first
  for_each_chunk(chunks, [&](int64_t chunk) {
    GatherArgs part = args;
    part.begin = nnz * chunk / chunks;
    part.end = nnz * (chunk + 1) / chunks;
    const int64_t at = gather(part);
    if (at >= 0) {
      int64_t seen = bad.load();
      while (at < seen && !bad.compare_exchange_weak(seen, at)) {
      }
    }
  });
  const auto value = [&](int64_t i) -> int64_t {
    return args.wide_ids ? static_cast<const int64_t*>(args.ids)[i] : static_cast<const int32_t*>(args.ids)[i];
  };
  DEEPREC_CHECK(bad == nnz, "embedding: ids must be in [0, ", args.num_rows, "), got ", value(bad), " at position ",
                bad.load());
  return out;
}

// Whether offsets [unique + 1] rise from 0 to nnz and order names positions below nnz.
template <class Position>
bool groups(const void* offsets, const void* order, int64_t unique, int64_t nnz) {
  const Position* bounds = static_cast<const Position*>(offsets);
  return bounds[0] == 0 && bounds[unique] == nnz && !outside(bounds, 0, unique + 1, 0, nnz + 1) &&
         !falls(bounds, 0, unique + 1) && !outside(static_cast<const Position*>(order), 0, nnz, 0, nnz);
}

Tensor embedding_grad(const Tensor& grad_in, const Tensor& rows, const Tensor& offsets, const Tensor& order) {
  DEEPREC_CHECK(grad_in.dim() == 2, "embedding_grad: grad must be [nnz, D], got ", grad_in.dim(), " dimensions");
  DEEPREC_CHECK(
      offsets.numel() == rows.numel() + 1 && order.numel() == grad_in.size(0) &&
          offsets.scalar_type() == order.scalar_type() && is_index(order.scalar_type()) && offsets.is_contiguous() &&
          order.is_contiguous() && grad_in.is_cpu() && offsets.is_cpu() && order.is_cpu(),
      "ValueError: embedding_grad: rows, offsets and order must come from embedding_plan of ids with one entry per row "
      "of grad (",
      grad_in.size(0), "), got order of ", order.numel());
  const int64_t dim = grad_in.size(1);
  const Tensor grad = dim <= 1 || grad_in.stride(1) == 1 ? grad_in : torch::stable::contiguous(grad_in);
  const int64_t unique = rows.numel(), nnz = order.numel();
  Tensor out = empty_cpu({unique, dim}, grad.scalar_type());
  SegmentSumArgs args{element_of("embedding_grad", grad.scalar_type()),
                      grad.data_ptr(),
                      grad.stride(0),
                      dim,
                      offsets.data_ptr(),
                      order.data_ptr(),
                      order.scalar_type() == ScalarType::Long,
                      out.data_ptr(),
                      0,
                      unique};
  const bool is_safe = args.wide_positions ? groups<int64_t>(args.offsets, args.order, unique, nnz)
                                           : groups<int32_t>(args.offsets, args.order, unique, nnz);
  DEEPREC_CHECK(is_safe, "ValueError: embedding_grad: offsets must rise from 0 to ", nnz,
                " and order be positions in [0, ", nnz, "); make them with embedding_plan");
  const int64_t chunks = threads_for((nnz + unique) * dim * static_cast<int64_t>(grad.element_size()), kGrainBytes);
  const auto sum = DEEPREC_DISPATCH(segment_sum);
  // Threads share the positions evenly, not the rows: one popular row may hold most of them.
  const auto first_row = [&](int64_t position) -> int64_t {
    if (args.wide_positions) {
      const int64_t* o = static_cast<const int64_t*>(args.offsets);
      return std::lower_bound(o, o + unique, position) - o;
    }
    const int32_t* o = static_cast<const int32_t*>(args.offsets);
    return std::lower_bound(o, o + unique, position) - o;
  };
  for_each_chunk(chunks, [&](int64_t chunk) {
    SegmentSumArgs part = args;
    part.begin = first_row(nnz * chunk / chunks);
    part.end = chunk + 1 == chunks ? unique : first_row(nnz * (chunk + 1) / chunks);
    if (part.begin < part.end) {
      sum(part);
    }
  });
  return out;
}

}  // namespace
}  // namespace deeprec

STABLE_TORCH_LIBRARY_IMPL(deeprec, CPU, m) {
  m.impl("embedding", TORCH_BOX(&deeprec::embedding));
  m.impl("embedding_grad", TORCH_BOX(&deeprec::embedding_grad));
}
#endif
