// How far a run is: a bar on a terminal, now and then a line elsewhere.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

#include "harness/run/record.hpp"

namespace attnbench {

class Progress {
 public:
  Progress(std::FILE* out, size_t total_runs);
  ~Progress();  ///< takes the bar away

  void working_on(const std::string& what) { what_ = what; }  ///< "eager backward: judge: attention lq=64 d=64"
  void count() { ++done_; }
  void count_finding() { ++findings_; }      ///< red, and not gated: the report tells what it was
  void count_failure(const Record& record);  ///< red and gated: a line of its own
  void tick();

 private:
  using Clock = std::chrono::steady_clock;
  std::string summary() const;  ///< "12/240, 1 failure, 5 findings, 1m20s left"
  void draw();
  void erase();

  std::FILE* out_;
  bool terminal_;
  size_t total_, done_ = 0, failures_ = 0, findings_ = 0;
  bool drawn_ = false;
  std::string what_;
  Clock::time_point begin_, last_shown_;
};

/// "5s", "1m20s", "2h05m".
std::string duration_text(double seconds);

}  // namespace attnbench
