// deeprec::ncf_loss on the CPU: loss and every gradient of GMF, MLP or NeuMF (He et al. 2017) in five passes.
//
//   pack    weights into the operands of tile_gemm.h, once a call
//   hidden  first layer of each unique user and item: W1u P[u] + b1 and W1i Q[i]; an example only adds two rows
//   tiles   up to 120 examples stay in cache through all layers, forward and backward; leaves the gradient of the
//           logit and of the first layer's output per example, summed over a group for the user
//   rows    the same gradients summed per unique row, then row gradients dA W1 and weight gradients dA^T P
//   sum     weight gradients of the chunks, in order
//
// Chunks depend on the batch alone and are summed in order: the result is the same bit for bit whatever the number
// of threads. ncf_loss_op.cpp checks, allocates and runs the passes.
#include "lanes_math.h"
#include "ncf_loss_tile.h"

namespace deeprec::DEEPREC_ISA {
namespace {

template <class T>
struct Activate {
  Tile<T> out;
  const float* bias;
  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
    if constexpr (M > 1) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        const Vec b = load(bias + j + v * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < M; r += 2) {
          put(out, i + r, j + v * kLanes, relu(acc[r][v] + b), relu(acc[r + 1][v] + b));
        }
      }
    }
  }
};

// Gradient through ReLU and its sum over examples; into a tile, or as float32 rows for the first layer.
template <class T, bool kFirst>
struct Derive {
  Tile<T> x, out;
  float* first;
  int64_t first_stride, num_examples;
  float* d_bias;
  template <int M, int N>
  DEEPREC_INLINE void operator()(const Vec (&acc)[M][N], int64_t i, int64_t j) const {
    if constexpr (M > 1) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        const int64_t column = j + v * kLanes;
        Vec sum = load(d_bias + column);
#pragma GCC unroll 4
        for (int r = 0; r < M; r += 2) {
          Vec even = acc[r][v], odd = acc[r + 1][v];
          mask(x, i + r, column, even, odd);
          sum += even + odd;
          if constexpr (kFirst) {
            store(first + (i + r) * first_stride + column, even);
            if (i + r + 1 < num_examples) {
              store(first + (i + r + 1) * first_stride + column, odd);
            }
          } else {
            put(out, i + r, column, even, odd);
          }
        }
        store(d_bias + column, sum);
      }
    }
  }
};

float horizontal(Vec v) {
  float parts[kLanes];
  store(parts, v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      parts[i] += parts[i + half];
    }
  }
  return parts[0];
}

// exp(-a) for a >= 0; beyond 87 it stays at exp(-87).
DEEPREC_INLINE Vec exp_negative(Vec a) { return exp_bounded<kLanes>(-(a < 87.0f ? a : Vec{} + 87.0f)); }

// Binary cross-entropy of num logits, and its gradient: max(z, 0) - z y + log(1 + exp(-|z|)); sigmoid(z) - y.
// Arrays hold a multiple of kPad entries.
void cross_entropy(const float* logits, const float* labels, float scale, int64_t num, float* gradients, double* loss,
                   double* d_out_bias) {
  for (int64_t e = 0; e < num; e += kLanes) {
    const Vec z = load(logits + e), y = load(labels + e);
    const Vec t = exp_negative(z < 0.0f ? -z : z);
    const Vec value = (z > 0.0f ? z : Vec{}) - z * y + log_one_plus<kLanes>(t);
    const Vec g = scale * ((z < 0.0f ? t : Vec{} + 1.0f) / (t + 1.0f) - y);
    store(gradients + e, z == z ? g : z);
    for (int i = 0; i < kLanes && e + i < num; ++i) {
      *loss += value[i];
      *d_out_bias += gradients[e + i];
    }
  }
}

// The passes of one chunk of examples.
template <class T>
struct ChunkPass {
  const NcfProblem& p;
  int64_t chunk;
  Tile<T> activations[kNcfMaxLayers];  // x_1 .. x_{L-1}
  Tile<T> gradients[2];
  float* last;  // x_L in float32
  int64_t last_stride = 0, first_stride = 0;
  float *logits, *labels, *d_logits;
  int64_t e0 = 0, num = 0, num_even = 0;

  ChunkPass(const NcfProblem& problem, int64_t which, uint32_t* memory) : p(problem), chunk(which) {
    Scratch scratch{memory};
    logits = scratch.floats(padded(kNcfTile));
    labels = scratch.floats(padded(kNcfTile));
    d_logits = scratch.floats(padded(kNcfTile));
    last = logits;
    if (p.num_layers == 0) {
      return;
    }
    int64_t widest = 0;
    for (int64_t l = 0; l + 1 < p.num_layers; ++l) {
      scratch.tile(p.layers[l].out, activations[l]);
      widest = p.layers[l + 1].out > widest ? p.layers[l + 1].out : widest;
    }
    scratch.tile(widest, gradients[0]);
    scratch.tile(widest, gradients[1]);
    last_stride = stride(p.layers[p.num_layers - 1].out);
    last = scratch.floats(kNcfTile * last_stride);
    first_stride = padded(p.layers[0].out);
  }

