// The layer's float64 reference, by things that do not use its formulas: finite differences, what one token must give, samples
// that do not see each other, and an attention oracle that was written apart.
#include "harness/llama/reference.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/where.h>
#include <gtest/gtest.h>

namespace attnbench {
namespace {

using at::Tensor;

const Profile kFlash{.name = "flash"};

LlamaInputs in_float64(const Case& c) {
  LlamaInputs in = make_llama_inputs(c);
  for (const Differentiated& d : kDifferentiated)
    if (has_gradient(in.*d.input)) in.*d.input = (in.*d.input).to(at::kDouble);
  for (Tensor* t : {&in.past_k, &in.past_v, &in.dout})
    if (t->defined()) *t = t->to(at::kDouble);
  return in;
}

Tensor value(const LayerReference& reference, const std::string& name) {
  return reference.at(name).expected.value.squeeze(1);
}

double largest(const Tensor& difference) {
  return difference.abs().max().item<double>();
}

TEST(LayerReference, GradientsAreFiniteDifferences) {
  for (const char* line :
       {"llama hq=2 d=8 s=5 dtype=fp32 seed=3", "llama hq=4 hkv=2 d=8 s=6 lens=6+4 pad=left dtype=fp32",
        "llama hq=2 d=8 s=3 past=4 lens=7+5 pad=left dtype=fp32", "llama hq=2 d=8 layout=packed lens=4+3 tail=2 dtype=fp32",
        "llama hq=4 hkv=2 d=8 s=5 norm=fp32 qk_norm=on dtype=fp32",
        "llama hq=4 hkv=2 d=8 s=5 lora=3 norm=same positions=none dtype=fp32",
        "llama hq=2 d=8 s=5 lora=3 lora_dtype=fp32 int8=on dtype=fp32"}) {
    const Case c = parse_case(line);
    const LlamaInputs in = in_float64(c);
    const Tensor real = judged_queries(c, in, {});
    const LayerReference at_point = make_layer_reference(c, in, {}, kFlash, Pass::backward);
    const auto loss = [&](const LlamaInputs& x) {
      const Tensor dout = judged_rows("out", in.dout, real).squeeze(1);
      return (value(make_layer_reference(c, x, {}, kFlash, Pass::forward), "out") * dout).sum().item<double>();
    };
    for (const auto& [name, member, gradient] : kDifferentiated) {
      EXPECT_EQ(at_point.contains(name), has_gradient(in.*member)) << line << " " << name;
      if (!has_gradient(in.*member)) continue;
      const Tensor direction = at::randn_like(in.*member);
      constexpr double kStep = 1e-4;
      LlamaInputs up = in, down = in;
      up.*member = in.*member + kStep * direction;
      down.*member = in.*member - kStep * direction;
      const double slope = (loss(up) - loss(down)) / (2 * kStep);
      const double expected = (value(at_point, name) * judged_rows(name, direction, real).squeeze(1)).sum().item<double>();
      EXPECT_NEAR(slope, expected, 1e-5 * (1 + std::abs(expected))) << line << " " << name;
    }
  }
}

TEST(LayerReference, OneTokenIsItsValueProjectedTwice) {
  const Case c = parse_case("llama hq=4 hkv=2 d=8 s=1 dtype=bf16");
  const LlamaInputs in = in_float64(c);
  const Tensor v = in.hidden.view({1, -1}).matmul(in.wv.t()).view({2, 8}).repeat_interleave(2, 0).view({1, -1});
  EXPECT_LE(largest(value(make_layer_reference(c, in, {}, kFlash, Pass::forward), "out") - v.matmul(in.wo.t())), 1e-12);
}

TEST(LayerReference, PackedSamplesAreComputedAlone) {
  const Case packed = parse_case("llama hq=2 d=8 layout=packed lens=5+3 tail=2 dtype=bf16"),
             alone = parse_case("llama hq=2 d=8 s=3 dtype=bf16");
  const LlamaInputs in = in_float64(packed);
  LlamaInputs second = in;
  second.hidden = in.hidden.narrow(1, 5, 3);
  second.dout = in.dout.narrow(1, 5, 3);
  second.position_ids = in.position_ids.narrow(1, 0, 3);
  second.cu_seqlens = Tensor();
  const Tensor together = value(make_layer_reference(packed, in, {}, kFlash, Pass::forward), "out");
  EXPECT_LE(largest(together.narrow(0, 5, 3) - value(make_layer_reference(alone, second, {}, kFlash, Pass::forward), "out")),
            1e-12);
}

TEST(LayerReference, ChunksAndThePastAreTheSameTokens) {
  const Case whole = parse_case("llama hq=2 d=8 s=6 cache=on dtype=bf16"),
             rest = parse_case("llama hq=2 d=8 s=2 past=4 cache=on dtype=bf16");
  const LlamaInputs in = in_float64(whole);
  const LayerReference all = make_layer_reference(whole, in, {}, kFlash, Pass::forward);
  LlamaInputs last = in;
  last.hidden = in.hidden.narrow(1, 4, 2);
  last.dout = in.dout.narrow(1, 4, 2);
  last.position_ids = in.position_ids.narrow(1, 4, 2);
  const auto first_four = [&](const char* name) {
    return value(all, name).view({6, 2, 8}).narrow(0, 0, 4).transpose(0, 1).unsqueeze(0);
  };
  last.past_k = first_four("cache_k");
  last.past_v = first_four("cache_v");
  EXPECT_LE(
      largest(value(all, "out").narrow(0, 4, 2) - value(make_layer_reference(rest, last, {}, kFlash, Pass::forward), "out")),
      1e-12);
}

/// RoPE knows distances alone. Angles are float32, of a half ulp of 1024 * 2^-24 = 6e-5 at most here, and in fp32 cos and sin
/// round no more; scores of a few units change by as much, and so does what follows. Beside a past that is not shifted too it is
/// no invariance.
TEST(LayerReference, AShiftOfAllPositionsChangesNothing) {
  const auto change_by_shift = [](const std::string& line) {
    const Case c = parse_case(line), far = parse_case(line + " shift=1000");
    const LayerReference here = make_layer_reference(c, in_float64(c), {}, kFlash, Pass::backward),
                         there = make_layer_reference(far, in_float64(far), {}, kFlash, Pass::backward);
    double change = 0;
    for (const auto& [name, tensor] : here) {
      const Tensor& x = tensor.expected.value;
      change = std::max(change, largest(there.at(name).expected.value - x) / largest(x));
    }
    return change;
  };
  for (const char* line : {"llama hq=2 d=16 s=12 lens=7+12 dtype=fp32", "llama hq=2 d=16 s=12 lens=7+12 pad=left dtype=fp32"})
    EXPECT_LT(change_by_shift(line), 1e-3) << line;
  EXPECT_GT(change_by_shift("llama b=2 hq=2 d=16 s=4 past=8 dtype=fp32"), 0.1);
}

/// What a mechanism computes in the place of the case has to be something else.
TEST(LayerReference, OtherSemanticsAreOtherNumbers) {
  const Case c = parse_case("llama hq=2 d=8 s=4 past=2 lens=6+3 pad=left dtype=bf16");
  const LlamaInputs in = in_float64(c);
  const Tensor expected = value(make_layer_reference(c, in, {}, kFlash, Pass::forward), "out");
  for (bool Semantics::*member : {&Semantics::key_mask, &Semantics::causal, &Semantics::top_left}) {
    Semantics other;
    other.*member = !(other.*member);
    EXPECT_GT(largest(value(make_layer_reference(c, in, other, kFlash, Pass::forward), "out") - expected), 1e-2);
  }
}

/// Four tokens have nine dS of two heads or more keys, whatever the 256 rows of dwk.
TEST(LayerReference, FewTokensAreFewIndependentErrors) {
  const auto samples = [](const char* line, const char* name) {
    const Case c = parse_case(line);
    return make_layer_reference(c, make_llama_inputs(c), {}, kFlash, Pass::backward).at(name).samples;
  };
  EXPECT_LT(samples("llama hq=2 d=128 s=8 lens=4 seed=1", "dwk"), 60);
  EXPECT_GT(samples("llama hq=2 d=64 s=24", "dwk"), 60);
  EXPECT_GT(samples("llama hq=2 d=64 s=24", "out"), 200);
}

/// A padded query that sees no key: the mean of V, whose part of dO goes into dV.
TEST(LayerReference, UniformRowsAreDefinedAndLeak) {
  const Case c = parse_case("llama hq=2 d=8 s=4 chunks=2 lens=2+4 pad=left pad_dout=on");
  const LlamaInputs in = in_float64(c);
  const Semantics uniform{.uniform_rows = true};
  const LayerReference with = make_layer_reference(c, in, uniform, kFlash, Pass::backward),
                       without = make_layer_reference(c, in, {}, kFlash, Pass::backward);
  EXPECT_EQ(judged_queries(c, in, {}).sum().item<int64_t>(), 6);
  EXPECT_EQ(judged_queries(c, in, uniform).sum().item<int64_t>(), 8);
  const Tensor v = in.hidden[0].matmul(in.wv.t()).narrow(0, 0, 2).mean(0);  // of the first call's keys
  EXPECT_LE(largest(value(with, "out")[0] - v.matmul(in.wo.t())), 1e-12);
  EXPECT_GT(largest(value(with, "dwv") - value(without, "dwv")), 1e-2);
  EXPECT_EQ(judged_queries(parse_case("llama hq=2 d=8 s=4 lens=2+4 pad=left norm=fp32"), in, uniform).sum().item<int64_t>(), 6);
}

/// A variance has to be that of the roundings which make it: an ordinary implementation is about one sigma off.
TEST(LayerReference, OrdinaryRoundingIsAboutOneSigma) {
  for (const char* line : {"llama hq=2 d=64 s=24 dtype=bf16", "llama hq=4 hkv=2 d=64 s=17 lens=17+9 dtype=fp16 seed=5",
                           "llama hq=4 hkv=2 d=64 s=17 norm=same qk_norm=on dtype=bf16",
                           "llama hq=2 d=64 s=24 norm=same lora=4 dtype=fp16", "llama hq=2 d=64 s=24 int8=on lora=8 dtype=bf16",
                           "llama hq=2 d=64 s=24 norm=fp32 cast=norms positions=none dtype=bf16"}) {
    const Case c = parse_case(line);
    const LlamaInputs in = make_llama_inputs(c);
    for (const auto& [name, tensor] : make_layer_reference(c, in, {}, kFlash, Pass::backward)) {
      const Expected& x = tensor.expected;
      const Tensor z2 = at::where(x.variance > 0, (tensor.ordinary - x.value).square() / x.variance, 0.0);
      const double rms = std::sqrt(z2.sum().item<double>() / (x.variance > 0).sum().item<double>());
      EXPECT_GT(rms, 0.6) << line << " " << name;
      EXPECT_LT(rms, 1.5) << line << " " << name;
    }
  }
}

}  // namespace
}  // namespace attnbench
