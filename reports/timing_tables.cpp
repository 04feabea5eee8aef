#include "reports/timing_tables.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include <fmt/format.h>

#include "reports/case_labels.hpp"
#include "reports/numbers.hpp"
#include "reports/run_view.hpp"

namespace attnbench {
namespace {

using Side = Column::Side;

/// A record in one of the regimes in which it was timed.
struct Entry {
  const Record* record;
  const Timing* timing;
};

/// What one table shows: times are comparable only within one of these.
struct Group {
  std::string suite, device, regime;
  Pass pass;
  std::vector<Entry> entries;
};

std::vector<Group> groups_of(const RunData& run) {
  std::vector<Group> groups;
  for (const Record& r : run.records) {
    for (const Timing* timing : timings_of(r)) {
      auto found = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
        return std::tie(g.suite, g.device, g.regime, g.pass) == std::tie(r.suite, r.device, timing->regime, r.pass);
      });
      if (found == groups.end()) found = groups.insert(groups.end(), {r.suite, r.device, timing->regime, r.pass, {}});
      found->entries.push_back({&r, timing});
    }
  }
  return groups;
}

struct RowKey {
  std::string case_line, window;
  bool operator==(const RowKey&) const = default;
};

/// Rows in order of appearance: every case with its windows, the operation itself first, autograd last.
std::vector<RowKey> rows_of(const Group& group) {
  std::vector<std::string> cases;
  for (const auto& [r, timing] : group.entries) {
    if (std::find(cases.begin(), cases.end(), r->case_line) == cases.end()) cases.push_back(r->case_line);
  }
  std::vector<RowKey> rows;
  for (const std::string& case_line : cases) {
    std::set<std::string> windows;
    for (const auto& [r, timing] : group.entries)
      if (r->case_line == case_line)
        for (const auto& [window, time] : timing->windows) windows.insert(window);
    for (const bool autograd : {false, true})
      for (const std::string& window : windows)
        if ((window == "autograd") == autograd) rows.push_back({case_line, window});
  }
  return rows;
}

std::vector<std::string> backends_in(const Group& group, const RunData& run) {
  std::vector<std::string> names = backend_names(run);
  std::erase_if(names, [&](const std::string& name) {
    return std::none_of(group.entries.begin(), group.entries.end(), [&](const Entry& e) { return e.record->backend == name; });
  });
  return names;
}

const Timing* timing_at(const Group& group, const std::string& case_line, const std::string& backend) {
  const auto found = std::find_if(group.entries.begin(), group.entries.end(), [&](const Entry& e) {
    return e.record->case_line == case_line && e.record->backend == backend;
  });
  return found == group.entries.end() ? nullptr : found->timing;
}

std::string title_of(const RunData& run, const Group& group, const std::string& what, const std::string& common) {
  return fmt::format("{}, suite {}, {} ({}, {}){}", what, group.suite, name_of(group.pass), group.regime,
                     device_title(run, group.device), common.empty() ? "" : ": " + common);
}

CaseLabels labels_of(const Group& group) {
  std::vector<std::string> lines;
  for (const auto& [r, timing] : group.entries) lines.push_back(r->case_line);
  return label_cases(lines);
}

/// Some samples began before the host had launched everything: the GPU waited for it within them.
bool holds_gaps(const WindowTime& time) {
  return time.gpu && time.gpu->samples_without_hold > 0;
}

std::string time_text(const WindowTime& time, const Unit& unit) {
  const double half_percent = 50 * (time.ci95_us[1] - time.ci95_us[0]) / time.median_us;
  return fmt::format("{} ±{:.1f}%{}{}", significant(time.median_us / unit.size), half_percent, time.converged ? " " : "*",
                     holds_gaps(time) ? "h" : "");
}

/// The best value in the good tone, if there is something to compare it with. values[i] is shown in row[1 + i].
void mark_best(std::vector<Cell>& row, const std::vector<std::optional<double>>& values, bool smallest) {
  std::optional<std::size_t> best;
  std::size_t present = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!values[i]) continue;
    ++present;
    if (!best || (smallest ? *values[i] < *values[*best] : *values[i] > *values[*best])) best = i;
  }
  if (present > 1) row[1 + *best].tone = Tone::good;
}

/// Then "op" leaves out the unpad and pad of varlen backends: no fair race with backends that need neither, so none is marked.
/// Not every regime times the window.
bool has_layout_window(const Group& group, const std::string& case_line) {
  return std::any_of(group.entries.begin(), group.entries.end(), [&](const Entry& e) {
    const auto timings = timings_of(*e.record);
    return e.record->case_line == case_line && std::any_of(timings.begin(), timings.end(), [](const Timing* timing) {
             return timing->windows.contains("op+layout");
           });
  });
}

bool power_capped(const WindowTime& time) {
  return time.gpu && std::find(time.gpu->throttle.begin(), time.gpu->throttle.end(), "sw_power_cap") != time.gpu->throttle.end();
}

