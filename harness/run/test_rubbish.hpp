// Texts that nobody would write, for parsers: valid ones, damaged.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "harness/run/draws.hpp"

namespace attnbench {

class Rubbish {
 public:
  /// `valid`: what is damaged; `tokens`: words of the grammar; `separators`: characters between its words.
  Rubbish(std::vector<std::string> valid, std::vector<std::string> tokens, std::string separators);

  /// A function of the number: one of the valid texts after a few mutations, or none.
  std::string text(uint64_t number) const;

 private:
  void mutate(Draws& draws, std::string& text) const;
  std::string nested(Draws& draws) const;
  std::string token(Draws& draws) const;
  void replace_word(Draws& draws, std::string& text) const;

  std::vector<std::string> valid_, tokens_;
  std::string separators_;
};

/// As a failed test may print it: escaped, and cut in the middle.
std::string shown_rubbish(std::string_view text);

}  // namespace attnbench
