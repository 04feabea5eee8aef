// Joins runs, usually the shards of one, into one folder.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace attnbench {

/// Writes the union of `runs` to a new run in `out`; the order of `runs` does not matter, nor that one is named
/// twice. Runs that overlap, that is, have unlike records of one (case, backend, device, pass), are refused. Returns a sentence
/// for each cut last line. Throws RunError, and then nothing is written.
std::vector<std::string> merge_runs(const std::vector<std::filesystem::path>& runs, const std::filesystem::path& out);

}  // namespace attnbench
