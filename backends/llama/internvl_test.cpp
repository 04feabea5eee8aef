// hf_eager and InternVL's layers against a dense layer in float64 of this file's own, with crude limits: that the right thing is
// computed, that each refusal says so, and that each trap shows. How precisely is the judge's question.
#include <cmath>
#include <functional>
#include <stdexcept>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/complex.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/imag.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/polar.h>
#include <ATen/ops/real.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "backends/llama/makers.hpp"
#include "harness/run/test_device.hpp"
#include "harness/worker/backend.hpp"
#include "harness/worker/llama_backend.hpp"

namespace attnbench {
namespace {

using at::Tensor;

/// What a query sees in the dense layer.
struct Rule {
  bool masked = true;                ///< padded keys are hidden
  bool uniform = false;              ///< a query that sees no key weighs all alike, else none
  std::optional<int64_t> right = 0;  ///< keys after a query's own place that it sees; unset: all
};

std::unique_ptr<LlamaBackend> layer(LlamaMaker* make) {
  static const std::vector<std::unique_ptr<Backend>> backends = make_backends(kCpu);
  for (const auto& backend : backends)
    if (backend->declaration().name == "flash_varlen") return make(kCpu, *backend);
  throw std::logic_error("there is no flash_varlen");
}

Case llama(const std::string& keys) {
  return parse_case("llama " + keys);
}

LlamaOutputs computed(LlamaMaker* make, const Case& c, Pass pass = Pass::backward) {
  return layer(make)->run(c, make_llama_inputs(c), pass);
}

/// The half-split form is a product of complex numbers, x1 + i x2 turned by p / 10000^(2 i / d). x [b, s, heads, d]
Tensor turned(const Tensor& x, const Tensor& ids) {
  if (!ids.defined()) return x;
  const int64_t half = x.size(3) / 2;
  const Tensor exponents = at::arange(half, at::kDouble) * (-std::log(10000.0) / static_cast<double>(half));
  const Tensor angles = (ids.to(at::kDouble).unsqueeze(-1) * exponents.exp()).unsqueeze(2);
  const Tensor z = at::complex(x.narrow(3, 0, half), x.narrow(3, half, half)) * at::polar(at::ones_like(angles), angles);
  return at::cat({at::real(z), at::imag(z)}, 3);
}

/// Which sample of a packed row each token is in; all 0 in a padded one.
std::vector<int64_t> sample_of_tokens(const LlamaInputs& in, int64_t tokens) {
  std::vector<int64_t> sample(static_cast<size_t>(tokens), 0);
  if (!in.cu_seqlens.defined()) return sample;
  const int* cu = in.cu_seqlens.const_data_ptr<int>();
  for (int64_t n = 0; n + 1 < in.cu_seqlens.numel(); ++n)
    for (int i = cu[n]; i < cu[n + 1]; ++i) sample[static_cast<size_t>(i)] = n;
  return sample;
}

/// bool [b, 1, s, past + s]
Tensor seen(const Case& c, const LlamaInputs& in, const Rule& rule) {
  const int64_t b = in.hidden.size(0), s = in.hidden.size(1), past = c.llama->past, lk = past + s;
  const std::vector<int64_t> sample = sample_of_tokens(in, lk);
  const Tensor sees = at::zeros({b, 1, s, lk}, at::kBool);
  for (int64_t n = 0; n < b; ++n)
    for (int64_t i = 0; i < s; ++i)
      for (int64_t j = 0; j < lk; ++j) {
        const int64_t distance = past + i - j;
        bool is_seen = sample[static_cast<size_t>(past + i)] == sample[static_cast<size_t>(j)];
        if (rule.masked && in.mask.defined()) is_seen = is_seen && in.mask[n][j].item<bool>();
        if (rule.right) is_seen = is_seen && distance >= -*rule.right;
        if (c.problem.window) is_seen = is_seen && distance <= c.problem.window->left;
        sees.mutable_data_ptr<bool>()[(n * s + i) * lk + j] = is_seen;
      }
  return sees;
}

LlamaOutputs dense(const Case& c, const LlamaInputs& in, const Rule& rule, Pass pass = Pass::backward) {
  std::vector<Tensor> x;
  for (const Tensor& t : {in.hidden, in.wq, in.wk, in.wv, in.wo}) x.push_back(t.to(at::kDouble, false, true).requires_grad_());
  const auto heads = [&](const Tensor& w) { return at::matmul(x[0], w.t()).unflatten(-1, {-1, c.problem.d}); };
  const Tensor q = turned(heads(x[1]), in.position_ids).transpose(1, 2);
  Tensor k = turned(heads(x[2]), in.position_ids).transpose(1, 2), v = heads(x[3]).transpose(1, 2);
  if (in.past_k.defined()) {
    k = at::cat({in.past_k.to(at::kDouble), k}, 2);
    v = at::cat({in.past_v.to(at::kDouble), v}, 2);
  }
  const Tensor sees = seen(c, in, rule), none = sees.any(-1, true).logical_not();
  const int64_t group = c.problem.group();
  const Tensor scores = at::matmul(q, k.repeat_interleave(group, 1).mT()) / std::sqrt(static_cast<double>(c.problem.d));
  const Tensor P = at::softmax(at::where(sees | none, scores, -INFINITY), -1);
  const double of_empty = rule.uniform ? 1.0 / static_cast<double>(k.size(2)) : 0.0;
  LlamaOutputs out;
  out.weights = at::where(none, of_empty, P);
  const Tensor o = at::matmul(out.weights, v.repeat_interleave(group, 1)).transpose(1, 2);
  out.out = at::matmul(o.flatten(2), x[4].t());
  out.cache_k = k.detach();
  out.cache_v = v.detach();
  if (pass == Pass::backward) {
    const auto gradients = torch::autograd::grad({out.out}, {x.begin(), x.end()}, {in.dout.to(at::kDouble)});
    out.dhidden = gradients[0];
    out.dwq = gradients[1];
    out.dwk = gradients[2];
    out.dwv = gradients[3];
    out.dwo = gradients[4];
  }
  return out;
}

/// About ten roundings lie one behind the other, the largest numbers among them: 20 half ulps of the largest.
double limit_of(Dtype dtype) {
  return 20 * (dtype == Dtype::bf16 ? 0x1p-9 : dtype == Dtype::fp16 ? 0x1p-12 : 0x1p-24 * 8);
}

/// The largest difference as a share of the largest number expected; of rows that are real.
double difference(const Tensor& got, const Tensor& want, const Tensor& real = Tensor()) {
  if (!got.defined()) return INFINITY;
  Tensor off = (got.to(at::kDouble) - want).abs();
  if (real.defined()) off = off * real;
  return at::isnan(off).any().item<bool>() ? INFINITY : (off.max() / want.abs().max().clamp_min(1e-6)).item<double>();
}

/// The largest of all outputs, of the real queries' rows where the others are not defined.
double difference(const Case& c, const LlamaInputs& in, const LlamaOutputs& got, const LlamaOutputs& want) {
  const Tensor real = in.real_queries();
  double largest = difference(got.out, want.out, real.unsqueeze(-1));
  if (c.llama->cache) largest = std::max({largest, difference(got.cache_k, want.cache_k), difference(got.cache_v, want.cache_v)});
  if (c.llama->weights) largest = std::max(largest, difference(got.weights, want.weights, real.unsqueeze(1).unsqueeze(-1)));
  for (Tensor LlamaOutputs::*gradient :
       {&LlamaOutputs::dhidden, &LlamaOutputs::dwq, &LlamaOutputs::dwk, &LlamaOutputs::dwv, &LlamaOutputs::dwo})
    if ((want.*gradient).defined()) largest = std::max(largest, difference(got.*gradient, want.*gradient));
  return largest;
}

double difference(LlamaMaker* make, const Case& c, const Rule& rule = {}, Pass pass = Pass::backward) {
  const LlamaInputs in = make_llama_inputs(c);
  return difference(c, in, layer(make)->run(c, in, pass), dense(c, in, rule, pass));
}

bool is_written_out(LlamaMaker* make) {
  return make == make_hf_eager || make == make_internvl_sdpa || make == make_internvit;
}

/// In the finest dtype that the layer takes, and in bf16.
void expect_dense(LlamaMaker* make, const std::vector<std::string>& cases, const Rule& rule = {}) {
  const std::string finest = is_written_out(make) ? " dtype=fp32" : " dtype=fp16";
  for (const std::string& keys : cases)
    for (const std::string& dtype : {finest, std::string(" dtype=bf16")}) {
      const Case c = llama(keys + dtype);
      EXPECT_FALSE(layer(make)->why_not(c, Pass::backward, kCpu)) << keys;
      for (const Pass pass : {Pass::forward, Pass::backward})
        EXPECT_LT(difference(make, c, rule, pass), limit_of(c.problem.dtype)) << keys << dtype << ' ' << name_of(pass);
    }
}

/// What run() throws, or "".
std::string refusal(LlamaMaker* make, const Case& c, const LlamaInputs& inputs) {
  try {
    layer(make)->run(c, inputs, Pass::forward);
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "";
}
std::string refusal(LlamaMaker* make, const std::string& keys) {
  const Case c = llama(keys);
  return refusal(make, c, make_llama_inputs(c));
}

TEST(DenseLayer, ATensorThatIsOffIsSeen) {
  const Case c = llama("hq=2 d=16 s=12 lens=5+12 cache=on weights=on dtype=fp32");
  const LlamaInputs in = make_llama_inputs(c);
  const LlamaOutputs right = dense(c, in, {});
  EXPECT_EQ(difference(c, in, right, right), 0);
  for (Tensor LlamaOutputs::*off :
       {&LlamaOutputs::out, &LlamaOutputs::cache_k, &LlamaOutputs::cache_v, &LlamaOutputs::weights, &LlamaOutputs::dhidden,
        &LlamaOutputs::dwq, &LlamaOutputs::dwk, &LlamaOutputs::dwv, &LlamaOutputs::dwo}) {
    LlamaOutputs got = right;
    got.*off = right.*off * 1.1;
    EXPECT_NEAR(difference(c, in, got, right), 0.1, 0.001);
    got.*off = Tensor();
    EXPECT_EQ(difference(c, in, got, right), INFINITY);
  }
}

TEST(HfEager, IsTheDenseLayer) {
  expect_dense(make_hf_eager, {"b=2 hq=2 d=16 s=9", "hq=4 hkv=2 d=16 s=12 lens=5+12", "hq=2 d=16 s=12 lens=5+12 pad=left",
                               "hq=2 d=16 s=12 lens=5+9 pad=holes", "b=2 hq=2 d=16 s=6 positions=one_row shift=40"});
}

TEST(HfEager, HasACacheAndHandsOutProbabilities) {
  expect_dense(make_hf_eager, {"b=2 hq=4 hkv=2 d=16 s=4 past=7 cache=on weights=on", "b=2 hq=2 d=16 s=1 past=5 cache=on",
                               "hq=4 hkv=2 d=16 s=12 chunks=4 lens=7+12 cache=on weights=on",
                               "hq=2 d=16 s=12 chunks=3 lens=15+18 past=6 pad=left cache=on weights=on"});
}

TEST(HfEager, AQueryThatSeesNoKeyHasTheMeanOfAllValues) {
  for (LlamaMaker* make : {make_hf_eager, make_internvl_sdpa})
    for (const std::string lens : {"lens=4+12 pad=left", "lens=0+12"}) {
      const Case c = llama("hq=2 d=16 s=12 train=off dtype=fp32 " + lens);
      const LlamaInputs in = make_llama_inputs(c);
      const Tensor got = layer(make)->run(c, in, Pass::forward).out;
      EXPECT_LT(difference(got, dense(c, in, {.uniform = true}, Pass::forward).out), limit_of(Dtype::fp32)) << lens;
      EXPECT_GT(difference(got, dense(c, in, {.uniform = false}, Pass::forward).out), 0.1) << lens;
    }
}

TEST(HfEager, AGradientOfPaddedRowsLeaksThroughThatMeanAndNotThroughUnpad) {
  const std::string keys = "hq=2 d=16 s=12 lens=4+12 pad=left dtype=fp16";
  const auto dwv = [&](LlamaMaker* make, const std::string& more) { return computed(make, llama(keys + more)).dwv; };
  EXPECT_FALSE(at::equal(dwv(make_hf_eager, ""), dwv(make_hf_eager, " pad_dout=on")));
  EXPECT_TRUE(at::equal(dwv(make_internvl_flash_v2, ""), dwv(make_internvl_flash_v2, " pad_dout=on")));
}

const std::vector<std::string> kPaddedCases = {"b=2 hq=2 d=16 s=9", "hq=2 d=16 s=12 lens=5+12",
                                               "hq=2 d=16 s=12 lens=5+12 pad=left", "hq=2 d=16 s=12 lens=5+9 pad=holes",
                                               "hq=2 d=16 s=12 lens=0+12"};

TEST(InternvlFlash, IsTheDenseLayerThroughEitherEntry) {
  expect_dense(make_internvl_flash_v1, kPaddedCases);
  expect_dense(make_internvl_flash_v2, kPaddedCases);
  expect_dense(make_internvl_flash_v2, {"hq=1 d=160 s=9"});
}

TEST(InternvlFlash, PaddedRowsAreExactlyZero) {
  for (LlamaMaker* make : {make_internvl_flash_v1, make_internvl_flash_v2, make_internvl_llava})
    for (size_t i = 1; i < kPaddedCases.size(); ++i) {
      const Case c = llama(kPaddedCases[i]);
      const LlamaInputs in = make_llama_inputs(c);
      const LlamaOutputs out = layer(make)->run(c, in, Pass::backward);
      const Tensor padded = in.real_queries().logical_not().unsqueeze(-1);
      EXPECT_GT(padded.sum().item<int64_t>(), 0);
      EXPECT_EQ((out.out * padded).abs().max().item<float>(), 0) << kPaddedCases[i];
      EXPECT_EQ((out.dhidden * padded).abs().max().item<float>(), 0) << kPaddedCases[i];
    }
}

TEST(InternvlFlash, TheOldEntryEndsAtHeadDim128) {
  EXPECT_EQ(refusal(make_internvl_flash_v1, "hq=1 d=130 s=4"), "internvl_flash_v1: head dim 130, where flash-attn 1 ends at 128");
  EXPECT_EQ(refusal(make_internvl_flash_v1, "hq=1 d=128 s=4"), "");
}

TEST(InternvlFlash, BothPatchesRefuseWhatIsNotTraining) {
  for (LlamaMaker* make : {make_internvl_flash_v1, make_internvl_flash_v2, make_internvl_sdpa})
    for (const std::string mode : {" train=on", " train=off"}) {
      const std::string name = layer(make)->declaration().name;
      const auto said = [&](const std::string& more) { return refusal(make, "hq=2 d=16 s=4 " + more + mode); };
      EXPECT_EQ(said("past=3"), name + ": a past of 3 tokens is not supported");
      EXPECT_EQ(said("chunks=2"), name + ": 2 calls, and a past from the second on, are not supported");
      EXPECT_EQ(said("weights=on"), name + ": output_attentions is not supported");
      EXPECT_EQ(said("cache=on"), name + ": use_cache is not supported");
      EXPECT_EQ(said("hkv=1"), name + ": 1 key heads for 2 query heads: keys and values are split into as many heads as queries");
    }
}

TEST(InternvlLlava, RepeatsHeadsForTheStackAndNotInTheCache) {
  expect_dense(make_internvl_llava, kPaddedCases);
  expect_dense(make_internvl_llava, {"hq=4 hkv=2 d=16 s=12 lens=5+12 pad=left cache=on", "hq=3 hkv=1 d=16 s=9 cache=on"});
  EXPECT_EQ(computed(make_internvl_llava, llama("hq=4 hkv=2 d=16 s=3 cache=on")).cache_k.size(1), 2);
}

TEST(InternvlLlava, WarnsWhereItIsAskedForWeightsAndReturnsNone) {
  const LlamaOutputs asked = computed(make_internvl_llava, llama("hq=4 hkv=2 d=16 s=3 weights=on"));
  EXPECT_FALSE(asked.weights.defined());
  EXPECT_EQ(asked.warnings, std::vector<std::string>{"output_attentions: internvl_llava returns none"});
}

TEST(InternvlLlava, APastCannotBeStacked) {
  EXPECT_EQ(refusal(make_internvl_llava, "hq=2 d=16 s=4 past=3"),
            "internvl_llava: a past: 4 queries and 7 keys cannot be stacked");
  EXPECT_EQ(refusal(make_internvl_llava, "hq=2 d=16 s=4 chunks=2"),
            "internvl_llava: a past: 2 queries and 4 keys cannot be stacked");
}

TEST(InternvlSdpa, TrainingIsRightWherePaddingStandsBehind) {
  expect_dense(make_internvl_sdpa, {"b=2 hq=2 d=16 s=9", "hq=2 d=16 s=12 lens=5+12"});
}

TEST(InternvlSdpa, TrainingIgnoresTheMask) {
  for (const std::string pad : {"left", "holes"}) {
    expect_dense(make_internvl_sdpa, {"hq=2 d=16 s=12 lens=5+9 pad=" + pad}, {.masked = false});
    EXPECT_GT(difference(make_internvl_sdpa, llama("hq=2 d=16 s=12 lens=5+9 pad=" + pad)), 0.1) << pad;
  }
}

TEST(InternvlSdpa, EvaluationAddsTheMask) {
  expect_dense(make_internvl_sdpa,
               {"b=2 hq=2 d=16 s=9 train=off", "hq=2 d=16 s=12 lens=5+12 train=off",
                "hq=2 d=16 s=12 lens=5+12 pad=left train=off", "hq=2 d=16 s=12 lens=5+9 pad=holes train=off"});
}

TEST(InternvlSdpa, OnlyEvaluationLooksAtTheShapeOfTheMask) {
  const std::string keys = "b=2 hq=2 d=16 s=4 mask=on ";
  for (const std::string of_mask : {"5", "3"}) {
    EXPECT_EQ(refusal(make_internvl_sdpa, keys + "train=off mask_keys=" + of_mask),
              "the attention mask has the shape [2, 1, 4, " + of_mask + "], expected [2, 1, 4, 4]");
    EXPECT_EQ(refusal(make_internvl_sdpa, keys + "mask_keys=" + of_mask), "");
  }
  EXPECT_EQ(refusal(make_internvl_sdpa, keys + "train=off mask_keys=4"), "");
}

TEST(InternvlSdpa, ProductsOfEvaluationOverflowInFp16) {
  const std::string keys = "hq=2 d=64 s=16 gain=64 dtype=fp16";
  const auto has_nan = [&](const std::string& more) {
    return at::isnan(computed(make_internvl_sdpa, llama(keys + more), Pass::forward).out).any().item<bool>();
  };
  EXPECT_TRUE(has_nan(" train=off"));
  EXPECT_FALSE(has_nan(" train=on"));
}

TEST(InternvlPacked, IsTheDenseLayerOfEachSample) {
  expect_dense(make_internvl_packed, {"hq=2 d=16 lens=5+7+3 layout=packed", "hq=4 hkv=2 d=16 lens=5+7 tail=4 layout=packed",
                                      "hq=2 d=16 lens=9+0+6 layout=packed shift=30"});
}

TEST(InternvlPacked, AWindowOfWIsWPlus1KeysWhereCausalAnd2WPlus1Elsewhere) {
  expect_dense(make_internvl_packed, {"hq=2 d=16 lens=9+7 tail=4 layout=packed window=2"}, {.right = 0});
  expect_dense(make_internvl_packed, {"hq=2 d=16 lens=9+7 tail=4 layout=packed window=2 causal=off"}, {.right = 2});
  Case narrower = llama("hq=2 d=16 lens=9+7 layout=packed window=2 dtype=fp16");
  const LlamaInputs in = make_llama_inputs(narrower);
  const LlamaOutputs got = layer(make_internvl_packed)->run(narrower, in, Pass::backward);
  narrower.problem.window->left = 1;  // w keys
  EXPECT_GT(difference(narrower, in, got, dense(narrower, in, {})), 0.1);
}

TEST(InternvlPacked, NothingCrossesFromOneSampleToAnother) {
  const Case c = llama("hq=2 d=16 lens=5+7 tail=4 layout=packed");
  LlamaInputs in = make_llama_inputs(c);
  const Tensor before = layer(make_internvl_packed)->run(c, in, Pass::forward).out;
  in.hidden = in.hidden.clone();
  in.hidden.narrow(1, 5, 7).mul_(3);
  const Tensor after = layer(make_internvl_packed)->run(c, in, Pass::forward).out;
  EXPECT_TRUE(at::equal(before.narrow(1, 0, 5), after.narrow(1, 0, 5)));
  EXPECT_FALSE(at::equal(before.narrow(1, 5, 7), after.narrow(1, 5, 7)));
  EXPECT_TRUE(at::equal(before.narrow(1, 12, 4), after.narrow(1, 12, 4)));
}

TEST(Internvit, IsTheDenseLayerWithoutAMask) {
  const std::string keys = "causal=off positions=none";
  expect_dense(make_internvit, {"b=2 hq=2 d=16 s=9 " + keys, "hq=3 d=80 s=12 " + keys}, {.right = std::nullopt});
  EXPECT_GT(difference(make_internvit, llama("b=2 hq=2 d=16 s=9 " + keys), {.right = 0}), 0.1);
}

TEST(InternvlLayers, SayWhatTheyCannotBeAsked) {
  const auto why = [](LlamaMaker* make, const std::string& keys) {
    return layer(make)->why_not(llama(keys), Pass::forward, kCpu).value_or("");
  };
  for (LlamaMaker* make :
       {make_hf_eager, make_internvl_flash_v1, make_internvl_flash_v2, make_internvl_llava, make_internvl_sdpa}) {
    const std::string name = layer(make)->declaration().name;
    EXPECT_EQ(why(make, "hq=2 d=16 lens=5+7 layout=packed"), "layout=packed: " + name + " takes padded");
    EXPECT_EQ(why(make, "hq=2 d=16 s=4 causal=off"), "mask=none: " + name + " takes causal");
    EXPECT_EQ(why(make, "hq=2 d=16 s=4 mask=on mask_keys=5"),
              name == "internvl_sdpa" ? "" : "mask_keys is set: " + name + " takes no 4-D mask of the model's");
  }
  EXPECT_EQ(why(make_internvl_packed, "hq=2 d=16 s=4"), "layout=padded: internvl_packed takes packed");
  const std::string packed = "hq=2 d=16 lens=4+4 layout=packed ";
  EXPECT_EQ(why(make_internvl_packed, packed + "cache=on"), "internvl_packed is for training, and has no cache");
  EXPECT_EQ(why(make_internvl_packed, packed + "weights=on"), "internvl_packed returns no probabilities");
  EXPECT_EQ(why(make_internvit, "hq=2 d=16 s=4"), "mask=causal: internvit takes none");
  const std::string image = "hq=2 d=16 s=4 causal=off positions=none ";
  EXPECT_EQ(why(make_internvit, "hq=2 d=16 s=4 causal=off"), "internvit has no RoPE: it takes positions=none");
  EXPECT_EQ(why(make_internvit, image), "");
  EXPECT_EQ(why(make_internvit, image + "lens=2+4"), "internvit takes no mask: images have no padding");
  EXPECT_EQ(why(make_internvit, image + "past=2"), "internvit has no cache");
  EXPECT_EQ(why(make_internvit, image + "weights=on"), "internvit returns no probabilities");
}

TEST(InternvlLayers, DeclareWhatFollowsFromTheirAttention) {
  for (LlamaMaker* make : {make_internvl_flash_v1, make_internvl_flash_v2, make_internvl_llava, make_internvl_packed}) {
    const Declaration d = layer(make)->declaration();
    EXPECT_EQ(d.implementation, "attnbench") << d.name;
    EXPECT_TRUE(d.conventions.padded_rows_zero && d.conventions.empty_row == Conventions::EmptyRow::zero) << d.name;
  }
  for (LlamaMaker* make : {make_hf_eager, make_internvl_sdpa, make_internvit}) {
    const Declaration d = layer(make)->declaration();
    EXPECT_EQ(d.implementation, d.name == "internvl_sdpa" ? "pytorch_math" : "eager");
    EXPECT_TRUE(!d.conventions.padded_rows_zero && d.conventions.empty_row == Conventions::EmptyRow::uniform) << d.name;
  }
}

}  // namespace
}  // namespace attnbench
