// What the kernel of Adam on the dense gradient and its wrappers share; sparse_update_adam_dense.cpp has the formula.
#pragma once

#include "isa.h"
#include "sparse_update.h"

namespace deeprec {

// The replay of one number of missed steps.
struct Replay {
  bool closed;                    // the expansion above is accurate
  int64_t counted;                // steps whose a_k matters
  double s, a0, a2, a3;           // the expansion
  double decay1, decay2;          // b1^n, b2^n
  const double *alphas, *scales;  // a_k and s_k, k = 1..counted, or null: to be computed for the row
};

// b1^t, b2^t of a step t, and b1^k, b2^k of its number among the missed ones.
struct ReplayPowers {
  double p1, p2, k1, k2;
};

struct DenseAdamArgs {
  RowUpdateArgs row;   // rows null: all rows; grads null: catch up only
  int32_t* last_step;  // [R] step that each row has reached, 0 before its first gradient
  int64_t step;        // rows are brought to this step; the gradient's step, if any, follows
  const double* lr;    // lr[t - 1 - history_start] of step t
  int64_t history_start;
  const Replay* table;  // by missed steps, [0, table_size)
  int64_t table_size;
  int64_t max_counted;  // steps beyond which a_k vanishes in float32
  double tolerance;     // for `closed`
  int64_t part, parts;  // this call handles rows with (row / 16) % parts == part: duplicates meet in one thread
};

}  // namespace deeprec

DEEPREC_DECLARE(void, adam_dense_rows, (const DenseAdamArgs& a))
// a_k and s_k of `steps` missed steps, the first of them after step `before`; goes on from `powers`.
DEEPREC_DECLARE(void, adam_replay_coefficients,
                (const DenseAdamArgs& a, int64_t before, int64_t steps, ReplayPowers& powers, double* alphas,
                 double* scales))

namespace deeprec::DEEPREC_ISA {

// Central moments from raw ones (E_p = sum a s^p), and whether the expansion may be used.
static inline void finish(const double* e, double tolerance, Replay* out) {
  const double s = e[0] > 0 ? e[1] / e[0] : 0;
  out->s = s;
  out->a0 = e[0];
  out->a2 = e[2] - s * e[1];
  out->a3 = e[3] - 3 * s * e[2] + 2 * s * s * e[1];
  const double a4 = e[4] - 4 * s * e[3] + 6 * s * s * e[2] - 3 * s * s * s * e[1];
  out->closed = e[0] == 0 || (s > 0 && a4 <= tolerance * e[0] * s * s * s * s);
}

}  // namespace deeprec::DEEPREC_ISA
