// Blocks of text to columns of hashes, numbers and bags, one pass, no Python object a field. What each function means
// is said, and done more slowly, in deeprec/data/reading/separated.py and deeprec/data/reading/hashing.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(DEEPREC_X86)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "text_hash.h"

namespace py = pybind11;

namespace {

using deeprec::hash_value;

enum Kind : unsigned char { kHash = 1, kNumber = 2, kBag = 4 };
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

// Writes the places below 64 of the bytes `first` and of line feeds in 64 bytes; returns how many.
inline size_t write_places(uint64_t mask, uint16_t start, uint16_t* places) {
  size_t count = 0;
  for (; mask; mask &= mask - 1) places[count++] = static_cast<uint16_t>(start + __builtin_ctzll(mask));
  return count;
}

size_t scan_portable(const char* bytes, size_t blocks, char first, uint16_t* places) {
  size_t count = 0;
  for (size_t block = 0; block < blocks; ++block, bytes += 64) {
    uint64_t mask = 0;
#if defined(__SSE2__)
    const __m128i separator = _mm_set1_epi8(first);
    const __m128i feed = _mm_set1_epi8('\n');
    for (int part = 0; part < 4; ++part) {
      const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * part));
      const __m128i equal = _mm_or_si128(_mm_cmpeq_epi8(some, separator), _mm_cmpeq_epi8(some, feed));
      mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(equal))) << (16 * part);
    }
#else
    for (int at = 0; at < 64; ++at) mask |= static_cast<uint64_t>(bytes[at] == first || bytes[at] == '\n') << at;
#endif
    count += write_places(mask, static_cast<uint16_t>(64 * block), places + count);
  }
  return count;
}

#if defined(DEEPREC_X86)
// Writes eight places whatever the mask is, so that most blocks need no branch that depends on the text.
__attribute__((target("avx2,bmi,popcnt"))) size_t scan_avx2(const char* bytes, size_t blocks, char first,
                                                            uint16_t* places) {
  const __m256i separator = _mm256_set1_epi8(first);
  const __m256i feed = _mm256_set1_epi8('\n');
  size_t count = 0;
  for (size_t block = 0; block < blocks; ++block, bytes += 64) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32));
    const __m256i low_equal = _mm256_or_si256(_mm256_cmpeq_epi8(low, separator), _mm256_cmpeq_epi8(low, feed));
    const __m256i high_equal = _mm256_or_si256(_mm256_cmpeq_epi8(high, separator), _mm256_cmpeq_epi8(high, feed));
    uint64_t mask = static_cast<uint32_t>(_mm256_movemask_epi8(low_equal)) |
                    static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(high_equal))) << 32;
    const size_t found = static_cast<size_t>(__builtin_popcountll(mask));
    const uint16_t start = static_cast<uint16_t>(64 * block);
    uint16_t* out = places + count;
    for (size_t done = 0; done < found; done += 8) {
      for (int at = 0; at < 8; ++at) {
        out[at] = static_cast<uint16_t>(start + _tzcnt_u64(mask));
        mask = _blsr_u64(mask);
      }
      out += 8;
    }
    count += found;
  }
  return count;
}
#endif

#if defined(DEEPREC_X86)
__attribute__((target("avx2,popcnt"))) size_t count_feeds_avx2(const char* bytes, size_t blocks) {
  const __m256i feed = _mm256_set1_epi8('\n');
  size_t count = 0;
  for (const char* end = bytes + 32 * blocks; bytes < end; bytes += 32) {
    const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    const int mask = _mm256_movemask_epi8(_mm256_cmpeq_epi8(some, feed));
    count += static_cast<size_t>(__builtin_popcount(static_cast<uint32_t>(mask)));
  }
  return count;
}
#endif

