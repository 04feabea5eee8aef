#include "harness/run/run_data.hpp"

#include <algorithm>
#include <iterator>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/files.hpp"
#include "harness/run/json_reader.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

std::string text_of_run(const fs::path& file) {
  try {
    return read_file(file);
  } catch (const std::runtime_error& error) {
    if (fs::exists(file.string() + ".gz"))
      throw RunError(fmt::format("{0}: cannot be read; {0}.gz is there: gunzip -k {0}.gz", file.string()));
    throw RunError(
        fmt::format("{}: cannot be read: {}; expected a run: a folder with a {}", file.string(), error.what(), kResultsFile));
  }
}

void read_environment(const nlohmann::json& environment, RunData& run) {
  const JsonReader in(environment, "run.environment");
  const std::string kind = in.has("device") ? in.object("device").text("kind") : "";
  if (in.has("backends")) {
    std::vector<Declaration>& declared = run.backends[kind];
    run.gated.clear();
    for (Declaration& declaration : in.array("backends").get<std::vector<Declaration>>()) {
      if (declaration.ours) run.gated.push_back(declaration.name);
      const auto same = std::ranges::find(declared, declaration.name, &Declaration::name);
      if (same == declared.end())
        declared.push_back(std::move(declaration));
      else
        *same = std::move(declaration);
    }
  }
  if (in.has("gated")) run.gated = in.array("gated").get<std::vector<std::string>>();
  run.gates_nothing = in.has("gate") ? in.text("gate") == "none" : run.gated.empty();  // runs of old do not say
  if (in.has("not_on_device")) in.array("not_on_device").get_to(run.not_on_device[kind]);
}

void read_line(const std::string& text, RunData& run) {
  const nlohmann::json line = parse_json(text);
  const std::string kind = JsonReader(line, "line").text("record");
  if (kind == "run") {
    run.headers.push_back(run_header_from(line));
    read_environment(run.headers.back().environment, run);
    return;
  }
  if (run.headers.empty()) throw std::runtime_error("expected the run's header before its results");
  if (kind == "result")
    run.records.push_back(record_from(line));
  else if (kind == "comparison")
    run.comparisons.push_back(comparison_from(line));
  else
    throw std::runtime_error(fmt::format("record: expected run, result or comparison, got \"{}\"", kind));
}

/// What no report shows as a result: environment.canaries names them by case and backend.
void set_canaries_aside(RunData& run) {
  std::set<std::pair<std::string, std::string>> canaries;
  for (const RunHeader& header : run.headers) {
    const JsonReader environment(header.environment, "run.environment");
    if (!environment.has("canaries")) continue;
    for (const auto& entry : environment.array("canaries")) {
      const JsonReader canary(entry, "run.environment.canaries");
      canaries.emplace(canary.text("case"), canary.text("backend"));
    }
  }
  const auto is_canary = [&](const Record& record) { return canaries.contains({record.case_line, record.backend}); };
  std::ranges::copy_if(run.records, std::back_inserter(run.canaries), is_canary);
  std::erase_if(run.records, is_canary);
}

/// What to do about a run that has not ended. A selftest, a fuzz, … (the first word) cannot go on.
std::string how_to_end(const fs::path& folder, const RunData& run) {
  if (run.is_merged) return "resume the parts that have not ended, and merge again";
  const std::vector<std::string>& words = run.headers.front().argv;
  const std::string command = words.size() > 1 && !words[1].starts_with('-') ? words[1] : "run";
  return command == "run" ? fmt::format("attnbench --resume {} goes on with it", folder.string())
                          : fmt::format("attnbench {} has to be run again", command);
}

/// Headers say how many results their part promises, and of how many parts it is one. One that could not know it says so
/// (open_ended), and another closes the part.
void look_for_gaps(const fs::path& folder, RunData& run) {
  std::map<ShardOfRun, size_t> promised;  // by the header that promises most: a resume promises what was left
  bool is_open = false;
  for (const RunHeader& header : run.headers) {
    const nlohmann::json runs = header.environment.value("runs", nlohmann::json(0));
    size_t& most = promised[shard_of(header)];
    most = std::max(most, runs.is_number_unsigned() ? runs.get<size_t>() : 0);
    is_open = header.environment.value("open_ended", nlohmann::json(false)) == true || (is_open && most == 0);
  }
  run.is_merged = promised.size() > 1 || run.headers.front().environment.contains("merged");
  size_t all = 0;
  for (const auto& [shard, results] : promised) all += results;
  const size_t here = run.records.size() + run.canaries.size();
  if (here < all || is_open) {
    run.is_complete = false;
    run.warnings.push_back(fmt::format("{} results are here: the run has not ended; {}",
                                       is_open ? std::to_string(here) : fmt::format("{} of {}", here, all),
                                       how_to_end(folder, run)));
  }
  const int64_t count = run.is_merged ? promised.begin()->first.count : 1;  // who asked for one shard has it whole
  for (int64_t index = 1; index <= count; ++index) {
    if (count == 1 || promised.contains({index, count})) continue;
    run.is_complete = false;
    run.warnings.push_back(fmt::format("shard {}/{} is missing", index, count));
  }
}

}  // namespace

ShardOfRun shard_of(const RunHeader& header) {
  const JsonReader environment(header.environment, "run.environment");
  if (!environment.has("shard")) return {};
  const JsonReader shard = environment.object("shard");
  return {shard.integer("index"), shard.integer("count")};
}

RunData read_run(const fs::path& folder_or_file) {
  const fs::path file = fs::is_directory(folder_or_file) ? folder_or_file / kResultsFile : folder_or_file;
  const std::string text = text_of_run(file);
  RunData run;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    ++number;
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) {
      run.warnings.push_back(fmt::format("{}:{}: the last line was cut while it was written; left out", file.string(), number));
      break;
    }
    try {
      read_line(text.substr(begin, end - begin), run);
    } catch (const nlohmann::json::exception& error) {
      throw RunError(fmt::format("{}:{}: not a JSON line of a run: {}", file.string(), number, error.what()));
    } catch (const std::runtime_error& error) {
      throw RunError(fmt::format("{}:{}: {}", file.string(), number, error.what()));
    }
    begin = end + 1;
  }
  if (run.headers.empty())
    throw RunError(
        fmt::format("{}: holds no whole line: its run ended before it began; start it again with --out", file.string()));
  set_canaries_aside(run);
  look_for_gaps(file.parent_path(), run);
  return run;
}

}  // namespace attnbench