  float* d_bias(int64_t l) const { return p.layers[l].d_bias + chunk * padded(p.layers[l].out); }

  const float* user_hidden(int64_t e) const {
    return p.user.hidden + static_cast<int64_t>(p.user.inverse[e / p.group_size]) * first_stride;
  }
  const float* item_hidden(int64_t e) const {
    return p.item.hidden + static_cast<int64_t>(p.item.inverse[e]) * first_stride;
  }

  // x_1 = relu(user's hidden row + item's hidden row), two examples at a time; the odd one out is doubled.
  void gather_hidden() {
    const int64_t width = padded(p.layers[0].out);
    const bool is_last = p.num_layers == 1;
    for (int64_t e = 0; e < num_even; e += 2) {
      const int64_t even = e0 + e, odd = e + 1 < num ? even + 1 : even;
      const float *u0 = user_hidden(even), *u1 = user_hidden(odd), *i0 = item_hidden(even), *i1 = item_hidden(odd);
      if (e + kAhead + 1 < num) {
        prefetch(item_hidden(even + kAhead), width);
        prefetch(item_hidden(even + kAhead + 1), width);
        prefetch(user_hidden(even + kAhead + 1), width);
      }
      for (int64_t j = 0; j < width; j += kLanes) {
        const Vec x0 = relu(load(u0 + j) + load(i0 + j)), x1 = relu(load(u1 + j) + load(i1 + j));
        if (is_last) {
          store(last + e * last_stride + j, x0);
          store(last + (e + 1) * last_stride + j, x1);
        } else {
          put(activations[0], e, j, x0, x1);
        }
      }
    }
  }

  void forward_layers() {
    for (int64_t l = 1; l < p.num_layers; ++l) {
      const NcfLayer& layer = p.layers[l];
      const Tile<T>& x = activations[l - 1];
      const T* w = words<T>(layer.forward);
      const int64_t width = padded(layer.out), num_steps = steps<T>(layer.in);
      if (l + 1 < p.num_layers) {
        gemm<T>(x.rows, x.row_stride, 1, w, stride(layer.out), num_even, width, num_steps,
                Activate<T>{activations[l], layer.bias});
      } else {
        gemm<T>(x.rows, x.row_stride, 1, w, stride(layer.out), num_even, width, num_steps,
                Store<true>{last, last_stride, layer.bias});
      }
    }
  }

  const float* user_gmf(int64_t e) const {
    return p.user.gmf + p.user.rows[p.user.inverse[e / p.group_size]] * p.gmf_width;
  }
  const float* item_gmf(int64_t e) const { return p.item.gmf + p.item.rows[p.item.inverse[e]] * p.gmf_width; }

