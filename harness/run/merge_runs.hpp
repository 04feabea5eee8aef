// Joins runs, usually the shards of one, into one folder.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace attnbench {

/// Writes the union of `runs` to a new run in `out`; the order of `runs` does not matter. Of several records of one (case,
/// backend, device, pass) one is kept: the worst status, so that a merge hides nothing. Returns a sentence for each conflict,
/// that is, unlike status, and for each cut last line. Throws RunError.
std::vector<std::string> merge_runs(const std::vector<std::filesystem::path>& runs, const std::filesystem::path& out);

}  // namespace attnbench
