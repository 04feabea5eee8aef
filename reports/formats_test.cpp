// The files and formats that other programs read, on a run made by hand (test_run.hpp says what is in it).
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "reports/console_table.hpp"
#include "reports/csv.hpp"
#include "reports/google_benchmark.hpp"
#include "reports/junit.hpp"
#include "reports/latex.hpp"
#include "reports/summary.hpp"
#include "reports/test_run.hpp"
#include "reports/timing_tables.hpp"
#include "reports/write_reports.hpp"

namespace attnbench {
namespace {

/// Enough of RFC 4180 to read back what is written.
std::vector<Words> parse_csv(const std::string& text) {
  std::vector<Words> rows(1, Words(1));
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"' && quoted && i + 1 < text.size() && text[i + 1] == '"') {
      rows.back().back() += text[++i];
    } else if (c == '"') {
      quoted = !quoted;
    } else if (c == ',' && !quoted) {
      rows.back().emplace_back();
    } else if (c == '\n' && !quoted) {
      rows.emplace_back(1);
    } else {
      rows.back().back() += c;
    }
  }
  rows.pop_back();  // behind the last line break
  return rows;
}

std::vector<std::map<std::string, std::string>> csv_records(const RunData& run) {
  const auto rows = parse_csv(results_csv(run));
  std::vector<std::map<std::string, std::string>> records;
  for (std::size_t r = 1; r < rows.size(); ++r) {
    EXPECT_EQ(rows[r].size(), rows[0].size());
    auto& record = records.emplace_back();
    for (std::size_t c = 0; c < rows[r].size(); ++c) record[rows[0][c]] = rows[r][c];
  }
  return records;
}

TEST(Csv, QuotesWhatNeedsIt) {
  EXPECT_EQ(csv_field("plain"), "plain");
  EXPECT_EQ(csv_field("a,b"), "\"a,b\"");
  EXPECT_EQ(csv_field("say \"x\""), "\"say \"\"x\"\"\"");
  EXPECT_EQ(csv_field("a\nb"), "\"a\nb\"");
}

TEST(Csv, OneRowForEachTensorAndWindow) {
  const auto records = csv_records(test_run());
  ASSERT_EQ(records.size(), 14u);  // 6 tensors, 6 windows of passed records, 2 records with neither
  EXPECT_EQ(records[0].at("kind"), "tensor");
  EXPECT_EQ(records[0].at("gate.z.limit"), "7.31");
  EXPECT_EQ(records[0].at("gate.bias.verdict"), "no_power");
  EXPECT_EQ(records[0].at("median_us"), "");
  EXPECT_EQ(records[1].at("item"), "op");
  EXPECT_EQ(records[1].at("median_us"), "101");
  EXPECT_EQ(records[1].at("tflops"), "0.25");
  EXPECT_EQ(records[2].at("item"), "op+layout");
  EXPECT_EQ(records[2].at("tflops"), "");
  EXPECT_EQ(records[12].at("kind"), "record");
  EXPECT_EQ(records[12].at("reason"), "worker died, signal 11 while in stage \"judge\"\nlast words");
}

TEST(Csv, ARowForEachRegimeWithWhatTheGpuDid) {
  const auto records = csv_records(run_in_two_regimes());
  EXPECT_EQ(records[1].at("regime"), "cooled");
  EXPECT_EQ(records[1].at("sm_mhz"), "");
  EXPECT_EQ(records[2].at("regime"), "sustained");
  EXPECT_EQ(records[2].at("item"), "op");
  EXPECT_EQ(records[2].at("calls_per_sample"), "4");
  EXPECT_EQ(records[2].at("sm_mhz"), "1755.5");
  EXPECT_EQ(records[2].at("power_w"), "690");
  EXPECT_EQ(records[2].at("throttle"), "hw_thermal+sw_power_cap");
  EXPECT_EQ(records[2].at("samples_without_hold"), "2");
  EXPECT_EQ(records[3].at("item"), "op+layout");
}

TEST(Csv, FailedRecordHasNonFiniteErrorsAndNoTime) {
  for (const auto& record : csv_records(test_run())) {
    if (record.at("status") != "failed") continue;
    EXPECT_EQ(record.at("kind"), "tensor");
    EXPECT_EQ(record.at("max_abs"), "nan");
    EXPECT_EQ(record.at("worst_got"), "inf");
    EXPECT_EQ(record.at("repro"), kRepro);
    EXPECT_EQ(record.at("median_us"), "");
  }
}

