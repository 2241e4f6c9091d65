// Ranks and best items out of dense scores, and sums of weights between items: what evaluation does on the CPU.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Offsets = Array<int64_t>;
using Items = Array<int32_t>;

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr int64_t kInserted = 64;  // longer lists are sorted, shorter ones kept in order while the row is read
constexpr int64_t kLanes = 16;

// Compressed rows: row r is items[offsets[r]] to items[offsets[r + 1]]. What is used is checked, not all that is there.
struct Rows {
  const int64_t* offsets;
  const int32_t* items;
  int64_t count, size, num_items;

  Rows(const Offsets& given, const Items& listed, int64_t num_items)
      : offsets(given.data()),
        items(listed.data()),
        count(given.size() - 1),
        size(listed.size()),
        num_items(num_items) {}

  std::span<const int32_t> row(int64_t at) const {
    const bool is_there = 0 <= at && at < count;
    if (!is_there || offsets[at] < 0 || offsets[at] > offsets[at + 1] || offsets[at + 1] > size) {
      throw std::invalid_argument("offsets must ascend from 0 to the number of items, with a row for each user");
    }
    const std::span<const int32_t> found(items + offsets[at], items + offsets[at + 1]);
    bool is_inside = true;
    for (const int32_t item : found) is_inside &= 0 <= item && item < num_items;
    if (!is_inside) throw std::invalid_argument("items must lie in the catalogue");
    return found;
  }
};

// Numbers of scores that are at least `value`.
int64_t at_least(const float* scores, int64_t n, float value) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += scores[i] >= value;
  return count;
}

bool any_above(const float* scores, float value) {
  int above = 0;
  for (int64_t i = 0; i < kLanes; ++i) above |= scores[i] > value;
  return above != 0;
}

