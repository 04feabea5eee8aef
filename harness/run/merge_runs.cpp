#include "harness/run/merge_runs.hpp"

#include <map>
#include <set>
#include <tuple>

#include <fmt/format.h>

#include "harness/run/json_reader.hpp"
#include "harness/run/run_folder.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

using RecordKey = std::tuple<std::string, std::string, std::string, Pass>;

/// A record and the run that it came from.
struct Found {
  Record record;
  fs::path run;
};
using Records = std::map<RecordKey, Found>;

/// The same line twice is the same result (a part that was named twice); two results of one run of a case are not parts of
/// one whole, and choosing between them would hide one.
void add_record(const Record& record, const fs::path& run, Records& records) {
  const RecordKey key{record.case_line, record.backend, record.device, record.pass};
  const auto [there, is_new] = records.emplace(key, Found{record, run});
  if (is_new || to_text(to_line(there->second.record)) == to_text(to_line(record))) return;
  throw RunError(
      fmt::format("merge: {} and {} are no parts of one run: each has a result of its own of {} {} on {} ({} and {}); {}",
                  there->second.run.string(), run.string(), record.backend, name_of(record.pass), record.device,
                  name_of(there->second.record.status), name_of(record.status), record.case_line));
}

}  // namespace

std::vector<std::string> merge_runs(const std::vector<fs::path>& runs, const fs::path& out) {
  std::vector<std::string> warnings;
  std::map<std::pair<std::string, std::string>, nlohmann::json> headers;  // by start and text: any order, no duplicates
  std::set<std::string> comparisons;
  Records records;
  for (const fs::path& path : runs) {
    const RunData run = read_run(path);
    warnings.insert(warnings.end(), run.warnings.begin(), run.warnings.end());
    for (const RunHeader& header : run.headers) headers[{header.started, to_text(to_line(header))}] = to_line(header);
    for (const Record& record : run.records) add_record(record, path, records);
    for (const Comparison& comparison : run.comparisons) comparisons.insert(to_text(to_line(comparison)));
  }
  RunFolder folder = RunFolder::create(out);
  for (const auto& [key, header] : headers) folder.append(header);
  for (const auto& [key, found] : records) folder.append(to_line(found.record));
  for (const std::string& comparison : comparisons) folder.append(nlohmann::json::parse(comparison));
  return warnings;
}

}  // namespace attnbench
