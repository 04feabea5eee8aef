// A run read back: everything that a report may know. Reports read this and nothing else.
#pragma once

#include <compare>
#include <cstdint>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "harness/run/declaration.hpp"
#include "harness/run/record.hpp"

namespace attnbench {

/// A run that cannot be read or written: a sentence with file:line, got and expected. Exit code 2.
class RunError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A part of a run; 1/1 where it was not cut into shards.
struct ShardOfRun {
  int64_t index = 1, count = 1;
  auto operator<=>(const ShardOfRun&) const = default;
};
ShardOfRun shard_of(const RunHeader& header);

struct RunData {
  std::vector<RunHeader> headers;       ///< the first line, and one for each resume
  std::vector<Record> records;          ///< in the order in which they were written, canaries left out
  std::vector<Record> canaries;         ///< of planted backends that the run had to see (environment.canaries)
  std::vector<Comparison> comparisons;  ///< likewise
  /// environment.backends, by kind of device: what a backend declares depends on it. The last declaration of a name counts.
  std::map<std::string, std::vector<Declaration>> backends;
  std::vector<std::string> gated;  ///< backends whose red results decide the exit code: environment.gated, else `ours`
  /// --gate none: that no backend is gated is what was asked for (environment.gate), and not for want of one that is ours.
  bool gates_nothing = false;
  /// By kind of device: backends that have nothing for it and were left out. The last header of a kind counts.
  std::map<std::string, std::vector<std::string>> not_on_device;
  bool is_merged = false;             ///< made by `attnbench merge` (environment.merged)
  bool is_complete = true;            ///< every result that the headers promise is here, of every shard
  std::vector<std::string> warnings;  ///< what is missing: the end of a run, a shard, a cut last line
};

inline constexpr const char* kResultsFile = "results.jsonl";

/// Reads DIR/results.jsonl (or the file itself). A last line without its end is dropped with a warning; anything else that
/// is not a line of schema 1 throws RunError.
RunData read_run(const std::filesystem::path& folder_or_file);

}  // namespace attnbench
