#include "harness/run/test_attnbench.hpp"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <map>
#include <thread>

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

namespace attnbench {

namespace fs = std::filesystem;

std::string read_text(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::optional<pid_t> worker_of(pid_t coordinator) {
  std::ifstream children(fmt::format("/proc/{}/task/{}/children", coordinator, coordinator));
  pid_t child = 0;
  return children >> child ? std::optional(child) : std::nullopt;
}

void Attnbench::SetUp() {
  folder_ = fs::temp_directory_path() / fmt::format("attnbench_test-{}", getpid());
  fs::remove_all(folder_);
  fs::create_directories(folder_);
}

void Attnbench::TearDown() {
  fs::remove_all(folder_);
}

pid_t Attnbench::start(std::vector<std::string> arguments, const std::string& worker) const {
  arguments.insert(arguments.begin(), ATTNBENCH_EXECUTABLE);
  if (worker != "none") {
    arguments.push_back("--worker");
    arguments.push_back(std::string(FAKE_WORKER) + " " + worker);
  }
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const std::string output = (folder_ / "output").string();
  const pid_t process = fork();
  if (process == 0) {
    setenv("CUDA_VISIBLE_DEVICES", "", 1);  // what these tests run is meant for a CPU
    if (!freopen(output.c_str(), "w", stdout)) _exit(126);
    dup2(STDOUT_FILENO, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  return process;
}

Answer Attnbench::finish(pid_t process) const {
  int status = 0;
  waitpid(process, &status, 0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_text(folder_ / "output")};
}

std::vector<std::string> Attnbench::cases(int count, const std::string& out) const {
  std::string lines = "attention lq=1";
  for (int i = 2; i <= count; ++i) lines += fmt::format(",{}", i);
  return {"--case", lines + " d=64", "--out", path(out)};
}

std::vector<std::string> Attnbench::joined(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::multiset<std::string> Attnbench::outcomes(const RunData& run) {
  std::multiset<std::string> all;
  for (const Record& r : run.records)
    all.insert(fmt::format("{}/{}/{}/{}", r.case_line, r.backend, name_of(r.pass), name_of(r.status)));
  return all;
}

int Attnbench::count(const RunData& run, Status status) {
  return static_cast<int>(std::ranges::count(run.records, status, &Record::status));
}

Record Attnbench::only(const RunData& run, Status status) {
  EXPECT_EQ(count(run, status), 1);
  const auto found = std::ranges::find(run.records, status, &Record::status);
  return found == run.records.end() ? Record{} : *found;
}

void Attnbench::expect_only_kills_differ(const RunData& disturbed, const RunData& undisturbed, int kills) {
  const auto run_of = [](const Record& r) { return fmt::format("{}/{}/{}", r.case_line, r.backend, name_of(r.pass)); };
  std::map<std::string, Status> expected;
  for (const Record& record : undisturbed.records) expected[run_of(record)] = record.status;
  int errors = 0;
  for (const Record& record : disturbed.records) {
    const auto same = expected.find(run_of(record));
    ASSERT_TRUE(same != expected.end()) << run_of(record) << " is there twice, or nobody asked for it";
    if (record.status == Status::error) {
      ++errors;
      EXPECT_NE(record.reason.find("was killed by signal 9 (SIGKILL"), std::string::npos) << record.reason;
    } else {
      EXPECT_EQ(name_of(record.status), name_of(same->second)) << run_of(record);
    }
    expected.erase(same);
  }
  EXPECT_TRUE(expected.empty()) << expected.size() << " runs are lost, " << expected.begin()->first << " among them";
  EXPECT_LE(errors, kills);
}

size_t Attnbench::lines_written() const {
  const std::string text = read_text(folder_ / "out" / kResultsFile);
  return static_cast<size_t>(std::ranges::count(text, '\n'));
}

void Attnbench::wait_for(size_t records) const {
  for (int i = 0; i < 3000; ++i) {
    if (lines_written() > records) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  FAIL() << "the run does not get on";
}

}  // namespace attnbench
