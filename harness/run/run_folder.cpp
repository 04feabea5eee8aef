#include "harness/run/run_folder.hpp"

#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include "harness/run/json_reader.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr auto kLongestUnsynced = std::chrono::milliseconds(500);

[[noreturn]] void cannot_be_written(const fs::path& path, int error) {
  throw RunError(fmt::format("{}: cannot be written: {}", path.string(), std::strerror(error)));
}

}  // namespace

RunFolder::RunFolder(fs::path folder, int open_flags) : folder_(std::move(folder)) {
  const fs::path file = folder_ / kResultsFile;
  file_ = open(file.c_str(), open_flags | O_RDWR | O_APPEND | O_CLOEXEC, 0644);
  if (file_ < 0) cannot_be_written(file, errno);
  if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
    close(file_);
    throw RunError(fmt::format("{}: another attnbench is writing this run", folder_.string()));
  }
}

RunFolder RunFolder::create(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) cannot_be_written(folder, error.value());
  RunFolder run(folder, O_CREAT);
  if (run.end_of_whole_lines() > 0)
    throw RunError(
        fmt::format("{}: holds a run already; choose another --out or, if it is of suites or cases, continue it with --resume {}",
                    folder.string(), folder.string()));
  char first = '{';
  if (pread(run.file_, &first, 1, 0) == 1 && first != '{')
    throw RunError(fmt::format("{}: is no run's; choose another --out", (folder / kResultsFile).string()));
  run.remove_cut_line();  // of a run that was killed before it had written its header
  return run;
}

RunFolder RunFolder::reopen(const fs::path& folder) {
  RunFolder run(folder, 0);
  run.remove_cut_line();
  return run;
}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : folder_(std::move(other.folder_)),
      file_(std::exchange(other.file_, -1)),
      unsynced_(other.unsynced_),
      last_sync_(other.last_sync_) {}

RunFolder::~RunFolder() {
  if (file_ < 0) return;
  if (unsynced_) fsync(file_);
  close(file_);
}

off_t RunFolder::end_of_whole_lines() const {
  off_t end = lseek(file_, 0, SEEK_END);
  for (char last = 0; end > 0; --end) {
    if (pread(file_, &last, 1, end - 1) != 1) cannot_be_written(folder_ / kResultsFile, errno);
    if (last == '\n') break;
  }
  return end;
}

void RunFolder::remove_cut_line() {
  if (ftruncate(file_, end_of_whole_lines()) != 0) cannot_be_written(folder_ / kResultsFile, errno);
}

void RunFolder::append(const nlohmann::json& line) {
  const std::string text = to_text(line) + '\n';
  for (size_t written = 0; written < text.size();) {
    const ssize_t count = write(file_, text.data() + written, text.size() - written);
    if (count < 0 && errno != EINTR) cannot_be_written(folder_ / kResultsFile, errno);
    if (count > 0) written += static_cast<size_t>(count);
  }
  unsynced_ = true;
  sync_if_due();
}

void RunFolder::sync_if_due() {
  if (!unsynced_ || Clock::now() - last_sync_ < kLongestUnsynced) return;
  if (fsync(file_) != 0 && errno != EINVAL) cannot_be_written(folder_ / kResultsFile, errno);  // EINVAL: /dev/full, a pipe
  unsynced_ = false;
  last_sync_ = Clock::now();
}

bool RunFolder::discard_if_empty() {
  if (lseek(file_, 0, SEEK_END) != 0) return false;
  std::error_code ignored;  // what cannot be taken away does no harm
  fs::remove(folder_ / kResultsFile, ignored);
  fs::remove(worker_log(), ignored);
  fs::remove(folder_, ignored);  // only if it is empty
  return true;
}

std::string make_run_id(const std::string& suite) {
  return fmt::format("{:%Y%m%d-%H%M%S}-{}", fmt::gmtime(std::time(nullptr)), suite);
}

std::string utc_now() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

fs::path default_run_folder(const std::string& run_id) {
  const fs::path first = fs::path("runs") / run_id;
  fs::path folder = first;
  for (int number = 2; fs::exists(folder); ++number) folder = first.string() + fmt::format("-{}", number);
  return folder;
}

}  // namespace attnbench
