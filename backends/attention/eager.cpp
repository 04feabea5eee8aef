#include "backends/attention/eager.hpp"

#include <algorithm>
#include <limits>

#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <torch/version.h>

#include "backends/attention/autograd.hpp"

namespace attnbench {
namespace {

/// Forward: scores, their float32 copy and the softmax at a time, q, k and v laid out for a product (k and v repeated), its
/// result, and some numbers for each row. Backward: the graph keeps P twice (float32 and rounded); dP passes through the same
/// three copies, and gradients are transposed.
int64_t predicted_bytes(const std::vector<DenseCall>& calls, const Inputs& inputs, Pass pass) {
  const ScoreElements scores = score_elements(calls);
  const int64_t size = inputs.q.element_size(), group = inputs.q.size(-2) / inputs.k.size(-2);
  const bool is_half = size != 4;
  const int64_t laid_out = (2 * inputs.q.numel() + (inputs.k.numel() + inputs.v.numel()) * group) * size;
  const int64_t rows = 16 * inputs.q.numel() / std::max<int64_t>(inputs.q.size(-1), 1);
  const int64_t forward = rows + laid_out + scores.largest * (is_half ? size + 8 : 8);
  if (pass == Pass::forward) return output_bytes(inputs, pass, false) + forward;
  const int64_t kept = scores.all * (is_half ? size + 4 : 4) + laid_out;
  const int64_t transposed = (inputs.q.numel() + inputs.k.numel() + inputs.v.numel()) * size;
  return output_bytes(inputs, pass, false) + forward + kept + transposed;
}

}  // namespace

double lowest(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBFloat16:
      return -static_cast<double>(std::numeric_limits<at::BFloat16>::max());
    case at::kHalf:
      return -static_cast<double>(std::numeric_limits<at::Half>::max());
    default:
      return -static_cast<double>(std::numeric_limits<float>::max());
  }
}

/// [b, hkv, l, d] -> [b, hkv * group, l, d], each head repeated `group` times in a row.
at::Tensor repeat_kv(const at::Tensor& x, int64_t group) {
  if (group == 1) return x;
  return x.unsqueeze(2)
      .expand({x.size(0), x.size(1), group, x.size(2), x.size(3)})
      .reshape({x.size(0), x.size(1) * group, x.size(2), x.size(3)});
}

Eager::Eager() {
  declaration_.name = "eager";
  declaration_.version = TORCH_VERSION;
  declaration_.implementation = "eager";
  declaration_.profile = {.name = "eager",
                          .p = Profile::Probabilities::normalised,
                          .rounds_ds = true,
                          .rounds_scores = true,
                          .d = Profile::RowSum::from_p_dp,
                          .rounds_gqa_partials = true};
  declaration_.conventions = {.empty_row = Conventions::EmptyRow::uniform,
                              .lse_empty = Conventions::LseEmpty::none,
                              .poison = Conventions::Poison::finite,
                              .padded_rows_zero = false};
  declaration_.capabilities = broad_capabilities({"cpu", "cuda"});
}

std::vector<DenseCall> Eager::calls(const Case& c, const Inputs& inputs) const {
  return dense_calls(c, inputs, Triangle::mask, lowest(inputs.q.scalar_type()));
}

at::Tensor Eager::attention(const DenseCall& call, double scale) const {
  const int64_t group = call.q.size(1) / call.k.size(1);
  const at::Tensor k = repeat_kv(call.k, group), v = repeat_kv(call.v, group);
  at::Tensor weights = at::matmul(call.q, k.transpose(2, 3)).mul(scale);
  if (call.mask.defined()) weights = weights.add(call.mask);
  weights = at::softmax(weights, -1, at::kFloat).to(call.q.scalar_type());
  return at::matmul(weights, v);
}

Run Eager::prepare(const Case& c, const Inputs& inputs, Pass pass) const {
  std::vector<DenseCall> dense = calls(c, inputs);
  Run run;
  run.profile = declaration_.profile;
  run.predicted_bytes = predicted_bytes(dense, inputs, pass);
  const auto operation = [this, scale = inputs.scale](const DenseCall& call) { return attention(call, scale); };
  run.windows = {autograd_window(std::move(dense), operation, c, pass, Graph::for_backward)};
  return run;
}

std::unique_ptr<Backend> make_eager(const Device&) {
  return std::make_unique<Eager>();
}

}  // namespace attnbench