TEST(GoogleBenchmark, IsJsonWithARunForEachRoundAndAggregates) {
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  const auto json = nlohmann::json::parse(google_benchmark_json(test_run()));
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");

  EXPECT_EQ(json.at("context").at("cpu.model"), "A \"fast\" CPU");
  const auto& all = json.at("benchmarks");
  ASSERT_EQ(all.size(), 6u * (3 + 4));
  const std::string name = "flash_varlen/forward/op/attention b=2 hq=4 lq=128 d=128 mask=causal layout=padded";
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(all[i].at("name"), name);
    EXPECT_EQ(all[i].at("run_type"), "iteration");
    EXPECT_EQ(all[i].at("repetitions"), 3);
    EXPECT_EQ(all[i].at("repetition_index"), i);
    EXPECT_EQ(all[i].at("iterations"), 2);
    EXPECT_DOUBLE_EQ(all[i].at("real_time"), 100 + i);
    EXPECT_DOUBLE_EQ(all[i].at("cpu_time"), 100 + i);
    EXPECT_EQ(all[i].at("time_unit"), "us");
  }
  EXPECT_NEAR(all[1].at("FLOP/s").get<double>(), 0.25e12, 1);
  EXPECT_EQ(all[1].at("peak_bytes"), 1 << 20);
  const std::vector<std::pair<std::string, double>> aggregates{{"mean", 101}, {"median", 101}, {"stddev", 1}, {"cv", 1.0 / 101}};
  for (std::size_t i = 0; i < aggregates.size(); ++i) {
    const auto& aggregate = all[3 + i];
    EXPECT_EQ(aggregate.at("name"), name + "_" + aggregates[i].first);
    EXPECT_EQ(aggregate.at("run_type"), "aggregate");
    EXPECT_EQ(aggregate.at("aggregate_name"), aggregates[i].first);
    EXPECT_NEAR(aggregate.at("real_time").get<double>(), aggregates[i].second, 1e-9);
  }
}

TEST(GoogleBenchmark, RegimesHaveDifferentNames) {
  const auto json = nlohmann::json::parse(google_benchmark_json(run_in_two_regimes()));
  const std::string line = "/attention b=2 hq=4 lq=128 d=128 mask=causal layout=padded";
  const auto& all = json.at("benchmarks");
  EXPECT_EQ(all[0].at("name"), "flash_varlen/forward/op" + line);
  EXPECT_EQ(all[7].at("name"), "flash_varlen/forward/op sustained" + line);
  EXPECT_EQ(all[14].at("name"), "flash_varlen/forward/op+layout sustained" + line);
  EXPECT_TRUE(all[14].contains("FLOP/s"));
}

TEST(GoogleBenchmark, LeavesOutTimesThatAreNotNumbers) {
  RunData run = test_run();
  run.records.resize(1);
  run.records[0].time->windows["op"].rounds[0] = {NAN, 100};
  run.records[0].time->tflops = INFINITY;
  const auto json = nlohmann::json::parse(google_benchmark_json(run));
  EXPECT_EQ(json.at("benchmarks")[0].at("repetitions"), 2);
  EXPECT_FALSE(json.at("benchmarks")[0].contains("FLOP/s"));
  EXPECT_EQ(nlohmann::json::parse(google_benchmark_json(RunData{})).at("benchmarks").size(), 0u);
}

TEST(Junit, FailureErrorAndSkippedByStatusAndGate) {
  RunData run = test_run();
  std::string text = junit_xml(run);
  EXPECT_TRUE(contains(text, "<testsuite name=\"perf\" tests=\"6\" failures=\"1\" errors=\"0\" skipped=\"0\">")) << text;
  EXPECT_TRUE(contains(text, "<testsuite name=\"edge\" tests=\"2\" failures=\"0\" errors=\"0\" skipped=\"2\">")) << text;
  EXPECT_TRUE(contains(text,
                       "classname=\"flash_varlen.backward.bf16\" name=\"attention b=2 hq=4 lq=128 d=128 mask=causal "
                       "layout=padded [dq]\" time=\"0.250000\"><failure type=\"failed\""));
  EXPECT_TRUE(contains(text, "finding (not gated): worker died, signal 11 while in stage &quot;judge&quot;&#10;last words"));
  EXPECT_TRUE(contains(text, "<system-out>attnbench --case &quot;attention lq=16 d=128 softcap=30&quot; --backend eager"));
  run.gated = {"eager"};
  run.records[6].reason = "a & b < c \x01";
  text = junit_xml(run);
  EXPECT_TRUE(contains(text, "<error type=\"error\" message=\"a &amp; b &lt; c ?\">"));
  EXPECT_TRUE(contains(text, "<testsuite name=\"perf\" tests=\"6\" failures=\"0\" errors=\"0\" skipped=\"1\">"));
}

TEST(Junit, AFailureThatNoGateExplainsHasItsOwnTestcase) {
  RunData run = test_run();
  run.records.resize(1);
  run.records[0].status = Status::failed;
  run.records[0].reason = "input q was overwritten";
  const std::string text = junit_xml(run);
  EXPECT_TRUE(contains(text, "tests=\"2\" failures=\"1\"")) << text;
  EXPECT_TRUE(contains(text, "layout=padded\" time=\"0.000000\"><failure type=\"failed\" message=\"input q was overwritten\">"));
}

