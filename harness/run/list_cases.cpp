#include "harness/run/list_cases.hpp"

#include <algorithm>
#include <iterator>
#include <string_view>

#include <fmt/format.h>

#include "harness/run/case_keys.hpp"
#include "harness/run/case_text.hpp"

namespace attnbench {

std::string list_suites() {
  const std::vector<std::string> names = known_suites();
  size_t width = 0;
  for (const std::string& name : names) width = std::max(width, name.size());
  std::string text;
  for (const std::string& name : names) text += fmt::format("{:<{}} {:>6} cases\n", name, width, load_suite(name).cases.size());
  return text;
}

namespace {

/// What is expected of whom, as a suite writes it; empty: of every backend what is right.
std::string expectation(const Case& c) {
  std::string text;
  for (const Key& key : metadata_keys()) {
    constexpr std::string_view kSaid[] = {"expect", "backend", "pass", "instead", "message"};
    const std::string value = key.format(c);
    if (std::ranges::find(kSaid, key.name) == std::end(kSaid) || value == key.default_text(c)) continue;
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", key.name, quoted_if_needed(value));
  }
  return text;
}

/// "name: why", the source, and what is expected, each on a line of its own; empty for a case that has none of them.
std::string explanation(const Case& c) {
  const Metadata& metadata = c.metadata;
  std::string text = metadata.name;
  if (!metadata.why.empty()) text += (text.empty() ? "" : ": ") + metadata.why;
  for (const std::string& line : {metadata.source, expectation(c)})
    if (!line.empty()) text += (text.empty() ? "" : "\n") + line;
  return text.empty() ? text : text + '\n';
}

}  // namespace

std::string list_cases(const std::vector<Suite>& suites, bool explain) {
  std::string text, above;
  for (const Suite& suite : suites)
    for (const SuiteCase& suite_case : suite.cases) {
      const std::string now = explain ? explanation(suite_case.c) : "";
      if (now != above) text += (text.empty() ? "" : "\n") + now;
      above = now;
      text += (now.empty() ? "" : "  ") + format_case(suite_case.c) + '\n';
    }
  return text;
}

}  // namespace attnbench
