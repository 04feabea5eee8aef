// The folder of a run that is being written: DIR/results.jsonl, in whole lines, safe against crashes.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>

#include <nlohmann/json.hpp>

#include "harness/run/run_data.hpp"

namespace attnbench {

/// Each line is one write(2); fsync follows within a second (call sync_if_due() at least that often) and at the end.
/// The file is locked: a second coordinator in the same folder is refused.
class RunFolder {
 public:
  /// Makes `folder`. Throws RunError if it cannot be written or holds a run already: a file with a whole line.
  static RunFolder create(const std::filesystem::path& folder);
  /// Opens an existing run to append to it; a cut last line is taken off. Throws RunError.
  static RunFolder reopen(const std::filesystem::path& folder);

  RunFolder(RunFolder&& other) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;
  ~RunFolder();

  const std::filesystem::path& path() const { return folder_; }
  std::filesystem::path worker_log() const { return folder_ / "worker.log"; }

  /// Throws RunError if the line cannot be written (disk full).
  void append(const nlohmann::json& line);
  void sync_if_due();
  /// Takes a folder away in which no line was written: a run that could not begin leaves nothing behind.
  /// True if it did.
  bool discard_if_empty();

 private:
  RunFolder(std::filesystem::path folder, int open_flags);
  off_t end_of_whole_lines() const;
  void remove_cut_line();

  std::filesystem::path folder_;
  int file_ = -1;
  bool unsynced_ = false;
  std::chrono::steady_clock::time_point last_sync_{};
};

/// "20250102-030405-smoke", in UTC.
std::string make_run_id(const std::string& suite);

/// "2025-01-02T03:04:05Z".
std::string utc_now();

/// runs/<run id>, with -2, -3, … if a run that started in the same second is there already.
std::filesystem::path default_run_folder(const std::string& run_id);

}  // namespace attnbench
