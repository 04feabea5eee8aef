// Where the results of a run go while it runs: its folder, and what the console shows of it.
#pragma once

#include <string>
#include <vector>

#include "harness/run/coordinator.hpp"
#include "harness/run/progress.hpp"
#include "harness/run/run_folder.hpp"

namespace attnbench {

/// Writes results as they come and shows how far the run is.
class Recorder : public ResultSink {
 public:
  Recorder(RunFolder& folder, Progress& progress, const std::vector<Declaration>& backends, std::vector<std::string> gated);
  void take(const Record& record) override;
  void take(const Comparison& comparison) override;
  void on_stage(const PlannedCase& planned, const Stage& stage) override;
  void tick() override;

  /// Red results of gated backends so far: what the exit code will be about.
  const std::vector<Record>& red() const { return red_; }

 private:
  bool is_gated(const Record& record) const;

  RunFolder& folder_;
  Progress& progress_;
  const std::vector<Declaration>& backends_;
  const std::vector<std::string> gated_;
  std::vector<Record> red_;
};

}  // namespace attnbench
