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

/// By the number of parts that a run was cut into: the parts that are there.
using Shards = std::map<int64_t, std::set<int64_t>>;

void note_shard(const RunHeader& header, Shards& shards) {
  const JsonReader environment(header.environment, "run.environment");
  if (!environment.has("shard")) return;
  const JsonReader shard = environment.object("shard");
  shards[shard.integer("count")].insert(shard.integer("index"));
}

void warn_of_missing(const Shards& shards, std::vector<std::string>& warnings) {
  for (const auto& [count, there] : shards)
    for (int64_t index = 1; index <= count; ++index)
      if (!there.contains(index)) warnings.push_back(fmt::format("merge: shard {}/{} is missing", index, count));
}

}  // namespace

std::vector<std::string> merge_runs(const std::vector<fs::path>& runs, const fs::path& out) {
  std::vector<std::string> warnings;
  std::map<std::pair<std::string, std::string>, nlohmann::json> headers;  // by start and text: any order, no duplicates
  std::set<std::string> comparisons;
  Records records;
  Shards shards;
  for (const fs::path& path : runs) {
    const RunData run = read_run(path);
    warnings.insert(warnings.end(), run.warnings.begin(), run.warnings.end());
    for (const RunHeader& header : run.headers) {
      headers[{header.started, to_text(to_line(header))}] = to_line(header);
      note_shard(header, shards);
    }
    for (const Record& record : run.records) add_record(record, path, records);
    for (const Comparison& comparison : run.comparisons) comparisons.insert(to_text(to_line(comparison)));
  }
  warn_of_missing(shards, warnings);
  RunFolder folder = RunFolder::create(out);
  for (const auto& [key, header] : headers) folder.append(header);
  for (const auto& [key, found] : records) folder.append(to_line(found.record));
  for (const std::string& comparison : comparisons) folder.append(nlohmann::json::parse(comparison));
  return warnings;
}

}  // namespace attnbench
