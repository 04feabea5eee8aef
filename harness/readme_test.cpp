// The backend that the README shows is compiled from the README's own text (CMakeLists.txt), and has to pass the judge.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "harness/worker/run_case.hpp"
#include "harness/worker/test_calibration.hpp"

namespace attnbench {

std::unique_ptr<Backend> make_plain(const Device&);  // in the README

namespace {

Bench bench_with_plain() {
  Bench bench{{.kind = "cpu", .index = 0, .sm = std::nullopt, .name = "this CPU"}, {}, judge_test::calibration_of_cpu()};
  bench.backends.push_back(make_plain(bench.device));
  return bench;
}

Record judged(const std::string& case_line) {
  Request request;
  request.case_line = case_line;
  request.runs = {{"plain", Pass::forward}};
  request.check_only = true;
  std::vector<Record> records;
  const Bench bench = bench_with_plain();
  run_case(request, bench,
           {.stage = [](const Stage&) {},
            .record = [&](const Record& record) { records.push_back(record); },
            .comparison = [](const Comparison&) {}});
  EXPECT_EQ(records.size(), 1u) << case_line;
  return records.empty() ? Record{} : records.front();
}

TEST(Readme, its_backend_passes) {
  for (const std::string dtype : {"bf16", "fp16", "fp32"})
    for (const std::string mask : {"none", "causal"}) {
      const std::string line = "attention hq=2 d=64 lens=1+17+65 dtype=" + dtype + " mask=" + mask;
      const Record record = judged(line);
      EXPECT_EQ(record.status, Status::passed) << line << ": " << record.reason;
      EXPECT_EQ(record.errors.count("o"), 1u) << line;
      EXPECT_EQ(record.errors.count("lse"), 1u) << line;
    }
}

TEST(Readme, its_backend_says_what_it_did_not_declare) {
  const Record record = judged("attention hq=4 hkv=2 d=64 lq=17");
  EXPECT_EQ(record.status, Status::unsupported);
  EXPECT_FALSE(record.reason.empty());
}

}  // namespace
}  // namespace attnbench
