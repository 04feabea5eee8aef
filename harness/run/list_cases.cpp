#include "harness/run/list_cases.hpp"

#include <algorithm>

#include <fmt/format.h>

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

/// "name: why" and the source on a line of its own; empty for a case that has none of them.
std::string explanation(const Metadata& metadata) {
  std::string text = metadata.name;
  if (!metadata.why.empty()) text += (text.empty() ? "" : ": ") + metadata.why;
  if (!text.empty()) text += '\n';
  return metadata.source.empty() ? text : text + metadata.source + '\n';
}

}  // namespace

std::string list_cases(const std::vector<Suite>& suites, bool explain) {
  std::string text, above;
  for (const Suite& suite : suites)
    for (const SuiteCase& suite_case : suite.cases) {
      const std::string now = explain ? explanation(suite_case.c.metadata) : "";
      if (now != above) text += (text.empty() ? "" : "\n") + now;
      above = now;
      text += (now.empty() ? "" : "  ") + format_case(suite_case.c) + '\n';
    }
  return text;
}

}  // namespace attnbench
