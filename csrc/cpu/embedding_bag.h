// What the operators over several embedding tables share: how a bag is pooled, and where the gradient of an entry lies.
//
// Features f < F read tables[f]; feature f has bags f * B .. f * B + B - 1. Entry p belongs to bag p without offsets
// (one id a bag), and to the bag with offsets[bag] <= p < offsets[bag + 1] with them.
#pragma once

#include "element.h"
#include "isa.h"
#include "row_copy.h"

namespace deeprec {

enum class BagMode : int64_t { sum = 0, mean = 1, max = 2, none = 3 };

// Pools the bags [begin, end) of one feature. With one id a bag and no weights it is a gather.
struct PoolArgs {
  Element element;
  const char* weight;
  int64_t row_stride;  // bytes
  int64_t num_rows, dim;
  const void* ids;      // of entry 0 of the call
  const void* offsets;  // of bag 0 of the feature; null: bags of `length` entries
  int64_t num_offsets;  // a bag from here on begins at num_entries
  int64_t num_entries;
  int64_t length;
  bool wide_ids;
  int64_t id_stride;     // elements
  const void* scale;     // per-sample weights of entry 0, dtype of weight; may be null
  int64_t scale_stride;  // elements
  BagMode mode;
  int64_t padding;  // id that does not count; -1: none
  char* out;        // bag 0 of the feature
  int64_t out_stride;
  char* argmax;  // MAX: the entry of each value, dtype of ids; may be null
  int64_t argmax_stride;
  int64_t begin, end;
};

struct OffsetSteps {
  bool ascend;     // and go up to num_entries at most; the first one has not been looked at
  int64_t length;  // of every bag; -1: they differ, or there is none
};

// Where the gradient of the entries of a feature lies.
struct FeatureGrad {
  int64_t column;        // in the pooled gradient, elements
  const char* sequence;  // of an unpooled feature: [entries, D]; else null
  int64_t first_entry;
  BagMode mode;
};

// Sums the gradients of the rows [begin, end) of a plan; they belong to one table.
struct BagGradArgs {
  Element element;
  const char* grad;     // [B, sum D]
  int64_t grad_stride;  // elements
  int64_t batch;
  const FeatureGrad* features;
  int64_t feature;                         // the only feature of the table, or -1
  const void *row_offsets, *order, *bags;  // of the plan; bags may be null
  bool wide_positions;
  const void* inverse_length;  // of each bag, accumulator type; null without MEAN
  const void* scale;           // per-sample weights of each entry; null: 1
  const char* argmax;          // [B, sum D]; null without MAX
  int64_t argmax_stride;       // elements
  bool wide_argmax;
  const char* weight;  // with scale_grad: the table
  int64_t row_stride;  // elements
  const void* rows;    // with scale_grad: of the plan
  bool wide_rows;
  void* scale_grad;  // gradient of the per-sample weights, each entry; may be null
  int64_t dim;
  int64_t begin, end;
  int64_t segment_end;  // rows after this belong to another table or thread: not asked for
  RowsAhead ahead;
  double factor;  // on the sums
  void* out;      // [end - begin, D]
  bool wide_out;  // in the accumulator's type, not in that of the table
};

}  // namespace deeprec

// Returns the first entry that is out of range, or -1; nothing is written then.
DEEPREC_DECLARE(int64_t, pool_bags, (const PoolArgs& a))
DEEPREC_DECLARE(OffsetSteps, steps_of_offsets, (const void* offsets, int64_t count, bool wide, int64_t num_entries))
DEEPREC_DECLARE(void, sum_bag_grads, (const BagGradArgs& a))
