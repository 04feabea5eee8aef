// A selftest in words: a row a defect, a row a gate, and every defect that the judge let through.
#pragma once

#include <filesystem>
#include <string>

#include "harness/run/selftest.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// A row a defect, over all backends that have it: pairs, what became of them, and the alarms that caught it, with the number of
/// pairs; at most `most_alarms` of them (0: all).
TextTable defect_table(const Selftest& selftest, size_t most_alarms);

/// A row a gate, or another alarm, of a backend: pairs that it caught, on any tensor, and pairs that no other caught.
TextTable gate_table(const Selftest& selftest);

/// A row a backend: pairs, and what became of them.
TextTable backend_table(const Selftest& selftest);

std::string selftest_console(const Selftest& selftest, const TextStyle& style);
std::string selftest_markdown(const RunData& run, const Selftest& selftest);

/// {"device":"cuda:0","defects":N,"pairs":N,"caught":N,"equivalent":N,"survivors":[{"defect":…,"case":…,"largest":{"tensor":…,"gate":…,"value":…,
///   "limit":…,"ratio":…} or null,"known":bool}],"stale":[{"defect":…,"case":…}],"tensors":N,"false_alarms":N,
///   "gates":{NAME:{"caught":n,"alone":n}},
///   "backends":{NAME:{"pairs":N,"caught":N,"equivalent":N,"survived":N,"gates":as above}}}
/// pairs = caught + equivalent + survivors; defects counts one that several backends have once; tensors and false_alarms are
/// those of the real backends.
std::string selftest_json(const Selftest& selftest);

/// Writes selftest.md and selftest.json into the run's folder. Throws RunError.
void write_selftest_reports(const std::filesystem::path& folder, const RunData& run, const Selftest& selftest);

}  // namespace attnbench
