// Distinct 64-bit values with their counts, or their ids: an open-addressing table with 16 bytes a slot, asked a batch
// at a time so that the cache misses of a batch overlap. What it means, and more slowly: PythonVocabulary in
// deeprec/data/reading/hashing.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace py = pybind11;

namespace {

constexpr size_t kBatch = 32;
constexpr size_t kHugePage = 2 << 20;

struct Slot {
  uint64_t key;  // 0: empty, as the value 0 has a place of its own
  int64_t value;
};

struct Free {
  void operator()(Slot* slots) const { std::free(slots); }
};

// Key to value. Grows to twice its size when 70% full.
class Table {
 public:
  Table() { allocate(1024); }

  size_t size() const { return used_; }
  size_t bytes() const { return capacity_ * sizeof(Slot); }

  void reserve(size_t keys) {
    size_t capacity = capacity_;
    while (keys * 10 > capacity * 7) capacity *= 2;
    if (capacity == capacity_) return;
    const std::unique_ptr<Slot[], Free> old = std::move(slots_);
    const size_t old_capacity = capacity_;
    allocate(capacity);
    for (size_t start = 0; start < old_capacity; start += kBatch) {
      const size_t stop = std::min(start + kBatch, old_capacity);
      for (size_t at = start; at < stop; ++at) prefetch(old[at].key);
      for (size_t at = start; at < stop; ++at) {
        if (old[at].key) *find(old[at].key) = old[at];
      }
    }
  }

  void prefetch(uint64_t key) const { __builtin_prefetch(&slots_[start_of(key)], 1); }

  // The slot of `key`, or the empty one where it belongs.
  Slot* find(uint64_t key) const {
    size_t at = start_of(key);
    while (slots_[at].key != key && slots_[at].key) at = (at + 1) & (capacity_ - 1);
    return &slots_[at];
  }

  // Room for it must have been reserved.
  void add(uint64_t key, int64_t amount) {
    Slot* slot = find(key);
    used_ += slot->key == 0;
    slot->key = key;
    slot->value += amount;
  }

  template <typename Function>
  void each(Function function) const {
    for (size_t at = 0; at < capacity_; ++at) {
      if (slots_[at].key) function(slots_[at]);
    }
  }

 private:
  // Hashes of text are mixed already; crosses and other keys of a caller may be not.
  size_t start_of(uint64_t key) const { return static_cast<size_t>((key * 0x9E3779B97F4A7C15ull) >> shift_); }

  void allocate(size_t capacity) {
    const size_t size = capacity * sizeof(Slot);
    void* memory = nullptr;
    if (size >= 2 * kHugePage) {
      if (posix_memalign(&memory, kHugePage, size) != 0) throw std::bad_alloc();
#if defined(__linux__)
      madvise(memory, size, MADV_HUGEPAGE);  // a table that is read at random misses the TLB on small pages; optional
#endif
    } else {
      memory = std::malloc(size);
      if (!memory) throw std::bad_alloc();
    }
    std::fill_n(static_cast<Slot*>(memory), capacity, Slot{0, 0});
    slots_.reset(static_cast<Slot*>(memory));
    capacity_ = capacity;
    shift_ = 64;
    while (capacity > 1) {
      capacity /= 2;
      --shift_;
    }
  }

  std::unique_ptr<Slot[], Free> slots_;
  size_t capacity_ = 0;
  size_t used_ = 0;
  int shift_ = 0;
};

using Keys = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>;
using Mask = py::array_t<bool, py::array::c_style | py::array::forcecast>;

class Vocabulary {
 public:
  Vocabulary() = default;

  explicit Vocabulary(const Keys& hashes) : has_ids_(true) {
    if (hashes.ndim() != 1) throw std::invalid_argument("Vocabulary: hashes must be [n]");
    const uint64_t* keys = hashes.data();
    const size_t count = static_cast<size_t>(hashes.size());
    bool is_twice = false;
    {
      py::gil_scoped_release release;
      table_.reserve(count);
      for (size_t start = 0; start < count; start += kBatch) {
        const size_t stop = std::min(start + kBatch, count);
        for (size_t at = start; at < stop; ++at) table_.prefetch(keys[at]);
        for (size_t at = start; at < stop; ++at) is_twice |= !set_id(keys[at], static_cast<int64_t>(at + 1));
      }
    }
    if (is_twice) {
      throw std::invalid_argument("Vocabulary: hashes must be distinct, got one twice; pass what finish() returned");
    }
  }

  size_t size() const { return table_.size() + (zero_ != 0); }
  size_t bytes() const { return table_.bytes(); }

