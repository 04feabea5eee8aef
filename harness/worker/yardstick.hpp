// What the backends of a case are judged by: the float64 reference with its error model, and what errors are ordinary. It depends
// on where an implementation rounds and on what its empty rows hold, and on nothing else of who is judged.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "harness/attention/error_model.hpp"
#include "harness/attention/reference.hpp"
#include "harness/worker/verdict_gates.hpp"
#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {

/// A tensor that is judged by its values: where it lies among the outputs, and its shape.
struct JudgedTensor {
  const char* name;
  at::Tensor Outputs::*tensor;
  bool over_keys;       ///< dk, dv: rows are keys
  bool value_channels;  ///< dv channels, else d
};
inline constexpr JudgedTensor kOutput{"o", &Outputs::o, false, true};
inline constexpr JudgedTensor kQueryGradient{"dq", &Outputs::dq, false, false};
inline constexpr JudgedTensor kKeyGradient{"dk", &Outputs::dk, true, false};
inline constexpr JudgedTensor kValueGradient{"dv", &Outputs::dv, true, true};

/// Of the field's rule: LibTorch's eager attention, written out.
const Profile& eager_profile();

class Yardstick {
 public:
  /// inputs: with the mask of a dropout, to which all belongs that the yardstick says. eager: what emulate() says for
  /// eager_profile() with these empty rows. calibration: outlives the yardstick. kept_bytes: that the answers of given() may
  /// take.
  Yardstick(const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row, OracleKind oracle,
            Outputs eager, const Calibration& calibration, int64_t kept_bytes);

  const Case& test_case() const { return c_; }
  const Inputs& inputs() const { return inputs_; }
  const Rounding& rounding() const { return rounding_; }
  const Reference& reference() const { return reference_; }
  const Outputs& eager() const { return eager_; }

  Conventions::EmptyRow empty_row() const { return empty_row_; }

  /// It holds for empty rows of this kind too, since they are its own or the case has none, and for this mask of a dropout
  /// (undefined: the case has none).
  bool holds_for(Conventions::EmptyRow empty_row, const at::Tensor& kept) const;
  /// … and for an implementation that rounds like this profile, by this oracle.
  bool holds_for(const Profile& profile, Conventions::EmptyRow empty_row, OracleKind oracle, const at::Tensor& kept) const;

  bool has_empty_rows() const { return has_empty_rows_; }  ///< some query sees no key
  bool finite() const { return finite_; }                  ///< the reference is, apart from empty rows declared to be NaN

  const Expected& expected(const JudgedTensor& t) const;
  TokenShape shape(const JudgedTensor& t) const;
  const std::vector<int64_t>& rows(const JudgedTensor& t) const { return t.over_keys ? inputs_.k_rows : inputs_.q_rows; }
  const std::vector<int64_t>& padding(const JudgedTensor& t) const { return t.over_keys ? k_padding_ : q_padding_; }
  /// Float64 [tokens, heads, channels] of outputs in the case's layout.
  at::Tensor tokens(const JudgedTensor& t, const Outputs& outputs) const;

  /// Expected dq and dk of a kernel whose O this is (in the case's layout). Answers are kept, since most calls repeat an O.
  ConditionalGradients given(const at::Tensor& o) const;

  /// gated_as: the tensor's name, or that with "_given_o". gates(): is it gated as that?
  bool gates(const std::string& gated_as) const { return ordinary_.count(gated_as) > 0; }
  GateScale scale(const JudgedTensor& t, const std::string& gated_as) const;
  Limits limits(const std::string& tensor) const;
  /// Nothing is rounded but outputs, in a dtype of low precision.
  bool only_outputs_rounded() const;
  double eager_error(const JudgedTensor& t) const { return eager_error_.at(t.name); }  ///< by the field's measure

 private:
  /// What the emulator's errors are like on one tensor.
  struct Ordinary {
    double rms = 0, max_z = 0, gain = 0, samples = 0, distinct = 0;
  };

  /// A tensor and what it is gated against.
  struct Gated {
    const JudgedTensor* tensor;
    std::string gated_as;
    const Expected* against;
  };

  void inspect_reference();
  ConditionalGradients conditional_gradients(const at::Tensor& o) const;
  void note_ordinary(const Outputs& emulated, const std::vector<Gated>& all);

  const Case c_;
  const Inputs inputs_;
  const Profile profile_;
  const Conventions::EmptyRow empty_row_;
  const Calibration& calibration_;
  const Rounding rounding_;
  const Outputs eager_;
  const Oracle oracle_;
  Reference reference_;
  std::map<std::string, Ordinary> ordinary_;  ///< by gated tensor: o, dv, and dq, dk or dq_given_o, dk_given_o
  std::map<std::string, double> eager_error_;
  std::vector<int64_t> q_padding_, k_padding_;  ///< storage rows without a real token
  bool has_empty_rows_ = false, finite_ = true;
  double distinct_scores_ = kInfinity;
  const int64_t kept_bytes_;
  mutable std::deque<std::pair<at::Tensor, ConditionalGradients>> given_;  ///< by O, the oldest first
};

}  // namespace attnbench
