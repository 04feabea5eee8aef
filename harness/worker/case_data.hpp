// What the backends of one case share: its inputs and its yardsticks, each made when first asked for.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness/worker/sealed_inputs.hpp"
#include "harness/worker/verdict.hpp"

namespace attnbench {

/// The one written in Eigen, which was the faster one on a CPU at every size tried, but never for the backend `eigen`; on a GPU
/// the LibTorch one, which runs there, once a case is too large for the cores beside it.
OracleKind oracle_for(const Declaration& declaration, const Case& c, const Device& device);

class CaseData {
 public:
  /// calibration: outlives this.
  CaseData(const Case& c, const Device& device, const Calibration& calibration)
      : case_(c), device_(device), calibration_(calibration) {}

  const Case& test_case() const { return case_; }

  /// Inputs with what the conventions want in tokens that nobody may read. A case without such tokens: one set for all.
  SealedInputs& inputs(Conventions::Poison poison);

  /// Judges that round alike, and whose empty rows (if the case has any) are alike, share a yardstick. kept: the well-formed mask
  /// of who is judged, if the case has a dropout: a yardstick belongs to one mask.
  Judge judge(const Profile& profile, const Conventions& conventions, OracleKind oracle, const at::Tensor& kept = {});

  /// The mask that this backend handed out first, in whichever pass; `kept` if it has handed out none.
  const at::Tensor& first_mask(const std::string& backend, const at::Tensor& kept) {
    return masks_.try_emplace(backend, kept.clone()).first->second;
  }

  /// Makes all inputs what they were; the names of those that were not, empty: none.
  std::string restore_inputs();

  /// Bytes that inputs, oracle and judging take, roughly: to refuse a case that does not fit.
  int64_t predicted_bytes() const;

 private:
  Case case_;
  Device device_;
  const Calibration& calibration_;
  std::map<Conventions::Poison, std::unique_ptr<SealedInputs>> inputs_;
  std::vector<std::shared_ptr<const Yardstick>> yardsticks_;
  std::map<std::string, at::Tensor> masks_;  ///< by backend
};

}  // namespace attnbench
