#include "harness/worker/field_rules.hpp"

namespace attnbench {
namespace {

FieldRule rule_of(double error, double limit) {
  return {error, limit, error <= limit};
}

double pytorch_factor(const std::string& tensor) {
  return tensor == "dq" ? 180 : tensor == "dk" ? 16 : 4;
}

}  // namespace

std::vector<Tolerance> field_tolerances(Dtype dtype) {
  const double relative = dtype == Dtype::bf16 ? 1.6e-2 : dtype == Dtype::fp16 ? 1e-3 : 1.3e-6;
  return {{relative, 1e-5}, {2e-2, 2e-2}};
}

std::map<std::string, FieldRule> field_rules(const std::string& tensor, const FieldErrors& errors, double eager_error) {
  return {{"2x_eager", rule_of(errors.max_abs, 2 * eager_error + 1e-5)},
          {"assert_close", rule_of(errors.of_tolerance.at(0), 1)},
          {"cudnn_2e-2", rule_of(errors.of_tolerance.at(1), 1)},
          {"pytorch_test", rule_of(errors.max_abs, pytorch_factor(tensor) * eager_error)}};
}

}  // namespace attnbench
