#include "harness/worker/serve.hpp"

#include <cstdio>
#include <sstream>
#include <string>

#include <gtest/gtest.h>
#include <unistd.h>

#include "harness/worker/fake_backend.hpp"
#include "harness/worker/test_calibration.hpp"

namespace attnbench {
namespace {

using nlohmann::json;

/// What a worker with one honest backend replies to these bytes.
std::vector<json> replies_to(const std::string& requests, int* exit_code = nullptr) {
  Bench bench{{}, {}, judge_test::calibration_of_cpu()};
  bench.device = {"cpu", 0, std::nullopt, "test"};
  bench.backends.push_back(std::make_unique<FakeBackend>(fake_declaration("honest")));
  std::FILE* in = std::tmpfile();
  std::FILE* out = std::tmpfile();
  std::fwrite(requests.data(), 1, requests.size(), in);
  std::fflush(in);
  lseek(fileno(in), 0, SEEK_SET);
  const int code = serve(bench, fileno(in), fileno(out));
  if (exit_code) *exit_code = code;
  std::rewind(out);
  std::string text;
  for (int byte; (byte = std::fgetc(out)) != EOF;) text += char(byte);
  std::fclose(in);
  std::fclose(out);
  std::vector<json> replies;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) replies.push_back(json::parse(line));
  return replies;
}

json request(const std::string& case_line) {
  Request r{3, case_line, {{"honest", Pass::forward}}, true};
  return {{"request", r}};
}

TEST(Serve, HelloThenStagesResultAndDone) {
  int code = -1;
  const std::vector<json> replies = replies_to(request("attention lq=8 d=16").dump() + "\n", &code);
  EXPECT_EQ(code, 0);
  ASSERT_EQ(replies.size(), 7u);
  EXPECT_EQ(replies[0]["hello"].get<Hello>().backends.at(0).name, "honest");
  EXPECT_TRUE(replies[0]["hello"]["environment"]["torch"]["version"].is_string());
  EXPECT_EQ(replies[0]["hello"]["environment"]["calibration"], identity_of(judge_test::calibration_of_cpu()));
  EXPECT_EQ(replies[1]["stage"]["stage"], "prepare");
  EXPECT_EQ(replies[2]["stage"]["stage"], "run");
  EXPECT_EQ(replies[3]["stage"]["stage"], "judge");
  EXPECT_EQ(replies[4]["stage"]["stage"], "run again");
  EXPECT_EQ(replies[5]["result"]["request"], 3);
  EXPECT_EQ(record_from(replies[5]["result"]["record"]).status, Status::passed);
  EXPECT_EQ(replies[6]["done"]["request"], 3);
}

TEST(Serve, RubbishIsAnsweredAndTheNextRequestServed) {
  const std::string rubbish = "\xff\xfe{{{\n[]\n{\"request\":{\"id\":\"x\"}}\n{\"request\":5}\n";
  const std::vector<json> replies = replies_to(rubbish + request("attention lq=8 d=16").dump());
  ASSERT_EQ(replies.size(), 11u);
  for (int i = 1; i <= 4; ++i) EXPECT_TRUE(replies[i].contains("error")) << replies[i].dump();
  EXPECT_TRUE(replies[10].contains("done"));
}

TEST(Serve, ABadCaseIsAResultWithASentence) {
  const std::vector<json> replies = replies_to(request("attention d=0 lq=8").dump() + "\n");
  ASSERT_EQ(replies.size(), 3u);
  EXPECT_EQ(replies[1]["result"]["record"]["status"], "error");
  EXPECT_TRUE(replies[2].contains("done"));
}

TEST(Serve, NobodyReading) {
  Bench bench{{}, {}, judge_test::calibration_of_cpu()};
  bench.device = {"cpu", 0, std::nullopt, "test"};
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[0]);
  EXPECT_EQ(serve(bench, 0, ends[1]), 3);
  close(ends[1]);
}

}  // namespace
}  // namespace attnbench
