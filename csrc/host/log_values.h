// What fields of text say: numbers, bags of tokens, and the rows that say nothing of use. Part of log.cpp.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "text_hash.h"

namespace {

namespace py = pybind11;
using deeprec::hash_value;

enum Reason { kNotANumber, kInfinite, kTooFew, kTooMany, kUnclosed, kBadWeight, kNotAnIndex, kUnknownField, kNotACode };

constexpr size_t kBadKept = 5;
constexpr size_t kTextKept = 60;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct BadRow {
  int64_t line;
  int64_t column;
  int reason;
  std::string text;
};

class BadRows {
 public:
  void add(int64_t line, int64_t column, int reason, std::string_view text) {
    ++count_;
    if (kept_.size() < kBadKept) kept_.push_back({line, column, reason, std::string(text.substr(0, kTextKept))});
  }

  int64_t count() const { return count_; }

  py::list list() const {
    py::list out;
    for (const BadRow& row : kept_) out.append(py::make_tuple(row.line, row.column, row.reason, py::bytes(row.text)));
    return out;
  }

 private:
  int64_t count_ = 0;
  std::vector<BadRow> kept_;
};

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool equals_lowered(std::string_view text, std::string_view lowered) {
  return text.size() == lowered.size() && std::equal(text.begin(), text.end(), lowered.begin(), [](char a, char b) {
           return (a >= 'A' && a <= 'Z' ? a + ('a' - 'A') : a) == b;
         });
}

constexpr double kPowers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                              1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

// Up to 8 digits and nothing else, without a branch on their number; false where it is anything else.
inline bool parse_digits(std::string_view text, const char* readable, double* value) {
  if (text.size() > 8) return false;
  const uint64_t word =
      readable - text.data() >= 8 ? deeprec::load_word(text.data(), 8) : deeprec::load_word(text.data(), text.size());
  // The digits as bytes 0 to 9, zeros before the first one, whose byte is the lowest.
  uint64_t digits = (word ^ 0x3030303030303030ull) << (64 - 8 * text.size());
  if (((digits + 0x7676767676767676ull) | digits) & 0x8080808080808080ull) return false;
  digits = digits * 10 + (digits >> 8);  // pairs
  digits = ((digits & 0x000000FF000000FFull) * 0x000F424000000064ull +
            ((digits >> 16) & 0x000000FF000000FFull) * 0x0000271000000001ull) >>
           32;
  *value = static_cast<double>(static_cast<uint32_t>(digits));
  return true;
}

// At most 15 digits, perhaps a sign and a point: an exact integer over an exact power of ten, so rounded once (Clinger
// 1990). False where it is anything else.
bool parse_short(std::string_view text, double* value) {
  size_t at = 0;
  const bool is_negative = text[0] == '-';
  if (is_negative) at = 1;
  if (text.size() - at > 16) return false;
  int64_t digits = 0;
  int count = 0;
  int fraction = -1;
  for (; at < text.size(); ++at) {
    const unsigned digit = static_cast<unsigned char>(text[at]) - static_cast<unsigned>('0');
    if (digit <= 9) {
      digits = digits * 10 + digit;
      ++count;
      fraction += fraction >= 0;
    } else if (text[at] == '.' && fraction < 0) {
      fraction = 0;
    } else {
      return false;
    }
  }
  if (count == 0 || count > 15) return false;
  const double whole = static_cast<double>(digits);
  const double magnitude = fraction > 0 ? whole / kPowers[fraction] : whole;
  *value = is_negative ? -magnitude : magnitude;
  return true;
}

// Whether a text stands for a missing number: the list of deeprec/data/reading/missing.py.
bool means_no_number(std::string_view text) {
  constexpr std::string_view kTexts[] = {"na", "n/a", "#n/a", "<na>", "nan", "null", "none", "\\n", "?", "-"};
  return std::any_of(std::begin(kTexts), std::end(kTexts),
                     [text](std::string_view known) { return equals_lowered(text, known); });
}

// -1 where it is a number (finite, or NaN spelled out), else why not.
int parse_number(std::string_view text, double* value) {
  if (parse_short(text, value)) return -1;
  std::string_view unsigned_text = text;
  if (text.front() == '+' || text.front() == '-') unsigned_text.remove_prefix(1);
  if (unsigned_text.empty()) {
    if (text != "-") return kNotANumber;
    *value = kNaN;
    return -1;
  }
  const char first = unsigned_text.front();
  if ((first >= '0' && first <= '9') || first == '.') {
    double parsed = 0;
    const char* end = unsigned_text.data() + unsigned_text.size();
    const auto [stop, error] = std::from_chars(unsigned_text.data(), end, parsed);
    if (stop != end || error == std::errc::invalid_argument) return kNotANumber;
    // Too large or too small for a double, which from_chars does not tell apart.
    if (error != std::errc()) parsed = std::strtod(std::string(unsigned_text).c_str(), nullptr);
    if (!std::isfinite(parsed)) return kInfinite;
    *value = text.front() == '-' ? -parsed : parsed;
    return -1;
  }
  if (equals_lowered(unsigned_text, "nan") || means_no_number(text)) {
    *value = kNaN;
    return -1;
  }
  if (equals_lowered(unsigned_text, "inf") || equals_lowered(unsigned_text, "infinity")) return kInfinite;
  const bool is_true = text == "true" || text == "True";
  if (!is_true && text != "false" && text != "False") return kNotANumber;
  *value = is_true ? 1.0 : 0.0;
  return -1;
}

uint64_t hash_view(std::string_view text, const char* readable) {
  return hash_value(text.data(), text.size(), readable);
}

// `readable` for a text that may lie in a buffer of its own.
const char* end_of(std::string_view text) { return text.data() + text.size(); }

using Codes = std::vector<std::pair<uint64_t, double>>;

// Tokens of a column of bags, row after row.
struct Bags {
  std::string separator;
  std::string weight_separator;
  std::vector<int64_t> offsets{0};
  std::vector<uint64_t> hashes;
  std::vector<float> weights;