  // Adds the lanes of the products to sum; returns the columns that do not fill a vector.
  float gmf_logit(int64_t e, Vec& sum) const {
    const int64_t width = p.gmf_width;
    const float *a = user_gmf(e), *b = item_gmf(e);
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) {
      sum += load(a + d) * load(b + d) * load(p.gmf_weight + d);
    }
    float rest = 0;
    for (; d < width; ++d) {
      rest += a[d] * b[d] * p.gmf_weight[d];
    }
    return rest;
  }

  void logits_and_loss() {
    const int64_t width = p.num_layers ? padded(p.layers[p.num_layers - 1].out) : 0;
    for (int64_t e = 0; e < num; ++e) {
      Vec sum{};
      float rest = p.out_bias;
      if (p.gmf_width) {
        if (e + kAhead < num) {
          prefetch(item_gmf(e0 + e + kAhead), p.gmf_width);
          prefetch(user_gmf(e0 + e + kAhead), p.gmf_width);
        }
        rest += gmf_logit(e0 + e, sum);
      }
      for (int64_t j = 0; j < width; j += kLanes) {
        sum += load(last + e * last_stride + j) * load(p.mlp_weight + j);
      }
      logits[e] = rest + horizontal(sum);
      labels[e] = p.labels[e0 + e];
    }
    for (int64_t e = num; e < padded(num); ++e) {
      logits[e] = labels[e] = 0.0f;
    }
    cross_entropy(logits, labels, p.scale, num, d_logits, p.loss + chunk, p.d_out_bias + chunk);
    for (int64_t e = 0; e < num; ++e) {
      p.d_logits[e0 + e] = d_logits[e];
    }
    if (num < num_even) {
      d_logits[num] = 0.0f;
    }
  }

  // Gradient of x_L: d_logit * h through ReLU; sums for h and for the bias.
  void backward_last() {
    const int64_t l = p.num_layers - 1, width = padded(p.layers[l].out);
    float* d_weight = p.d_mlp_weight + chunk * width;
    float* d_b = d_bias(l);
    for (int64_t j = 0; j < width; j += kLanes) {
      const Vec h = load(p.mlp_weight + j);
      Vec d_h = load(d_weight + j), sum = load(d_b + j);
      for (int64_t e = 0; e < num_even; e += 2) {
        const Vec x0 = load(last + e * last_stride + j), x1 = load(last + (e + 1) * last_stride + j);
        const Vec g0 = x0 > 0.0f ? d_logits[e] * h : Vec{}, g1 = x1 > 0.0f ? d_logits[e + 1] * h : Vec{};
        d_h += d_logits[e] * x0 + d_logits[e + 1] * x1;
        sum += g0 + g1;
        if (l > 0) {
          put(gradients[l & 1], e, j, g0, g1);
          continue;
        }
        store(p.d_example + (e0 + e) * first_stride + j, g0);
        if (e + 1 < num) {
          store(p.d_example + (e0 + e + 1) * first_stride + j, g1);
        }
      }
      store(d_weight + j, d_h);
      store(d_b + j, sum);
    }
  }

  void backward_layers(bool is_first_tile) {
    for (int64_t l = p.num_layers - 1; l > 0; --l) {
      const NcfLayer& layer = p.layers[l];
      const Tile<T>&x = activations[l - 1], &g = gradients[l & 1];
      const int64_t width = padded(layer.in);
      gemm<T>(g.steps, 1, g.step_stride, x.steps, x.step_stride, layer.out, width, steps<T>(num_even),
              Accumulate{layer.d_weight + chunk * layer.out * width, width, is_first_tile});
      const T* w = words<T>(layer.backward);
      float* first = p.d_example + e0 * first_stride;
      if (l > 1) {
        gemm<T>(g.rows, g.row_stride, 1, w, stride(layer.in), num_even, width, steps<T>(layer.out),
                Derive<T, false>{x, gradients[(l - 1) & 1], nullptr, 0, num, d_bias(l - 1)});
      } else {
        gemm<T>(g.rows, g.row_stride, 1, w, stride(layer.in), num_even, width, steps<T>(layer.out),
                Derive<T, true>{x, g, first, first_stride, num, d_bias(0)});
      }
    }
  }

  // A user's gradient: sum over the examples of its group, in order. A group may go on in the next tile, but not in
  // another chunk.
  void sum_groups() {
    for (int64_t e = e0, next; e < e0 + num; e = next) {
      const int64_t group = e / p.group_size;
      next = (group + 1) * p.group_size < e0 + num ? (group + 1) * p.group_size : e0 + num;
      float* to = p.d_group + group * first_stride;
      const bool is_begun = e % p.group_size != 0;
      for (int64_t j = 0; j < first_stride; j += kLanes) {
        Vec sum = is_begun ? load(to + j) : Vec{};
        for (int64_t i = e; i < next; ++i) {
          sum += load(p.d_example + i * first_stride + j);
        }
        store(to + j, sum);
      }
    }
  }

  void run() {
    const int64_t begin = chunk * p.chunk_groups * p.group_size;
    int64_t end = begin + p.chunk_groups * p.group_size;
    end = end < p.num_groups * p.group_size ? end : p.num_groups * p.group_size;
    p.loss[chunk] = p.d_out_bias[chunk] = 0.0;
    for (int64_t l = 0; l < p.num_layers; ++l) {
      clear(d_bias(l), padded(p.layers[l].out));
    }
    if (p.num_layers) {
      const int64_t width = padded(p.layers[p.num_layers - 1].out);
      clear(p.d_mlp_weight + chunk * width, width);
    }
    for (e0 = begin; e0 < end; e0 += num) {
      num = end - e0 < kNcfTile ? end - e0 : kNcfTile;
      num_even = (num + 1) / 2 * 2;
      if (p.num_layers) {
        gather_hidden();
        forward_layers();
      }
      logits_and_loss();
      if (p.num_layers) {
        backward_last();
        backward_layers(e0 == begin);
        if (p.group_size > 1) {
          sum_groups();
        }
      }
    }
  }
};

}  // namespace

void ncf_tiles(const NcfProblem& p, int64_t chunk, uint32_t* scratch) {
  p.bfloat16 ? ChunkPass<uint32_t>(p, chunk, scratch).run() : ChunkPass<float>(p, chunk, scratch).run();
}

}  // namespace deeprec::DEEPREC_ISA