TEST(Latex, EscapesAndMarksTheBest) {
  const std::string text = latex_tables(test_run());
  EXPECT_TRUE(contains(
      text, "\\caption{Median time in us, suite perf, forward (cpu\\_hot, cpu: Test CPU): attention b=2 hq=4 d=128. Window"));
  EXPECT_TRUE(contains(text, "  case & flash\\_varlen & eager \\\\\n"));
  EXPECT_TRUE(contains(text, "1001 $\\pm$0.0\\%  & \\textbf{901 $\\pm$0.1\\% }"));
  EXPECT_TRUE(contains(text, "101 $\\pm$0.5\\%  & 401 $\\pm$0.1\\%*"));
}

RunData training_run() {
  RunData run = test_run();
  run.records.resize(2);
  run.comparisons.clear();
  int64_t mib = 100;
  for (Record& r : run.records) {
    r.case_line = "training d=64 s=64";
    r.time.reset();
    r.memory.reset();
    r.errors = {{"loss", {}}};
    r.errors["loss"].by_gates_alone = true;
    r.training = {{}, {}, {}, double(mib) * 250, mib << 20};
    mib *= 2;
  }
  return run;
}

TEST(Training, HasItsTimesAndMemoryInEveryReport) {
  const RunData run = training_run();
  const std::string summary = summary_markdown(run);
  for (const char* untrue : {"Nothing was timed", "No memory was recorded"}) EXPECT_EQ(summary.find(untrue), std::string::npos);
  for (const std::string& text : {summary, console_report(run, {})}) {
    EXPECT_NE(text.find("Median time of a training step in ms, suite perf (cpu: Test CPU)"), std::string::npos) << text;
    EXPECT_NE(text.find("The most that a training step allocates in MiB"), std::string::npos) << text;
  }
  EXPECT_NE(summary.find("| training d=64 s=64 | 25.0 | 50.0 |"), std::string::npos) << summary;
  EXPECT_NE(summary.find("| training d=64 s=64 | 100 | 200 |"), std::string::npos) << summary;
  EXPECT_NE(latex_tables(run).find("  training d=64 s=64 & \\textbf{25.0} & 50.0 "), std::string::npos) << latex_tables(run);
  const auto row = csv_records(run).at(1);
  EXPECT_EQ(row.at("step_us"), "50000");
  EXPECT_EQ(row.at("step_peak_bytes"), "209715200");
  for (const char* number : {"max_abs", "rel_l2", "cosine", "bad"}) EXPECT_EQ(row.at(number), "") << number;
}

TEST(Training, ThatFailedHasNoTime) {
  RunData run = training_run();
  for (Record& r : run.records) r.status = Status::failed;
  EXPECT_TRUE(step_time_tables(run).empty() && step_memory_tables(run).empty());
}

TEST(Latex, OfARunWithoutTimesSaysSo) {
  RunData run = test_run();
  for (Record& r : run.records) r.time.reset();
  EXPECT_EQ(latex_tables(run), "% Nothing was timed: there is no table.\n");
}

TEST(WriteReports, WritesFourFilesBesideTheRecords) {
  RunData run = test_run();
  run.records[4].time.reset();  // a reader refuses the time of a failed record
  const std::filesystem::path folder = ::testing::TempDir() + "attnbench_write_reports";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  RunHeader header = run.headers.front();
  header.environment.erase("backends");
  std::ofstream lines(folder / "results.jsonl");
  lines << to_line(header).dump() << "\n";
  for (const Record& record : run.records) lines << to_line(record).dump() << "\n";
  for (const Comparison& comparison : run.comparisons) lines << to_line(comparison).dump() << "\n";
  lines.close();

  write_reports(folder);
  const auto text_of = [&](const char* name) {
    std::ifstream file(folder / name);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  EXPECT_EQ(text_of("results.csv"), results_csv(run));
  EXPECT_TRUE(contains(text_of("summary.md"), kRepro));
  EXPECT_TRUE(contains(text_of("findings.md"), kRepro));
  EXPECT_EQ(nlohmann::json::parse(text_of("benchmark.json")).at("benchmarks").size(), 42u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 5);
  EXPECT_THROW(write_reports(folder / "missing"), RunError);
  std::filesystem::remove_all(folder);
}

TEST(Formats, AnUnknownNameIsASentence) {
  try {
    render_report(test_run(), "html5", {});
    FAIL() << "html5 was accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_TRUE(contains(error.what(), "unknown format 'html5'; known: table, markdown, findings, csv, google-benchmark"))
        << error.what();
  }
}

}  // namespace
}  // namespace attnbench
