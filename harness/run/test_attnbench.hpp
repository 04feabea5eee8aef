// The executable as a user meets it, with a worker that misbehaves on demand (fake_worker.cpp).
#pragma once

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <sys/types.h>

#include "harness/run/run_data.hpp"

namespace attnbench {

std::string read_text(const std::filesystem::path& file);

/// How attnbench ended.
struct Answer {
  int exit_code = -1;  ///< 128 + signal if a signal ended it, as a shell says
  std::string out;     ///< stdout and stderr
};

/// The worker of a coordinator, if it has one at the moment.
std::optional<pid_t> worker_of(pid_t coordinator);

class Attnbench : public testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  /// Starts attnbench with a worker: the fake one and its options, or "none": the arguments name it.
  pid_t start(std::vector<std::string> arguments, const std::string& worker) const;
  Answer finish(pid_t process) const;
  Answer run(const std::vector<std::string>& arguments, const std::string& worker = "") const {
    return finish(start(arguments, worker));
  }

  /// A run of `cases` cases (4 runs each: two backends, two passes) in the folder `out`.
  std::vector<std::string> cases(int count, const std::string& out = "out") const;
  static std::vector<std::string> joined(std::vector<std::string> a, const std::vector<std::string>& b);

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  RunData results(const std::string& name = "out") const { return read_run(folder_ / name); }

  /// "case/backend/pass/status" of each record, sorted.
  static std::multiset<std::string> outcomes(const RunData& run);
  static int count(const RunData& run, Status status);
  /// The one record with that status; a blank one, and a failed test, if there is none or more.
  static Record only(const RunData& run, Status status);

  /// The runs that were killed are errors that name the signal, at most `kills` of them; everything else, and nothing besides,
  /// ended as it did in the undisturbed run.
  static void expect_only_kills_differ(const RunData& disturbed, const RunData& undisturbed, int kills);

  /// Records, and headers, that out/ holds by now.
  size_t lines_written() const;
  /// Waits until out/ holds `records` records.
  void wait_for(size_t records) const;

  std::filesystem::path folder_;
};

}  // namespace attnbench
