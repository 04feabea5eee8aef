#include "harness/run/plan.hpp"

#include <algorithm>
#include <regex>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/case_keys.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/nearest.hpp"
#include "harness/run/planted.hpp"

namespace attnbench {
namespace {

class Filter {
 public:
  explicit Filter(const std::string& text) : excludes_(text.starts_with('-')), matches_all_(text.empty()) {
    try {
      // libstdc++'s other matcher recurses once a character, and a case line may be long.
      constexpr auto kWithoutRecursion = std::regex_constants::__polynomial;
      regex_ = std::regex(excludes_ ? text.substr(1) : text, std::regex::ECMAScript | kWithoutRecursion);
    } catch (const std::regex_error& error) {
      throw UsageError(fmt::format("--filter {}: not a regular expression: {}", text, error.what()));
    }
  }
  bool takes(const std::string& text) const { return matches_all_ || std::regex_search(text, regex_) != excludes_; }

 private:
  bool excludes_, matches_all_;
  std::regex regex_;
};

void check_backend_names(const std::vector<std::string>& wanted, const std::vector<Declaration>& backends) {
  std::vector<std::string_view> known;
  for (const Declaration& declaration : backends) known.push_back(declaration.name);
  for (const std::string& name : wanted) {
    if (std::find(known.begin(), known.end(), name) == known.end())
      throw UsageError(
          fmt::format("--backend {}: no such backend{}; known: {}", name, did_you_mean(name, known), fmt::join(known, ", ")));
  }
}

/// A canary that no backend is called never runs, and nobody would miss it. A worker without planted backends knows no names.
void check_canary_names(const std::vector<Suite>& suites, const std::vector<Declaration>& backends) {
  std::vector<std::string_view> known;
  for (const Declaration& declaration : backends)
    if (is_planted(declaration.name)) known.push_back(declaration.name);
  if (known.empty()) return;
  for (const Suite& suite : suites)
    for (const SuiteCase& suite_case : suite.cases)
      for (const std::string& name : suite_case.canaries)
        if (std::ranges::find(known, name) == known.end())
          throw UsageError(fmt::format("{}: canary={}: no such planted backend{}; attnbench-worker --planted --hello names all",
                                       suite_case.where, name, did_you_mean(name, known)));
}

/// A case that names nobody runs nowhere, and nobody would miss it. A worker without anything of the operation knows no names.
void check_case_backends(const std::vector<Suite>& suites, const std::vector<Declaration>& backends) {
  for (const Suite& suite : suites)
    for (const SuiteCase& suite_case : suite.cases) {
      std::vector<std::string_view> known;
      for (const Declaration& declaration : backends)
        if (declaration.operation == operation(suite_case.c).backends) known.push_back(declaration.name);
      for (const std::string& name : suite_case.c.metadata.backends)
        if (!known.empty() && std::ranges::find(known, name) == known.end())
          throw UsageError(fmt::format("{}: backend={}: no backend of {} has that name{}; known: {}", suite_case.where, name,
                                       operation(suite_case.c).backends, did_you_mean(name, known), fmt::join(known, ", ")));
    }
}

bool is_for(const Case& c, const Device& device) {
  return c.metadata.device == DeviceKind::any || name_of(c.metadata.device) == device.kind;
}

bool is_selected(const Declaration& declaration, const Selection& selection, const Device& device) {
  const auto& wanted = selection.backends;
  return wanted.empty() ? runs_on(declaration, device) && !is_planted(declaration.name)
                        : std::ranges::find(wanted, declaration.name) != wanted.end();
}

/// Canaries are there to watch over what the real backend is told, unless the run is about planted ones anyway.
bool is_canary(const Declaration& declaration, const SuiteCase& suite_case, const Selection& selection, const Device& device) {
  if (std::ranges::find(suite_case.canaries, declaration.name) == suite_case.canaries.end()) return false;
  if (!runs_on(declaration, device) || names_planted(selection.backends)) return false;
  const std::string real = real_backend_of(declaration.name);
  return selection.backends.empty() || std::ranges::find(selection.backends, real) != selection.backends.end();
}

/// A backend of the case's operation, and one of those that the case names, if it names any.
bool takes(const Declaration& declaration, const Case& c) {
  const std::vector<std::string>& named = c.metadata.backends;
  return declaration.operation == operation(c).backends &&
         (named.empty() || std::ranges::find(named, declaration.name) != named.end());
}

PlannedCase plan_case(const SuiteCase& suite_case, const std::string& suite, const Selection& selection, const Filter& filter,
                      const std::vector<Declaration>& backends, const Device& device) {
  PlannedCase planned{
      .c = suite_case.c, .case_line = format_case(suite_case.c), .suite = suite, .case_suite = suite_case.suite, .runs = {}};
  for (const Declaration& declaration : backends) {
    if (!takes(declaration, suite_case.c)) continue;
    const bool canary = is_canary(declaration, suite_case, selection, device);
    if (!canary && !is_selected(declaration, selection, device)) continue;
    const std::vector<Pass>& passes = declaration.capabilities.passes;
    for (Pass pass : {Pass::forward, Pass::backward}) {
      if (selection.pass.value_or(pass) != pass || suite_case.c.metadata.pass.value_or(pass) != pass) continue;
      if (suite_case.c.training && pass == Pass::forward) continue;  // training is both, and judged by the backward
      if (canary && std::ranges::find(passes, pass) == passes.end()) continue;
      if (filter.takes(fmt::format("{} {} {}", declaration.name, name_of(pass), planned.case_line)))
        planned.runs.emplace_back(declaration.name, pass);
    }
  }
  return planned;
}

}  // namespace

std::vector<std::string> not_on_device(const Selection& selection, const std::vector<Declaration>& backends,
                                       const Device& device) {
  std::vector<std::string> names;
  if (!selection.backends.empty()) return names;
  for (const Declaration& declaration : backends)
    if (!runs_on(declaration, device) && !is_planted(declaration.name)) names.push_back(declaration.name);
  return names;
}

std::vector<std::string> selftest_backends(const std::vector<std::string>& wanted, const std::vector<Declaration>& backends,
                                           const Device& device) {
  check_backend_names(wanted, backends);
  const auto is_wanted = [&](const std::string& name) {
    return wanted.empty() || std::ranges::find(wanted, name) != wanted.end();
  };
  std::set<std::string> chosen;
  for (const Declaration& declaration : backends) {
    const std::string& name = declaration.name;
    const std::string real = real_backend_of(name);
    if (is_planted(name) && runs_on(declaration, device) && (is_wanted(name) || is_wanted(real))) chosen.insert({name, real});
  }
  if (chosen.empty()) throw NothingMatched("nothing matched: none of these backends has a planted defect on this device");
  std::vector<std::string> names;
  for (const Declaration& declaration : backends)
    if (chosen.contains(declaration.name)) names.push_back(declaration.name);
  return names;
}

std::vector<PlannedCase> make_plan(const std::vector<Suite>& suites, const Selection& selection,
                                   const std::vector<Declaration>& backends, const Device& device) {
  check_backend_names(selection.backends, backends);
  check_canary_names(suites, backends);
  check_case_backends(suites, backends);
  const Filter filter(selection.filter);
  std::vector<PlannedCase> plan;
  std::set<std::string> seen;
  int64_t position = 0;
  for (const Suite& suite : suites) {
    for (const SuiteCase& suite_case : suite.cases) {
      if (!seen.insert(format_case(suite_case.c)).second) continue;
      if (position++ % selection.shard.count != selection.shard.index - 1) continue;
      if (!is_for(suite_case.c, device)) continue;
      PlannedCase planned = plan_case(suite_case, suite.name, selection, filter, backends, device);
      if (!planned.runs.empty()) plan.push_back(std::move(planned));
    }
  }
  return plan;
}

size_t count_runs(const std::vector<PlannedCase>& plan) {
  size_t runs = 0;
  for (const PlannedCase& planned : plan) runs += planned.runs.size();
  return runs;
}

nlohmann::json canaries_of(const std::vector<PlannedCase>& plan, const Selection& selection) {
  nlohmann::json canaries = nlohmann::json::array();
  for (const PlannedCase& planned : plan) {
    std::set<std::string> names;
    for (const auto& [backend, pass] : planned.runs)
      if (is_planted(backend) && std::ranges::find(selection.backends, backend) == selection.backends.end())
        names.insert(backend);
    for (const std::string& name : names) canaries.push_back({{"case", planned.case_line}, {"backend", name}});
  }
  return canaries;
}

}  // namespace attnbench
