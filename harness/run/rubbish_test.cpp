// The parsers under rubbish, for a bounded time: a text is read, and what was read is written and read again alike; or it is
// refused with a sentence, by the exception that the parser's header names. Never anything else.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <typeinfo>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include "harness/run/case_keys.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/names.hpp"
#include "harness/run/protocol.hpp"
#include "harness/run/random_case.hpp"
#include "harness/run/run_data.hpp"
#include "harness/run/suite.hpp"
#include "harness/run/test_records.hpp"
#include "harness/run/test_rubbish.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr auto kTime = std::chrono::seconds(2);

int64_t peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

/// `read` reads a text and checks that what it wrote from it is read alike.
template <class Refusal, class Read>
void feed(const Rubbish& rubbish, Read&& read) {
  constexpr int64_t kMostBytes = int64_t{1} << 30;
  const int64_t before = peak_bytes();
  const auto end = std::chrono::steady_clock::now() + kTime;
  int64_t taken = 0, refused = 0;
  for (uint64_t number = 0; std::chrono::steady_clock::now() < end && !testing::Test::HasFailure(); ++number) {
    const std::string text = rubbish.text(number);
    const auto where = [&] { return fmt::format("number {}: {}", number, shown_rubbish(text)); };
    try {
      read(text);
      ++taken;
    } catch (const Refusal& refusal) {
      ++refused;
      EXPECT_STRNE(refusal.what(), "") << where();
    } catch (const std::exception& error) {
      ADD_FAILURE() << typeid(error).name() << ": " << error.what() << "\n" << where();
    }
    EXPECT_FALSE(testing::Test::HasFailure()) << where();
  }
  EXPECT_GT(taken, 10) << "the rubbish is too bad to test what is read";
  EXPECT_GT(refused, 10) << "the rubbish is too good to test what is refused";
  EXPECT_LT(peak_bytes() - before, kMostBytes);
  testing::Test::RecordProperty("taken", std::to_string(taken));
  testing::Test::RecordProperty("refused", std::to_string(refused));
}

std::vector<std::string> case_lines() {
  std::vector<std::string> lines{
      R"(attention d=8 lq=4 # name=tail expect=must_throw source=https://x.org/i#3 why="a \"b\" \\ c" device=cuda timed=no cooled=no)"};
  for (uint64_t number = 0; number < 60; ++number) lines.push_back(format_line(random_case(1, number)));
  return lines;
}

std::vector<std::string> case_tokens() {
  std::vector<std::string> tokens{"attention", "with",     "include smoke", "=",     ",",   "+",  ":",   "#",  "(",
                                  ")",         "uniform(", "uniform(0,9)",  "auto",  "off", "on", "yes", "no", "1,2",
                                  "64,128,",   "0+0",      "0.1:7",         "-1:-1", "-1:0"};
  for (const auto keys : {case_keys(), metadata_keys()})
    for (const Key& key : keys) tokens.push_back(std::string(key.name) + "=");
  const auto add = [&](const std::vector<std::string_view>& names) { tokens.insert(tokens.end(), names.begin(), names.end()); };
  add(all_names<Dtype>());
  add(all_names<Mask>());
  add(all_names<Align>());
  add(all_names<Pad>());
  add(all_names<Fill>());
  add(all_names<Expect>());
  return tokens;
}

TEST(Rubbish, ACaseLine) {
  const Rubbish rubbish(case_lines(), case_tokens(), " =,+#:");
  feed<CaseError>(rubbish, [](const std::string& text) {
    const Case c = parse_case(text);
    const Case again = parse_case(format_line(c));
    EXPECT_EQ(again, c);
    EXPECT_EQ(again.metadata, c.metadata);
    EXPECT_EQ(format_line(again), format_line(c));
    EXPECT_EQ(parse_case(format_case(c)), c);
  });
}

/// A file that is written anew for each text.
class RubbishFile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("attnbench_rubbish-{}", getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string write(const std::string& name, const std::string& text) const {
    const fs::path file = folder_ / name;
    std::ofstream(file, std::ios::binary) << text;
    return file.string();
  }

 private:
  fs::path folder_;
};

TEST_F(RubbishFile, ASuite) {
  std::vector<std::string> suites;
  for (const std::string& line : case_lines()) {
    suites.push_back(
        "# Tails of a tile.\nwith hq=4 hkv=2 d=64 layout=packed,padded # timed=no\n\nattention lq=65,17 dtype=bf16,fp16\n" +
        line + "\nwith\n" + line + "\n");
    suites.push_back("include smoke # timed=no\n" + line + "\n");
  }
  const Rubbish rubbish(suites, case_tokens(), " =,+#\n");
  feed<CaseError>(rubbish, [&](const std::string& text) {
    constexpr size_t kReadAgain = 1000;
    const Suite suite = load_suite(write("x.suite", text));
    EXPECT_FALSE(suite.cases.empty());
    for (size_t i = 0; i < std::min(kReadAgain, suite.cases.size()); ++i) {
      const Case& c = suite.cases[i].c;
      const Case again = parse_case(format_line(c));
      EXPECT_EQ(again, c);
      EXPECT_EQ(again.metadata, c.metadata);
    }
  });
}

