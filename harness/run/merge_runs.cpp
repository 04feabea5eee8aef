#include "harness/run/merge_runs.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include <fmt/format.h>

#include "harness/run/json_reader.hpp"
#include "harness/run/run_folder.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

/// The worse, the larger.
int badness(Status status) {
  switch (status) {
    case Status::unsupported:
      return 0;
    case Status::skipped:
      return 1;
    case Status::passed:
      return 2;
    case Status::mistrusted:
      return 3;
    case Status::error:
      return 4;
    case Status::failed:
      return 5;
  }
  throw std::logic_error("merge: a status without a rank");
}

using RecordKey = std::tuple<std::string, std::string, std::string, Pass>;
using Records = std::map<RecordKey, Record>;

void add_record(const Record& record, Records& records, std::vector<std::string>& messages) {
  const RecordKey key{record.case_line, record.backend, record.device, record.pass};
  const auto [there, is_new] = records.emplace(key, record);
  if (is_new) return;
  const Status before = there->second.status;
  if (before != record.status)
    messages.push_back(fmt::format("conflict: {} {} on {}: {} and {}; {}", record.backend, name_of(record.pass), record.device,
                                   std::min(name_of(before), name_of(record.status)),
                                   std::max(name_of(before), name_of(record.status)), record.case_line));
  const auto rank = [](const Record& r) { return std::pair(badness(r.status), to_text(to_line(r))); };
  if (rank(record) > rank(there->second)) there->second = record;
}

}  // namespace

std::vector<std::string> merge_runs(const std::vector<fs::path>& runs, const fs::path& out) {
  std::vector<std::string> messages;
  std::map<std::pair<std::string, std::string>, nlohmann::json> headers;  // by start and text: any order, no duplicates
  std::set<std::string> comparisons;
  Records records;
  for (const fs::path& path : runs) {
    const RunData run = read_run(path);
    messages.insert(messages.end(), run.warnings.begin(), run.warnings.end());
    for (const RunHeader& header : run.headers) headers[{header.started, to_text(to_line(header))}] = to_line(header);
    for (const Record& record : run.records) add_record(record, records, messages);
    for (const Comparison& comparison : run.comparisons) comparisons.insert(to_text(to_line(comparison)));
  }
  RunFolder folder = RunFolder::create(out);
  for (const auto& [key, header] : headers) folder.append(header);
  for (const auto& [key, record] : records) folder.append(to_line(record));
  for (const std::string& comparison : comparisons) folder.append(nlohmann::json::parse(comparison));
  return messages;
}

}  // namespace attnbench
