// Blocks of text to columns of hashes, numbers and bags, one pass, no Python object a field. What each function means
// is said, and done more slowly, in deeprec/data/reading/separated.py and deeprec/data/reading/hashing.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "log_pairs.h"
#include "log_reader.h"
#include "log_values.h"
#include "text_hash.h"

namespace {

enum Kind : unsigned char { kHash = 1, kNumber = 2, kBag = 4 };

// One piece of memory for the columns of a block: on large pages, as ten thousand page faults a block would take a
// quarter of the time.
class Arena {
 public:
  explicit Arena(size_t bytes) {
#if defined(__linux__)
    if (bytes >= 2 * kLargePage) {
      if (posix_memalign(&memory_, kLargePage, bytes) != 0) throw std::bad_alloc();
      madvise(memory_, bytes, MADV_HUGEPAGE);  // a hint
      return;
    }
#endif
    memory_ = std::malloc(std::max<size_t>(bytes, 1));
    if (!memory_) throw std::bad_alloc();
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { std::free(memory_); }

  // The next `count` numbers, at the beginning of a cache line.
  template <typename T>
  T* take(size_t count) {
    T* start = reinterpret_cast<T*>(static_cast<char*>(memory_) + used_);
    used_ += bytes_of<T>(count);
    return start;
  }

  template <typename T>
  static size_t bytes_of(size_t count) {
    return (count * sizeof(T) + 63) / 64 * 64;
  }

 private:
  static constexpr size_t kLargePage = 2 << 20;
  void* memory_ = nullptr;
  size_t used_ = 0;
};

struct Column {
  unsigned char kind = 0;
  uint64_t* hashes = nullptr;
  double* numbers = nullptr;
  Bags* bags = nullptr;
  const Codes* codes = nullptr;
};

struct Wrong {
  int64_t column = -1;
  int reason = 0;
  std::string text;
};

class RowParser {
 public:
  RowParser(std::vector<Column> columns, std::vector<uint64_t> missing)
      : columns_(std::move(columns)), missing_(std::move(missing)) {}

  int64_t run(std::string_view text, std::string_view separator, std::string_view quote, BadRows* bad, int64_t* lines) {
    if (separator.size() == 1 && (quote.empty() || text.find(quote) == std::string_view::npos)) {
      read_rows(PlainReader(text, separator[0]), text, bad, lines);
    } else {
      read_rows(Reader(text, separator, quote), text, bad, lines);
    }
    return row_;
  }

 private:
  template <typename AnyReader>
  void read_rows(AnyReader reader, std::string_view text, BadRows* bad, int64_t* lines) {
    while (!reader.done()) {
      const int64_t line = reader.line();
      if (!read_row(&reader, text.data() + text.size())) continue;
      if (wrong_.column < 0) {
        for (Column& column : columns_) {
          if (column.bags) column.bags->close();
        }
        ++row_;
        continue;
      }
      bad->add(line, wrong_.column, wrong_.reason, wrong_.text);
      for (Column& column : columns_) {
        if (column.bags) column.bags->undo();
      }
    }
    *lines = reader.line();
  }

  // False for a blank row; else `wrong_` says whether and why it is bad.
  template <typename AnyReader>
  bool read_row(AnyReader* reader, const char* readable) {
    const int64_t count = static_cast<int64_t>(columns_.size());
    wrong_.column = -1;
    int64_t at = 0;
    Field field;
    for (;; ++at) {
      field = reader->next();
      if (at == 0 && field.is_last && !field.is_quoted && field.text.find_first_not_of(' ') == std::string_view::npos) {
        return false;
      }
      if (at < count) {
        read_field(at, field, readable);
      } else if (at == count && wrong_.column < 0) {
        note(count, kTooMany, field.text);
      }
      if (field.is_last) break;
    }
    if (!field.is_closed) {
      note(at, kUnclosed, field.text);
    } else if (at + 1 < count && wrong_.column < 0) {
      note(at + 1, kTooFew, std::to_string(at + 1));
    }
    return true;
  }

