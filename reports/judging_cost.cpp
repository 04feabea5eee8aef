#include "reports/judging_cost.hpp"

#include <map>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "harness/run/case.hpp"
#include "harness/run/names.hpp"
#include "reports/numbers.hpp"

namespace attnbench {
namespace {

struct CaseCost {
  double eager_s = 0;  ///< 0: unknown
  int64_t judged = 0;
  std::map<std::string, double> parts_s;
};

/// Of the cases of a suite and dtype together.
struct SharedCost {
  int64_t cases = 0;
  CaseCost sum;
};
using SuiteAndDtype = std::pair<std::string, std::string>;

void add_record(CaseCost& cost, const Record& record) {
  if (record.backend == "eager" && record.pass == Pass::backward && record.status == Status::passed)
    cost.eager_s = record.spent.fastest_call_s;
  cost.judged += is_judged(record);
  for (const auto& [part, item] : record.spent.items) cost.parts_s[part] += item.seconds;
}

std::map<SuiteAndDtype, SharedCost> shared_costs(const RunData& run) {
  std::map<std::pair<std::string, std::string>, CaseCost> cases;  // by suite and line
  for (const Record& record : run.records)
    if (!record.spent.items.empty())
      add_record(cases[{record.case_suite.empty() ? record.suite : record.case_suite, record.case_line}], record);
  std::map<SuiteAndDtype, SharedCost> shared;
  for (const auto& [suite_and_line, cost] : cases) {
    if (cost.eager_s <= 0) continue;
    const auto& [suite, line] = suite_and_line;
    SharedCost& all = shared[{suite, std::string(name_of(parse_case(line).problem.dtype))}];
    ++all.cases;
    all.sum.eager_s += cost.eager_s;
    all.sum.judged += cost.judged;
    for (const auto& [part, seconds] : cost.parts_s) all.sum.parts_s[part] += seconds;
  }
  return shared;
}

}  // namespace

TextTable judging_cost(const RunData& run) {
  TextTable table{"Times of judging, in fastest forward + backward calls of eager",
                  {{"suite", Column::Side::left},
                   {"dtype", Column::Side::left},
                   {"cases"},
                   {"eager (ms)"},
                   {"inputs"},
                   {"oracle"},
                   {"emulator"},
                   {"poison"},
                   {"gates"},
                   {"judged results per case"},
                   {"all, per judged result"}},
                  {},
                  1,
                  "Per case, all backends and both passes together; suite: that of the case, also where another includes it. "
                  "Poison: filling and guarding new memory, looking for changes "
                  "of inputs, guard bands and process. The calls themselves are not judging."};
  for (const auto& [of, cost] : shared_costs(run)) {
    const CaseCost& sum = cost.sum;
    const double cases = double(cost.cases), judged = double(sum.judged), eager_s = sum.eager_s / cases;
    const auto calls = [&](double seconds) { return Cell{fmt::format("{:.1f}", seconds / eager_s)}; };
    std::vector<Cell> row{{of.first}, {of.second}, {std::to_string(cost.cases)}, {fmt::format("{:.3g}", 1e3 * eager_s)}};
    double all_s = 0;
    for (const char* part : {"inputs", "oracle", "emulator", "poison", "gates"}) {
      const auto found = sum.parts_s.find(part);
      const double seconds = found == sum.parts_s.end() ? 0 : found->second;
      all_s += seconds;
      row.push_back(calls(seconds / cases));
    }
    row.push_back({fmt::format("{:.1f}", judged / cases)});
    row.push_back(calls(all_s / judged));
    table.rows.push_back(std::move(row));
  }
  return table;
}

}  // namespace attnbench
