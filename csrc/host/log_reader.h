// Fields of separated text, one after another: 64 bytes at a time where the text has no quotes. Part of log.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#if defined(DEEPREC_X86)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

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
      const __m128i piece = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * part));
      const __m128i equal = _mm_or_si128(_mm_cmpeq_epi8(piece, separator), _mm_cmpeq_epi8(piece, feed));
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
    const size_t hits = static_cast<size_t>(__builtin_popcountll(mask));
    const uint16_t start = static_cast<uint16_t>(64 * block);
    uint16_t* out = places + count;
    for (size_t done = 0; done < hits; done += 8) {
      for (int at = 0; at < 8; ++at) {
        out[at] = static_cast<uint16_t>(start + _tzcnt_u64(mask));
        mask = _blsr_u64(mask);
      }
      out += 8;
    }
    count += hits;
  }
  return count;
}
#endif

#if defined(DEEPREC_X86)
__attribute__((target("avx2,popcnt"))) size_t count_feeds_avx2(const char* bytes, size_t blocks) {
  const __m256i feed = _mm256_set1_epi8('\n');
  size_t count = 0;
  for (const char* end = bytes + 32 * blocks; bytes < end; bytes += 32) {
    const __m256i piece = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    const int mask = _mm256_movemask_epi8(_mm256_cmpeq_epi8(piece, feed));
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

// Places of the bytes `first` and of line feeds in a text, looked for several KB ahead.
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
  size_t end_ = 0;    // up to where they are known
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

}  // namespace
