// What the tests of defects in real backends share: a backend with a defect, and the records of it.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/test_device.hpp"
#include "harness/worker/run_case.hpp"
#include "harness/worker/test_calibration.hpp"

namespace attnbench::defects_test {

using Prepare = std::function<Run(const Backend& real, const Case&, const Inputs&, Pass)>;

/// What is wrong, and what its record must then say.
struct Defect {
  std::string name;
  std::vector<Pass> passes;
  std::string reason;  ///< part of the record's reason
  Prepare prepare;
};

/// A backend with a defect; its declaration is that of the real one, but for the name.
class Defective final : public Backend {
 public:
  Defective(const Backend& real, Defect defect) : real_(real), defect_(std::move(defect)), declaration_(real.declaration()) {
    declaration_.name += " with " + defect_.name;
  }
  const Declaration& declaration() const override { return declaration_; }
  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override { return defect_.prepare(real_, c, inputs, pass); }

 private:
  const Backend& real_;
  Defect defect_;
  Declaration declaration_;
};

/// Changes what forward and backward return.
inline Prepare tamper(std::function<void(Outputs&, const Inputs&)> change) {
  return [change](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    Run run = real.prepare(c, inputs, pass);
    for (Window& window : run.windows)
      for (std::function<Outputs()>* call : {&window.forward, &window.backward}) {
        if (!*call) continue;
        *call = [change, &inputs, original = *call] {
          Outputs outputs = original();
          change(outputs, inputs);
          return outputs;
        };
      }
    return run;
  };
}

/// Computes another case on the same inputs.
inline Prepare instead(std::function<void(Case&)> change) {
  return [change](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    Case other = c;
    change(other);
    return real.prepare(other, inputs, pass);
  };
}

inline const Backend& real_backend(const std::string& name) {
  static const auto backends = make_backends(kCpu);
  for (const auto& backend : backends)
    if (backend->declaration().name == name) return *backend;
  throw std::runtime_error("no backend " + name);
}

/// Records of one pass: the backend as it is, then with each defect of this pass.
inline std::vector<Record> judge_all(const Backend& real, const std::vector<Defect>& defects, Pass pass,
                                     const std::string& line) {
  Bench bench{{"cpu", 0, std::nullopt, "test"}, {}, judge_test::calibration_of_cpu()};
  Request request{1, line, {}, true};
  for (const Defect& defect : defects) {
    bench.backends.push_back(std::make_unique<Defective>(real, defect));
    request.runs.emplace_back(bench.backends.back()->declaration().name, pass);
  }
  std::vector<Record> records;
  run_case(request, bench, {[](const Stage&) {}, [&](const Record& r) { records.push_back(r); }, [](const Comparison&) {}});
  return records;
}

/// The sentence of a gate of this tensor, given the kernel's own O or not.
inline std::string by_gate_of(const std::string& tensor) {
  return "^" + tensor + "(_given_o)?: gate ";
}

/// The backend passes as it is, and fails with each of the defects, by the reason that it names.
inline void expect_caught(const std::string& name, const std::string& line, Pass pass, std::vector<Defect> defects) {
  defects.insert(defects.begin(), {"nothing", {}, "", instead([](Case&) {})});
  const std::vector<Record> records = judge_all(real_backend(name), defects, pass, line);
  ASSERT_EQ(records.size(), defects.size());
  EXPECT_EQ(records[0].status, Status::passed) << "without a defect: " << records[0].reason;
  for (size_t i = 1; i < records.size(); ++i) {
    EXPECT_EQ(records[i].status, Status::failed) << records[i].backend << ": " << records[i].reason;
    EXPECT_THAT(records[i].reason, testing::ContainsRegex(defects[i].reason)) << records[i].backend;
  }
}

}  // namespace attnbench::defects_test
