// scripts/expected_counts --check, seen to fail. What it compares with is counted from the published run, which is of its day:
// that the committed counts are those of today's suites is end_to_end_test's to say.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const fs::path kSource = ATTNBENCH_SOURCE_DIR;
const fs::path kPublished = kSource / "reports" / "published" / "2026-11-21-cpu";

class ExpectedCounts : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("expected_counts_test-{}", getpid());
    fs::create_directories(folder_);
    EXPECT_EQ(count(kPublished, ""), 0) << said_;
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// Exit code of the script; what it prints is in said_.
  int count(const fs::path& run, const std::string& option) {
    const std::string script = (kSource / "scripts" / "expected_counts").string(), folder = folder_.string();
    const int status = std::system(
        fmt::format("'{}' {} '--expected={}/counts.json' '{}' > '{}/output' 2>&1", script, option, folder, run.string(), folder)
            .c_str());
    std::ifstream in(folder_ / "output");
    said_ = {std::istreambuf_iterator<char>(in), {}};
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  int check(const fs::path& run) { return count(run, "--check"); }

  /// Checks a copy of the published run, in which `change` has turned each line into none, one or more.
  int check_tampered(const std::function<std::string(const std::string&)>& change) {
    std::ifstream in(kPublished / "results.jsonl");
    std::ofstream out(folder_ / "results.jsonl");
    for (std::string line; std::getline(in, line);) out << change(line + '\n');
    out.close();
    return check(folder_);
  }

  fs::path folder_;
  std::string said_;
};

bool is_passed(const std::string& line, const std::string& backend) {
  return line.find("\"backend\":\"" + backend + "\"") != std::string::npos &&
         line.find("\"status\":\"passed\"") != std::string::npos && line.find("\"record\":\"result\"") != std::string::npos;
}

TEST_F(ExpectedCounts, WhatWasWrittenIsFoundAgain) {
  EXPECT_EQ(check(kPublished), 0) << said_;
  EXPECT_THAT(said_, HasSubstr("as expected: full"));
}

TEST_F(ExpectedCounts, OneLostRecordIsNamed) {
  bool lost = false;
  const auto lose_one = [&](const std::string& line) {
    if (lost || !is_passed(line, "eager")) return line;
    lost = true;
    return std::string();
  };
  EXPECT_EQ(check_tampered(lose_one), 1);
  EXPECT_TRUE(lost);
  EXPECT_THAT(said_, HasSubstr("/full/eager/"));
  EXPECT_EQ(std::count(said_.begin(), said_.end(), '\n'), 1) << said_;
}

TEST_F(ExpectedCounts, AMissingBackendIsNamed) {
  EXPECT_EQ(check_tampered([](const std::string& line) {
              return line.find("\"backend\":\"eigen\"") == std::string::npos ? line : std::string();
            }),
            1);
  EXPECT_THAT(said_, HasSubstr("/full/eigen"));
  EXPECT_THAT(said_, HasSubstr("found none"));
}

TEST_F(ExpectedCounts, ABackendThatNobodyExpectsIsNamed) {
  bool added = false;
  const auto add_one = [&](const std::string& line) {
    if (added || !is_passed(line, "eager")) return line;
    added = true;
    std::string more = line;
    const std::string backend = "\"backend\":\"eager\"";
    more.replace(more.find(backend), backend.size(), "\"backend\":\"nobody\"");
    return line + more;
  };
  EXPECT_EQ(check_tampered(add_one), 1);
  EXPECT_THAT(said_, HasSubstr("/full/nobody/"));
  EXPECT_THAT(said_, HasSubstr("expected none, found 1"));
}

TEST_F(ExpectedCounts, ARunWithoutJudgedRecordsIsRefused) {
  EXPECT_EQ(check_tampered([](const std::string& line) {
              return line.find("\"record\":\"result\"") == std::string::npos ? line : std::string();
            }),
            1);
  EXPECT_THAT(said_, HasSubstr("no judged record"));
  EXPECT_EQ(check(folder_ / "nothing"), 2);
}

}  // namespace
}  // namespace attnbench