  void read_field(int64_t at, const Field& field, const char* readable) {
    Column& column = columns_[static_cast<size_t>(at)];
    if (!column.kind || wrong_.column >= 0) return;
    const std::string_view text = field.text;
    if (column.kind & kHash) {
      const std::string_view value = trim(text);
      uint64_t hash = hash_view(value, field.is_quoted ? end_of(value) : readable);
      if (!missing_.empty() && is_missing(hash)) hash = 0;
      column.hashes[row_] = hash;
    }
    if (column.kind & kNumber) {
      const int reason =
          read_number(column, trim(text), field.is_quoted ? end_of(text) : readable, &column.numbers[row_]);
      if (reason >= 0) note(at, reason, text);
    }
    if (column.bags && wrong_.column < 0) {
      std::string_view bad;
      const bool is_empty = !missing_.empty() && is_missing(hash_view(trim(text), end_of(trim(text))));
      if (!is_empty && !column.bags->add(text, &bad)) note(at, kBadWeight, bad);
    }
  }

  int read_number(const Column& column, std::string_view text, const char* readable, double* value) const {
    if (text.empty() || (!missing_.empty() && is_missing(hash_view(text, end_of(text))))) {
      *value = kNaN;
      return -1;
    }
    if (!column.codes) return parse_digits(text, readable, value) ? -1 : parse_number(text, value);
    const uint64_t hash = hash_view(text, end_of(text));
    for (const auto& [known, code] : *column.codes) {
      if (known == hash) {
        *value = code;
        return -1;
      }
    }
    return kNotACode;
  }

  bool is_missing(uint64_t hash) const { return std::find(missing_.begin(), missing_.end(), hash) != missing_.end(); }

  void note(int64_t column, int reason, std::string_view text) {
    wrong_.column = column;
    wrong_.reason = reason;
    wrong_.text = std::string(text.substr(0, kTextKept));
  }

  std::vector<Column> columns_;
  std::vector<uint64_t> missing_;
  int64_t row_ = 0;
  Wrong wrong_;
};

// The bytes of a Python buffer; made and destroyed with the GIL held, read without it.
class Text {
 public:
  explicit Text(const py::buffer& data) : info_(data.request()) {
    if (info_.ndim != 1 || info_.itemsize != 1 || info_.strides[0] != 1) {
      throw std::invalid_argument("parse_log: data must be contiguous bytes");
    }
  }

  std::string_view view() const { return {static_cast<const char*>(info_.ptr), static_cast<size_t>(info_.size)}; }

