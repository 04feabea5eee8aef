#include "harness/run/null_distributions.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/gate.hpp"

namespace attnbench {
namespace {

/// What a cell collects.
struct Collected {
  std::vector<double> ratios;
  std::set<std::string> backends, cases;
  std::set<std::string> implementations;  ///< arithmetic_of()
  int64_t no_power = 0, beyond_formula = 0;
};

bool measures(const std::string& gate) {
  return gate != "nonfinite" && gate != "exact_zero";
}

bool is_exact(const TensorErrors& errors) {
  return std::ranges::none_of(
      errors.gates, [](const auto& named) { return !measures(named.first) && named.second.verdict == Gate::Verdict::fail; });
}

const Declaration& declaration_of(const Record& record, const RunData& run) {
  const std::string kind = record.device.substr(0, record.device.find(':'));
  const auto declarations = run.backends.find(kind);
  const Declaration* found =
      declarations == run.backends.end() ? nullptr : find_declaration(declarations->second, record.backend);
  if (!found)
    throw RunError(fmt::format("{}: the run's header does not declare the backend {}", record.case_line, record.backend));
  return *found;
}

std::string arithmetic_of(const Declaration& declaration) {
  return declaration.implementation == "eager" ? "pytorch_math" : declaration.implementation;
}

/// cell: of the tensor, without gate and decade.
using Take = std::function<void(const Record& record, const CellKey& cell, const TensorErrors& errors)>;

/// Hands every judged tensor to `take` that is not left out.
void for_each_tensor(const RunData& run, const Calibration& calibration, const Take& take) {
  for (const Record& record : run.records) {
    if (!is_judged(record)) continue;
    const Case c = parse_case(record.case_line, "record");
    const Dtype dtype = c.problem.dtype;
    CellKey cell{calibrated_as(declaration_of(record, run).profile, c.problem), has_large_scores(c), dtype, "", "", 0};
    for (const auto& [tensor, errors] : record.errors) {
      if (calibration.is_left_out(record.backend, tensor)) continue;
      cell.tensor = calibrated_tensor(tensor);
      take(record, cell, errors);
    }
  }
}

double quantile(const std::vector<double>& sorted, double p) {
  return sorted[static_cast<size_t>(std::ceil(p * static_cast<double>(sorted.size()))) - 1];
}

/// As many digits as the file has: what is written is what is compared.
double in_file(double value) {
  return number_from_json(number_to_json(value), "calibration");
}

/// RMS(z) of low precision stands beside the emulator's on the same case: its formula knows the case already, and what is left,
/// how far a kernel's order of sums is from the emulator's, differs from shape to shape by more than from seed to seed. So does
/// the bias where P is rounded: its errors are alike in a row as far as the values make them. All else stands beside a bound that
/// knows the case less well. Options are too many to be drawn in all their combinations. With one key the LSE alone was asked
/// for: O is a copy of V, and what is left of gradients that are 0 depends on the few shapes that were drawn.
bool keeps_formula(const CellKey& key) {
  if (key.rounds_like.ends_with("_with_options")) return true;
  if (key.tensor == "lse") return false;
  const bool rounds_inside = !key.rounds_like.starts_with("fp32_inside");
  return (key.gate == "rms" && key.dtype != Dtype::fp32) || (key.gate == "bias" && rounds_inside) ||
         key.rounds_like.ends_with("_of_one_key");
}

/// No limit claims that an LSE, whose error is that of few operations, is nearer than one standard deviation of its error model.
double least_factor(const CellKey& key, const GateConstants& constants) {
  return key.gate == "lse" ? 1 / constants.lse : 0;
}

NullCell cell_of(const CellKey& key, const GateConstants& constants, Collected collected) {
  NullCell cell;
  cell.count = static_cast<int64_t>(collected.ratios.size());
  cell.cases = static_cast<int64_t>(collected.cases.size());
  cell.no_power = collected.no_power;
  cell.beyond_formula = collected.beyond_formula;
  cell.backends.assign(collected.backends.begin(), collected.backends.end());
  if (collected.ratios.empty()) return cell;
  std::ranges::sort(collected.ratios);
  cell.p50 = in_file(quantile(collected.ratios, 0.5));
  cell.p90 = in_file(quantile(collected.ratios, 0.9));
  cell.p99 = in_file(quantile(collected.ratios, 0.99));
  cell.p999 = in_file(quantile(collected.ratios, 0.999));
  cell.max = in_file(collected.ratios.back());
  const bool enough =
      cell.count >= kFewestResults && cell.cases >= kFewestCases && collected.implementations.size() >= kFewestImplementations;
  if (enough && cell.max > 0 && !keeps_formula(key))
    cell.factor = in_file(std::max(factor_of(collected.ratios, cell.cases), least_factor(key, constants)));
  return cell;
}

void count(const Gate& gate, CalibrationCheck::OfGate& counts) {
  ++counts.judged;
  if (gate.verdict == Gate::Verdict::no_power) ++counts.no_power;
  if (gate.verdict == Gate::Verdict::fail) ++counts.alarms;
}

void note_alarms(const Record& record, const Calibration& calibration, CalibrationCheck& check) {
  std::vector<std::string> what;
  for (const Alarm& alarm : alarms_of(record))
    if (!calibration.is_left_out(record.backend, alarm.tensor)) what.push_back(text_of(alarm));
  if (!what.empty())
    check.alarms.push_back({record.backend, fmt::format("{}", fmt::join(what, ", ")), record.case_line, record.repro});
}

}  // namespace

double factor_of(const std::vector<double>& sorted, int64_t cases) {
  constexpr size_t kMany = 2000;
  const double margin = cases < kManyCases ? kMarginOfFew : kMarginOfMany;
  const bool many = sorted.size() >= kMany;
  const double low = quantile(sorted, many ? 0.99 : 0.9), high = quantile(sorted, many ? 0.999 : 0.99);
  const double decades_beyond = many ? 3 : 4;  // from 1e-3, or 1e-2, to 1e-6; low to high is one
  const double extrapolated = high + decades_beyond * (high - low);
  return std::min(1.0, std::max(extrapolated, sorted.back() * margin));
}

Calibration calibrate(const RunData& run, const Calibration& before) {
  std::map<CellKey, Collected> cells;
  for_each_tensor(run, before, [&](const Record& record, CellKey key, const TensorErrors& errors) {
    if (std::ranges::find(before.backends, record.backend) == before.backends.end() || !is_exact(errors)) return;
    for (const auto& [name, gate] : errors.gates) {
      if (!measures(name)) continue;
      key.gate = name;
      key.decade = decade_of(gate.n);
      Collected& cell = cells[key];
      const double ratio = gate.formula > 0 ? gate.value / gate.formula : gate.value > 0 ? kInfinity : 0;
      if (gate.verdict == Gate::Verdict::no_power) {
        ++cell.no_power;
      } else if (!(ratio <= 1)) {
        ++cell.beyond_formula;
      } else {
        cell.ratios.push_back(ratio);
        cell.backends.insert(record.backend);
        cell.implementations.insert(arithmetic_of(declaration_of(record, run)));
        cell.cases.insert(record.case_line);
      }
    }
  });
  Calibration after = before;
  after.cells.clear();
  for (auto& [key, collected] : cells) after.cells[key] = cell_of(key, before.constants, std::move(collected));
  return after;
}

CalibrationCheck check_calibration(const RunData& run, const Calibration& calibration) {
  CalibrationCheck check;
  std::set<std::string> cases, backends;
  std::set<std::pair<std::string, std::string>> tensors;
  for_each_tensor(run, calibration, [&](const Record& record, const CellKey& cell, const TensorErrors& errors) {
    ++check.results;
    cases.insert(record.case_line);
    backends.insert(record.backend);
    tensors.emplace(record.case_line, cell.tensor);
    bool power = false, any = false;
    for (const auto& [name, gate] : errors.gates) {
      count(gate, check.gates[{cell.rounds_like, name}]);
      any = any || measures(name);
      power = power || (measures(name) && gate.verdict != Gate::Verdict::no_power);
    }
    if (any && !power) ++check.without_power;
  });
  for (const Record& record : run.records) note_alarms(record, calibration, check);
  check.cases = static_cast<int64_t>(cases.size());
  check.tensors = static_cast<int64_t>(tensors.size());
  check.backends.assign(backends.begin(), backends.end());
  return check;
}

}  // namespace attnbench
