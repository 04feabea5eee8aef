// flagembedding, fastchat_llama1, fastchat_llama2 and fastchat_xformers over flash_varlen against the layer as dense float64
// operations of this file's own, at small sizes; what they refuse, and each of their traps.
#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "backends/llama/attention_call.hpp"
#include "backends/llama/layer.hpp"
#include "backends/llama/makers.hpp"
#include "harness/run/test_device.hpp"
#include "harness/worker/llama_backend.hpp"
#include "harness/worker/memory.hpp"

namespace attnbench {
namespace {

using at::Tensor;

const Backend& flash_varlen() {
  static const auto backends = make_backends(kCpu);
  return **std::ranges::find_if(backends, [](const auto& b) { return b->declaration().name == "flash_varlen"; });
}

Case make_case(const std::string& keys) {
  return parse_case("llama " + keys);
}

LlamaOutputs run(LlamaMaker* make, const Case& c, const LlamaInputs& inputs, Pass pass = Pass::backward) {
  return make(kCpu, flash_varlen())->run(c, inputs, pass);
}
LlamaOutputs run(LlamaMaker* make, const std::string& keys, Pass pass = Pass::backward) {
  const Case c = make_case(keys);
  return run(make, c, make_llama_inputs(c), pass);
}

/// Channels i and i + d/2 as one complex number, times e^(i angle). x: [b, s, h, d], float64.
Tensor turned(const Tensor& x, const Tensor& position_ids) {
  const int64_t d = x.size(3);
  const Tensor angles = at::zeros({position_ids.size(0), x.size(1), 1, d / 2}, at::kDouble);
  for (int64_t n = 0; n < angles.size(0); ++n)
    for (int64_t t = 0; t < x.size(1); ++t)
      for (int64_t i = 0; i < d / 2; ++i)
        angles.mutable_data_ptr<double>()[(n * x.size(1) + t) * (d / 2) + i] =
            static_cast<double>(position_ids[n][t].item<int64_t>()) * std::pow(1e4, -2.0 * double(i) / double(d));
  const Tensor re = x.narrow(3, 0, d / 2), im = x.narrow(3, d / 2, d / 2);
  return at::cat({re * angles.cos() - im * angles.sin(), re * angles.sin() + im * angles.cos()}, 3);
}

/// Which keys each query sees, bool [b, 1, s, past + s].
Tensor visible(const Case& c, const LlamaInputs& in, const Semantics& how) {
  const Problem& p = c.problem;
  const Tensor sees = at::zeros({p.b, 1, p.lq, p.lk}, at::kBool);
  for (int64_t n = 0; n < p.b; ++n)
    for (int64_t i = 0; i < p.lq; ++i)
      for (int64_t j = 0; j < p.lk; ++j) {
        const bool real = !how.key_mask || !in.mask.defined() || in.mask[n][j].item<bool>();
        const bool behind = how.causal && j > i + (how.top_left ? 0 : c.llama->past);
        sees.mutable_data_ptr<bool>()[(n * p.lq + i) * p.lk + j] = real && !behind;
      }
  return sees;
}

/// The layer in float64. Queries that see no key return 0.
LlamaOutputs dense(const Case& c, const LlamaInputs& in, const Semantics& how = {}) {
  const Problem& p = c.problem;
  LlamaInputs exact = in;
  for (Tensor* t : {&exact.hidden, &exact.wq, &exact.wk, &exact.wv, &exact.wo, &exact.past_k, &exact.past_v, &exact.dout})
    if (t->defined()) *t = t->to(at::kDouble);
  const LayerTensors x = leaves(c, exact, Pass::backward);
  const auto heads = [&](const Tensor& w) { return at::linear(x.hidden, w).view({p.b, p.lq, -1, p.d}); };
  const Tensor q = turned(heads(x.wq), in.position_ids).transpose(1, 2);
  Tensor k = turned(heads(x.wk), in.position_ids).transpose(1, 2), v = heads(x.wv).transpose(1, 2);
  if (c.llama->past > 0) {
    k = at::cat({exact.past_k, k}, 2);
    v = at::cat({exact.past_v, v}, 2);
  }
  LlamaOutputs out;
  out.cache_k = k;
  out.cache_v = v;
  std::vector<Tensor> key_heads, value_heads;
  for (int64_t h = 0; h < p.hq; ++h) {
    key_heads.push_back(k.narrow(1, h / p.group(), 1));
    value_heads.push_back(v.narrow(1, h / p.group(), 1));
  }
  const Tensor sees = visible(c, in, how), blind = ~sees.any(3, true);
  const Tensor scores = at::matmul(q, at::cat(key_heads, 1).transpose(2, 3)) / std::sqrt(double(p.d));
  const Tensor shown = scores.masked_fill(~(sees | blind), -std::numeric_limits<double>::infinity());
  out.weights = at::softmax(shown, -1).masked_fill(blind, 0);
  out.out = at::linear(at::matmul(out.weights, at::cat(value_heads, 1)).transpose(1, 2).reshape({p.b, p.lq, -1}), x.wo);
  add_gradients(out, x, exact, Pass::backward);
  return out;
}

/// Largest difference where `rows` (undefined: everywhere) is true, by the largest element of `expected`; where all of that is 0,
/// only 0 is near.
double error(const Tensor& got, const Tensor& expected, const Tensor& rows = {}) {
  if (!got.defined() || !(got.sizes() == expected.sizes())) return std::numeric_limits<double>::infinity();
  Tensor difference = (got.to(at::kDouble) - expected).abs();
  if (rows.defined()) difference = difference.masked_fill(~rows, 0);
  const double largest = difference.max().item<double>();
  if (!std::isfinite(largest)) return std::numeric_limits<double>::infinity();
  return largest == 0 ? 0 : largest / expected.abs().max().item<double>();
}

/// Some ten roundings, one behind the other, of elements no larger than the largest; fp32: and sums of some hundred terms.
double limit_of(Dtype dtype) {
  const double epsilon = dtype == Dtype::bf16 ? 0x1p-8 : dtype == Dtype::fp16 ? 0x1p-11 : 0x1p-23;
  return 10 * epsilon * (dtype == Dtype::fp32 ? 10 : 1);
}

void expect_dense(LlamaMaker* make, const std::string& keys, const Semantics& how = {}) {
  const std::string finer = make == make_fastchat_xformers ? "fp32" : "fp16";  // flash-attn takes no fp32
  for (const std::string& dtype : {finer, std::string("bf16")}) {
    const Case c = make_case(keys + " dtype=" + dtype);
    const LlamaInputs in = make_llama_inputs(c);
    const LlamaOutputs got = run(make, c, in), expected = dense(c, in, how);
    const double limit = limit_of(c.problem.dtype);
    EXPECT_LT(error(got.out, expected.out, in.real_queries().unsqueeze(-1)), limit) << keys << ' ' << dtype;
    EXPECT_LT(error(got.dhidden, expected.dhidden), limit) << keys << ' ' << dtype;
    EXPECT_LT(error(got.dwq, expected.dwq), limit) << keys << ' ' << dtype;
    EXPECT_LT(error(got.dwk, expected.dwk), limit) << keys << ' ' << dtype;
    EXPECT_LT(error(got.dwv, expected.dwv), limit) << keys << ' ' << dtype;
    EXPECT_LT(error(got.dwo, expected.dwo), limit) << keys << ' ' << dtype;
    EXPECT_EQ(got.cache_k.defined(), c.llama->cache);
    if (c.llama->cache) {
      EXPECT_LT(error(got.cache_k, expected.cache_k), limit) << keys << ' ' << dtype;
      EXPECT_LT(error(got.cache_v, expected.cache_v), limit) << keys << ' ' << dtype;
    }
    if (c.llama->weights) {
      EXPECT_LT(error(got.weights, expected.weights, in.real_queries().view({-1, 1, c.problem.lq, 1})), limit) << keys << dtype;
    }
  }
}

/// The trap shows: what the layer computes is `instead`, and by far not what was asked.
void expect_instead(LlamaMaker* make, const std::string& keys, const Semantics& instead) {
  expect_dense(make, keys, instead);
  const Case c = make_case(keys + " dtype=fp16");
  const LlamaInputs in = make_llama_inputs(c);
  EXPECT_GT(error(run(make, c, in).out, dense(c, in).out, in.real_queries().unsqueeze(-1)), 1e-2) << keys;
}

void expect_refusal(LlamaMaker* make, const std::string& keys, const std::string& sentence) {
  try {
    run(make, keys);
    ADD_FAILURE() << keys << ": ran";
  } catch (const std::invalid_argument& refusal) {
    EXPECT_EQ(refusal.what(), sentence);
  }
}

constexpr LlamaMaker* kPackedQkv[] = {make_flagembedding, make_fastchat_llama1};

TEST(PackedQkv, IsTheLayerWhateverThePadding) {
  for (LlamaMaker* make : kPackedQkv)
    for (const char* keys : {"b=2 hq=2 d=8 s=9", "lens=5+9 hq=2 d=8 s=9", "lens=9+5 pad=left hq=2 d=8 s=9",
                             "lens=7+9 pad=holes hq=2 d=8 s=12", "lens=0+9 hq=3 d=8 s=9", "b=2 hq=2 d=8 s=9 mask=on",
                             "b=2 hq=2 d=8 s=9 positions=one_row shift=3", "lens=5+9 hq=2 d=8 s=9 cache=on"})
      expect_dense(make, keys);
}

TEST(PackedQkv, PaddedRowsAreZeroAndDropTheirGradient) {
  for (LlamaMaker* make : {make_flagembedding, make_fastchat_llama1, make_fastchat_llama2}) {
    const Case c = make_case("lens=5+9+0 pad=left hq=2 d=8 s=9 dtype=fp16 pad_dout=on");
    LlamaInputs in = make_llama_inputs(c);
    const Tensor pads = ~in.real_queries();
    const LlamaOutputs got = run(make, c, in);
    EXPECT_EQ(got.out.abs().sum(-1).masked_select(pads).max().item<double>(), 0);
    EXPECT_EQ(got.dhidden.abs().sum(-1).masked_select(pads).max().item<double>(), 0);
    EXPECT_GT(in.dout.abs().sum(-1).masked_select(pads).min().item<double>(), 0);
    in.dout = in.dout * in.real_queries().unsqueeze(-1);
    const LlamaOutputs without = run(make, c, in);
    EXPECT_TRUE(at::equal(got.dhidden, without.dhidden) && at::equal(got.dwv, without.dwv) && at::equal(got.dwo, without.dwo));
  }
}

TEST(PackedQkv, RefusesFewerKeyHeadsAPastAndChunks) {
  expect_refusal(
      make_flagembedding, "hq=4 hkv=2 d=8 s=9",
      "hq=4 hkv=2: flagembedding views keys and values as 4 heads, as many as queries have, and their projections give 2");
  expect_refusal(make_fastchat_llama1, "hq=2 d=8 s=4 past=8",
                 "a past of 8 tokens: fastchat_llama1 packs queries, keys and values in one tensor, and 12 keys do not go with 4 "
                 "queries");
  expect_refusal(make_flagembedding, "hq=2 d=8 s=8 chunks=2",
                 "a past of 4 tokens: flagembedding packs queries, keys and values in one tensor, and 8 keys do not go with 4 "
                 "queries");
}

TEST(FlashLayers, SayWhatTheyCannotBeAsked) {
  const auto why_not = [](LlamaMaker* make, const std::string& keys) {
    return make(kCpu, flash_varlen())->why_not(make_case(keys), Pass::backward, kCpu).value_or("");
  };
  for (LlamaMaker* make : {make_flagembedding, make_fastchat_llama1, make_fastchat_llama2, make_fastchat_xformers}) {
    const auto layer = make(kCpu, flash_varlen());
    const std::string name = layer->declaration().name;
    EXPECT_EQ(layer->declaration().operation, "llama");
    EXPECT_EQ(layer->declaration().conventions.lse_empty, Conventions::LseEmpty::none);
    EXPECT_EQ(why_not(make, "lens=5+9 hq=4 hkv=2 d=8 s=9 cache=on dtype=fp16"), "");  // GQA is taken or thrown, not skipped
    EXPECT_EQ(why_not(make, "past=5 hq=4 d=8 s=9"), "");
    EXPECT_EQ(why_not(make, "lens=5+9 hq=2 d=8 layout=packed"), "layout=packed: " + name + " takes padded");
    EXPECT_EQ(why_not(make, "hq=2 d=8 s=9 causal=off"), "mask=none: " + name + " takes causal");
    EXPECT_EQ(why_not(make, "hq=2 d=8 s=9 window=3"), "window is set: " + name + " has no window");
    EXPECT_EQ(why_not(make, "hq=2 d=8 s=9 weights=on"), "");
  }
}

/// flash_varlen, as far as a GPU's takes cases.
class NarrowAttention : public Backend {
 public:
  NarrowAttention() : declaration_(flash_varlen().declaration()) {
    Capabilities& can = declaration_.capabilities;
    can.dtypes = {Dtype::bf16, Dtype::fp16};
    can.min_head_dim = can.head_dim_multiple = 64;
    can.max_head_dim = 128;
    can.aligns = {Align::bottom_right};
  }
  const Declaration& declaration() const override { return declaration_; }
  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override { return flash_varlen().prepare(c, inputs, pass); }

