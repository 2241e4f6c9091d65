// Rows of libsvm and libffm files to labels and bags. Part of log.cpp.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "log_reader.h"
#include "log_values.h"

namespace {

// Rows of "label index:value ..." (libsvm), "label field:index:value ..." (libffm), or libsvm with a column a place.
class PairParser {
 public:
  enum Mode { kOneBag, kByField, kByPlace };

  PairParser(Mode mode, const std::vector<int64_t>& fields) : mode_(mode), bags_(mode == kOneBag ? 1 : fields.size()) {
    for (Bags& bag : bags_) bag.weight_separator = ":";
    for (size_t at = 0; at < fields.size(); ++at) slots_[fields[at]] = at;
  }

  void run(std::string_view text) {
    int64_t line = 0;
    for (size_t start = 0; start < text.size(); ++line) {
      const size_t feed = text.find('\n', start);
      const size_t end = feed == std::string_view::npos ? text.size() : feed;
      read_row(text.substr(start, end - start), line);
      start = end + 1;
    }
    lines_ = static_cast<int64_t>(count_feeds(text));
  }

  py::tuple result() {
    const int64_t rows = static_cast<int64_t>(labels_.size());
    py::list bags;
    for (Bags& bag : bags_) bags.append(hand_over_bags(std::move(bag)));
    return py::make_tuple(rows, hand_over(std::move(labels_)), bags, lines_, bad_.count(), bad_.list());
  }

 private:
  static bool is_blank(char byte) { return byte == ' ' || byte == '\t' || byte == '\r'; }

  // The next token, or an empty one at the end of the row or at a comment.
  static std::string_view take_token(std::string_view* row) {
    size_t start = 0;
    while (start < row->size() && is_blank((*row)[start])) ++start;
    size_t end = start;
    while (end < row->size() && !is_blank((*row)[end])) ++end;
    const std::string_view token = row->substr(start, end - start);
    row->remove_prefix(end);
    return !token.empty() && token.front() == '#' ? std::string_view() : token;
  }

  void read_row(std::string_view row, int64_t line) {
    const std::string_view label_text = take_token(&row);
    if (label_text.empty()) return;
    double label = 0;
    int reason = parse_number(label_text, &label);
    if (reason < 0 && std::isnan(label)) reason = kNotANumber;
    int64_t column = 0;
    std::string_view bad = label_text;
    size_t place = 0;
    std::string count;
    while (reason < 0) {
      const std::string_view token = take_token(&row);
      if (token.empty()) break;
      reason = read_token(token, place++, &column);
      bad = token;
    }
    if (reason < 0 && mode_ == kByPlace && place != bags_.size()) {
      reason = place < bags_.size() ? kTooFew : kTooMany;
      column = static_cast<int64_t>(place) + 1;
      count = std::to_string(place);
      bad = count;
    }
    if (reason < 0) {
      labels_.push_back(label == -1.0 ? 0.0 : label);
      for (Bags& bag : bags_) bag.close();
    } else {
      bad_.add(line, column, reason, bad);
      for (Bags& bag : bags_) bag.undo();
    }
  }

  int read_token(std::string_view token, size_t place, int64_t* column) {
    size_t slot = 0;
    std::string_view rest = token;
    *column = static_cast<int64_t>(bags_.size()) + 1;  // of no field that is known
    if (mode_ == kByField) {
      int64_t number = 0;
      if (!take_integer(&rest, &number)) return kNotAnIndex;
      const auto known = slots_.find(number);
      if (known == slots_.end()) return kUnknownField;
      slot = known->second;
    } else if (mode_ == kByPlace) {
      if (place >= bags_.size()) return -1;  // counted by the caller
      slot = place;
    }
    *column = static_cast<int64_t>(slot) + 1;
    const char* start = rest.data();
    int64_t index = 0;
    if (!take_integer(&rest, &index)) return kNotAnIndex;
    double weight = 0;
    if (!Bags::parse_weight(rest, &weight)) return kBadWeight;
    size_t size = static_cast<size_t>(rest.data() - 1 - start);
    for (; size > 1 && *start == '0'; --size) ++start;  // 007 is 7
    bags_[slot].hashes.push_back(deeprec::hash_words(start, size, start + size));
    bags_[slot].weights.push_back(static_cast<float>(weight));
    return -1;
  }

  // Takes "123:" off the front.
  static bool take_integer(std::string_view* text, int64_t* value) {
    const auto [stop, error] = std::from_chars(text->data(), text->data() + text->size(), *value);
    const size_t size = static_cast<size_t>(stop - text->data());
    if (error != std::errc() || *value < 0 || text->front() == '-' || size >= text->size() || (*text)[size] != ':') {
      return false;
    }
    text->remove_prefix(size + 1);
    return true;
  }

  Mode mode_;
  std::vector<Bags> bags_;
  std::unordered_map<int64_t, size_t> slots_;
  std::vector<double> labels_;
  BadRows bad_;
  int64_t lines_ = 0;
};

}  // namespace
