// Joins the shards of one run into one folder.
#pragma once

#include <filesystem>
#include <vector>

namespace attnbench {

/// Writes the union of `runs` to a new run in `out`; the order of `runs` does not matter, nor that one is named
/// twice. Refused are runs of other commands (--shard, --out and how the workers run apart), shards of another count, and
/// unlike records of one (case, backend, device, pass). What is missing is said when the result is read.
/// Throws RunError, and then nothing is written.
void merge_runs(const std::vector<std::filesystem::path>& runs, const std::filesystem::path& out);

}  // namespace attnbench