TextTable time_table(const Group& group, const RunData& run) {
  const CaseLabels labels = labels_of(group);
  const auto backends = backends_in(group, run);
  std::vector<double> medians;
  bool all_converged = true, layout_window = false, autograd = false, gaps = false;
  std::size_t capped = 0;
  for (const auto& [r, timing] : group.entries) {
    for (const auto& [window, time] : timing->windows) {
      medians.push_back(time.median_us);
      all_converged = all_converged && time.converged;
      layout_window = layout_window || window == "op+layout";
      autograd = autograd || window == "autograd";
      capped += power_capped(time);
      gaps = gaps || holds_gaps(time);
    }
  }
  const Unit unit = time_unit(medians);
  TextTable table{title_of(run, group, "Median time in " + unit.name, labels.common), {{"case", Side::left}}, {}, 1, ""};
  for (const std::string& backend : backends) table.columns.push_back({backend});
  std::string above;
  for (const RowKey& key : rows_of(group)) {
    const bool first = table.rows.empty() || key.case_line != above;
    above = key.case_line;
    std::string label = first ? labels.label.at(key.case_line) : "  " + key.window;
    if (first && key.window != "op") label += "  " + key.window;
    std::vector<Cell> row{{label}};
    std::vector<std::optional<double>> values;
    for (const std::string& backend : backends) {
      const Timing* timing = timing_at(group, key.case_line, backend);
      const bool timed = timing && timing->windows.contains(key.window);
      row.push_back(timed ? Cell{time_text(timing->windows.at(key.window), unit)} : Cell{"·", Tone::dim});
      values.push_back(timed ? std::optional(timing->windows.at(key.window).median_us) : std::nullopt);
    }
    if (!has_layout_window(group, key.case_line)) mark_best(row, values, true);
    table.rows.push_back(std::move(row));
  }
  table.note = "Window op; ± half of the 95% confidence interval of the median";
  if (!all_converged) table.note += "; * unconverged: it is wider than the target";
  if (gaps) table.note += "; h: the host took too long to be waited for, so that its gaps are in the time";
  if (layout_window) table.note += "; op+layout: unpad, operation and pad";
  if (autograd) table.note += "; autograd: a backward that LibTorch's autograd drives, with its own overhead";
  if (capped > 0) table.note += fmt::format("; {} of {} times at the GPU's power limit", capped, medians.size());
  table.note += ".";
  return table;
}

TextTable rate_table(const Group& group, const RunData& run) {
  const CaseLabels labels = labels_of(group);
  const auto backends = backends_in(group, run);
  std::vector<double> rates;
  for (const auto& [r, timing] : group.entries) rates.push_back(timing->tflops);
  const Unit unit = rate_unit(rates);
  TextTable table{title_of(run, group, unit.name, labels.common), {{"case", Side::left}}, {}, 1, ""};
  for (const std::string& backend : backends) table.columns.push_back({backend});
  std::vector<std::string> done;
  for (const RowKey& key : rows_of(group)) {
    if (std::find(done.begin(), done.end(), key.case_line) != done.end()) continue;
    done.push_back(key.case_line);
    std::vector<Cell> row{{labels.label.at(key.case_line)}};
    std::vector<std::optional<double>> values;
    for (const std::string& backend : backends) {
      const Timing* timing = timing_at(group, key.case_line, backend);
      row.push_back(timing ? Cell{significant(timing->tflops / unit.size)} : Cell{"·", Tone::dim});
      values.push_back(timing ? std::optional(timing->tflops) : std::nullopt);
    }
    if (!has_layout_window(group, key.case_line)) mark_best(row, values, false);
    table.rows.push_back(std::move(row));
  }
  table.note = "Exact visible pairs (forward 2P(d+dv), backward 2P(3d+2dv)) over the median of window op";
  const bool autograd = std::any_of(group.entries.begin(), group.entries.end(),
                                    [](const Entry& e) { return std::string(main_window(*e.timing)) == "autograd"; });
  table.note += autograd ? ", or autograd where a backend has no other backward." : ".";
  return table;
}

/// Passed records of trained models that one table shows.
struct Trainings {
  std::string suite, device;
  std::vector<const Record*> records;
};

std::vector<Trainings> trainings_of(const RunData& run) {
  std::vector<Trainings> all;
  for (const Record& r : run.records) {
    if (!r.training || r.status != Status::passed) continue;
    auto found = std::find_if(all.begin(), all.end(), [&](const auto& t) { return t.suite == r.suite && t.device == r.device; });
    if (found == all.end()) found = all.insert(all.end(), {r.suite, r.device, {}});
    found->records.push_back(&r);
  }
  return all;
}

