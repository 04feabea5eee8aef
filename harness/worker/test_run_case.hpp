// A bench of fake backends and one request to it: what the tests of run_case share.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "harness/worker/fake_backend.hpp"
#include "harness/worker/run_case.hpp"
#include "harness/worker/test_calibration.hpp"

namespace attnbench {

inline constexpr char kCase[] = "attention b=2 hq=4 hkv=2 lq=24 d=16 dtype=bf16 mask=causal";

struct Answers {
  std::vector<Record> records;
  std::vector<Comparison> comparisons;
  std::vector<std::string> stages;
};

/// A bench of fake backends, and one request to it.
class RunCase : public testing::Test {
 protected:
  void SetUp() override {
    bench.device = {"cpu", 0, std::nullopt, "test"};
    bench.measuring.time_budget_s = 0.02;
  }

  FakeBackend& add(const std::string& name, FakeBackend::Tamper tamper = {}) {
    bench.backends.push_back(std::make_unique<FakeBackend>(fake_declaration(name), std::move(tamper)));
    return static_cast<FakeBackend&>(*bench.backends.back());
  }

  /// Every backend of the bench in one pass.
  Answers run(Pass pass, const std::string& line = kCase, bool check_only = true) {
    Request request{7, line, {}, check_only};
    for (const auto& backend : bench.backends) request.runs.emplace_back(backend->declaration().name, pass);
    return run(request);
  }
  Answers run(const Request& request) {
    Answers answers;
    run_case(
        request, bench,
        {[&](const Stage& s) { answers.stages.push_back(s.backend + " " + s.stage); },
         [&](const Record& r) { answers.records.push_back(r); }, [&](const Comparison& c) { answers.comparisons.push_back(c); }});
    return answers;
  }

  Bench bench{{}, {}, judge_test::calibration_of_cpu()};
};

inline char* bytes_of_tensor(const at::Tensor& t) {
  return static_cast<char*>(t.data_ptr());
}

}  // namespace attnbench