  void count(const Keys& hashes, const std::optional<Mask>& mask) {
    if (has_ids_) throw std::invalid_argument("Vocabulary.count: this one has its ids; count into a new Vocabulary()");
    if (mask && (mask->ndim() != hashes.ndim() || mask->size() != hashes.size())) {
      throw std::invalid_argument("Vocabulary.count: mask must be (" + std::to_string(hashes.size()) + ",), got (" +
                                  std::to_string(mask->size()) + ",)");
    }
    const uint64_t* keys = hashes.data();
    const bool* counts = mask ? mask->data() : nullptr;
    const size_t size = static_cast<size_t>(hashes.size());
    py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t start = 0; start < size; start += kBatch) {
      const size_t stop = std::min(start + kBatch, size);
      table_.reserve(table_.size() + kBatch);
      for (size_t at = start; at < stop; ++at) table_.prefetch(keys[at]);
      for (size_t at = start; at < stop; ++at) {
        if (counts && !counts[at]) continue;
        if (keys[at]) {
          table_.add(keys[at], 1);
        } else {
          ++zero_;
        }
      }
    }
  }

  py::tuple finish(int64_t min_count, std::optional<int64_t> max_size) {
    std::vector<std::pair<int64_t, uint64_t>> words;  // (-count, hash), to be put in ascending order
    {
      py::gil_scoped_release release;
      const std::lock_guard<std::mutex> lock(mutex_);
      if (zero_ && zero_ >= min_count) words.emplace_back(-zero_, 0);
      size_t kept = 0;
      table_.each([&](const Slot& slot) { kept += slot.value >= min_count; });
      words.reserve(words.size() + kept);
      table_.each([&](const Slot& slot) {
        if (slot.value >= min_count) words.emplace_back(-slot.value, slot.key);
      });
      if (max_size && static_cast<size_t>(std::max<int64_t>(*max_size, 0)) < words.size()) {
        const auto border = words.begin() + std::max<int64_t>(*max_size, 0);
        std::nth_element(words.begin(), border, words.end());
        words.erase(border, words.end());
      }
      std::sort(words.begin(), words.end());
    }
    const py::ssize_t size = static_cast<py::ssize_t>(words.size());
    py::array_t<uint64_t> hashes(size);
    py::array_t<int64_t> counts(size);
    uint64_t* hash = hashes.mutable_data();
    int64_t* count = counts.mutable_data();
    for (py::ssize_t at = 0; at < size; ++at) {
      hash[at] = words[static_cast<size_t>(at)].second;
      count[at] = -words[static_cast<size_t>(at)].first;
    }
    return py::make_tuple(hashes, counts);
  }

  py::array_t<int32_t> lookup(const Keys& hashes) const {
    if (!has_ids_) {
      throw std::invalid_argument(
          "Vocabulary.lookup: this one counts; make Vocabulary(hashes) of what finish() returned");
    }
    const uint64_t* keys = hashes.data();
    const size_t size = static_cast<size_t>(hashes.size());
    py::array_t<int32_t> out(static_cast<py::ssize_t>(size));
    int32_t* ids = out.mutable_data();
    {
      py::gil_scoped_release release;
      for (size_t start = 0; start < size; start += kBatch) {
        const size_t stop = std::min(start + kBatch, size);
        for (size_t at = start; at < stop; ++at) table_.prefetch(keys[at]);
        // An empty slot holds 0, the id of an unknown value.
        for (size_t at = start; at < stop; ++at) {
          ids[at] = static_cast<int32_t>(keys[at] ? table_.find(keys[at])->value : zero_);
        }
      }
    }
    return out;
  }

 private:
  bool set_id(uint64_t key, int64_t id) {
    if (key == 0) return std::exchange(zero_, id) == 0;
    if (table_.find(key)->key) return false;
    table_.add(key, id);
    return true;
  }

  Table table_;
  int64_t zero_ = 0;  // count or id of the value 0
  bool has_ids_ = false;
  std::mutex mutex_;
};

}  // namespace

void bind_vocabulary(py::module_& module) {
  py::class_<Vocabulary>(module, "Vocabulary",
                         "Counts of distinct values, or their ids; see deeprec.data.reading.hashing.")
      .def(py::init<>())
      .def(py::init<const Keys&>(), py::arg("hashes"))
      .def("__len__", &Vocabulary::size)
      .def_property_readonly("nbytes", &Vocabulary::bytes)
      .def("count", &Vocabulary::count, py::arg("hashes"), py::arg("mask") = py::none())
      .def("finish", &Vocabulary::finish, py::arg("min_count") = 1, py::arg("max_size") = py::none())
      .def("lookup", &Vocabulary::lookup, py::arg("hashes"));
}
