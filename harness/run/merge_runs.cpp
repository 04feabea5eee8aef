#include "harness/run/merge_runs.hpp"

#include <map>
#include <optional>
#include <set>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>

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

/// What the parts of one run have in common: the words of the command, but for those that may differ between them.
std::vector<std::string> command_of(const RunData& run) {
  const std::set<std::string> own = {"--shard", "--out", "--worker", "--workers", "--timeout", "--dump"};
  std::vector<std::string> words = run.headers.front().argv, common;
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string option = words[i].substr(0, words[i].find('='));
    if (!own.contains(option))
      common.push_back(words[i]);
    else if (option == words[i])
      ++i;  // its value
  }
  return common;
}

/// What the first of the runs says of the whole.
struct Whole {
  fs::path path;
  std::vector<std::string> command;
  int64_t shards = 1;
};

void check_part(const Whole& whole, const RunData& other, const fs::path& path) {
  const auto refuse = [&](const std::string& why) {
    throw RunError(fmt::format("merge: {} and {} are no parts of one run: {}", whole.path.string(), path.string(), why));
  };
  const std::vector<std::string> theirs = command_of(other);
  if (whole.command != theirs)
    refuse(fmt::format("'attnbench {}' and 'attnbench {}'", fmt::join(whole.command, " "), fmt::join(theirs, " ")));
  for (const RunHeader& header : other.headers)
    if (const int64_t got = shard_of(header).count; got != whole.shards)
      refuse(fmt::format("shards of {} and of {}", whole.shards, got));
}

}  // namespace

void merge_runs(const std::vector<fs::path>& runs, const fs::path& out) {
  std::map<std::pair<std::string, std::string>, nlohmann::json> headers;  // by start and text: any order, no duplicates
  std::set<std::string> comparisons;
  Records records;
  std::optional<Whole> whole;
  for (const fs::path& path : runs) {
    const RunData run = read_run(path);
    if (!whole) whole = {path, command_of(run), shard_of(run.headers.front()).count};
    check_part(*whole, run, path);
    for (RunHeader header : run.headers) {
      header.environment["merged"] = true;  // a part of a whole, whichever other parts are here
      headers[{header.started, to_text(to_line(header))}] = to_line(header);
    }
    for (const std::vector<Record>* results : {&run.records, &run.canaries})
      for (const Record& record : *results) add_record(record, path, records);
    for (const Comparison& comparison : run.comparisons) comparisons.insert(to_text(to_line(comparison)));
  }
  RunFolder folder = RunFolder::create(out);
  for (const auto& [key, header] : headers) folder.append(header);
  for (const auto& [key, found] : records) folder.append(to_line(found.record));
  for (const std::string& comparison : comparisons) folder.append(nlohmann::json::parse(comparison));
}

}  // namespace attnbench
