// What a record keeps of a tensor that failed, beyond the numbers that every judged tensor has: how far off, of which kind,
// where.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "harness/run/invariance.hpp"

namespace attnbench {

/// The part of a tensor that best explains where its bad elements lie: a set of sequences x tokens x heads x channels.
/// Found by harness/worker/bad_pattern.hpp, which names the kinds.
struct BadPattern {
  std::string sequences = "all", tokens = "all", heads = "all", channels = "all";  ///< kinds: "all", "one", "last_of_tile", …
  std::string text;       ///< "the last token of each tile of 64, head 3"; empty: no part of it explains them
  int64_t explained = 0;  ///< bad elements in that part
  int64_t elements = 0;   ///< all elements in that part
  int64_t rows_hit = 0;   ///< rows (token and head) with a bad element, in that part or not
  int64_t rows = 0;       ///< all rows
};

/// A coarse map: a row of cells is some heads of some sequences, in their order, a column some tokens of each sequence.
struct HeatMap {
  std::string measure;  ///< "percent_bad": of a cell's elements, rounded up; "rms_z" where no element alone is bad
  int64_t sequences_per_row = 1, heads_per_row = 1, tokens_per_column = 1;
  std::vector<std::vector<double>> cells;  ///< [row][column]; -1: no token lies there
};

struct TensorFailure {
  /// |got - expected| in spacings of the dtype at expected; at sigma where that is larger: below it no value is meant
  double ulp_p50 = 0, ulp_p99 = 0, ulp_p999 = 0, ulp_max = 0;
  double rms_z = 0;
  double rms_ratio = 0;  ///< RMS(z) over that of a correct kernel's emulation; 0: not emulated for this tensor
  double gain = 0;       ///< slope of the error over the expected value: -1 where got is 0, 1 where it is twice too large
  double first_got = 0, first_expected = 0, first_sigma = 0;  ///< of first_bad
  double worst_sigma = 0;                                     ///< of worst
  int64_t zeros = 0, nans = 0, infinities = 0;                ///< bad elements in which got is that
  BadPattern pattern;
  HeatMap map;
};

/// "sequence 1, head 0, token 31, channel 1", its parts joined by `separator`; of a weight's gradient in a layer (dwq, dlora_qa,
/// dnorm) "row 105, column 27".
std::string element_place(const std::string& tensor, const Element& element, const char* separator = ", ");

nlohmann::json to_json_failure(const TensorFailure& failure);

/// `path` names it in messages. Throws std::runtime_error on a missing field or a wrong type.
TensorFailure failure_from(const nlohmann::json& json, const std::string& path);

}  // namespace attnbench
