// The passes of ncf_loss over unique users and items, and over weights: pack, hidden, rows, sum. See ncf_loss.cpp.
#include "ncf_loss_tile.h"

namespace deeprec::DEEPREC_ISA {
namespace {

// MLP part of the rows pass: rows [begin, end) of one side, at most a tile of them.
template <class T>
struct RowPass {
  const NcfProblem& p;
  const NcfSide& side;
  Tile<T> gradients, embeddings;
  float *sums, *d_rows;  // two hidden rows; a tile of row gradients where E is not a multiple of kPad
  int64_t hidden = 0;

  RowPass(const NcfProblem& problem, const NcfSide& which, uint32_t* memory) : p(problem), side(which) {
    Scratch scratch{memory};
    hidden = p.num_layers ? padded(p.layers[0].out) : 0;
    scratch.tile(hidden, gradients);
    scratch.tile(side.width, embeddings);
    sums = scratch.floats(2 * hidden);
    d_rows = scratch.floats(kNcfTile * padded(side.width));
  }

  const float* position_gradient(int32_t k) const {
    return side.d_hidden + static_cast<int64_t>(side.order[k]) * hidden;
  }

  // Sum over the positions of a row, in order: in place where there is one, else in the buffer.
  const float* sum_segment(int64_t row, float* buffer) const {
    const int32_t begin = side.offsets[row], end = side.offsets[row + 1];
    for (int32_t k = begin; k < end; ++k) {
      if (k + kAhead < side.num_positions) {
        prefetch(position_gradient(k + kAhead), hidden);
      }
      if (k == begin) {
        continue;
      }
      const float *from = position_gradient(k), *sum = k == begin + 1 ? position_gradient(begin) : buffer;
      for (int64_t j = 0; j < hidden; j += kLanes) {
        store(buffer + j, load(sum + j) + load(from + j));
      }
    }
    return end - begin == 1 ? position_gradient(begin) : buffer;
  }

  void gather(int64_t begin, int64_t num) const {
    for (int64_t r = 0; r < num; r += 2) {
      const bool has_odd = r + 1 < num;
      const float* even = side.mlp + side.rows[begin + r] * side.width;
      const float* odd = has_odd ? side.mlp + side.rows[begin + r + 1] * side.width : even;
      for (int64_t ahead = r + kAhead; ahead < r + kAhead + 2 && ahead < num; ++ahead) {
        prefetch(side.mlp + side.rows[begin + ahead] * side.width, side.width);
      }
      int64_t j = 0;
      for (; j + kLanes <= side.width; j += kLanes) {
        put(embeddings, r, j, load(even + j), has_odd ? load(odd + j) : Vec{});
      }
      for (; j < padded(side.width); j += kLanes) {
        Vec a{}, b{};
        for (int i = 0; i < kLanes && j + i < side.width; ++i) {
          a[i] = even[j + i];
          b[i] = has_odd ? odd[j + i] : 0.0f;
        }
        put(embeddings, r, j, a, b);
      }
    }
  }