std::vector<std::string> json_tokens() {
  return {"{",
          "}",
          "[",
          "]",
          ",",
          ":",
          "\"run\"",
          "\"result\"",
          "\"comparison\"",
          "\"record\"",
          "\"environment\"",
          "\"backends\"",
          "\"gated\"",
          "\"device\"",
          "\"passed\"",
          "\"nan\"",
          "\"-inf\"",
          "\"forward\"",
          "\"x\"",
          "\"\"",
          "\"\\u0000\"",
          "\"\\ud800\"",
          "false",
          "1e308",
          "-1e308",
          "1.7976931348623157e308",
          "4.9e-324",
          "[1,2,3,4]",
          "[[1]]",
          "[null]",
          "{\"a\":1}",
          "\"schema\":1,",
          "\"sm\":90,"};
}
constexpr const char* kJsonSeparators = ":,[]{}";

Hello full_hello() {
  Declaration declaration;
  declaration.name = "eager";
  declaration.version = "1";
  declaration.capabilities.devices = {"cpu", "cuda"};
  declaration.capabilities.dtypes = {Dtype::bf16, Dtype::fp32};
  declaration.capabilities.passes = {Pass::forward, Pass::backward};
  declaration.capabilities.layouts = {Layout::packed};
  declaration.capabilities.strides = {Strides::contiguous};
  return {kProtocol, "attnbench-worker", {"cuda", 0, 90, "a GPU"}, {declaration}, {{"threads", 2}, {"cpu", "a CPU"}}};
}

RunHeader full_header() {
  const Hello hello = full_hello();
  json environment = hello.environment;
  environment["device"] = hello.device;
  environment["backends"] = hello.backends;
  environment["gated"] = {"eager"};
  environment["not_on_device"] = {"eigen"};
  environment["runs"] = 1;
  return {"20250102-030405-x", {"attnbench", "--suite", "x"}, "2025-01-02T03:04:05Z", environment};
}

Comparison full_comparison() {
  return {"run", "x", "attention d=64 lq=1", Pass::backward, {{"eager", "eigen", "dq", 0.25, 0.5}}};
}

/// Everything that a run's file holds, as lines.
std::string text_of(const RunData& run) {
  std::string text;
  for (const RunHeader& header : run.headers) text += to_text(to_line(header)) + "\n";
  for (const Record& record : run.records) text += to_text(to_line(record)) + "\n";
  for (const Comparison& comparison : run.comparisons) text += to_text(to_line(comparison)) + "\n";
  return text;
}

TEST_F(RubbishFile, ARun) {
  Record failed = full_record();
  failed.status = Status::failed;
  failed.time.reset();
  failed.other_regimes.clear();
  const std::string header = to_text(to_line(full_header())) + "\n", comparison = to_text(to_line(full_comparison())) + "\n";
  const Rubbish rubbish({header, header + to_text(to_line(full_record())) + "\n",
                         header + to_text(to_line(failed)) + "\n" + comparison, header + header + comparison},
                        json_tokens(), kJsonSeparators);
  feed<RunError>(rubbish, [&](const std::string& text) {
    const std::string once = text_of(read_run(write("results.jsonl", text)));
    EXPECT_EQ(text_of(read_run(write("again.jsonl", once))), once);
  });
}

template <class Message>
void feed_messages(const json& valid) {
  const Rubbish rubbish({to_text(valid)}, json_tokens(), kJsonSeparators);
  feed<std::runtime_error>(rubbish, [](const std::string& text) {
    const json once = parse_json(text).get<Message>();
    EXPECT_EQ(json(once.get<Message>()), once);
  });
}

TEST(Rubbish, AHello) {
  feed_messages<Hello>(full_hello());
}

TEST(Rubbish, ARequest) {
  const std::vector<std::pair<std::string, Pass>> runs{{"eager", Pass::forward}, {"eager", Pass::backward}};
  feed_messages<Request>(Request{7, "attention lq=1 d=64", runs, true, "dumped"});
}

TEST(Rubbish, AStage) {
  feed_messages<Stage>(Stage{7, "eager", Pass::backward, "judge"});
}

TEST(Rubbish, AResult) {
  const Rubbish rubbish({to_text(to_line(full_record()))}, json_tokens(), kJsonSeparators);
  feed<std::runtime_error>(rubbish, [](const std::string& text) {
    const json once = to_line(record_from(parse_json(text)));
    EXPECT_EQ(to_line(record_from(once)), once);
  });
}

}  // namespace
}  // namespace attnbench