// The best `top` items of a row, the lower index first among equals; -1 where there is none with a score.
void best_items(const float* scores, int64_t n, int64_t top, int64_t* items, std::vector<float>& values) {
  std::fill(items, items + top, -1);
  const int64_t count = std::min(top, n);
  if (count > kInserted) {
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    const auto last = std::remove_if(order.begin(), order.end(), [&](int64_t i) { return !(scores[i] > kNothing); });
    const auto middle = order.begin() + std::min<int64_t>(count, last - order.begin());
    std::partial_sort(order.begin(), middle, last,
                      [&](int64_t a, int64_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
    std::copy(order.begin(), middle, items);
    return;
  }
  if (count == 0) return;
  values.assign(static_cast<size_t>(count), kNothing);
  float* best = values.data();
  const auto offer = [&](int64_t item) {
    int64_t at = count - 1;
    for (; at > 0 && scores[item] > best[at - 1]; --at) {
      best[at] = best[at - 1];
      items[at] = items[at - 1];
    }
    best[at] = scores[item];
    items[at] = item;
  };
  int64_t start = 0;
  for (; start + kLanes <= n; start += kLanes) {
    if (!any_above(scores + start, best[count - 1])) continue;
    for (int64_t i = start; i < start + kLanes; ++i) {
      if (scores[i] > best[count - 1]) offer(i);
    }
  }
  for (; start < n; ++start) {
    if (scores[start] > best[count - 1]) offer(start);
  }
}

// For each user the ranks of the positives, best first, the number of candidates, and the best items. Hidden items are
// no candidates; positives are, and are compared with the others alone. Overwrites the scores.
py::tuple rank_rows(Array<float> given, const Array<int64_t>& users, const std::pair<Offsets, Items>& positives,
                    const std::vector<std::pair<Offsets, Items>>& hidden, int64_t top) {
  if (given.ndim() != 2 || users.ndim() != 1 || users.size() != given.shape(0) || top < 0) {
    throw std::invalid_argument("rank_rows: scores [b, items], users [b] and top >= 0 are needed");
  }
  const int64_t num_rows = given.shape(0), num_items = given.shape(1);
  const Rows wanted(positives.first, positives.second, num_items);
  std::vector<Rows> masks;
  for (const auto& [offsets, items] : hidden) masks.emplace_back(offsets, items, num_items);
  int64_t total = 0;
  for (int64_t row = 0; row < num_rows; ++row) total += static_cast<int64_t>(wanted.row(users.data()[row]).size());
  Array<int64_t> ranks(total), candidates(num_rows), lists({num_rows, top});
  float* scores = given.mutable_data();
  int64_t *rank = ranks.mutable_data(), *candidate = candidates.mutable_data(), *list = lists.mutable_data();
  const int64_t* asked = users.data();
  {
    py::gil_scoped_release release;
    std::vector<float> values, best;
    for (int64_t row = 0; row < num_rows; ++row, scores += num_items, list += top) {
      const std::span<const int32_t> own = wanted.row(asked[row]);
      values.clear();
      for (const int32_t item : own) values.push_back(scores[item]);
      for (const Rows& mask : masks) {
        for (const int32_t item : mask.row(asked[row])) scores[item] = kNothing;
      }
      for (size_t at = 0; at < values.size(); ++at) scores[own[at]] = values[at];
      best_items(scores, num_items, top, list, best);
      int32_t out = 0;
      for (int64_t i = 0; i < num_items; ++i) out += scores[i] == kNothing;
      candidate[row] = num_items - out;
      for (const int32_t item : own) scores[item] = kNothing;
      std::sort(values.begin(), values.end(), [](float a, float b) { return a > b || (a == a && b != b); });
      for (size_t at = 0; at < values.size(); ++at) {
        *rank++ = 1 + static_cast<int64_t>(at) + at_least(scores, num_items, values[at]);
      }
    }
  }
  return py::make_tuple(ranks, candidates, lists);
}

// For each item the items of the largest shrunk cosine, lower `places` first among equals.
py::tuple item_neighbors(const Offsets& offsets, const Items& items, const Items& places, int64_t width,
                         double shrinkage) {
  const int64_t num_items = places.size();
  const Rows users(offsets, items, num_items);
  if (width < 0 || width > num_items) throw std::invalid_argument("item_neighbors: width must be in [0, num_items]");
  Array<int32_t> neighbors({num_items, width});
  Array<float> similarities({num_items, width});
  int32_t* neighbor = neighbors.mutable_data();
  float* similarity = similarities.mutable_data();
  const int32_t* place = places.data();
  {
    py::gil_scoped_release release;
    std::vector<int64_t> starts(static_cast<size_t>(num_items) + 1);
    for (int64_t user = 0; user < users.count; ++user) {
      for (const int32_t item : users.row(user)) ++starts[static_cast<size_t>(item) + 1];
    }
    std::vector<double> norms(static_cast<size_t>(num_items));
    for (size_t item = 0; item < norms.size(); ++item) {
      norms[item] = std::sqrt(static_cast<double>(starts[item + 1]));
      starts[item + 1] += starts[item];
    }
    std::vector<int32_t> owners(static_cast<size_t>(starts.back()));  // users by item
    std::vector<int64_t> at(starts.begin(), starts.end() - 1);
    for (int64_t user = 0; user < users.count; ++user) {
      for (const int32_t item : users.row(user)) {
        owners[static_cast<size_t>(at[static_cast<size_t>(item)]++)] = static_cast<int32_t>(user);
      }
    }
    std::vector<int32_t> counts(static_cast<size_t>(num_items)), met;
    std::vector<std::pair<float, int32_t>> found;
    for (int64_t item = 0; item < num_items; ++item, neighbor += width, similarity += width) {
      met.clear();
      found.clear();
      for (int64_t entry = starts[static_cast<size_t>(item)]; entry < starts[static_cast<size_t>(item) + 1]; ++entry) {
        const int32_t user = owners[static_cast<size_t>(entry)];
        // The rows were looked at above.
        for (int64_t place = users.offsets[user]; place < users.offsets[user + 1]; ++place) {
          const int32_t other = users.items[place];
          if (counts[static_cast<size_t>(other)]++ == 0) met.push_back(other);
        }
      }
      for (const int32_t other : met) {
        const auto j = static_cast<size_t>(other);
        const double scale = norms[static_cast<size_t>(item)] * norms[j] + shrinkage;
        if (other != item) found.emplace_back(static_cast<float>(counts[j] / scale), other);
        counts[j] = 0;
      }
      const auto middle = found.begin() + std::min<int64_t>(width, static_cast<int64_t>(found.size()));
      std::partial_sort(found.begin(), middle, found.end(), [&](const auto& a, const auto& b) {
        return a.first != b.first ? a.first > b.first : place[a.second] < place[b.second];
      });
      std::fill(neighbor, neighbor + width, 0);
      std::fill(similarity, similarity + width, 0.0f);
      for (auto one = found.begin(); one < middle; ++one) {
        similarity[one - found.begin()] = one->first;
        neighbor[one - found.begin()] = one->second;
      }
    }
  }
  return py::make_tuple(neighbors, similarities);
}

// scores[r, i] = sum over the items j of row r of the weight from j to i; sums in float64, whose order cannot be seen.
Array<float> sum_weights(const Offsets& offsets, const Items& items, const Offsets& weight_offsets,
                         const Items& weight_items, const Array<float>& weights) {
  const int64_t num_items = weight_offsets.size() - 1;
  const Rows rows(offsets, items, num_items), from(weight_offsets, weight_items, num_items);
  if (weights.size() != weight_items.size())
    throw std::invalid_argument("sum_weights: a weight for each item is needed");
  Array<float> scores({rows.count, num_items});
  float* score = scores.mutable_data();
  const float* weight = weights.data();
  {
    py::gil_scoped_release release;
    std::vector<double> sums(static_cast<size_t>(num_items));
    for (int64_t row = 0; row < rows.count; ++row, score += num_items) {
      for (const int32_t item : rows.row(row)) {
        const std::span<const int32_t> to = from.row(item);
        const float* its = weight + from.offsets[item];
        for (size_t entry = 0; entry < to.size(); ++entry) sums[static_cast<size_t>(to[entry])] += its[entry];
      }
      for (int64_t i = 0; i < num_items; ++i) score[i] = static_cast<float>(sums[static_cast<size_t>(i)]);
      std::fill(sums.begin(), sums.end(), 0.0);
    }
  }
  return scores;
}

}  // namespace

void bind_ranking(py::module_& module) {
  module.def("rank_rows", &rank_rows, py::arg("scores").noconvert(), py::arg("users"), py::arg("positives"),
             py::arg("hidden"), py::arg("top"),
             "Ranks [nnz], candidates [b] and lists [b, top]; overwrites the scores.");
  module.def("item_neighbors", &item_neighbors, py::arg("offsets"), py::arg("items"), py::arg("places"),
             py::arg("width"), py::arg("shrinkage"), "Neighbors and similarities, both [num_items, width].");
  module.def("sum_weights", &sum_weights, py::arg("offsets"), py::arg("items"), py::arg("weight_offsets"),
             py::arg("weight_items"), py::arg("weights"), "Scores [b, num_items].");
}
