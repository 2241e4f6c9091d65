// How a kernel refuses an argument: an exception with the message alone. PyTorch's own macro puts the place in the C++
// source before it, which tells a user of Python nothing. A message that begins with "IndexError: ", "ValueError: " or
// "TypeError: " becomes that kind in kernels/_errors.py.
#pragma once

#include <sstream>
#include <stdexcept>

namespace deeprec {

template <class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace deeprec

#define DEEPREC_CHECK(holds, ...)        \
  do {                                   \
    if (__builtin_expect(!(holds), 0)) { \
      ::deeprec::refuse(__VA_ARGS__);    \
    }                                    \
  } while (false)
