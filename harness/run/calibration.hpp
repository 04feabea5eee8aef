// Calibration as data: what limits the judge of a device works with, and the null distributions that they come from.
//
// cases/calibration/<device kind>.json holds the constants of the gates' formulas (harness/worker/verdict_gates.hpp) and cells. A
// cell counts statistic / limit of the formula, over results of correct implementations, for one
//   class   implementations that round alike (calibrated_as())
//   scores, ordinary or large (has_large_scores())
//   dtype, tensor (o, lse, dq, dk, dv; gradients given O with those end to end), gate
//   n       decade of the number of elements, or of the effective sample size, behind the gate
// and has a factor of at most 1: the limit is factor x formula. A cell with too few results or cases, or of one implementation
// alone, has the factor 1; so has what has no cell. No factor comes from what is being judged.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include <nlohmann/json.hpp>

#include "harness/run/declaration.hpp"

namespace attnbench {

/// The numbers in the formulas of verdict_gates.hpp.
struct GateConstants {
  double false_alarms = 0;     ///< chance of an alarm per tensor that the sub-Gaussian bound allows
  double gain_deviations = 0;  ///< standard deviations of the gain
  double gain_floor = 0;       ///< least gain that counts, in units of u
  double truncation = 0;       ///< relative drift per summed term of an accumulator
  double ratio_margin = 0, ratio_deviations = 0;
  double rms_floor = 0;
  double z_floor = 0;
  double lse = 0;
  bool operator==(const GateConstants&) const = default;
};

/// Whose results share a cell: "fp32_inside" where nothing is rounded but the outputs (dtype fp32 among them), else the name of
/// the profile. Behind it
///   "_with_options"  where the problem has softcap, ALiBi, sinks or dropout, whose errors are others: what was calibrated
///                    without them says nothing about these;
///   "_of_one_key"    with lk=1: the LSE is scale x q.k there, so that its error is that of one dot product, on tensor cores
///                    where the kernel uses them: the accumulation by itself.
std::string calibrated_as(const Profile& profile, const Problem& problem);

/// fill=shifted_negative or deep_negative, or a scale of more than twice 1/sqrt(d): the scores' own errors in float32, relative
/// to what bounds them, are several times those of other cases, and must not decide the limits there.
bool has_large_scores(const Case& c);

struct CellKey {
  std::string rounds_like;  ///< calibrated_as()
  bool large_scores = false;
  Dtype dtype = Dtype::bf16;
  std::string tensor, gate;
  int decade = 0;  ///< decade_of() what is behind the gate
  auto operator<=>(const CellKey&) const = default;
};

/// "dq_given_o" is counted as "dq".
std::string calibrated_tensor(const std::string& tensor);
/// 2 for up to 1000, 3, 4, 5 for more than 100000; 1 for up to 100.
int decade_of(int64_t n);

/// Null distribution of statistic / formula.
struct NullCell {
  int64_t count = 0;           ///< with power, at most 1: what lies beyond the formula is no null
  int64_t cases = 0;           ///< distinct ones among them
  int64_t no_power = 0;        ///< beside them
  int64_t beyond_formula = 0;  ///< beside them: left out, and told as findings
  std::vector<std::string> backends;
  double p50 = 0, p90 = 0, p99 = 0, p999 = 0, max = 0;
  double factor = 1;
  bool operator==(const NullCell&) const = default;
};

/// Of a backend on a tensor, by hand: known to be wrong there, so that its results are no null.
struct LeftOut {
  std::string backend, tensor, why;  ///< tensor "": all
  bool operator==(const LeftOut&) const = default;
};

struct Calibration {
  std::string device;                 ///< "cpu", "cuda"
  std::string about;                  ///< what it rests on, in words
  nlohmann::json made_by;             ///< command, environment, seeds; null: not calibrated
  GateConstants constants;            ///< by hand
  std::vector<std::string> backends;  ///< by hand: implementations that are held to be correct
  std::vector<LeftOut> left_out;      ///< by hand
  std::map<CellKey, NullCell> cells;

  /// Of the limit by the formula; 1 where nothing is calibrated.
  double factor(const CellKey& key) const;
  bool is_left_out(const std::string& backend, const std::string& tensor) const;
};

/// cases/calibration/KIND.json.
std::filesystem::path calibration_file(const std::string& device_kind);

/// Throws InfrastructureError with a sentence if the file is missing, unreadable, of another device or has a factor that is not
/// in (0, 1]: there are no limits without it.
Calibration read_calibration(const std::filesystem::path& file, const std::string& device_kind);

/// As read_calibration() reads it, a cell a line.
std::string to_text(const Calibration& calibration);

/// {"file":…,"fnv1a64":…}, for the header of a run: which limits judged it. The hash is of to_text(), that is, of every constant
/// and factor, however the file is written.
nlohmann::json identity_of(const Calibration& calibration);

}  // namespace attnbench
