// A layer that rounds as it declares passes; one planted mistake in any tensor fails.
#include "harness/worker/llama_verdict.hpp"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/TensorOperators.h>

#include "harness/worker/test_calibration.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;

const Profile kRounds{.name = "flash"};

struct Judged {
  explicit Judged(const char* line)
      : c(parse_case(line)),
        inputs(make_llama_inputs(c)),
        reference(make_layer_reference(c, inputs, {}, kRounds, Pass::backward)),
        outputs(ordinary_layer(c, inputs, {}, kRounds, Pass::backward)) {}

  Verdict verdict(bool padded_rows_zero = false, const Semantics& semantics = {}) const {
    return judge_layer(outputs, Pass::backward, {c, inputs, reference, judge_test::formula_alone(), padded_rows_zero, semantics});
  }

  Case c;
  LlamaInputs inputs;
  LayerReference reference;
  LlamaOutputs outputs;
};

/// With and without the tensors that a case may have beside those of every layer.
constexpr const char* kLines[] = {"llama hq=4 hkv=2 d=64 s=24 cache=on weights=on seed=1",
                                  "llama hq=2 d=64 s=20 lens=20+11 pad=left dtype=fp16 cache=on weights=on seed=2",
                                  "llama hq=2 d=64 s=12 past=9 dtype=fp16 cache=on weights=on seed=3",
                                  "llama hq=4 d=64 s=24 norm=same qk_norm=on lora=4 cache=on weights=on seed=6",
                                  "llama hq=2 d=64 s=20 lens=20+11 pad=left norm=fp32 lora=4 lora_dtype=fp32 int8=on cache=on "
                                  "weights=on seed=5"};

/// All that the case has: a gradient for each input that has one.
std::vector<std::pair<std::string, at::Tensor LlamaOutputs::*>> tensors_of(const Judged& judged) {
  std::vector<std::pair<std::string, at::Tensor LlamaOutputs::*>> tensors = {{"out", &LlamaOutputs::out},
                                                                             {"cache_k", &LlamaOutputs::cache_k},
                                                                             {"cache_v", &LlamaOutputs::cache_v},
                                                                             {"weights", &LlamaOutputs::weights}};
  for (const Differentiated& d : kDifferentiated)
    if (has_gradient(judged.inputs.*d.input)) tensors.emplace_back(d.gradient_name, d.gradient);
  return tensors;
}

TEST(LayerVerdict, OfASoundLayerIsPassed) {
  for (const char* line : kLines) {
    const Judged judged(line);
    const Verdict verdict = judged.verdict();
    EXPECT_EQ(verdict.status, Status::passed) << line << ": " << verdict.reason;
    EXPECT_EQ(verdict.errors.size(), tensors_of(judged).size()) << line;
  }
}

TEST(LayerVerdict, OfOneTensorThatIsAFiftiethTooLargeIsFailed) {
  for (const char* line : kLines) {
    const Judged whole(line);
    for (const auto& [name, tensor] : tensors_of(whole)) {
      Judged judged = whole;
      judged.outputs.*tensor = (judged.outputs.*tensor * 1.02).to((judged.outputs.*tensor).scalar_type());
      EXPECT_EQ(judged.verdict().status, Status::failed) << line << ", tensor " << name;
    }
  }
}

TEST(LayerVerdict, OfOneElementThatIsOffIsFailed) {
  for (const char* line : kLines) {
    const Judged whole(line);
    for (const auto& [name, tensor] : tensors_of(whole)) {
      Judged judged = whole;
      const at::Tensor x = judged.outputs.*tensor = (judged.outputs.*tensor).clone(at::MemoryFormat::Contiguous);
      x.view({-1}).narrow(0, x.numel() - 1, 1).add_(x.abs().max());
      EXPECT_EQ(judged.verdict().status, Status::failed) << line << ", tensor " << name;
    }
  }
}

TEST(LayerVerdict, OfNaNIsFailed) {
  Judged judged(kLines[0]);
  judged.outputs.dwv[0][0].fill_(NAN);
  EXPECT_THAT(judged.verdict().reason, HasSubstr("dwv"));
}

TEST(LayerVerdict, OfWhatIsMissingOrOfAnotherFormIsASentence) {
  Judged judged(kLines[0]);
  judged.outputs.dwk = at::Tensor();
  EXPECT_THAT(judged.verdict().reason, HasSubstr("dwk is missing"));
  judged = Judged(kLines[0]);
  judged.outputs.out = judged.outputs.out.to(at::kFloat);
  EXPECT_THAT(judged.verdict().reason, HasSubstr("out: dtype Float, expected bf16"));
  judged = Judged(kLines[0]);
  judged.outputs.cache_k = judged.outputs.cache_k.narrow(2, 0, 3);
  const Verdict verdict = judged.verdict();
  EXPECT_THAT(verdict.reason, HasSubstr("cache_k"));
  EXPECT_TRUE(verdict.malformed);
}

