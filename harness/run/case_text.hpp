// The letters of a case line: words, key=value pairs, quotes, columns. What the keys mean stands in case_keys.hpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace attnbench {

/// One key=value of a line, and where it stood ("cases/smoke.suite:12, column 34").
struct Token {
  std::string key, value, place;
};

/// operation key=value … # key=value …
struct CaseText {
  std::string operation;
  std::string place;  ///< of the operation
  std::vector<Token> keys;
  std::vector<Token> metadata;
};

/// Splits a line. Values of metadata may be quoted, with \" and \\ inside. Throws CaseError on bytes that are not
/// text, on a word that is not key=value, on a repeated key and on a quote that does not end.
CaseText read_case_text(std::string_view line, std::string_view where);

/// The values that a sweep names: split at the commas that stand outside parentheses. Never empty.
std::vector<Token> sweep_values(const Token& token);

/// As it may be printed on one line of a terminal: other bytes escaped, long text cut.
std::string printable(std::string_view text);

/// The value of a metadata key as read_case_text reads it back: quoted if it must be.
std::string quoted_if_needed(std::string_view value);

/// Throws CaseError "PLACE: KEY=VALUE: expected EXPECTED". `expected` may end in a did_you_mean().
[[noreturn]] void refuse(const Token& token, std::string_view expected);

}  // namespace attnbench
