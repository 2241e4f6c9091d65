// softmax_loss on the CPU. A block of rows meets the candidates a tile at a time: packed with candidates across the
// vector lanes, scored by the register-blocked product of tile_gemm.h, turned into exponentials while they are in the
// cache. The forward pass keeps of each row the maximum, the sum, and the sum of the candidates weighted by their
// exponentials, which is the gradient of the query; the backward pass scores again, a tile of candidates against all
// rows, so that whoever owns a candidate adds up its gradient alone and in order. Rows x candidates never exist.
#include "softmax_pairs.h"

namespace deeprec::DEEPREC_ISA {
namespace {

template <class E>
using Wide = typename Accumulator<E>::type;

template <class A>
void add(A* to, const A* from, A factor, int64_t n) {
  for (int64_t d = 0; d < n; ++d) {
    to[d] += factor * from[d];
  }
}

template <class A>
void fill(A* to, int64_t n) {
  for (int64_t d = 0; d < n; ++d) {
    to[d] = 0;
  }
}

// What one chunk of the candidates keeps of each row of a block.
template <class A>
struct Partial {
  A *maxima, *weighted, *plain;
  double *sums, *logits;
  int64_t* hidden;
  int64_t stride;

  Partial(const SoftmaxJob& job, const SoftmaxParts& parts, int64_t chunk, int64_t row)
      : stride(softmax_stride(job.dim)) {
    const int64_t first = chunk * job.batch + row;
    maxima = static_cast<A*>(parts.maxima) + first;
    sums = parts.sums + first;
    logits = parts.logits + (job.smoothing > 0 ? first : 0);
    hidden = parts.hidden + first;
    weighted = static_cast<A*>(parts.weighted) + (job.need_grad ? first * stride : 0);
    plain = static_cast<A*>(parts.plain) + (job.need_grad && job.smoothing > 0 ? first * stride : 0);
  }

