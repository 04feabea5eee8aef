// eager with one defect each, which `attnbench selftest` must see. Autograd differentiates what the forward computes; a defect of
// the backward alone is a forward whose value is right and whose derivative is not.
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>

#include "backends/attention/eager.hpp"
#include "backends/attention/flash_varlen_equivalence.hpp"
#include "harness/run/planted.hpp"

namespace attnbench {
namespace {

enum class EagerDefect {
  causal_one_late,
  other_corner,
  key_padding_ignored,
  hidden_as_minus_ten,
  last_key_dropped,
  scale_missing,
  scale_twice,
  key_head_modulo,
  softmax_without_maximum,
  p_in_fp8,
  dq_zero,
  dq_unscaled,
  dk_dv_one_head,
  d_zero,
  dv_from_unnormalised_p,
};

struct EagerDefectFacts {
  EagerDefect defect;
  const char* name;
  const char* what;  ///< it does wrong
  bool forward;      ///< else it shows in gradients alone
};

constexpr EagerDefectFacts kEagerDefects[] = {
    {EagerDefect::causal_one_late, "causal_one_late", "causal: query i sees key i + 1 as well", true},
    {EagerDefect::other_corner, "other_corner", "the mask is aligned to the other corner", true},
    {EagerDefect::key_padding_ignored, "key_padding_ignored", "keys of padding are seen", true},
    {EagerDefect::hidden_as_minus_ten, "hidden_as_minus_ten",
     "hidden keys have -10 added to their scores, not the lowest value of the dtype", true},
    {EagerDefect::last_key_dropped, "last_key_dropped", "the last key of every sequence is left out", true},
    {EagerDefect::scale_missing, "scale_missing", "scores are not scaled", true},
    {EagerDefect::scale_twice, "scale_twice", "scores are scaled twice", true},
    {EagerDefect::key_head_modulo, "key_head_modulo", "query head h reads key head h % hkv", true},
    {EagerDefect::softmax_without_maximum, "softmax_without_maximum", "the softmax does not take the maximum off", true},
    {EagerDefect::p_in_fp8, "p_in_fp8", "P is rounded to fp8 (e4m3)", true},
    {EagerDefect::dq_zero, "dq_zero", "dQ is 0", false},
    {EagerDefect::dq_unscaled, "dq_unscaled", "dQ lacks the scale", false},
    {EagerDefect::dk_dv_one_head, "dk_dv_one_head", "dK and dV sum over the last head of the group alone", false},
    {EagerDefect::d_zero, "d_zero", "D is 0", false},
    {EagerDefect::dv_from_unnormalised_p, "dv_from_unnormalised_p", "dV is computed from P before it is divided by the row sum",
     false},
};

bool is_masked(const Problem& problem) {
  return problem.mask == Mask::causal || problem.window.has_value();
}

/// The value of `value`, with the derivative of `slope`.
at::Tensor with_derivative_of(const at::Tensor& value, const at::Tensor& slope) {
  return value.detach() + (slope - slope.detach());
}

/// As repeat_kv, but only the last head of a group gives its gradient back.
at::Tensor repeat_kv_for_one_head(const at::Tensor& x, int64_t group) {
  const at::Tensor repeated = x.unsqueeze(2).expand({x.size(0), x.size(1), group, x.size(2), x.size(3)});
  const at::Tensor parts = at::cat({repeated.narrow(2, 0, group - 1).detach(), repeated.narrow(2, group - 1, 1)}, 2);
  return parts.reshape({x.size(0), x.size(1) * group, x.size(2), x.size(3)});
}

class PlantedEager : public Eager {
 public:
  explicit PlantedEager(const EagerDefectFacts& facts) : defect_(facts.defect) {
    declare_planted(declaration_, facts.name, facts.what);
    declaration_.capabilities.passes = {Pass::backward};
    if (facts.forward) declaration_.capabilities.passes = {Pass::forward, Pass::backward};
    Capabilities& can = declaration_.capabilities;
    can.softcap = can.alibi = can.sink = can.dropout = false;  // their attention is written without
    if (is(EagerDefect::last_key_dropped)) declaration_.capabilities.layouts = {Layout::packed};
    if (is(EagerDefect::key_padding_ignored)) declaration_.capabilities.masks = {Mask::none};
    if (is(EagerDefect::key_padding_ignored)) declaration_.capabilities.window = false;
  }

  std::optional<std::string> why_not(const Case& c, Pass pass, const Device& device) const override {
    const auto outside = Backend::why_not(c, pass, device);
    return outside ? outside : why_not_planted(why_no_difference(c));
  }