/// Cases x backends; the least of a row is marked.
template <class ValueOf>
TextTable step_table(const RunData& run, const Trainings& trainings, const std::string& what, const Unit& unit,
                     ValueOf&& value_of) {
  std::vector<std::string> cases;  // in their order
  std::set<std::string> trained;
  for (const Record* r : trainings.records) {
    if (std::find(cases.begin(), cases.end(), r->case_line) == cases.end()) cases.push_back(r->case_line);
    trained.insert(r->backend);
  }
  std::vector<std::string> backends = backend_names(run);
  std::erase_if(backends, [&](const std::string& name) { return !trained.contains(name); });
  const CaseLabels labels = label_cases(cases);
  TextTable table{fmt::format("{} in {}, suite {} ({}){}", what, unit.name, trainings.suite, device_title(run, trainings.device),
                              labels.common.empty() ? "" : ": " + labels.common),
                  {{"case", Side::left}},
                  {},
                  1,
                  ""};
  for (const std::string& backend : backends) table.columns.push_back({backend});
  for (const std::string& case_line : cases) {
    std::vector<Cell> row{{labels.label.at(case_line)}};
    std::vector<std::optional<double>> values;
    for (const std::string& backend : backends) {
      const auto found = std::find_if(trainings.records.begin(), trainings.records.end(),
                                      [&](const Record* r) { return r->case_line == case_line && r->backend == backend; });
      values.push_back(found == trainings.records.end() ? std::nullopt : std::optional(value_of(**found)));
      row.push_back(values.back() ? Cell{significant(*values.back() / unit.size)} : Cell{"·", Tone::dim});
    }
    mark_best(row, values, true);
    table.rows.push_back(std::move(row));
  }
  return table;
}

/// Of one record: other regime / own regime, by their names.
void add_ratios(const Record& record, std::map<std::string, std::vector<double>>& ratios) {
  for (const Timing* timing : timings_of(record)) {
    const auto own = record.time->windows.find(main_window(*record.time)), other = timing->windows.find(main_window(*timing));
    if (timing == &*record.time || own == record.time->windows.end() || other == timing->windows.end()) continue;
    ratios[timing->regime + " / " + record.time->regime].push_back(other->second.median_us / own->second.median_us);
  }
}

}  // namespace

std::vector<TextTable> time_tables(const RunData& run) {
  std::vector<TextTable> tables;
  for (const Group& group : groups_of(run)) tables.push_back(time_table(group, run));
  return tables;
}

std::vector<TextTable> rate_tables(const RunData& run) {
  std::vector<TextTable> tables;
  for (const Group& group : groups_of(run)) tables.push_back(rate_table(group, run));
  return tables;
}

std::vector<TextTable> step_time_tables(const RunData& run) {
  const auto value_of = [](const Record& r) { return r.training->step_us; };
  std::vector<TextTable> tables;
  for (const Trainings& trainings : trainings_of(run)) {
    std::vector<double> times;
    for (const Record* r : trainings.records) times.push_back(value_of(*r));
    tables.push_back(step_table(run, trainings, "Median time of a training step", time_unit(times), value_of));
  }
  return tables;
}

std::vector<TextTable> step_memory_tables(const RunData& run) {
  const auto value_of = [](const Record& r) { return double(r.training->peak_bytes); };
  std::vector<TextTable> tables;
  for (const Trainings& trainings : trainings_of(run))
    tables.push_back(step_table(run, trainings, "The most that a training step allocates", {"MiB", 1 << 20}, value_of));
  return tables;
}

TextTable regime_table(const RunData& run) {
  TextTable table{
      "Time of window op in another regime over that of the record's own",
      {{"backend", Side::left}, {"pass", Side::left}, {"regimes", Side::left}, {"cases"}, {"median"}, {"least"}, {"most"}},
      {},
      3,
      ""};
  for (const std::string& backend : backend_names(run)) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      std::map<std::string, std::vector<double>> ratios;
      for (const Record& r : run.records)
        if (r.backend == backend && r.pass == pass) add_ratios(r, ratios);
      for (const auto& [regimes, values] : ratios) {
        const auto [least, most] = std::minmax_element(values.begin(), values.end());
        table.rows.push_back({{backend},
                              {std::string(name_of(pass))},
                              {regimes},
                              {std::to_string(values.size())},
                              {fmt::format("{:.3f}", median_of(values))},
                              {fmt::format("{:.3f}", *least)},
                              {fmt::format("{:.3f}", *most)}});
      }
    }
  }
  return table;
}

TextTable memory_table(const RunData& run) {
  TextTable table{"Largest memory of a passed record (peak: allocated during the pass, outputs included)",
                  {{"backend", Side::left}, {"pass", Side::left}, {"peak"}, {"workspace"}, {"predicted"}, {"case", Side::left}},
                  {},
                  6,
                  ""};
  for (const std::string& backend : backend_names(run)) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const Record* largest = nullptr;
      for (const Record& r : run.records) {
        const bool candidate = r.backend == backend && r.pass == pass && r.status == Status::passed && r.memory;
        if (candidate && (!largest || r.memory->peak_bytes > largest->memory->peak_bytes)) largest = &r;
      }
      if (!largest) continue;
      table.rows.push_back({{backend},
                            {std::string(name_of(pass))},
                            {bytes_text(largest->memory->peak_bytes)},
                            {bytes_text(largest->memory->workspace_bytes)},
                            {bytes_text(largest->memory->predicted_bytes)},
                            {largest->case_line}});
    }
  }
  return table;
}

}  // namespace attnbench
