// The 64-bit hash of text of deeprec/data/reading/hashing.py, where it is defined: version 1, never to be changed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace deeprec {

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;

inline uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9ull;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// The first `size` <= 8 bytes as a little-endian word, the rest of it zero.
inline uint64_t load_word(const char* text, size_t size) {
  uint64_t word = 0;
  std::memcpy(&word, text, size);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}

inline uint64_t hash_words(const char* text, size_t size, const char* readable) {
  uint64_t hash = size * kGolden;
  for (; size >= 8; text += 8, size -= 8) hash = mix(hash ^ load_word(text, 8));
  if (size) {
    // A load of 8 bytes and a mask: a copy of a varying number of bytes is a call of memcpy.
    const uint64_t word =
        readable - text >= 8 ? load_word(text, 8) & (~0ull >> (64 - 8 * size)) : load_word(text, size);
    hash = mix(hash ^ word);
  }
  return hash ? hash : kGolden;
}

// Digits without leading zeros, perhaps after a minus sign; 0 itself has none.
inline bool is_integer(const char* text, size_t size) {
  if (size == 1 && text[0] == '0') return true;
  const size_t sign = text[0] == '-';
  if (size == sign || text[sign] < '1' || text[sign] > '9') return false;
  for (size_t at = sign + 1; at < size; ++at) {
    if (text[at] < '0' || text[at] > '9') return false;
  }
  return true;
}

// The hash of a value, 0 for empty text; the spellings that writers differ in are made one. No byte is read at or
// beyond `readable`, which is at least text + size.
inline uint64_t hash_value(const char* text, size_t size, const char* readable) {
  if (size == 0) return 0;
  if (size > 2 && size < 20 && text[size - 1] == '0' && text[size - 2] == '.' && is_integer(text, size - 2)) size -= 2;
  constexpr const char* kTrue = "true";
  constexpr const char* kFalse = "false";
  if (size == 4 && std::memcmp(text, "True", 4) == 0) return hash_words(kTrue, 4, kTrue + 4);
  if (size == 5 && std::memcmp(text, "False", 5) == 0) return hash_words(kFalse, 5, kFalse + 5);
  return hash_words(text, size, readable);
}

}  // namespace deeprec