/// A layer that pads its outputs with zeros has zeros there, to the last bit.
TEST(LayerVerdict, OfPaddedRowsThatAreNotZeroIsFailedWhereTheyHaveToBe) {
  Judged judged("llama hq=2 d=64 s=20 lens=20+11 seed=2");
  EXPECT_EQ(judged.verdict(false).status, Status::passed);
  EXPECT_EQ(judged.verdict(true).status, Status::failed);
  judged.outputs.out = judged.outputs.out * judged.inputs.real_queries().unsqueeze(-1);
  EXPECT_EQ(judged.verdict(true).status, Status::passed);
  EXPECT_EQ(judged.verdict(true).errors.at("out").gates.count("exact_zero"), 1u);
}

/// A sound layer that says what it ran, and has the padded rows of it; the case says nothing unless `runs` does.
Judged judged_layer(Implementation ran, const std::string& runs = "") {
  Judged judged(("llama hq=2 d=64 s=20 lens=20+11 " + runs + " seed=2").c_str());
  judged.outputs.ran = ran;
  if (ran == Implementation::patched) judged.outputs.out = judged.outputs.out * judged.inputs.real_queries().unsqueeze(-1);
  return judged;
}

TEST(LayerVerdict, OfAnImplementationThatWasNotMeantToRunIsFailed) {
  const auto original = Implementation::original, patched = Implementation::patched;
  EXPECT_EQ(judged_layer(original, "runs=original").verdict(true).status, Status::passed);
  EXPECT_EQ(judged_layer(patched, "runs=patched").verdict(true).status, Status::passed);
  const Judged other = judged_layer(original, "runs=patched");
  EXPECT_EQ(other.verdict(true).status, Status::failed);
  EXPECT_EQ(other.verdict(true).reason, "original ran, expected patched");
  EXPECT_FALSE(other.verdict(true).malformed);
  EXPECT_EQ(other.verdict(true, {.runs = original}).status, Status::passed);
  EXPECT_EQ(judged_layer(original).verdict(true, {.runs = patched}).reason, "original ran, expected patched");
}

TEST(LayerVerdict, OfALayerThatDoesNotSayWhatRanIsMalformed) {
  Judged judged = judged_layer(Implementation::patched, "runs=patched");
  judged.outputs.ran.reset();
  EXPECT_THAT(judged.verdict(true).reason, HasSubstr("which implementation ran is not said"));
  EXPECT_TRUE(judged.verdict(true).malformed);
}

/// What it says is what the case wants, and only its padded rows are those of the other.
TEST(LayerVerdict, OfALieAboutWhatRanIsFailed) {
  Judged judged = judged_layer(Implementation::original, "runs=patched");
  judged.outputs.ran = Implementation::patched;
  EXPECT_EQ(judged.verdict(true).status, Status::failed);
  EXPECT_THAT(judged.verdict(true).reason, HasSubstr("gate exact_zero"));
  judged = judged_layer(Implementation::patched, "runs=original");
  judged.outputs.ran = Implementation::original;
  EXPECT_EQ(judged.verdict(true).status, Status::failed);
  EXPECT_THAT(judged.verdict(true).reason, HasSubstr("original is said to have run"));
  EXPECT_EQ(judged.verdict(false).status, Status::passed) << "nothing tells the two apart where the patch does not zero";
}

TEST(LayerVerdict, OfProbabilitiesThatAreNotReturnedIsADifferenceThatCanBeNamed) {
  const Semantics no_weights{.weights = false};
  Judged judged(kLines[0]);
  EXPECT_THAT(judged.verdict(false, no_weights).reason, HasSubstr("weights are among the outputs"));
  judged.outputs.weights = at::Tensor();
  const Verdict missing = judged.verdict();
  EXPECT_EQ(missing.status, Status::failed);
  EXPECT_THAT(missing.reason, HasSubstr("weights is missing"));
  EXPECT_FALSE(missing.malformed);
  EXPECT_EQ(judged.verdict(false, no_weights).status, Status::passed);
  judged.outputs.dwk = at::Tensor();
  EXPECT_TRUE(judged.verdict(false, no_weights).malformed);
  judged = Judged(kLines[0]);
  judged.outputs.weights = at::Tensor();
  judged.outputs.out = (judged.outputs.out * 1.02).to(judged.outputs.out.scalar_type());
  EXPECT_EQ(judged.verdict(false, no_weights).status, Status::failed);
}

}  // namespace
}  // namespace attnbench