  // The first bad token, or nothing; a bad row's tokens stay until `close` or `undo`.
  bool add(std::string_view text, std::string_view* bad) {
    while (!text.empty()) {
      const size_t end = separator.empty() ? std::string_view::npos : text.find(separator);
      std::string_view token = text.substr(0, end);
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + separator.size());
      token = trim(token);
      if (token.empty()) continue;
      if (!weight_separator.empty()) {
        const size_t at = token.rfind(weight_separator);
        double weight = 0;
        if (at == std::string_view::npos || trim(token.substr(0, at)).empty() ||
            !parse_weight(token.substr(at + weight_separator.size()), &weight)) {
          *bad = token;
          return false;
        }
        weights.push_back(static_cast<float>(weight));
        token = trim(token.substr(0, at));
      }
      hashes.push_back(hash_view(token, end_of(token)));
    }
    return true;
  }

  static bool parse_weight(std::string_view text, double* weight) {
    text = trim(text);
    if (text.empty()) return false;
    const char last = text.back();  // no words: "nan", "true"
    return ((last >= '0' && last <= '9') || last == '.') && parse_number(text, weight) < 0 &&
           std::fabs(*weight) <= std::numeric_limits<float>::max();
  }

  void close() { offsets.push_back(static_cast<int64_t>(hashes.size())); }

  void undo() {
    hashes.resize(static_cast<size_t>(offsets.back()));
    if (!weight_separator.empty()) weights.resize(hashes.size());
  }
};

template <typename T>
py::array_t<T> hand_over(std::vector<T>&& values) {
  auto* owner = new std::vector<T>(std::move(values));
  py::capsule free(owner, [](void* pointer) { delete static_cast<std::vector<T>*>(pointer); });
  return py::array_t<T>(static_cast<py::ssize_t>(owner->size()), owner->data(), free);
}

py::tuple hand_over_bags(Bags&& bags) {
  py::object weights = py::none();
  if (!bags.weight_separator.empty()) weights = hand_over(std::move(bags.weights));
  return py::make_tuple(hand_over(std::move(bags.offsets)), hand_over(std::move(bags.hashes)), weights);
}

}  // namespace
