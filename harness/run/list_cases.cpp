#include "harness/run/list_cases.hpp"

#include <fmt/format.h>

namespace attnbench {

std::string list_suites() {
  std::string text;
  for (const std::string& name : known_suites()) text += fmt::format("{:<12} {:>6} cases\n", name, load_suite(name).cases.size());
  return text;
}

std::string list_cases(const std::vector<Suite>& suites, bool explain) {
  std::string text;
  for (const Suite& suite : suites)
    for (const SuiteCase& suite_case : suite.cases)
      text += (explain ? format_line(suite_case.c) : format_case(suite_case.c)) + '\n';
  return text;
}

}  // namespace attnbench
