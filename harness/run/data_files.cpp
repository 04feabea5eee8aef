#include "harness/run/data_files.hpp"

#include <fmt/format.h>

#include <cstdlib>

#include "harness/run/case.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

bool holds_cases(const fs::path& folder) {
  std::error_code ignored;  // an unreadable folder holds none
  return fs::is_regular_file(folder / "cases" / "full.suite", ignored);
}

}  // namespace

fs::path find_home(const std::optional<std::string>& home, const fs::path& executable, const fs::path& source_dir) {
  if (home) {
    if (holds_cases(*home)) return *home;
    throw CaseError(fmt::format("ATTNBENCH_HOME={}: expected a folder that holds cases/full.suite", *home));
  }
  for (fs::path folder = executable.parent_path(); !folder.empty(); folder = folder.parent_path()) {
    if (holds_cases(folder)) return folder;
    if (folder == folder.root_path()) break;
  }
  if (holds_cases(source_dir)) return source_dir;
  throw CaseError(fmt::format("no folder with cases/full.suite above {} nor in {}; set ATTNBENCH_HOME to the one that holds it",
                              executable.string(), source_dir.string()));
}

fs::path cases_folder() {
  const char* home = std::getenv("ATTNBENCH_HOME");
  std::error_code ignored;  // without /proc the path is empty, and the source folder is tried
  return find_home(home ? std::optional<std::string>(home) : std::nullopt, fs::read_symlink("/proc/self/exe", ignored),
                   ATTNBENCH_SOURCE_DIR) /
         "cases";
}

}  // namespace attnbench
