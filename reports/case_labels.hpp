// Short labels for the rows of a table: what all its cases have in common goes into the title.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace attnbench {

struct CaseLabels {
  std::string common;                        ///< "attention hq=8 d=64"
  std::map<std::string, std::string> label;  ///< case line -> "dtype=fp16 lq=512"; a default is spelled out where others differ
};

/// One case alone keeps its whole line as label, and common is empty.
CaseLabels label_cases(const std::vector<std::string>& case_lines);

}  // namespace attnbench