  void clear(const SoftmaxJob& job, int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r) {
      maxima[r] = kMinusInfinity<A>;
      sums[r] = 0;
      hidden[r] = 0;
      if (job.smoothing > 0) {
        logits[r] = 0;
      }
    }
    if (job.need_grad) {
      fill(weighted, rows * stride);
      if (job.smoothing > 0) {
        fill(plain, rows * stride);
      }
    }
  }
};

// The sum of the candidates of a tile that row `logits` does not mask, added to `to`.
template <class A>
void add_unmasked(const SoftmaxJob& job, const TileScratch<A>& tile, const A* logits, int64_t width, int64_t hidden,
                  A* to) {
  const int64_t stride = softmax_stride(job.dim);
  add(to, tile.sum, A(1), job.dim);
  for (int64_t j = 0; hidden > 0 && j < width; ++j) {
    if (logits[j] == kMinusInfinity<A>) {
      add(to, tile.rows + j * stride, A(-1), job.dim);
    }
  }
}

// Row b and a tile: its logits become exponentials relative to the row's new maximum.
template <class A>
void take_row(const SoftmaxJob& job, const SoftmaxParts& parts, const Partial<A>& part, const TileScratch<A>& tile,
              int64_t b, int64_t slot, int64_t at, int64_t width, int64_t& seen, A* z) {
  const int64_t n = padded(width), target = job.targets[b] - at;
  for (int64_t j = width; j < n; ++j) {
    z[j] = kMinusInfinity<A>;
  }
  const int64_t hidden = mask(job, b, at, width, seen, z);
  part.hidden[slot] += hidden;
  const bool has_target = target >= 0 && target < width;
  if (has_target) {
    if (job.positive_shift) {
      z[target] += static_cast<const A*>(job.positive_shift)[b];
    }
    static_cast<A*>(parts.positives)[b] = z[target];
  }
  if (job.smoothing > 0) {
    part.logits[slot] += sum_finite(z, width);
    if (job.need_grad) {
      add_unmasked(job, tile, z, width, hidden, part.plain + slot * part.stride);
    }
  }
  if (has_target && !job.include_positive) {
    z[target] = kMinusInfinity<A>;
  }
  const A top = largest(z, n), before = part.maxima[slot];
  if (top > before) {
    if (part.sums[slot] != 0) {
      const A factor = static_cast<A>(__builtin_exp(static_cast<double>(before) - static_cast<double>(top)));
      part.sums[slot] *= factor;
      for (int64_t d = 0; job.need_grad && d < job.dim; ++d) {
        part.weighted[slot * part.stride + d] *= factor;
      }
    }
    part.maxima[slot] = top;
  }
  const A reference = part.maxima[slot];
  part.sums[slot] += exponentials(z, n, reference == kMinusInfinity<A> ? A(0) : reference);
}

template <class E>
void walk(const SoftmaxJob& job, const SoftmaxParts& parts, void* memory, int64_t row_begin, int64_t row_end,
          int64_t chunk, int64_t item_begin, int64_t item_end) {
  using A = Wide<E>;
  const int64_t stride = softmax_stride(job.dim);
  const typename TileOf<E>::type tile(memory, stride);
  const Partial<A> part(job, parts, chunk, row_begin);
  part.clear(job, row_end - row_begin);
  int64_t seen[kSoftmaxBlock];
  for (int64_t b = row_begin; b < row_end && item_begin < item_end; ++b) {
    const SeenList list(job, b);
    seen[b - row_begin] = first_from(job.seen_indices, list.begin, list.end, id_of(job, item_begin));
  }
  for (int64_t at = item_begin; at < item_end; at += kTile) {
    const int64_t width = item_end - at < kTile ? item_end - at : kTile;
    pack_tile(job, tile, at, width, E());
    if (job.smoothing > 0) {
      fill(tile.sum, job.dim);
      for (int64_t j = 0; j < width; ++j) {
        add(tile.sum, tile.rows + j * stride, A(1), job.dim);
      }
    }
    for (int64_t row = row_begin; row < row_end; row += kSoftmaxRows) {
      const int64_t rows = row_end - row < kSoftmaxRows ? row_end - row : kSoftmaxRows, slot = row - row_begin;
      score(job, tile, row, rows, width);
      for (int64_t r = 0; r < rows; ++r) {
        take_row(job, parts, part, tile, row + r, slot + r, at, width, seen[slot + r], tile.logits + r * kTileStride);
      }
      if (job.need_grad) {
        add_candidates(job, tile, rows, width, part.weighted + slot * stride);
      }
    }
  }
}

// The derivative of a row's loss by its query, from the sums of its parts in `grad` (already divided by the sum of
// exponentials) and `plain`.
template <class E, class A = Wide<E>>
void finish_query(const SoftmaxJob& job, int64_t b, const A* plain, A even, A* vector, A* grad) {
  const E* item = static_cast<const E*>(job.items) + place_of(job, job.targets[b]) * job.item_stride;
  widen_row(item, job.dim, job.is_cosine, vector);
  add(grad, vector, static_cast<A>(job.smoothing - 1), job.dim);
  if (plain) {
    add(grad, plain, -even, job.dim);
  }
  if (job.is_cosine) {
    const E* query = static_cast<const E*>(job.queries) + b * job.query_stride;
    const A inverse = widen_row(query, job.dim, true, vector);
    through_length(vector, inverse, job.dim, grad);
  }
  const A gamma = static_cast<A>(job.gamma);
  for (int64_t d = 0; d < job.dim; ++d) {
    static_cast<A*>(job.queries_grad)[b * job.dim + d] = gamma * grad[d];
  }
}

template <class E>
void merge(const SoftmaxJob& job, const SoftmaxParts& parts, void* memory, int64_t begin, int64_t end) {
  using A = Wide<E>;
  const int64_t stride = softmax_stride(job.dim);
  const bool is_smooth = job.smoothing > 0;
  A* const stats = static_cast<A*>(job.stats);
  A* const maxima = static_cast<A*>(parts.maxima);
  for (int64_t b = begin; b < end; ++b) {
    A top = kMinusInfinity<A>;
    int64_t hidden = 0;
    for (int64_t c = 0; c < parts.chunks; ++c) {
      top = maxima[c * job.batch + b] > top ? maxima[c * job.batch + b] : top;
      hidden += parts.hidden[c * job.batch + b];
    }
    top = top == kMinusInfinity<A> ? A(0) : top;
    double sum = 0, logits = 0;
    for (int64_t c = 0; c < parts.chunks; ++c) {
      const int64_t at = c * job.batch + b;
      const double factor = maxima[at] == kMinusInfinity<A> ? 1 : __builtin_exp(static_cast<double>(maxima[at] - top));
      sum += parts.sums[at] * factor;
      logits += is_smooth ? parts.logits[at] : 0;
      maxima[at] = static_cast<A>(factor);
    }
    const int64_t count = job.num_items - hidden;
    const bool is_empty = count <= (job.include_positive ? 0 : 1);
    const double log_sum = is_empty ? kMinusInfinity<double> : __builtin_log(sum);
    const double positive = static_cast<A*>(parts.positives)[b] - top;
    const double mean = is_smooth ? logits / static_cast<double>(count) - top : 0;
    const double loss = log_sum - (1 - job.smoothing) * positive - job.smoothing * mean;
    static_cast<A*>(job.losses)[b] = is_empty ? A(0) : static_cast<A>(loss);
    stats[b] = top;
    stats[job.batch + b] = static_cast<A>(log_sum);
    stats[2 * job.batch + b] = static_cast<A>(count);
    if (!job.need_grad) {
      continue;
    }
    if (is_empty) {
      fill(static_cast<A*>(job.queries_grad) + b * job.dim, job.dim);
      continue;
    }
    A* const grad = static_cast<A*>(parts.weighted) + b * stride;
    A* const plain = is_smooth ? static_cast<A*>(parts.plain) + b * stride : nullptr;
    for (int64_t d = 0; d < job.dim; ++d) {
      grad[d] *= static_cast<A>(maxima[b] / sum);
    }
    for (int64_t c = 1; c < parts.chunks; ++c) {
      const int64_t at = c * job.batch + b;
      add(grad, static_cast<A*>(parts.weighted) + at * stride, static_cast<A>(maxima[at] / sum), job.dim);
      if (plain) {
        add(plain, static_cast<A*>(parts.plain) + at * stride, A(1), job.dim);
      }
    }
    const A even = static_cast<A>(job.smoothing / static_cast<double>(count));
    finish_query<E>(job, b, plain, even, static_cast<A*>(memory), grad);
  }
}

// The derivatives of the losses by the logits of row b and a tile, times the gradient of the loss.
template <class A>
void slopes_of(const SoftmaxJob& job, int64_t b, int64_t at, int64_t width, int64_t& seen, A* z) {
  const int64_t n = padded(width), target = job.targets[b] - at;
  const A* const stats = static_cast<const A*>(job.stats);
  const A top = stats[b], log_sum = stats[job.batch + b], factor = static_cast<const A*>(job.row_grads)[b];
  if (log_sum == kMinusInfinity<A>) {  // nothing in the denominator
    return fill(z, n);
  }
  const A even = static_cast<A>(job.smoothing) / stats[2 * job.batch + b];
  for (int64_t j = width; j < n; ++j) {
    z[j] = kMinusInfinity<A>;
  }
  mask(job, b, at, width, seen, z);
  const bool has_target = target >= 0 && target < width;
  if (has_target && job.positive_shift) {
    z[target] += static_cast<const A*>(job.positive_shift)[b];
  }
  slopes(z, n, top, log_sum, factor, even);
  if (has_target) {
    z[target] = (job.include_positive ? z[target] : -factor * even) - factor * static_cast<A>(1 - job.smoothing);
  }
}

template <class E>
void items_grad(const SoftmaxJob& job, void* memory, int64_t item_begin, int64_t item_end) {
  using A = Wide<E>;
  const int64_t stride = softmax_stride(job.dim);
  const typename TileOf<E>::type tile(memory, stride);
  for (int64_t at = item_begin; at < item_end; at += kTile) {
    const int64_t width = item_end - at < kTile ? item_end - at : kTile;
    pack_tile(job, tile, at, width, E());
    fill(tile.grads, width * stride);
    fill(tile.bias, kTile);
    for (int64_t row = 0; row < job.batch; row += kSoftmaxRows) {
      const int64_t rows = job.batch - row < kSoftmaxRows ? job.batch - row : kSoftmaxRows;
      score(job, tile, row, rows, width);
      for (int64_t r = 0; r < rows; ++r) {
        A* const z = tile.logits + r * kTileStride;
        const SeenList list(job, row + r);
        int64_t seen = first_from(job.seen_indices, list.begin, list.end, id_of(job, at));
        slopes_of(job, row + r, at, width, seen, z);
        if (job.bias_grad) {
          add(tile.bias, z, A(1), width);
        }
      }
      add_queries(job, tile, row, rows, width);
    }
    for (int64_t j = 0; j < width; ++j) {
      const int64_t place = place_of(job, at + j);
      A* const grad = tile.grads + j * stride;
      if (job.is_cosine) {
        const E* item = static_cast<const E*>(job.items) + place * job.item_stride;
        const A inverse = widen_row(item, job.dim, true, tile.sum);
        through_length(tile.sum, inverse, job.dim, grad);
      }
      E* const to = static_cast<E*>(job.items_grad) + place * job.dim;
      for (int64_t d = 0; d < job.dim; ++d) {
        narrow(grad[d], to + d);
      }
      if (job.bias_grad) {
        narrow(tile.bias[j], static_cast<E*>(job.bias_grad) + place);
      }
    }
  }
}

template <class Run>
void by_element(Element element, const Run& run) {
  switch (element) {
    case Element::f32:
      return run(float());
    case Element::f64:
      return run(double());
    case Element::bf16:
      return run(Bf16());
    case Element::f16:
      return run(F16());
  }
}

}  // namespace

void softmax_pack(const SoftmaxJob& job, int64_t begin, int64_t end) {
  by_element(job.element, [&](auto zero) { pack_queries(job, begin, end, zero); });
}

void softmax_part(const SoftmaxJob& job, const SoftmaxParts& parts, void* scratch, int64_t row_begin, int64_t row_end,
                  int64_t chunk, int64_t item_begin, int64_t item_end) {
  by_element(job.element, [&](auto zero) {
    walk<decltype(zero)>(job, parts, scratch, row_begin, row_end, chunk, item_begin, item_end);
  });
}

void softmax_merge(const SoftmaxJob& job, const SoftmaxParts& parts, void* scratch, int64_t begin, int64_t end) {
  by_element(job.element, [&](auto zero) { merge<decltype(zero)>(job, parts, scratch, begin, end); });
}

void softmax_items_grad(const SoftmaxJob& job, void* scratch, int64_t item_begin, int64_t item_end) {
  by_element(job.element, [&](auto zero) { items_grad<decltype(zero)>(job, scratch, item_begin, item_end); });
}

}  // namespace deeprec::DEEPREC_ISA
