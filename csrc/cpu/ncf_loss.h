// What the passes of ncf_loss share: pointers into the inputs, the outputs and one workspace. See ncf_loss.cpp.
#pragma once

#include <cstdint>

#include "isa.h"

namespace deeprec {

constexpr int64_t kNcfMaxLayers = 16;
constexpr int64_t kNcfTile = 120;  // most examples (or rows) in one tile; even

// The users or the items of the batch. "Positions" are groups for users and examples for items.
struct NcfSide {
  const float *gmf, *mlp;           // tables [*, D], [*, width]
  float *d_gmf, *d_mlp;             // row gradients [num_rows, D], [num_rows, width]
  int64_t width;                    // E
  int64_t num_rows, num_positions;  // U; G or B
  const int64_t* rows;              // [U]
  const int32_t *offsets, *order;   // [U + 1], [num_positions]
  const int32_t* inverse;           // [num_positions] position -> index into rows
  uint32_t *forward, *backward;     // this side's columns of the first weight, packed for W x and for dx W
  const float* bias;                // added to the hidden rows, or null
  float* hidden;                    // [U, padded(H1)]: first layer of the unique rows
  const float* d_hidden;            // [num_positions, padded(H1)]
  int64_t chunk_rows, num_chunks;   // fixed by the batch alone, never by the number of threads
  float* d_first;                   // [num_chunks, H1, padded(width)]
  float* d_gmf_weight;              // [num_chunks, D], or null (items)
};

struct NcfLayer {
  int64_t in, out;
  const float* weight;           // [out, in]
  const float* bias;             // [padded(out)]
  uint32_t *forward, *backward;  // packed, not used by the first layer (NcfSide has its halves)
  float* d_weight;               // [num_chunks, out, padded(in)], not used by the first layer
  float* d_bias;                 // [num_chunks, padded(out)]
};

struct NcfProblem {
  NcfSide user, item;
  const NcfLayer* layers;
  int64_t num_layers;              // 0 = no MLP
  int64_t gmf_width;               // D, 0 = no GMF
  int64_t num_groups, group_size;  // G, 1 + n
  int64_t chunk_groups, num_chunks;
  const float *labels, *gmf_weight;  // [B], [D]
  const float* mlp_weight;           // [padded(H_L)]
  float out_bias, scale;
  float* d_logits;            // [B]
  float* d_example;           // [B, padded(H1)]
  float* d_group;             // [G, padded(H1)]; the same as d_example when group_size is 1
  float* d_mlp_weight;        // [num_chunks, padded(H_L)]
  double *loss, *d_out_bias;  // [num_chunks]
  bool bfloat16;
};

// Words of scratch that one thread needs for ncf_tiles and ncf_rows.
int64_t ncf_scratch_words(const NcfProblem& p);

}  // namespace deeprec

DEEPREC_DECLARE_BF16(void, ncf_pack, (const NcfProblem& p, int64_t job))  // 2 jobs a layer
DEEPREC_DECLARE_BF16(void, ncf_hidden,
                     (const NcfProblem& p, const NcfSide& side, int64_t begin, int64_t end, uint32_t* scratch))
DEEPREC_DECLARE_BF16(void, ncf_tiles, (const NcfProblem& p, int64_t chunk, uint32_t* scratch))
DEEPREC_DECLARE_BF16(void, ncf_rows, (const NcfProblem& p, const NcfSide& side, int64_t chunk, uint32_t* scratch))
DEEPREC_DECLARE_BF16(void, ncf_sum,
                     (float* out, const float* chunks, int64_t stride, int64_t num_chunks, int64_t width))