 private:
  py::buffer_info info_;
};

void check_dialect(const std::string& separator, const std::string& quote) {
  const bool is_good = !separator.empty() && quote.size() <= 1 &&
                       separator.find_first_of(std::string("\r\n") + quote) == std::string::npos &&
                       separator.find('\0') == std::string::npos && quote != "\n" && quote != "\r";
  if (!is_good) {
    throw std::invalid_argument(
        "parse_log: separator must be one or more characters other than line ends and the quote, and quote one "
        "character "
        "or none, got '" +
        separator + "' and '" + quote + "'");
  }
}

py::tuple parse_log(const py::buffer& data, const std::string& separator, const std::string& quote,
                    const std::vector<uint64_t>& missing, const py::bytes& kinds,
                    const std::vector<std::pair<std::string, std::string>>& bag_separators,
                    const std::map<int64_t, Codes>& codes) {
  check_dialect(separator, quote);
  const Text held(data);
  const std::string_view text = held.view();
  const std::string_view kind_bytes = kinds;
  if (kind_bytes.empty()) throw std::invalid_argument("parse_log: kinds must name at least one column");
  size_t lines_at_most;
  {
    py::gil_scoped_release release;
    lines_at_most = count_feeds(text) + 1;
  }
  // A row with F fields is at least F bytes long, so that no text asks for more than 8 bytes for each of its own.
  const size_t rows_at_most = std::min(lines_at_most, text.size() / kind_bytes.size() + 1);
  std::vector<Column> columns(kind_bytes.size());
  size_t arrays = 0;
  for (const char kind : kind_bytes) arrays += ((kind & kHash) != 0) + ((kind & kNumber) != 0);
  auto* arena = new Arena(arrays * Arena::bytes_of<double>(rows_at_most));
  const py::capsule owner(arena, [](void* pointer) { delete static_cast<Arena*>(pointer); });
  std::vector<Bags> bags(bag_separators.size());
  size_t next_bag = 0;
  for (size_t at = 0; at < columns.size(); ++at) {
    Column& column = columns[at];
    column.kind = static_cast<unsigned char>(kind_bytes[at]);
    if (column.kind & kHash) column.hashes = arena->take<uint64_t>(rows_at_most);
    if (column.kind & kNumber) {
      column.numbers = arena->take<double>(rows_at_most);
      const auto code = codes.find(static_cast<int64_t>(at));
      if (code != codes.end()) column.codes = &code->second;
    }
    if (column.kind & kBag) {
      if (next_bag == bags.size()) throw std::invalid_argument("parse_log: each column of bags needs its separators");
      bags[next_bag].separator = bag_separators[next_bag].first;
      bags[next_bag].weight_separator = bag_separators[next_bag].second;
      column.bags = &bags[next_bag++];
    }
  }
  RowParser parser(columns, missing);
  BadRows bad;
  int64_t rows = 0;
  int64_t lines = 0;
  {
    py::gil_scoped_release release;
    rows = parser.run(text, separator, quote, &bad, &lines);
  }
  py::dict named_hashes, named_numbers, named_bags;
  for (size_t at = 0; at < columns.size(); ++at) {
    const py::int_ name(at);
    if (columns[at].hashes) named_hashes[name] = py::array_t<uint64_t>(rows, columns[at].hashes, owner);
    if (columns[at].numbers) named_numbers[name] = py::array_t<double>(rows, columns[at].numbers, owner);
    if (columns[at].bags) named_bags[name] = hand_over_bags(std::move(*columns[at].bags));
  }
  return py::make_tuple(rows, named_hashes, named_numbers, named_bags, lines, bad.count(), bad.list());
}

size_t cut_log(const py::buffer& data, const std::string& separator, const std::string& quote) {
  check_dialect(separator, quote);
  const Text held(data);
  const std::string_view text = held.view();
  py::gil_scoped_release release;
  const size_t first_quote = quote.empty() ? std::string_view::npos : text.find(quote[0]);
  if (first_quote == std::string_view::npos) return text.rfind('\n') + 1;  // npos + 1 is 0
  // Up to the line of the first quote all line feeds end rows.
  const size_t start = text.substr(0, first_quote).rfind('\n') + 1;
  Reader reader(text.substr(start), separator, quote);
  size_t end = 0;
  while (!reader.done()) {
    while (!reader.next().is_last) {
    }
    if (reader.has_end()) end = reader.position();
  }
  return start + end;
}

py::tuple parse_pairs(const py::buffer& data, int mode, const std::vector<int64_t>& fields) {
  const Text held(data);
  const std::string_view text = held.view();
  PairParser parser(static_cast<PairParser::Mode>(mode), fields);
  {
    py::gil_scoped_release release;
    parser.run(text);
  }
  return parser.result();
}

using Offsets = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

void check_offsets(const Offsets& offsets, size_t size) {
  const int64_t* at = offsets.data();
  const py::ssize_t count = offsets.size();
  bool is_good = offsets.ndim() == 1 && count >= 1 && at[0] >= 0 && static_cast<uint64_t>(at[count - 1]) <= size;
  for (py::ssize_t i = 1; is_good && i < count; ++i) is_good = at[i] >= at[i - 1];
  if (!is_good) {
    throw std::invalid_argument("hash_buffers: offsets must be [n + 1], ascending from 0 or above to at most the " +
                                std::to_string(size) + " bytes of data");
  }
}

py::array_t<uint64_t> hash_buffers(const Offsets& offsets, const py::buffer& data) {
  const py::buffer_info info = data.request();
  const size_t size = static_cast<size_t>(info.size * info.itemsize);
  check_offsets(offsets, size);
  const py::ssize_t count = offsets.size() - 1;
  py::array_t<uint64_t> out(count);
  uint64_t* hashes = out.mutable_data();
  const int64_t* at = offsets.data();
  const char* text = static_cast<const char*>(info.ptr);
  {
    py::gil_scoped_release release;
    for (py::ssize_t i = 0; i < count; ++i) {
      hashes[i] = hash_value(text + at[i], static_cast<size_t>(at[i + 1] - at[i]), text + size);
    }
  }
  return out;
}

// Integers by their decimal text, which is written nowhere else.
template <typename T>
py::array_t<uint64_t> hash_integers(const py::array_t<T, py::array::c_style>& values) {
  const py::ssize_t count = values.size();
  py::array_t<uint64_t> out(count);
  uint64_t* hashes = out.mutable_data();
  const T* given = values.data();
  {
    py::gil_scoped_release release;
    char text[32] = {};
    for (py::ssize_t i = 0; i < count; ++i) {
      const auto written = std::to_chars(text, text + sizeof text, given[i]);
      hashes[i] = deeprec::hash_words(text, static_cast<size_t>(written.ptr - text), text + sizeof text);
    }
  }
  return out;
}

// Bags out of a column of texts (of a frame): (offsets, hashes, weights), bad rows as (row, 0, reason, text).
py::tuple parse_bags(const Offsets& offsets, const py::buffer& data, const std::string& separator,
                     const std::string& weight_separator, const std::vector<uint64_t>& missing) {
  const py::buffer_info info = data.request();
  const size_t size = static_cast<size_t>(info.size * info.itemsize);
  check_offsets(offsets, size);
  const int64_t* at = offsets.data();
  const py::ssize_t count = offsets.size() - 1;
  const char* text = static_cast<const char*>(info.ptr);
  Bags bags;
  bags.separator = separator;
  bags.weight_separator = weight_separator;
  std::vector<int64_t> bad_rows;
  BadRows bad;
  {
    py::gil_scoped_release release;
    for (py::ssize_t i = 0; i < count; ++i) {
      const std::string_view row = trim({text + at[i], static_cast<size_t>(at[i + 1] - at[i])});
      const bool is_empty =
          !missing.empty() && std::find(missing.begin(), missing.end(), hash_view(row, end_of(row))) != missing.end();
      std::string_view token;
      if (!is_empty && !bags.add(row, &token)) {
        bad.add(i, 0, kBadWeight, token);
        bad_rows.push_back(i);
        bags.undo();
      }
      bags.close();
    }
  }
  return py::make_tuple(hand_over_bags(std::move(bags)), hand_over(std::move(bad_rows)), bad.list());
}

}  // namespace

void bind_log(py::module_& module) {
  module.attr("LOG_VERSION") = 2;  // that of deeprec/_compiled.py
  module.def("parse_log", &parse_log, py::arg("data"), py::arg("separator"), py::arg("quote"), py::arg("missing"),
             py::arg("kinds"), py::arg("bag_separators"), py::arg("codes"),
             "Columns of separated text; see deeprec.data.reading.separated.parse_log.");
  module.def("cut_log", &cut_log, py::arg("data"), py::arg("separator"), py::arg("quote"),
             "Length of the whole rows at the beginning of a text.");
  module.def("parse_pairs", &parse_pairs, py::arg("data"), py::arg("mode"), py::arg("fields"),
             "Labels and bags of libsvm (mode 0), libffm (1) or libsvm by place (2).");
  module.def("hash_buffers", &hash_buffers, py::arg("offsets"), py::arg("data"),
             "Hash of each text of an Arrow string buffer; see deeprec.data.reading.hashing.");
  module.def("hash_integers", &hash_integers<int64_t>, py::arg("values").noconvert(), "Hash of each integer's text.");
  module.def("hash_integers", &hash_integers<uint64_t>, py::arg("values").noconvert());
  module.def("parse_bags", &parse_bags, py::arg("offsets"), py::arg("data"), py::arg("separator"),
             py::arg("weight_separator"), py::arg("missing"), "Bags of a column of texts.");
}
