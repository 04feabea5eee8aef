// What the tests of other projects would have said of a tensor: so that a user can translate, and sees what they let through.
// All compare with the reference rounded to the dtype, and with one number for a whole tensor.
//   2x_eager      flash-attention's tests: error <= 2 x that of eager in the same dtype + 1e-5. (They allow gradients a factor of
//                 3 by now; reported is the stricter one, for every tensor.)
//   assert_close  torch.testing.assert_close with its defaults: |error| <= absolute + relative |x| at each element, bf16 1e-5 and
//                 1.6e-2, fp16 1e-5 and 1e-3, fp32 1e-5 and 1.3e-6
//   cudnn_2e-2    as the samples of cudnn-frontend compare: 2e-2 and 2e-2
//   pytorch_test  PyTorch's tests of its flash kernel: error <= 4 (o, dv), 180 (dq) or 16 (dk) x that of eager
#pragma once

#include <map>
#include <string>
#include <vector>

#include "harness/run/record.hpp"
#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {

/// Of assert_close and cudnn_2e-2, in this order: what field_errors() is to measure.
std::vector<Tolerance> field_tolerances(Dtype dtype);

/// tensor: o, dq, dk or dv. errors: of field_tolerances(). eager_error: largest error of eager.
std::map<std::string, FieldRule> field_rules(const std::string& tensor, const FieldErrors& errors, double eager_error);

}  // namespace attnbench
