// The two executables together, with the real backends: a run of the suite smoke, and the number of judged records.
// No LibTorch here: its libraries export a std::filesystem::remove_all of their own, which crashes.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness/run/plan.hpp"
#include "harness/run/protocol.hpp"
#include "harness/run/run_data.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const Device kCpu{"cpu", 0, std::nullopt, "test"};

json expected_counts() {
  std::ifstream file(fs::path(ATTNBENCH_SOURCE_DIR) / "cases" / "expected_counts.json");
  return json::parse(file);
}

void count(json& counts, const std::string& backend, Pass pass, Dtype dtype) {
  json& number = counts[backend][std::string(name_of(pass))][std::string(name_of(dtype))];
  number = number.is_null() ? 1 : number.get<int>() + 1;
}

class EndToEnd : public testing::Test {
 protected:
  void SetUp() override {
    folder = fs::temp_directory_path() / fmt::format("attnbench-end-to-end-{}", getpid());
    fs::create_directory(folder);
  }
  void TearDown() override { fs::remove_all(folder); }

  /// Exit code of an executable; what it prints goes to folder/console.
  int run(const char* executable, const std::string& words) {
    const std::string command = fmt::format("'{}' {} > '{}' 2>&1", executable, words, (folder / "console").string());
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string console() {
    std::ifstream file(folder / "console");
    return {std::istreambuf_iterator<char>(file), {}};
  }

  fs::path folder;
};

TEST_F(EndToEnd, SmokePassesWithinAMinuteAndJudgesWhatItShould) {
  const fs::path run_folder = folder / "run";
  ASSERT_EQ(run(ATTNBENCH_EXECUTABLE, "--suite smoke --out '" + run_folder.string() + "'"), 0) << console();
  rusage used{};
  getrusage(RUSAGE_CHILDREN, &used);  // processor time: a machine that is busy with something else is no failure
  EXPECT_LT(used.ru_utime.tv_sec + used.ru_stime.tv_sec, 60) << "seconds of all its threads";

  const RunData results = read_run(run_folder);
  json judged = json::object();
  std::set<std::string> timed;
  for (const Record& record : results.records) {
    EXPECT_NE(record.status, Status::error) << record.repro << ": " << record.reason;
    EXPECT_TRUE(!record.time || record.status == Status::passed) << record.repro;
    if (record.time) timed.insert(record.backend);
    if (record.status == Status::passed || record.status == Status::failed || record.status == Status::mistrusted)
      count(judged, record.backend, record.pass, parse_case(record.case_line).problem.dtype);
  }
  EXPECT_EQ(judged, expected_counts().at("smoke")) << json::diff(expected_counts().at("smoke"), judged);
  EXPECT_EQ(timed.size(), results.backends.size()) << "every backend has a number";
  EXPECT_FALSE(results.comparisons.empty());
  for (const char* report : {"results.csv", "summary.md", "benchmark.json"})
    EXPECT_TRUE(fs::exists(run_folder / report)) << report;
}

TEST_F(EndToEnd, AReproLineReproduces) {
  const fs::path run_folder = folder / "run";
  const std::string repro = "--case 'attention hq=2 lens=9+0+17 d=16 layout=padded pad=left' --backend eager --pass backward";
  EXPECT_EQ(run(ATTNBENCH_EXECUTABLE, repro + " --check-only --gate eager --out '" + run_folder.string() + "'"), 0) << console();
  const RunData results = read_run(run_folder);
  ASSERT_EQ(results.records.size(), 1u);
  EXPECT_EQ(results.records[0].backend, "eager");
  EXPECT_FALSE(results.records[0].time);
}

/// What would be judged by the declared capabilities equals what was committed: neither a suite nor a backend can
/// lose cases in silence.
TEST_F(EndToEnd, ExpectedCountsAreThoseOfThePlan) {
  ASSERT_EQ(run(WORKER_EXECUTABLE, "--hello"), 0) << console();
  const std::vector<Declaration> declarations = json::parse(console()).get<Hello>().backends;
  const json expected = expected_counts();
  for (const std::string& name : known_suites()) {
    json planned = json::object();
    for (const PlannedCase& entry : make_plan({load_suite(name)}, {}, declarations, kCpu))
      for (const auto& [backend, pass] : entry.runs)
        for (const Declaration& declaration : declarations)
          if (declaration.name == backend && !why_not(declaration, entry.c, pass, kCpu))
            count(planned, backend, pass, entry.c.problem.dtype);
    ASSERT_TRUE(expected.contains(name)) << name << " is missing: scripts/expected_counts writes it from a run";
    EXPECT_EQ(planned, expected[name]) << name << " " << json::diff(expected[name], planned);
  }
}

}  // namespace
}  // namespace attnbench
