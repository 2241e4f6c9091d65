// sampled_softmax_loss on the CPU: a row at a time its negatives are drawn, their rows gathered twice while they are in
// the cache, for the logits and for the gradient of the query. The negatives are a function of the counter: nothing of
// them is kept, the backward pass draws them again.
#include "sampled_softmax_loss.h"

#include "lanes_math.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kAhead = 6;  // rows asked for before they are needed

template <class E>
using Wide = typename Accumulator<E>::type;

// Buffers of one thread.
template <class A>
struct Row {
  int32_t* ids;         // [1 + S]
  const int32_t* next;  // [S] negatives of the next row, or null where they are not yet drawn
  A *z, *inverse, *slopes, *query, *grad;
  int64_t count;

  Row(int32_t* ids_in, void* values, int64_t num_negatives, int64_t dim)
      : ids(ids_in), next(nullptr), z(static_cast<A*>(values)), count(1 + num_negatives) {
    inverse = z + count;
    slopes = inverse + count;
    query = slopes + count;
    grad = query + dim;
  }
};

template <class E>
DEEPREC_ALWAYS_INLINE void ask_for(const E* row, int64_t dim) {
  const char* at = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(E)); byte += 64) {
    __builtin_prefetch(at + byte);
  }
}

template <class E, class A>
A product(const A* query, const E* item, int64_t dim) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < dim; ++d) {
    sum += query[d] * widen(item[d]);
  }
  return sum;
}

template <class E, class A>
A square(const E* item, int64_t dim) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t d = 0; d < dim; ++d) {
    sum += widen(item[d]) * widen(item[d]);
  }
  return sum;
}

template <class A>
A inverse_length(A square_of) {
  return square_of == 0 ? A(0) : 1 / static_cast<A>(__builtin_sqrt(square_of));
}

// The row's query in `row.query`, for cosines made a unit vector; returns one over its length.
template <class E, class A>
A read_query(const SampledSoftmaxJob& job, int64_t b, const Row<A>& row) {
  const E* query = static_cast<const E*>(job.queries) + b * job.query_stride;
  const A inverse = job.is_cosine ? inverse_length(square<E, A>(query, job.dim)) : A(1);
  for (int64_t d = 0; d < job.dim; ++d) {
    row.query[d] = widen(query[d]) * inverse;
  }
  return inverse;
}

// x = log x, by vectors, then by ones. A table that is none may hold weights that are not positive.
inline void log_all(float* x, int64_t n) {
  constexpr int L = kFullLanes<float>;
  int64_t j = 0;
  for (; j + L <= n; j += L) {
    const auto values = load_lanes<L>(x + j);
    const Lanes<float, L> zero = {}, outside = values < zero ? zero + __builtin_nanf("") : zero - __builtin_inff();
    store_lanes<L>(x + j, values > zero ? log_positive<L>(values) : outside);
  }
  for (; j < n; ++j) {
    x[j] = __builtin_logf(x[j]);
  }
}

inline void log_all(double* x, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    x[j] = __builtin_log(x[j]);
  }
}

// The logarithm of each negative's chance into `row.slopes`, which are free until then: of the entries, not of all
// items.
template <class A>
void read_chances(const SampledSoftmaxJob& job, const Row<A>& row) {
  const int64_t* const cumulative = job.draw.source.cumulative;
  const double items = static_cast<double>(job.num_items);
  for (int64_t e = 1; e < row.count; ++e) {
    const int64_t id = row.ids[e];
    row.slopes[e] = static_cast<A>(static_cast<double>(cumulative[id + 1] - cumulative[id]) / items);
  }
  log_all(row.slopes + 1, row.count - 1);
}

// Logits of the positive and the negatives; -inf for a negative that is the positive.
template <class E, class A>
void score_row(const SampledSoftmaxJob& job, int64_t b, const Row<A>& row) {
  const E* items = static_cast<const E*>(job.items);
  const A* bias = static_cast<const A*>(job.bias);
  const bool has_chances = job.log_scale && job.draw.source.cumulative;
  if (has_chances) {
    read_chances(job, row);
  }
  const A correction = job.log_scale ? static_cast<const A*>(job.log_scale)[b] : A(0);
  for (int64_t e = 0; e < row.count; ++e) {
    if (e + kAhead < row.count) {
      ask_for(items + row.ids[e + kAhead] * job.item_stride, job.dim);
    }
    if (has_chances && row.next && e > 0) {
      __builtin_prefetch(job.draw.source.cumulative + row.next[e - 1]);
    }
    const int64_t id = row.ids[e];
    const E* item = items + id * job.item_stride;
    row.inverse[e] = job.is_cosine ? inverse_length(square<E, A>(item, job.dim)) : A(1);
    A z = static_cast<A>(job.gamma) * row.inverse[e] * product(row.query, item, job.dim);
    z += bias ? bias[id] : A(0);
    if (e > 0 && job.log_scale) {
      z -= correction + (has_chances ? row.slopes[e] : A(0));
    }
    row.z[e] = e > 0 && id == job.targets[b] ? static_cast<A>(-__builtin_inf()) : z;
  }
}

// Whether entry e is in the denominator.
template <class A>
bool is_counted(const SampledSoftmaxJob& job, const Row<A>& row, int64_t e) {
  return e > 0 ? row.z[e] != static_cast<A>(-__builtin_inf()) : job.include_positive;
}

