#include "harness/run/case_text.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "harness/run/case.hpp"
#include "harness/run/case_limits.hpp"

namespace attnbench {
namespace {

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\r';
}
bool is_printable(unsigned char c) {
  return c >= 0x20 && c < 0x7f;
}

/// Bytes of the UTF-8 character at the head of `text`: 0 if it is none (overlong forms and surrogates included).
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto follows = [&](size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return is_printable(static_cast<unsigned char>(lead)) ? 1 : 0;
  if (lead >= 0xc2 && lead <= 0xdf) return follows(1) ? 2 : 0;
  if (lead >= 0xe0 && lead <= 0xef) {
    const bool overlong = lead == 0xe0 && byte(1) < 0xa0, surrogate = lead == 0xed && byte(1) >= 0xa0;
    return follows(1) && follows(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (lead >= 0xf0 && lead <= 0xf4) {
    const bool overlong = lead == 0xf0 && byte(1) < 0x90, beyond = lead == 0xf4 && byte(1) >= 0x90;
    return follows(1) && follows(2) && follows(3) && !overlong && !beyond ? 4 : 0;
  }
  return 0;
}

class LineReader {
 public:
  LineReader(std::string_view line, std::string_view where) : line_(line), where_(where) {}

  CaseText read() {
    check_bytes();
    CaseText text;
    skip_spaces();
    text.place = place(at_);
    text.operation = word();
    for (skip_spaces(); !at_end() && line_[at_] != '#'; skip_spaces()) add(text.keys, key_and_value(false));
    if (!at_end()) {
      ++at_;
      for (skip_spaces(); !at_end(); skip_spaces()) add(text.metadata, key_and_value(true));
    }
    return text;
  }

 private:
  bool at_end() const { return at_ == line_.size(); }
  std::string place(size_t at) const { return fmt::format("{}, column {}", where_, at + 1); }

  void check_bytes() const {
    for (size_t at = 0; at < line_.size();) {
      const size_t length = is_space(line_[at]) ? 1 : utf8_length(line_.substr(at));
      if (length == 0)
        throw CaseError(fmt::format("{}: byte 0x{:02x} is not text; expected a case line such as 'attention lq=64 d=64'",
                                    place(at), static_cast<unsigned char>(line_[at])));
      at += length;
    }
  }

  void skip_spaces() {
    while (!at_end() && is_space(line_[at_])) ++at_;
  }

  std::string word() {
    const size_t first = at_;
    while (!at_end() && !is_space(line_[at_]) && line_[at_] != '#') ++at_;
    return std::string(line_.substr(first, at_ - first));
  }

  Token key_and_value(bool in_metadata) {
    const size_t first = at_;
    while (!at_end() && !is_space(line_[at_]) && line_[at_] != '=' && line_[at_] != '#') ++at_;
    constexpr size_t kLongestKey = 64;  // several times what there is: a key stands in every value of its sweep
    const std::string_view key = line_.substr(first, at_ - first);
    Token token{std::string(key.substr(0, kLongestKey)), "", place(first)};
    if (at_end() || line_[at_] != '=' || key.empty() || key.size() > kLongestKey) {
      at_ = first;
      throw CaseError(fmt::format("{}: got '{}', expected key=value", token.place, printable(rest_of_word(false))));
    }
    ++at_;
    token.value = in_metadata && !at_end() && line_[at_] == '"' ? quoted(token) : std::string(rest_of_word(in_metadata));
    if (token.value.empty()) throw CaseError(fmt::format("{}: '{}=' has no value", token.place, printable(token.key)));
    return token;
  }

  /// A '#' ends the identity; in metadata it may be part of a link.
  std::string_view rest_of_word(bool hash_allowed) {
    const size_t first = at_;
    while (!at_end() && !is_space(line_[at_]) && (hash_allowed || line_[at_] != '#')) ++at_;
    return line_.substr(first, at_ - first);
  }

  std::string quoted(const Token& token) {
    std::string value;
    for (++at_; !at_end() && line_[at_] != '"'; ++at_) {
      if (line_[at_] == '\\' && at_ + 1 < line_.size()) ++at_;
      value += line_[at_];
    }
    if (at_end()) throw CaseError(fmt::format("{}: the quote after '{}=' does not end", token.place, printable(token.key)));
    ++at_;
    return value;
  }

  static void add(std::vector<Token>& tokens, Token token) {
    constexpr size_t kMostKeys = 64;  // twice what there is: a line of noise is refused before it is searched for repeats
    if (tokens.size() == kMostKeys) throw CaseError(fmt::format("{}: more than {} keys on one line", token.place, kMostKeys));
    const auto same = std::ranges::find(tokens, token.key, &Token::key);
    if (same != tokens.end())
      throw CaseError(
          fmt::format("{}: key '{}' is repeated; it already stands at {}", token.place, printable(token.key), same->place));
    tokens.push_back(std::move(token));
  }

  std::string_view line_, where_;
  size_t at_ = 0;
};

}  // namespace

CaseText read_case_text(std::string_view line, std::string_view where) {
  return LineReader(line, where).read();
}

std::vector<Token> sweep_values(const Token& token) {
  std::vector<Token> values(1, Token{token.key, "", token.place});
  int depth = 0;
  for (char c : token.value) {
    depth += (c == '(') - (c == ')');
    if (c == ',' && depth == 0) {
      if (static_cast<int64_t>(values.size()) > kMaxCases) refuse(token, fmt::format("at most {} values", kMaxCases));
      values.push_back({token.key, "", token.place});
    } else {
      values.back().value += c;
    }
  }
  for (const Token& value : values)
    if (value.value.empty()) refuse(token, "a value on each side of every comma");
  return values;
}

std::string printable(std::string_view text) {
  constexpr size_t kShown = 60;
  std::string shown;
  for (unsigned char c : text.substr(0, kShown)) shown += is_printable(c) ? std::string(1, c) : fmt::format("\\x{:02x}", c);
  return text.size() > kShown ? shown + "…" : shown;
}

std::string quoted_if_needed(std::string_view value) {
  if (value.find_first_of(" \t\r\"\\") == std::string_view::npos && !value.empty()) return std::string(value);
  std::string quoted = "\"";
  for (char c : value) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

void refuse(const Token& token, std::string_view expected) {
  throw CaseError(fmt::format("{}: {}={}: expected {}", token.place, printable(token.key), printable(token.value), expected));
}

}  // namespace attnbench
