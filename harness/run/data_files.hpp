// Where the data that travels with the program lives: cases/ with its suites and the safety table.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace attnbench {

/// The folder that holds cases/full.suite: `home` (the variable ATTNBENCH_HOME) if it is set, else the first folder upward
/// of `executable` that holds one, else `source_dir` (known when the program was built).
/// Throws CaseError if none of them does; a `home` without suites is an error and not passed over.
std::filesystem::path find_home(const std::optional<std::string>& home, const std::filesystem::path& executable,
                                const std::filesystem::path& source_dir);

/// find_home() of this process; …/cases.
std::filesystem::path cases_folder();

}  // namespace attnbench