 private:
  Declaration declaration_;
};

/// "refused: …", "lacking: …" or "computed".
std::string answer_over_narrow_attention(LlamaMaker* make, const std::string& keys) {
  const NarrowAttention attention;
  const Case c = make_case(keys);
  const auto layer = make(kCpu, attention);
  EXPECT_EQ(layer->why_not(c, Pass::backward, kCpu).value_or(""), "") << keys;
  try {
    layer->run(c, make_llama_inputs(c), Pass::backward);
    return "computed";
  } catch (const AttentionLacks& sentence) {
    return std::string("lacking: ") + sentence.what();
  } catch (const std::invalid_argument& sentence) {
    return std::string("refused: ") + sentence.what();
  }
}

TEST(FlashLayers, RefuseBeforeTheirAttentionIsAsked) {
  for (LlamaMaker* make : {make_flagembedding, make_fastchat_llama2}) {
    EXPECT_EQ(answer_over_narrow_attention(make, "hq=2 d=64 s=9"), "computed");
    EXPECT_EQ(answer_over_narrow_attention(make, "hq=2 d=64 s=9 dtype=fp32"),
              "refused: flash-attn takes fp16 and bf16, and the queries are fp32");
    EXPECT_EQ(answer_over_narrow_attention(make, "hq=2 d=200 s=9 assume_sm=8.6 assume_flash_attn=2.5.4").substr(0, 39),
              "refused: flash-attn 2.5.4 on SM 8.6: re");
    EXPECT_EQ(answer_over_narrow_attention(make, "hq=2 d=200 s=9"),
              "lacking: d=200: flash_varlen takes head dims from 64 to 128");
  }
  EXPECT_EQ(answer_over_narrow_attention(make_fastchat_xformers, "hq=2 d=64 s=9 dtype=fp32"),
            "lacking: dtype=fp32: flash_varlen takes bf16, fp16");
  EXPECT_EQ(answer_over_narrow_attention(make_fastchat_xformers, "hq=2 d=64 s=4 past=5 lens=5+9 pad=left"),
            "lacking: align=top_left: flash_varlen takes bottom_right");
}

TEST(FlashLayers, WarnWhereTheyAreAskedForWeightsAndReturnNone) {
  for (LlamaMaker* make : {make_flagembedding, make_fastchat_llama1, make_fastchat_llama2}) {
    const std::string name = make(kCpu, flash_varlen())->declaration().name;
    const LlamaOutputs asked = run(make, "lens=5+9 hq=2 d=8 s=9 weights=on"), unasked = run(make, "lens=5+9 hq=2 d=8 s=9");
    EXPECT_FALSE(asked.weights.defined()) << name;
    ASSERT_EQ(asked.warnings.size(), 1u) << name;
    EXPECT_EQ(asked.warnings[0], "output_attentions: " + name + " returns none");
    EXPECT_TRUE(at::equal(asked.out, unasked.out) && at::equal(asked.dwv, unasked.dwv)) << name;
    EXPECT_TRUE(unasked.warnings.empty()) << name;
  }
}

/// What a call keeps for its backward pass must not keep itself.
TEST(FlashLayers, LeaveNothingBehind) {
  const Case c = make_case("hq=2 d=32 s=8");
  const LlamaInputs inputs = make_llama_inputs(c);
  const auto layer = make_flagembedding(kCpu, flash_varlen());
  const MemoryScope checked(MemoryMode::checked);
  const int64_t before = current_bytes();
  for (int call = 0; call < 2; ++call) layer->run(c, inputs, Pass::backward);
  EXPECT_EQ(current_bytes(), before);
}

TEST(FastchatLlama2, IsTheLayerWithFewerKeyHeadsPaddingAndACache) {
  for (const char* keys : {"b=2 hq=4 hkv=2 d=8 s=9", "lens=5+9 hq=4 hkv=2 d=8 s=9", "lens=9+5 pad=left hq=4 hkv=1 d=8 s=9",
                           "lens=7+9 pad=holes hq=2 d=8 s=12", "lens=0+9 hq=2 d=8 s=9", "b=2 hq=4 hkv=2 d=8 s=1 past=7 cache=on",
                           "b=2 hq=4 hkv=2 d=8 s=4 past=7 cache=on", "b=2 hq=2 d=8 s=6 positions=one_row shift=3"})
    expect_dense(make_fastchat_llama2, keys);
}

TEST(FastchatLlama2, IsTheLayerOverEveryAttentionBackendOfACpu) {
  const Case c = make_case("lens=5+9 pad=left hq=4 hkv=2 d=8 s=9 dtype=fp16");
  const LlamaInputs in = make_llama_inputs(c);
  const LlamaOutputs expected = dense(c, in);
  int layers = 0;
  for (const auto& attention : make_backends(kCpu)) {
    const auto layer = make_fastchat_llama2(kCpu, *attention);
    const std::string name = attention->declaration().name;
    EXPECT_EQ(layer->declaration().implementation, attention->declaration().implementation);
    if (layer->why_not(c, Pass::backward, kCpu)) continue;  // it does not run on a CPU
    const LlamaOutputs got = layer->run(c, in, Pass::backward);
    EXPECT_LT(error(got.out, expected.out, in.real_queries().unsqueeze(-1)), limit_of(Dtype::fp16)) << name;
    EXPECT_LT(error(got.dhidden, expected.dhidden), limit_of(Dtype::fp16)) << name;
    EXPECT_LT(error(got.dwk, expected.dwk), limit_of(Dtype::fp16)) << name;
    ++layers;
  }
  EXPECT_GE(layers, 4);
}

TEST(FastchatLlama2, ChunksThroughTheCacheAreTheLayerInOneCall) {
  for (const char* keys :
       {"b=2 hq=4 hkv=2 d=8 s=16 chunks=4 cache=on", "lens=14+16 hq=4 hkv=2 d=8 s=16 chunks=4", "hq=2 d=8 s=8 past=5 chunks=8"})
    expect_dense(make_fastchat_llama2, keys);
}

TEST(FastchatLlama2, ATopLeftTriangleWouldBeSomethingElse) {
  const Case c = make_case("hq=2 d=8 s=4 past=4 dtype=fp16");
  const LlamaInputs in = make_llama_inputs(c);
  EXPECT_GT(error(run(make_fastchat_llama2, c, in).out, dense(c, in, {.top_left = true}).out), 1e-2);
}

TEST(FastchatLlama2, AMaskOfRealTokensAloneIsNoMask) {
  for (const char* keys : {"b=2 hq=4 hkv=2 d=8 s=8 seed=3", "b=2 hq=4 hkv=2 d=8 s=4 past=4 seed=3"}) {
    const LlamaOutputs with = run(make_fastchat_llama2, std::string(keys) + " mask=on");
    const LlamaOutputs without = run(make_fastchat_llama2, keys);
    EXPECT_TRUE(at::equal(with.out, without.out) && at::equal(with.dhidden, without.dhidden)) << keys;
  }
}

TEST(FastchatLlama2, PaddingInTheCacheCountsAsReal) {
  // The first chunk of the first row is padding; the others give masks of their own tokens, all real.
  expect_instead(make_fastchat_llama2, "lens=12+16 pad=left hq=4 hkv=2 d=8 s=16 chunks=4", {.key_mask = false});
}

TEST(FastchatLlama2, RefusesAMaskThatCoversThePastAlready) {
  expect_refusal(
      make_fastchat_llama2, "lens=6+8 pad=left hq=2 d=8 s=4 past=4",
      "a mask of 8 tokens beside a past of 4: fastchat_llama2 puts the past before it once more, and 12 columns do not go "
      "with 8 keys");
}

TEST(FastchatXformers, WithAMaskIsTriangularAndDoesNotSeePadding) {
  expect_dense(make_fastchat_xformers, "b=2 hq=2 d=8 s=9 mask=on cache=on");
  expect_dense(make_fastchat_xformers, "lens=5+9 hq=2 d=8 s=9");  // behind the real queries
  expect_instead(make_fastchat_xformers, "lens=9+5 pad=left hq=2 d=8 s=9", {.key_mask = false});
}

TEST(FastchatXformers, WithoutAMaskIsNotCausal) {
  expect_instead(make_fastchat_xformers, "b=2 hq=2 d=8 s=9", {.causal = false});
  expect_dense(make_fastchat_xformers, "b=2 hq=2 d=8 s=1 past=8");  // one query has no future
}

TEST(FastchatXformers, AChunkSeesItsOwnFuture) {
  expect_instead(make_fastchat_xformers, "b=2 hq=2 d=8 s=4 past=8 mask=on", {.causal = false});
  expect_instead(make_fastchat_xformers, "lens=11+12 hq=2 d=8 s=4 past=8", {.key_mask = false, .causal = false});
  const Case chunked = make_case("b=2 hq=2 d=8 s=8 mask=on chunks=2 dtype=fp32");
  const LlamaInputs in = make_llama_inputs(chunked);
  const Tensor got = run(make_fastchat_xformers, chunked, in).out, expected = dense(chunked, in).out;
  EXPECT_LT(error(got.narrow(1, 0, 4), expected.narrow(1, 0, 4)), limit_of(Dtype::fp32));
  EXPECT_GT(error(got.narrow(1, 4, 3), expected.narrow(1, 4, 3)), 1e-2);
  EXPECT_LT(error(got.narrow(1, 7, 1), expected.narrow(1, 7, 1)), limit_of(Dtype::fp32));  // the last token has none
}

TEST(FastchatXformers, PaddingInTheFirstRowMakesTheTriangleTopLeft) {
  expect_instead(make_fastchat_xformers, "lens=9+12 pad=left hq=2 d=8 s=4 past=8", {.key_mask = false, .top_left = true});
}

TEST(FastchatXformers, WeightsTakeTheEagerPathWithTheWholeMask) {
  for (const char* keys : {"b=2 hq=2 d=8 s=9 mask=on weights=on", "lens=9+5 pad=left hq=2 d=8 s=9 weights=on",
                           "lens=9+12 pad=left hq=2 d=8 s=4 past=8 weights=on", "b=2 hq=2 d=8 s=8 mask=on chunks=2 weights=on",
                           "b=2 hq=2 d=8 s=1 mask=on weights=on"})
    expect_dense(make_fastchat_xformers, keys);
  expect_instead(make_fastchat_xformers, "b=2 hq=2 d=8 s=9 weights=on", {.causal = false});
  // A query that sees no key weighs all keys alike.
  const LlamaOutputs out = run(make_fastchat_xformers, "lens=5+8 pad=left hq=2 d=8 s=8 weights=on dtype=fp32", Pass::forward);
  EXPECT_TRUE((out.weights[0].narrow(1, 0, 3) == 0.125).all().item<bool>());
}

TEST(FastchatXformers, RefusesOneKeyWithAMaskAndFewerKeyHeads) {
  expect_refusal(
      make_fastchat_xformers, "b=2 hq=2 d=8 s=1 mask=on",
      "one key: fastchat_xformers asks element [0, 0, 0, 1] of the mask whether it is causal, and the mask [2, 1, 1, 1] "
      "has none");
  expect_refusal(make_fastchat_xformers, "hq=4 hkv=2 d=8 s=9 mask=on",
                 "hq=4 hkv=2: fastchat_xformers views keys and values as 4 heads, as many as queries have, and their projections "
                 "give 2");
}

}  // namespace
}  // namespace attnbench
