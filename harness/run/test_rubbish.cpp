#include "harness/run/test_rubbish.hpp"

#include <algorithm>

#include <fmt/format.h>

namespace attnbench {
namespace {

constexpr uint64_t kSeed = 20261121;

struct Span {
  size_t begin = 0, length = 0;
};

/// Short spans, mostly.
Span any_span(Draws& draws, const std::string& text) {
  const auto size = static_cast<int64_t>(text.size());
  const int64_t begin = draws.below(size + 1), longest = draws.one_in(4) ? size - begin : std::min<int64_t>(size - begin, 8);
  return {static_cast<size_t>(begin), static_cast<size_t>(draws.below(longest + 1))};
}

}  // namespace

Rubbish::Rubbish(std::vector<std::string> valid, std::vector<std::string> tokens, std::string separators)
    : valid_(std::move(valid)), tokens_(std::move(tokens)), separators_(std::move(separators)) {
  // Numbers at the edges of the types, bytes that are no text, quotes that do not end.
  for (const char* extreme : {"0",
                              "-1",
                              "-0",
                              "1e999",
                              "-1e999",
                              "1e-999",
                              "nan",
                              "inf",
                              "2147483647",
                              "2147483648",
                              "4294967296",
                              "4294967297",
                              "9223372036854775807",
                              "9223372036854775808",
                              "-9223372036854775808",
                              "18446744073709551615",
                              "18446744073709551616",
                              "99999999999999999999999999999999",
                              "0.1",
                              "1.5",
                              "0x10",
                              "+1",
                              "",
                              " ",
                              "\t",
                              "\r",
                              "\n",
                              "\r\n",
                              "\"",
                              "\\",
                              "\\\"",
                              "\xff",
                              "\xc0\x80",
                              "\xed\xa0\x80",
                              "\xef\xbb\xbf",
                              "\xf0\x9f\x98\x80",
                              "\x1b[2J",
                              "null",
                              "true",
                              "[]",
                              "{}"})
    tokens_.emplace_back(extreme);
  tokens_.emplace_back(1, '\0');
}

std::string Rubbish::text(uint64_t number) const {
  Draws draws(kSeed, number);
  std::string text = draws.of(valid_);
  const int64_t mutations = draws.below(5);
  for (int64_t i = 0; i < mutations; ++i) mutate(draws, text);
  return text;
}

std::string Rubbish::token(Draws& draws) const {
  return draws.of(tokens_);
}

/// One thing within itself, some thousand times.
std::string Rubbish::nested(Draws& draws) const {
  const int64_t depth = draws.one_in(4) ? 200'000 : draws.below(300);
  const std::string open =
      draws.one_in(3) ? token(draws) : draws.of<std::string>({"[", "{\"a\":", "(", "[[],", "uniform(", "1,"});
  std::string text;
  for (int64_t i = 0; i < depth; ++i) text += open;
  if (draws.one_in(2) && (open == "[" || open == "[[],")) text += std::string(static_cast<size_t>(depth), ']');
  if (draws.one_in(2) && open == "{\"a\":") text += "1" + std::string(static_cast<size_t>(depth), '}');
  return text;
}

/// Another word between two separators: the text around it stays as the grammar has it.
void Rubbish::replace_word(Draws& draws, std::string& text) const {
  const size_t from = static_cast<size_t>(draws.below(static_cast<int64_t>(text.size()) + 1));
  const size_t separator = text.find_first_of(separators_, from);
  if (separator == std::string::npos) return;
  const size_t end = std::min(text.find_first_of(separators_, separator + 1), text.size());
  text.replace(separator + 1, end - separator - 1, draws.one_in(40) ? nested(draws) : token(draws));
}

void Rubbish::mutate(Draws& draws, std::string& text) const {
  constexpr size_t kLongest = 4 << 20;
  const Span span = any_span(draws, text);
  const std::string piece = text.substr(span.begin, span.length);
  switch (draws.below(10)) {
    case 0:
      text.erase(span.begin, span.length);
      break;
    case 1:
      if (text.size() < kLongest) text.insert(span.begin, piece);
      break;
    case 2: {  // swap
      const Span other = any_span(draws, text);
      const std::string moved = text.substr(other.begin, other.length);
      text.replace(other.begin, other.length, piece);
      if (span.begin <= text.size()) text.replace(span.begin, span.length, moved);
      break;
    }
    case 3:
      if (span.begin < text.size()) text[span.begin] = static_cast<char>(text[span.begin] ^ (1 << draws.below(8)));
      break;
    case 4:
      if (span.begin < text.size()) text[span.begin] = static_cast<char>(draws.below(256));
      break;
    case 5:
      text.insert(span.begin, token(draws));
      break;
    case 6: {  // the head of this text, the tail of another
      const std::string other = draws.of(valid_);
      text = text.substr(0, span.begin) + other.substr(any_span(draws, other).begin);
      break;
    }
    case 7:
      if (draws.one_in(20)) text.insert(span.begin, nested(draws));
      break;
    default:
      replace_word(draws, text);
  }
}

std::string shown_rubbish(std::string_view text) {
  constexpr size_t kShown = 1000;
  std::string shown;
  for (size_t i = 0; i < text.size(); ++i) {
    if (i == kShown && text.size() > 2 * kShown) {
      shown += fmt::format(" … ({} bytes) … ", text.size());
      i = text.size() - kShown;
    }
    const auto byte = static_cast<unsigned char>(text[i]);
    shown += byte >= 0x20 && byte < 0x7f ? std::string(1, text[i]) : fmt::format("\\x{:02x}", byte);
  }
  return shown;
}

}  // namespace attnbench
