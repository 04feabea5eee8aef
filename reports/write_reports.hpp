// Every report by its name.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "harness/run/run_data.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// What `attnbench report --format` takes: table, markdown, findings, csv, google-benchmark, junit, signatures, latex.
const std::vector<std::string>& report_formats();

/// The run in one of report_formats(); `style` is for the table. Throws std::invalid_argument with a sentence on another name.
std::string render_report(const RunData& run, const std::string& format, const TextStyle& style);

/// Reads run_dir/results.jsonl and writes results.csv, summary.md, findings.md and benchmark.json beside it, each whole or not at
/// all; of a run that held bits against bits audit.md and audit.json too.
/// Throws RunError where results.jsonl cannot be read or a file cannot be written.
void write_reports(const std::filesystem::path& run_dir);

}  // namespace attnbench
