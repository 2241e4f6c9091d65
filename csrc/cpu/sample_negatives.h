// The drawing of negatives as one job, for the operators that draw: sample_negatives and sampled_softmax_loss.
#pragma once

#include "../sample_negatives.h"
#include "isa.h"

namespace deeprec {
struct NegativeJob {
  NegativeSource source;
  const uint64_t* bitmap;  // [num_users, words_per_user], or null
  int64_t words_per_user;
  const void* users;  // [B], int64 where `wide`, else int32; the negatives have the same type
  void* out;          // [B, num_negatives]
  int64_t num_negatives;
  uint64_t offset;
  bool wide;
};
}  // namespace deeprec

DEEPREC_DECLARE(void, sample_negatives_rows, (const ::deeprec::NegativeJob& job, int64_t begin, int64_t end))
