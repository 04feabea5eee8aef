#include "harness/run/files.hpp"

#include <filesystem>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "harness/run/run_data.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class Files : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  template <class Call>
  static std::string refusal(const Call& call) {
    try {
      call();
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "it was done";
  }

  const fs::path folder_ = fs::temp_directory_path() / fmt::format("files_test-{}", getpid());
};

TEST_F(Files, AreReadAsTheyWereWritten) {
  const std::string text("one\r\ntwo\0three", 14);
  write_file(folder_ / "text", text);
  EXPECT_EQ(read_file(folder_ / "text"), text);
  write_file(folder_ / "text", "");
  EXPECT_EQ(read_file(folder_ / "text"), "");
  EXPECT_FALSE(fs::exists(folder_ / "text.part"));
  write_file(folder_ / "json", R"({"a":[1]})");
  EXPECT_EQ(read_json(folder_ / "json").at("a").at(0), 1);
}

TEST_F(Files, ThatCannotBeReadOrWrittenSayWhy) {
  EXPECT_EQ(refusal([&] { read_file(folder_ / "nothing"); }), "No such file or directory");
  EXPECT_EQ(refusal([&] { read_file(folder_); }), "Is a directory");
  EXPECT_EQ(refusal([&] { read_json(folder_ / "nothing"); }), "No such file or directory");
  write_file(folder_ / "json", "[" + std::string(1000, '[') + "]");
  EXPECT_THAT(refusal([&] { read_json(folder_ / "json"); }), HasSubstr("nested 1001 deep"));
  const fs::path below = folder_ / "json" / "below";
  EXPECT_THROW(write_file(below, ""), RunError);
  EXPECT_EQ(refusal([&] { write_file(below, ""); }), below.string() + ": cannot be written: Not a directory");
}

}  // namespace
}  // namespace attnbench
