// What an exception says, without what only a debugger wants.
#pragma once

#include <exception>
#include <string>

#include <c10/util/Exception.h>

namespace attnbench {

inline std::string sentence_of(const std::exception& e) {
  constexpr size_t kMost = 400;
  const auto* torch_error = dynamic_cast<const c10::Error*>(&e);  // its what() carries a page of stack frames
  const std::string whole = torch_error ? torch_error->what_without_backtrace() : e.what();
  return whole.size() <= kMost ? whole : whole.substr(0, kMost) + " …";
}

}  // namespace attnbench
