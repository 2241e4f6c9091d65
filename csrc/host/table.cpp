// Numbers out of separated text ("1::1193::5::978300760"), one pass, without a Python object per field.
// polars reads one-byte separators only, and names no line when a number is wrong.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace py = pybind11;

namespace {

constexpr size_t kErrorsKept = 5;

struct Column {
  char kind;  // 'i' int64, 'f' float64, '-' skipped
  std::vector<int64_t> integers;
  std::vector<double> floats;
};

struct BadField {
  int64_t line;
  int column;
  std::string text;
};

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

template <typename T>
bool parse_number(std::string_view text, T* value) {
  text = trim(text);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

// Parses one line into every column, or none: returns the number of the first bad field, or -1.
int parse_line(std::string_view line, std::string_view separator, std::vector<Column>& columns, std::string_view* bad) {
  const int count = static_cast<int>(columns.size());
  int done = 0;
  for (; done < count; ++done) {
    const size_t end = line.find(separator);
    const std::string_view field = line.substr(0, end);
    Column& column = columns[done];
    bool is_number = true;
    if (column.kind == 'i') {
      int64_t value = 0;
      is_number = parse_number(field, &value);
      if (is_number) column.integers.push_back(value);
    } else if (column.kind == 'f') {
      double value = 0;
      is_number = parse_number(field, &value) && std::isfinite(value);
      if (is_number) column.floats.push_back(value);
    }
    const bool last = end == std::string_view::npos;
    if (!is_number || (last && done + 1 < count)) {
      *bad = is_number ? std::string_view() : field;
      const int at = is_number ? done + 1 : done;
      for (int undo = 0; undo < (is_number ? done + 1 : done); ++undo) {
        if (columns[undo].kind == 'i') columns[undo].integers.pop_back();
        if (columns[undo].kind == 'f') columns[undo].floats.pop_back();
      }
      return at;
    }
    if (!last) line.remove_prefix(end + separator.size());
  }
  return -1;
}

template <typename T>
py::array_t<T> hand_over(std::vector<T>&& values) {
  auto* owner = new std::vector<T>(std::move(values));
  py::capsule free(owner, [](void* pointer) { delete static_cast<std::vector<T>*>(pointer); });
  return py::array_t<T>(static_cast<py::ssize_t>(owner->size()), owner->data(), free);
}

py::tuple parse_table(const py::bytes& data, const std::string& separator, const std::string& kinds) {
  if (separator.empty() || kinds.empty() || kinds.find_first_not_of("if-") != std::string::npos) {
    throw std::invalid_argument("parse_table: a separator and kinds of 'i', 'f' and '-' are required, got '" +
                                separator + "' and '" + kinds + "'");
  }
  const std::string_view text = data;
  std::vector<Column> columns;
  for (const char kind : kinds) columns.push_back(Column{kind, {}, {}});
  std::vector<BadField> errors;
  std::vector<int64_t> bad_lines;
  {
    py::gil_scoped_release release;
    const size_t lines = static_cast<size_t>(std::count(text.begin(), text.end(), '\n')) + 1;
    for (Column& column : columns) {
      if (column.kind == 'i') column.integers.reserve(lines);
      if (column.kind == 'f') column.floats.reserve(lines);
    }
    int64_t number = 0;
    for (size_t start = 0; start < text.size();) {
      const void* newline = std::memchr(text.data() + start, '\n', text.size() - start);
      const size_t end = newline ? static_cast<const char*>(newline) - text.data() : text.size();
      std::string_view line = text.substr(start, end - start);
      start = end + 1;
      ++number;
      if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
      if (trim(line).empty()) continue;
      std::string_view bad;
      const int column = parse_line(line, separator, columns, &bad);
      if (column < 0) continue;
      bad_lines.push_back(number);
      if (errors.size() < kErrorsKept) errors.push_back(BadField{number, column, std::string(bad.substr(0, 60))});
    }
  }
  py::list arrays;
  for (Column& column : columns) {
    if (column.kind == 'i') arrays.append(hand_over(std::move(column.integers)));
    if (column.kind == 'f') arrays.append(hand_over(std::move(column.floats)));
  }
  py::list named;
  for (const BadField& error : errors) named.append(py::make_tuple(error.line, error.column, py::bytes(error.text)));
  return py::make_tuple(arrays, hand_over(std::move(bad_lines)), named);
}

}  // namespace

void bind_table(py::module_& module) {
  module.def(
      "parse_table", &parse_table, py::arg("data"), py::arg("separator"), py::arg("kinds"),
      "Numbers of a separated text, one pass.\n\n"
      "kinds: one letter a column, 'i' int64, 'f' finite float64, '-' skipped; further columns are ignored.\n"
      "Returns (arrays of the lines that were read, int64 numbers of the others from 1,\n"
      "[(line, column from 0, text)] of the first five fields that are no numbers). Blank lines are passed over.");
}
