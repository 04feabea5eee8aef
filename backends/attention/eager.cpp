#include "backends/attention/eager.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <torch/version.h>

#include "backends/attention/autograd.hpp"

namespace attnbench {
namespace {

/// The slopes of ALiBi's paper: 2^(-8/n), 2^(-16/n), … for n heads.
at::Tensor slopes_of(const Problem& problem, c10::Device device) {
  std::vector<float> slopes;
  for (int64_t head = 1; head <= problem.hq; head++)
    slopes.push_back(std::exp2(-8.0f * static_cast<float>(head) / static_cast<float>(problem.hq)));
  return at::tensor(slopes, at::kFloat).view({-1, 1, 1}).to(device);
}

/// What the softmax is of, from scaled products; a column of sinks stands behind the keys where there are any.
at::Tensor with_options(const at::Tensor& products, const DenseCall& call, const EagerScores& how) {
  at::Tensor scores = products.to(at::kFloat);
  if (how.softcap != 0) scores = scores.div(how.softcap).tanh().mul(how.softcap);
  if (how.slopes.defined()) scores = scores.sub(call.distance.mul(how.slopes));
  at::Tensor hidden;
  if (call.mask.defined()) hidden = call.mask < 0;
  if (hidden.defined()) scores = scores.add(hidden.to(at::kFloat).mul(lowest(at::kFloat)));
  if (!how.sinks.defined()) return scores;
  at::Tensor sinks = how.sinks.expand({scores.size(0), scores.size(1), scores.size(2), 1});
  if (hidden.defined()) sinks = sinks.masked_fill(hidden.all(-1, true), -std::numeric_limits<double>::infinity());
  return at::cat({scores, sinks}, -1);  // a query that sees no key has no sink either
}

/// Forward: scores, their float32 copy and the softmax at a time, q, k and v laid out for a product (k and v repeated), its
/// result, and some numbers for each row. Backward: the graph keeps P twice (float32 and rounded); dP passes through the same
/// three copies, and gradients are transposed. Options take two float32 copies more, and keep one each.
int64_t predicted_bytes(const Problem& p, const std::vector<DenseCall>& calls, const Inputs& inputs, Pass pass) {
  const ScoreElements scores = score_elements(calls);
  const int64_t size = inputs.q.element_size(), group = inputs.q.size(-2) / inputs.k.size(-2);
  const bool is_half = size != 4;
  const int64_t laid_out = (2 * inputs.q.numel() + (inputs.k.numel() + inputs.v.numel()) * group) * size;
  const int64_t rows = 16 * inputs.q.numel() / std::max<int64_t>(inputs.q.size(-1), 1);
  const int64_t handed_out = p.dropout.p > 0 ? 2 * scores.all : 0;  // by call, and joined
  const int64_t options = (p.has_score_options() ? 8 : 0) + (p.dropout.p > 0 ? 8 : 0);
  const int64_t forward = rows + laid_out + scores.largest * ((is_half ? size + 8 : 8) + options) + handed_out;
  if (pass == Pass::forward) return output_bytes(inputs, pass, false) + forward;
  const int64_t kept_options = (p.softcap > 0 ? 4 : 0) + (p.dropout.p > 0 ? 4 : 0) + (p.sink ? 4 : 0);
  const int64_t kept = scores.all * ((is_half ? size + 4 : 4) + kept_options) + laid_out;
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
  Capabilities& can = declaration_.capabilities = broad_capabilities({"cpu", "cuda"});
  can.softcap = can.alibi = can.sink = can.dropout = true;
}

std::vector<DenseCall> Eager::calls(const Case& c, const Inputs& inputs) const {
  return dense_calls(c, inputs, Triangle::mask, lowest(inputs.q.scalar_type()));
}

at::Tensor Eager::attention(const DenseCall& call, const EagerScores& how) const {
  const int64_t group = call.q.size(1) / call.k.size(1);
  const at::Tensor k = repeat_kv(call.k, group), v = repeat_kv(call.v, group);
  at::Tensor weights = at::matmul(call.q, k.transpose(2, 3)).mul(how.scale);
  if (how.has_options())
    weights = with_options(weights, call, how);
  else if (call.mask.defined())
    weights = weights.add(call.mask);
  weights = at::softmax(weights, -1, at::kFloat);
  if (how.sinks.defined()) weights = weights.narrow(3, 0, k.size(2));
  if (how.dropout) weights = weights.mul(how.dropout->factors(call));
  weights = weights.to(call.q.scalar_type());
  return at::matmul(weights, v);
}

Run Eager::prepare(const Case& c, const Inputs& inputs, Pass pass) const {
  const std::vector<DenseCall> dense = calls(c, inputs);
  const Problem& p = c.problem;
  EagerScores how{.scale = inputs.scale, .softcap = p.softcap};
  if (p.alibi) how.slopes = slopes_of(p, inputs.q.device());
  if (p.sink) how.sinks = inputs.sink.view({-1, 1, 1});
  if (p.dropout.p > 0) how.dropout = std::make_shared<EagerDropout>(p.dropout.p, p.dropout.seed, inputs.q.device());
  Run run;
  run.profile = declaration_.profile;
  run.predicted_bytes = predicted_bytes(p, dense, inputs, pass);
  const auto operation = [this, how](const DenseCall& call) { return attention(call, how); };
  run.windows = {autograd_window(dense, operation, c, pass, Graph::for_backward)};
  if (!how.dropout) return run;
  run.windows.front().forward = [forward = run.windows.front().forward, dropout = how.dropout, dense, layout = p.layout] {
    dropout->begin();
    Outputs outputs = forward();
    outputs.kept = dropout->kept(dense, layout);
    return outputs;
  };
  return run;
}

std::unique_ptr<Backend> make_eager(const Device&) {
  return std::make_unique<Eager>();
}

}  // namespace attnbench
