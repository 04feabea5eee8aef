// benchmark.json: the run's times in Google Benchmark's JSON, for its compare.py and for dashboards that read it.
#pragma once

#include <string>

#include "harness/run/run_data.hpp"

namespace attnbench {

/// Written by Google Benchmark's own JSON reporter; it prints nothing and measures nothing here.
/// - name: "backend/pass/window/case", in a regime that is not the record's own "backend/pass/window regime/case"; time_unit
///   "us".
/// - one repetition for each round (real_time: median of its samples; iterations: how many), then the aggregates mean,
///   median, stddev and cv of the rounds. cpu_time repeats real_time: records hold no processor time.
/// - counters: "FLOP/s" (exact visible pairs), "peak_bytes", "workspace_bytes".
/// - context: the recorded environment, not that of the machine that writes the report.
/// Only passed and timed records, and only finite times above 0, appear.
std::string google_benchmark_json(const RunData& run);

}  // namespace attnbench
