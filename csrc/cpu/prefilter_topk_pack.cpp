// The compressed copy of prefilter_topk, a tile of 64 item rows at a time; prefilter_topk.h says what a tile holds.
#include "prefilter_topk.h"
#include "prefilter_topk_code.h"

namespace deeprec::DEEPREC_ISA {
namespace {

constexpr int64_t kTile = kTileItems, kColumns = 64;  // columns that are rounded together

// What rounding to q costs a row, |e|^2, and |q|^2.
struct Squares {
  double error = 0.0, length = 0.0;
};

// Columns of a row in units of its scale; int8 is stored as q + 128.
template <bool kInt8>
void round_columns(const float* row, int64_t count, double scale, uint32_t* stored, Squares& squares) {
  for (int64_t d = 0; d < count; ++d) {
    const double x = row[d] / scale;
    double q;
    if constexpr (kInt8) {
      q = __builtin_rint(x);
      stored[d] = static_cast<uint32_t>(static_cast<int32_t>(q) + 128);
    } else {
      stored[d] = half_of(x);
      q = value_of_half(stored[d]);
    }
    const double error = row[d] - q * scale;
    squares.error += error * error;
    squares.length += q * q;
  }
}

template <bool kInt8>
Squares pack_row(const float* row, int64_t dim, float scale, uint32_t* words) {
  constexpr int64_t kPerWord = kInt8 ? 4 : 2, kBits = 32 / kPerWord;
  Squares squares;
  for (int64_t begin = 0; begin < dim; begin += kColumns) {
    uint32_t stored[kColumns];
    const int64_t count = dim - begin < kColumns ? dim - begin : kColumns;
    round_columns<kInt8>(row + begin, count, scale, stored, squares);
    for (int64_t d = count; d < kColumns; ++d) {
      stored[d] = kInt8 ? 128u : 0u;
    }
    for (int64_t d = 0; d < count; d += kPerWord) {
      uint32_t word = 0;
      for (int64_t part = 0; part < kPerWord; ++part) {
        word |= stored[d + part] << (part * kBits);
      }
      words[(begin + d) / kPerWord * kTile] = word;
    }
  }
  return squares;
}

}  // namespace

void prefilter_pack(const float* rows, int64_t count, int64_t dim, bool is_int8, uint32_t* words, float* scales,
                    float* bounds) {
  const int64_t num_words = (is_int8 ? (dim + 3) / 4 : (dim + 1) / 2) * kTile;
  for (int64_t w = 0; w < num_words; ++w) {
    words[w] = is_int8 ? 0x80808080u : 0u;
  }
  double rho = 0.0, nu = 0.0;
  for (int64_t j = 0; j < kTile; ++j) {
    const float* row = rows + j * dim;
    const RowSize size = j < count ? size_of(row, dim) : RowSize{0.0f, 0.0};
    if (!size.is_regular()) {
      scales[j] = size.norm == 0.0 ? 0.0f : __builtin_nanf("");
      continue;
    }
    const float scale = is_int8 ? size.largest / 127.0f : power_above(size.largest);
    const Squares squares =
        is_int8 ? pack_row<true>(row, dim, scale, words + j) : pack_row<false>(row, dim, scale, words + j);
    scales[j] = scale;
    const double error = __builtin_sqrt(squares.error) / scale, length = __builtin_sqrt(squares.length);
    rho = error > rho ? error : rho;
    nu = length > nu ? length : nu;
  }
  bounds[0] = static_cast<float>(rho * kSlack);
  bounds[1] = static_cast<float>(nu * kSlack);
}

}  // namespace deeprec::DEEPREC_ISA