size_t count_feeds(std::string_view text) {
  size_t count = 0;
#if defined(DEEPREC_X86)
  if (__builtin_cpu_supports("avx2")) {
    const size_t blocks = text.size() / 32;
    count = count_feeds_avx2(text.data(), blocks);
    text.remove_prefix(32 * blocks);
  }
#endif
  return count + static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

// Places of the bytes `first` and of line feeds in a text, found some KB ahead.
class Scanner {
 public:
  Scanner(std::string_view text, char first) : text_(text), first_(first) {
#if defined(DEEPREC_X86)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi")) scan_ = scan_avx2;
#endif
  }

  // The next such place at or after `from`, which is beyond the place returned before, or the size of the text.
  size_t next(size_t from) {
    for (;;) {
      while (at_ < count_) {
        const size_t place = start_ + places_[at_++];
        if (place >= from) return place;
        skipped_feeds_ += text_[place] == '\n';
      }
      if (!refill()) return text_.size();
    }
  }

  // Line feeds before the place returned last that `from` passed over, those of a quoted field.
  int64_t take_skipped_feeds() { return std::exchange(skipped_feeds_, 0); }

 private:
  static constexpr size_t kBlocks = 64;

  bool refill() {
    start_ = end_;
    at_ = count_ = 0;
    if (start_ >= text_.size()) return false;
    const size_t blocks = std::min(kBlocks, (text_.size() - start_) / 64);
    end_ = start_ + 64 * blocks;
    if (blocks) {
      count_ = scan_(text_.data() + start_, blocks, first_, places_);
      return true;
    }
    const size_t size = text_.size() - start_;  // less than a block: not to be read beyond
    char tail[64] = {};
    std::memcpy(tail, text_.data() + start_, size);
    count_ = scan_(tail, 1, first_, places_);
    while (count_ && places_[count_ - 1] >= size) --count_;
    end_ = text_.size();
    return true;
  }

  std::string_view text_;
  char first_;
  size_t (*scan_)(const char*, size_t, char, uint16_t*) = scan_portable;
  size_t start_ = 0;  // of the places
  size_t end_ = 0;    // up to where they have been found
  size_t at_ = 0;
  size_t count_ = 0;
  int64_t skipped_feeds_ = 0;
  uint16_t places_[64 * kBlocks + 8];  // and what scan_avx2 writes too much
};

struct Field {
  std::string_view text;
  bool is_last = false;  // of its row
  bool is_quoted = false;
  bool is_closed = true;  // false: the text ends inside quotes
};

// Goes through the fields of a text without quotes whose separator is one byte.
class PlainReader {
 public:
  PlainReader(std::string_view text, char separator) : text_(text), scanner_(text, separator) {}

  bool done() const { return position_ >= text_.size(); }
  int64_t line() const { return line_; }

  Field next() {
    const size_t start = position_;
    size_t end = scanner_.next(start);
    position_ = end + 1;
    Field field;
    const bool has_end = end < text_.size();
    field.is_last = !has_end || text_[end] == '\n';
    if (field.is_last) {
      line_ += has_end;
      end -= end > start && text_[end - 1] == '\r';
    }
    field.text = std::string_view(text_.data() + start, end - start);
    return field;
  }

 private:
  std::string_view text_;
  Scanner scanner_;
  size_t position_ = 0;
  int64_t line_ = 0;
};

// Goes through the fields of any text.
class Reader {
 public:
  Reader(std::string_view text, std::string_view separator, std::string_view quote)
      : text_(text),
        separator_(separator),
        quote_(quote.empty() ? '\0' : quote[0]),
        has_quote_(!quote.empty()),
        scanner_(text, separator[0]) {}

  bool done() const { return position_ >= text_.size(); }
  size_t position() const { return position_; }
  int64_t line() const { return line_; }
  bool has_end() const { return has_end_; }  // whether the row just read ended in a line feed

  Field next() {
    Field field;
    if (has_quote_ && position_ < text_.size() && text_[position_] == quote_) {
      read_quoted(&field);
      return field;
    }
    const size_t start = position_;
    const size_t end = find_end(start, &field.is_last);
    field.text = text_.substr(start, end - start);
    if (field.is_last && !field.text.empty() && field.text.back() == '\r') field.text.remove_suffix(1);
    return field;
  }

 private:
  // End of the field whose unquoted part begins at `from`; goes on behind it.
  size_t find_end(size_t from, bool* is_last) {
    for (size_t at = from;; ++at) {
      at = scanner_.next(at);
      if (at >= text_.size() || text_[at] == '\n') {
        *is_last = true;
        has_end_ = at < text_.size();
        line_ += has_end_;
        position_ = at + 1;
        return at;
      }
      if (separator_.size() == 1 || text_.compare(at, separator_.size(), separator_) == 0) {
        position_ = at + separator_.size();
        return at;
      }
    }
  }

  void read_quoted(Field* field) {
    field->is_quoted = true;
    const size_t start = position_ + 1;
    size_t at = start;
    bool is_copied = false;
    scratch_.clear();
    for (;;) {
      const size_t end = at < text_.size() ? text_.find(quote_, at) : std::string_view::npos;
      if (end == std::string_view::npos) {  // never closed: all the rest is one field
        scratch_.append(text_, at);
        line_ += std::count(scratch_.begin(), scratch_.end(), '\n');
        field->text = scratch_;
        field->is_closed = false;
        field->is_last = true;
        has_end_ = false;
        position_ = text_.size() + 1;
        return;
      }
      const bool is_doubled = end + 1 < text_.size() && text_[end + 1] == quote_;
      if (is_doubled || is_copied) scratch_.append(text_, at, end - at);
      if (is_doubled) {
        scratch_.push_back(quote_);
        is_copied = true;
        at = end + 2;
        continue;
      }
      const std::string_view inside = text_.substr(start, end - start);
      const size_t stop = find_end(end + 1, &field->is_last);
      line_ += scanner_.take_skipped_feeds();
      std::string_view rest = text_.substr(end + 1, stop - end - 1);
      if (field->is_last && !rest.empty() && rest.back() == '\r') rest.remove_suffix(1);
      if (!rest.empty() && !is_copied) scratch_.append(inside);
      scratch_.append(rest);
      field->text = is_copied || !rest.empty() ? std::string_view(scratch_) : inside;
      return;
    }
  }

  std::string_view text_;
  std::string_view separator_;
  char quote_;
  bool has_quote_;
  Scanner scanner_;
  size_t position_ = 0;
  int64_t line_ = 0;
  bool has_end_ = false;
  std::string scratch_;
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

// -1 where it is a number (finite, or NaN spelled out), else why not.
int parse_number(std::string_view text, double* value) {
  if (parse_short(text, value)) return -1;
  std::string_view unsigned_text = text;
  if (text.front() == '+' || text.front() == '-') unsigned_text.remove_prefix(1);
  if (unsigned_text.empty()) return kNotANumber;
  const char first = unsigned_text.front();
  if ((first >= '0' && first <= '9') || first == '.') {
    double found = 0;
    const char* end = unsigned_text.data() + unsigned_text.size();
    const auto [stop, error] = std::from_chars(unsigned_text.data(), end, found);
    if (stop != end || error == std::errc::invalid_argument) return kNotANumber;
    // Too large or too small for a double, which from_chars does not tell apart.
    if (error != std::errc()) found = std::strtod(std::string(unsigned_text).c_str(), nullptr);
    if (!std::isfinite(found)) return kInfinite;
    *value = text.front() == '-' ? -found : found;
    return -1;
  }
  if (equals_lowered(unsigned_text, "nan")) {
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
      if (token.empty()) continue;
      if (!weight_separator.empty()) {
        const size_t at = token.rfind(weight_separator);
        double weight = 0;
        if (at == 0 || at == std::string_view::npos ||
            !parse_weight(token.substr(at + weight_separator.size()), &weight)) {
          *bad = token;
          return false;
        }
        weights.push_back(static_cast<float>(weight));
        token = token.substr(0, at);
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

// One piece of memory for the columns of a block: on large pages, as some ten thousand page faults a block would take a
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
    used_ += room<T>(count);
    return start;
  }

  template <typename T>
  static size_t room(size_t count) {
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
      uint64_t hash = hash_view(text, field.is_quoted ? end_of(text) : readable);
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
      const bool is_empty = !missing_.empty() && is_missing(hash_view(text, end_of(text)));
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
  auto* arena = new Arena(arrays * Arena::room<double>(rows_at_most));
  const py::capsule owner(arena, [](void* pointer) { delete static_cast<Arena*>(pointer); });
  std::vector<Bags> bags(bag_separators.size());
  size_t next_bag = 0;
  for (size_t at = 0; at < columns.size(); ++at) {
    Column& column = columns[at];
    column.kind = static_cast<unsigned char>(kind_bytes[at]);
    if (column.kind & kHash) column.hashes = arena->take<uint64_t>(rows_at_most);
    if (column.kind & kNumber) {
      column.numbers = arena->take<double>(rows_at_most);
      const auto found = codes.find(static_cast<int64_t>(at));
      if (found != codes.end()) column.codes = &found->second;
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
      const size_t found = text.find('\n', start);
      const size_t end = found == std::string_view::npos ? text.size() : found;
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
      const auto found = slots_.find(number);
      if (found == slots_.end()) return kUnknownField;
      slot = found->second;
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
      const std::string_view row(text + at[i], static_cast<size_t>(at[i + 1] - at[i]));
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
  module.attr("LOG_VERSION") = 1;  // that of deeprec/data/reading/compiled.py
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