  void run(int64_t begin, int64_t num, float* d_first, bool is_first_tile) {
    for (int64_t r = 0; r < num; r += 2) {
      const float *even = sum_segment(begin + r, sums), *odd = sums + hidden;
      if (r + 1 < num) {
        odd = sum_segment(begin + r + 1, sums + hidden);
      } else {
        clear(sums + hidden, hidden);
      }
      for (int64_t j = 0; j < hidden; j += kLanes) {
        put(gradients, r, j, load(even + j), load(odd + j));
      }
    }
    gather(begin, num);
    const int64_t width = padded(side.width), num_even = (num + 1) / 2 * 2;
    gemm<T>(gradients.steps, 1, gradients.step_stride, embeddings.steps, embeddings.step_stride, p.layers[0].out, width,
            steps<T>(num_even), Accumulate{d_first, width, is_first_tile});
    const bool is_direct = width == side.width;
    float* out = side.d_mlp + begin * side.width;
    gemm<T>(gradients.rows, gradients.row_stride, 1, words<T>(side.backward), stride(side.width), num, width,
            steps<T>(p.layers[0].out), Store<false>{is_direct ? out : d_rows, width, nullptr});
    for (int64_t r = 0; !is_direct && r < num; ++r) {
      __builtin_memcpy(out + r * side.width, d_rows + r * width, static_cast<uint64_t>(side.width) * sizeof(float));
    }
  }
};

// GMF part: d p[u] = h * sum_e d_logit[e] q[i(e)], and the other way round; d h = sum_u p[u] * that sum.
void gmf_row(const NcfProblem& p, const NcfSide& side, int64_t row, float* d_weight) {
  const bool is_user = &side == &p.user;
  const NcfSide& other = is_user ? p.item : p.user;
  const int64_t width = p.gmf_width, examples = is_user ? p.group_size : 1;
  float* out = side.d_gmf + row * width;
  clear(out, width);
  for (int32_t k = side.offsets[row]; k < side.offsets[row + 1]; ++k) {
    const int64_t position = side.order[k];
    if (k + kAhead < side.num_positions) {
      const int64_t ahead = side.order[k + kAhead] * examples;
      for (int64_t e = ahead; e < ahead + (examples < 8 ? examples : 8); ++e) {
        prefetch(other.gmf + other.rows[other.inverse[is_user ? e : e / p.group_size]] * width, width);
      }
    }
    for (int64_t e = position * examples; e < (position + 1) * examples; ++e) {
      const float* from = other.gmf + other.rows[other.inverse[is_user ? e : e / p.group_size]] * width;
      const float g = p.d_logits[e];
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) {
        out[d] += g * from[d];
      }
    }
  }
  const float* own = side.gmf + side.rows[row] * width;
#pragma omp simd
  for (int64_t d = 0; d < width; ++d) {
    if (d_weight) {
      d_weight[d] += out[d] * own[d];
    }
    out[d] *= p.gmf_weight[d];
  }
}

template <class T>
void hidden_rows(const NcfProblem& p, const NcfSide& side, int64_t begin, int64_t end, uint32_t* scratch) {
  const RowPass<T> pass(p, side, scratch);
  for (int64_t r = begin; r < end; r += kNcfTile) {
    const int64_t num = end - r < kNcfTile ? end - r : kNcfTile;
    pass.gather(r, num);
    gemm<T>(pass.embeddings.rows, pass.embeddings.row_stride, 1, words<T>(side.forward), stride(p.layers[0].out), num,
            pass.hidden, steps<T>(side.width), Store<false>{side.hidden + r * pass.hidden, pass.hidden, side.bias});
  }
}

template <class T>
void row_chunk(const NcfProblem& p, const NcfSide& side, int64_t chunk, uint32_t* scratch) {
  const int64_t begin = chunk * side.chunk_rows;
  const int64_t end = begin + side.chunk_rows < side.num_rows ? begin + side.chunk_rows : side.num_rows;
  if (p.num_layers) {
    RowPass<T> pass(p, side, scratch);
    float* d_first = side.d_first + chunk * p.layers[0].out * padded(side.width);
    for (int64_t r = begin; r < end; r += kNcfTile) {
      pass.run(r, end - r < kNcfTile ? end - r : kNcfTile, d_first, r == begin);
    }
  }
  if (p.gmf_width) {
    float* d_weight = side.d_gmf_weight ? side.d_gmf_weight + chunk * p.gmf_width : nullptr;
    if (d_weight) {
      clear(d_weight, p.gmf_width);
    }
    for (int64_t r = begin; r < end; ++r) {
      gmf_row(p, side, r, d_weight);
    }
  }
}

template <class T>
void pack_layer(const NcfProblem& p, int64_t job) {
  const NcfLayer& layer = p.layers[job / 2];
  const bool is_forward = job % 2 == 0;
  const auto side = [&](const NcfSide& s, const float* w) {
    if (is_forward) {
      pack_transposed(w, layer.in, layer.out, s.width, words<T>(s.forward), stride(layer.out));
    } else {
      pack(w, layer.in, layer.out, s.width, words<T>(s.backward), stride(s.width));
    }
  };
  if (job < 2) {
    side(p.user, layer.weight);
    side(p.item, layer.weight + p.user.width);
  } else if (is_forward) {
    pack_transposed(layer.weight, layer.in, layer.out, layer.in, words<T>(layer.forward), stride(layer.out));
  } else {
    pack(layer.weight, layer.in, layer.out, layer.in, words<T>(layer.backward), stride(layer.in));
  }
}

}  // namespace

void ncf_pack(const NcfProblem& p, int64_t job) {
  p.bfloat16 ? pack_layer<uint32_t>(p, job) : pack_layer<float>(p, job);
}

void ncf_hidden(const NcfProblem& p, const NcfSide& side, int64_t begin, int64_t end, uint32_t* scratch) {
  p.bfloat16 ? hidden_rows<uint32_t>(p, side, begin, end, scratch) : hidden_rows<float>(p, side, begin, end, scratch);
}

void ncf_rows(const NcfProblem& p, const NcfSide& side, int64_t chunk, uint32_t* scratch) {
  p.bfloat16 ? row_chunk<uint32_t>(p, side, chunk, scratch) : row_chunk<float>(p, side, chunk, scratch);
}

void ncf_sum(float* out, const float* chunks, int64_t stride, int64_t num_chunks, int64_t width) {
  for (int64_t j = 0; j < width; ++j) {
    out[j] = num_chunks ? chunks[j] : 0.0f;
  }
  for (int64_t c = 1; c < num_chunks; ++c) {
    const float* from = chunks + c * stride;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      out[j] += from[j];
    }
  }
}

}  // namespace deeprec::DEEPREC_ISA