// Loss and stats of row b, and the derivatives of the loss by the logits.
template <class A>
void sum_up(const SampledSoftmaxJob& job, int64_t b, const Row<A>& row) {
  A top = 0;
  int64_t inside = 0;
  for (int64_t e = 0; e < row.count; ++e) {
    if (is_counted(job, row, e)) {
      top = inside == 0 || (top == top && !(row.z[e] <= top)) ? row.z[e] : top;  // NaN stays
      ++inside;
    }
  }
  double sum = 0;
  for (int64_t e = 0; e < row.count; ++e) {
    row.slopes[e] = is_counted(job, row, e) ? static_cast<A>(__builtin_exp(static_cast<double>(row.z[e] - top))) : A(0);
    sum += static_cast<double>(row.slopes[e]);
  }
  const double log_sum = inside ? __builtin_log(sum) : -__builtin_inf();
  A* const stats = static_cast<A*>(job.stats);
  stats[b] = top;
  stats[job.batch + b] = static_cast<A>(log_sum);
  static_cast<A*>(job.losses)[b] = inside ? static_cast<A>(log_sum - static_cast<double>(row.z[0] - top)) : A(0);
  for (int64_t e = 0; e < row.count; ++e) {
    row.slopes[e] = inside ? static_cast<A>(static_cast<double>(row.slopes[e]) / sum) - A(e == 0) : A(0);
  }
}

template <class E, class A>
void add_rows(const SampledSoftmaxJob& job, int64_t b, A inverse, const Row<A>& row) {
  const E* items = static_cast<const E*>(job.items);
  for (int64_t d = 0; d < job.dim; ++d) {
    row.grad[d] = 0;
  }
  for (int64_t e = 0; e < row.count; ++e) {
    const A factor = row.slopes[e] * row.inverse[e];
    const E* item = items + row.ids[e] * job.item_stride;
    for (int64_t d = 0; d < job.dim; ++d) {
      row.grad[d] += factor * widen(item[d]);
    }
  }
  const A along = job.is_cosine ? product(row.grad, row.query, job.dim) : A(0);
  A* const to = static_cast<A*>(job.queries_grad) + b * job.dim;
  for (int64_t d = 0; d < job.dim; ++d) {
    to[d] = static_cast<A>(job.gamma) * inverse * (row.grad[d] - row.query[d] * along);
  }
}

// The slopes of a row from the stats of the forward pass, times the gradient of its loss.
template <class A>
void write_entries(const SampledSoftmaxJob& job, int64_t b, const Row<A>& row) {
  const A* const stats = static_cast<const A*>(job.stats);
  const A top = stats[b], log_sum = stats[job.batch + b], grad = static_cast<const A*>(job.row_grads)[b];
  A* const slopes = static_cast<A*>(job.slopes) + b * row.count;
  for (int64_t e = 0; e < row.count; ++e) {
    const bool inside = is_counted(job, row, e);
    const double share = inside ? __builtin_exp(static_cast<double>((row.z[e] - top) - log_sum)) : 0;
    const bool is_empty = log_sum == static_cast<A>(-__builtin_inf());
    slopes[e] = is_empty ? A(0) : grad * (static_cast<A>(share) - A(e == 0));
    job.entries[b * row.count + e] = row.ids[e];
  }
}

template <class E>
void rows(const SampledSoftmaxJob& job, int32_t* ids, void* values, int64_t begin, int64_t end) {
  using A = Wide<E>;
  const int64_t num_negatives = job.draw.num_negatives, together = rows_drawn(num_negatives);
  Row<A> row(ids, values, num_negatives, job.dim);
  int32_t* const drawn = ids + row.count;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t place = (b - begin) % together;
    if (num_negatives > 0 && place == 0) {
      NegativeJob draw = job.draw;
      draw.users = static_cast<const int32_t*>(draw.users) + b;
      draw.offset += static_cast<uint64_t>(b);
      draw.out = drawn;
      sample_negatives_rows(draw, 0, together < end - b ? together : end - b);
    }
    ids[0] = static_cast<int32_t>(job.targets[b]);
    for (int64_t k = 0; k < num_negatives; ++k) {
      ids[1 + k] = drawn[place * num_negatives + k];
    }
    row.next = place + 1 < together && b + 1 < end ? drawn + (place + 1) * num_negatives : nullptr;
    job.is_exhausted[b] = row.count > 1 && ids[1] == kNoNegative;
    if (job.is_exhausted[b]) {
      continue;
    }
    const A inverse = read_query<E>(job, b, row);
    score_row<E>(job, b, row);
    if (job.row_grads) {
      write_entries(job, b, row);
      continue;
    }
    sum_up(job, b, row);
    if (job.need_grad) {
      add_rows<E>(job, b, inverse, row);
    }
  }
}

}  // namespace

void sampled_softmax_rows(const SampledSoftmaxJob& job, int32_t* ids, void* values, int64_t begin, int64_t end) {
  switch (job.element) {
    case Element::f32:
      return rows<float>(job, ids, values, begin, end);
    case Element::f64:
      return rows<double>(job, ids, values, begin, end);
    case Element::bf16:
      return rows<Bf16>(job, ids, values, begin, end);
    case Element::f16:
      return rows<F16>(job, ids, values, begin, end);
  }
}

}  // namespace deeprec::DEEPREC_ISA