 protected:
  std::vector<DenseCall> calls(const Case& sound, const Inputs& inputs) const override {
    Case c = sound;
    double hidden = lowest(inputs.q.scalar_type());
    if (is(EagerDefect::causal_one_late)) {
      c.problem.window = SlidingWindow{c.problem.window ? c.problem.window->left : -1, 1};
      c.problem.mask = Mask::none;
    }
    if (is(EagerDefect::other_corner))
      c.problem.align = c.problem.align == Align::bottom_right ? Align::top_left : Align::bottom_right;
    if (is(EagerDefect::hidden_as_minus_ten)) hidden = -10;
    std::vector<DenseCall> planted = dense_calls(c, inputs, Triangle::mask, hidden);
    if (is(EagerDefect::key_padding_ignored))
      for (DenseCall& call : planted) call.mask = at::Tensor();
    return planted;
  }

  at::Tensor attention(const DenseCall& call, const EagerScores& sound) const override {
    const int64_t group = call.q.size(1) / call.k.size(1);
    const double scale = is(EagerDefect::scale_missing) ? 1
                         : is(EagerDefect::scale_twice) ? sound.scale * sound.scale
                                                        : sound.scale;
    at::Tensor q = call.q;
    if (is(EagerDefect::dq_zero)) q = with_derivative_of(q, q * 0);
    if (is(EagerDefect::dq_unscaled)) q = with_derivative_of(q, q / scale);
    const at::Tensor k = repeated(call.k, group), v = repeated(call.v, group);
    at::Tensor scores = at::matmul(q, k.transpose(2, 3)).mul(scale);
    if (call.mask.defined()) scores = scores.add(call.mask);
    if (is(EagerDefect::last_key_dropped) && call.k.size(2) > 0)
      scores = at::cat({scores.narrow(3, 0, call.k.size(2) - 1),
                        (scores.narrow(3, call.k.size(2) - 1, 1) * 0).add(lowest(scores.scalar_type()))},
                       3);
    const at::Tensor p = probabilities(scores.to(at::kFloat)).to(call.q.scalar_type());
    if (!is(EagerDefect::dv_from_unnormalised_p)) return at::matmul(p, v);
    const at::Tensor s = scores.to(at::kFloat), unnormalised = (s - s.amax(-1, true)).exp().to(v.scalar_type());
    return with_derivative_of(at::matmul(p, v), at::matmul(p, v.detach()) + at::matmul(unnormalised.detach(), v));
  }

 private:
  bool is(EagerDefect defect) const { return defect == defect_; }

  at::Tensor repeated(const at::Tensor& x, int64_t group) const {
    if (is(EagerDefect::key_head_modulo)) return x.repeat({1, group, 1, 1});
    return is(EagerDefect::dk_dv_one_head) && group > 1 ? repeat_kv_for_one_head(x, group) : repeat_kv(x, group);
  }

  at::Tensor probabilities(const at::Tensor& scores) const {
    if (is(EagerDefect::softmax_without_maximum)) return scores.exp() / scores.exp().sum(-1, true);
    if (is(EagerDefect::d_zero)) return (scores - scores.logsumexp({-1}, true).detach()).exp();
    const at::Tensor p = at::softmax(scores, -1);
    return is(EagerDefect::p_in_fp8) ? with_derivative_of(p.to(at::kFloat8_e4m3fn).to(at::kFloat), p) : p;
  }

  /// From shape and mask alone, as for the kernels; empty: no proof.
  std::string why_no_difference(const Case& c) const {
    const Problem& problem = c.problem;
    const auto as_kernels = [&](flash_varlen::Defect defect) { return why_equivalent(defect, c, Kernels::cpu); };
    switch (defect_) {
      case EagerDefect::causal_one_late:
        return as_kernels(flash_varlen::Defect::causal_one_late);
      case EagerDefect::other_corner:
        return as_kernels(flash_varlen::Defect::other_corner);
      case EagerDefect::last_key_dropped:
        return as_kernels(flash_varlen::Defect::last_key_dropped);
      case EagerDefect::key_head_modulo:
        return as_kernels(flash_varlen::Defect::key_head_modulo);
      case EagerDefect::dk_dv_one_head:
        return problem.group() > 1 ? "" : "there is one query head in a group";
      case EagerDefect::scale_missing:
      case EagerDefect::scale_twice:
      case EagerDefect::dq_unscaled:
        return problem.softmax_scale() == 1 ? "the scale is 1" : "";
      case EagerDefect::key_padding_ignored:
        return problem.layout == Layout::padded ? "" : "nothing is padded";
      case EagerDefect::hidden_as_minus_ten:
        return is_masked(problem) || problem.layout == Layout::padded ? "" : "no key is hidden";
      default:
        return "";
    }
  }

  EagerDefect defect_;
};

}  // namespace

std::vector<std::unique_ptr<Backend>> plant_eager(const Device&) {
  std::vector<std::unique_ptr<Backend>> planted;
  for (const EagerDefectFacts& facts : kEagerDefects) planted.push_back(std::make_unique<PlantedEager>(facts));
  return planted;
}

}  // namespace attnbench
