// Coordinate descent for SLIM: weights between items that are sparse and not negative, a column at a time.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// Rows of the Gram matrix X'X: which items each item meets, and how often; its own count is among them.
struct Gram {
  const int64_t* offsets;
  const int32_t* items;
  const float* counts;
  int64_t size;
};

struct Column {
  std::vector<int32_t> items;
  std::vector<float> weights;
};

// min over w >= 0, w_j = 0 of |x_j - X w|^2 / 2 + l2 / 2 |w|^2 + l1 |w|. Only items that j meets more than l1 times can
// have a weight: all counts are >= 0, so the gradient of no other ever falls below l1.
class Solver {
 public:
  Solver(Gram gram, const float* own, float l1, float l2, int sweeps, float tolerance)
      : gram_(gram),
        own_(own),
        l1_(l1),
        l2_(l2),
        sweeps_(sweeps),
        tolerance_(tolerance),
        slopes_(gram.size, 0.0F),
        weights_(gram.size, 0.0F) {}

  Column solve(int64_t target) {
    candidates_.clear();
    for (int64_t at = gram_.offsets[target]; at < gram_.offsets[target + 1]; ++at) {
      const int32_t item = gram_.items[at];
      slopes_[item] = gram_.counts[at];
      if (item != target && gram_.counts[at] > l1_) candidates_.push_back(item);
    }
    for (int sweep = 0; sweep < sweeps_; ++sweep) {
      float largest = 0.0F;
      for (const int32_t item : candidates_) largest = std::max(largest, step(item));
      if (largest < tolerance_) break;
    }
    Column column;
    for (const int32_t item : candidates_) {
      if (weights_[item] == 0.0F) continue;
      column.items.push_back(item);
      column.weights.push_back(weights_[item]);
      weights_[item] = 0.0F;
    }
    std::memset(slopes_.data(), 0, slopes_.size() * sizeof(float));
    return column;
  }

 private:
  // The best weight of one item while the others stay; by how much it changed.
  float step(int32_t item) {
    const float before = weights_[item];
    const float now = std::max(0.0F, (slopes_[item] + own_[item] * before - l1_) / (own_[item] + l2_));
    const float change = now - before;
    if (change == 0.0F) return 0.0F;
    weights_[item] = now;
    for (int64_t at = gram_.offsets[item]; at < gram_.offsets[item + 1]; ++at) {
      slopes_[gram_.items[at]] -= change * gram_.counts[at];
    }
    return std::abs(change);
  }

  Gram gram_;
  const float* own_;
  float l1_, l2_;
  int sweeps_;
  float tolerance_;
  std::vector<float> slopes_, weights_;
  std::vector<int32_t> candidates_;
};

void check(const Array<int64_t>& offsets, const Array<int32_t>& items, const Array<float>& counts,
           const Array<float>& own) {
  const int64_t size = own.shape(0);
  if (offsets.ndim() != 1 || offsets.shape(0) != size + 1 || items.ndim() != 1 || counts.ndim() != 1 ||
      items.shape(0) != counts.shape(0)) {
    throw std::invalid_argument("slim_columns: offsets must be [N + 1], items and counts [nnz], own [N]");
  }
  const auto bounds = offsets.unchecked<1>();
  bool is_right = bounds(0) == 0 && bounds(size) == items.shape(0);
  for (int64_t row = 0; is_right && row < size; ++row) is_right = bounds(row) <= bounds(row + 1);
  const auto ids = items.unchecked<1>();
  for (int64_t at = 0; is_right && at < items.shape(0); ++at) is_right = ids(at) >= 0 && ids(at) < size;
  if (!is_right) throw std::invalid_argument("slim_columns: offsets must ascend from 0 to nnz, items lie in [0, N)");
}

py::tuple slim_columns(const Array<int64_t>& offsets, const Array<int32_t>& items, const Array<float>& counts,
                       const Array<float>& own, float l1, float l2, int sweeps, float tolerance, int64_t start,
                       int64_t stop, int threads) {
  check(offsets, items, counts, own);
  if (start < 0 || stop > own.shape(0) || start > stop || threads < 1) {
    throw std::invalid_argument("slim_columns: start and stop must lie in [0, N], threads be >= 1");
  }
  const Gram gram{offsets.data(), items.data(), counts.data(), own.shape(0)};
  std::vector<Column> columns(stop - start);
  {
    const py::gil_scoped_release release;
    std::atomic<int64_t> next{start};  // a column's result is its own, whoever computes it
    const auto work = [&] {
      Solver solver(gram, own.data(), l1, l2, sweeps, tolerance);
      for (int64_t target = next++; target < stop; target = next++) columns[target - start] = solver.solve(target);
    };
    std::vector<std::thread> others;
    for (int n = 1; n < threads; ++n) others.emplace_back(work);
    work();
    for (auto& other : others) other.join();
  }
  Array<int64_t> ends(stop - start + 1);
  int64_t total = 0;
  ends.mutable_at(0) = 0;
  for (size_t n = 0; n < columns.size(); ++n) ends.mutable_at(n + 1) = total += columns[n].items.size();
  Array<int32_t> ids(total);
  Array<float> weights(total);
  for (size_t n = 0; n < columns.size(); ++n) {
    std::copy(columns[n].items.begin(), columns[n].items.end(), ids.mutable_data() + ends.at(n));
    std::copy(columns[n].weights.begin(), columns[n].weights.end(), weights.mutable_data() + ends.at(n));
  }
  return py::make_tuple(ends, ids, weights);
}

}  // namespace

void bind_slim(py::module_& module) {
  module.def("slim_columns", &slim_columns, py::arg("offsets"), py::arg("items"), py::arg("counts"), py::arg("own"),
             py::arg("l1"), py::arg("l2"), py::arg("sweeps"), py::arg("tolerance"), py::arg("start"), py::arg("stop"),
             py::arg("threads"),
             "Columns start to stop of SLIM's weights as compressed columns (offsets, items, weights).");
}
