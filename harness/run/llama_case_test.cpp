// Case lines of the operation `llama`: what they stand for, their canonical form, what is refused; and who is planned for them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/case.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/plan.hpp"
#include "harness/run/test_refusal.hpp"

namespace attnbench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string canonical_layer(std::string_view line) {
  return format_case(parse_case(line));
}

TEST(LlamaCase, IsALayerAroundAnAttentionProblem) {
  const Case c = parse_case("llama hq=4 hkv=2 d=64 s=16 past=8 lens=24+17 pad=left");
  EXPECT_EQ(operation_of(c), "llama");
  EXPECT_EQ(c.problem.b, 2);
  EXPECT_EQ(c.problem.lq, 16);
  EXPECT_EQ(c.problem.lk, 24);
  EXPECT_EQ(c.problem.dv, 64);
  EXPECT_EQ(c.problem.mask, Mask::causal);
  EXPECT_EQ(c.problem.layout, Layout::padded);
  EXPECT_TRUE(c.llama->mask);
  EXPECT_FALSE(parse_case("llama hq=4 d=64 s=16").llama->mask);
  EXPECT_EQ(operation_of(parse_case("attention d=64 lq=16")), "attention");
}

TEST(LlamaCase, HasACanonicalForm) {
  EXPECT_EQ(canonical_layer("llama seed=3 s=16 d=64 hq=4 hkv=4 b=1 mask=off layout=padded causal=on"),
            "llama hq=4 d=64 s=16 seed=3");
  const std::string all =
      "llama hq=4 hkv=2 d=64 s=16 past=8 lens=24+17 pad=holes dtype=fp16 causal=off window=5 mask_keys=25 chunks=2 cache=on "
      "weights=on "
      "train=off positions=one_row shift=7 pad_dout=on gain=2.5 norm=fp32 qk_norm=on lora=4 lora_dtype=fp32 cast=norms int8=on "
      "switch=enable_class+disable_instance runs=original assume_sm=8.6 assume_flash_attn=2.0.9 assume_torch=1.13 "
      "strides=transposed seed=9";
  EXPECT_EQ(canonical_layer(all), all);
  EXPECT_EQ(canonical_layer("llama hq=2 d=8 layout=packed lens=4+3 tail=2"), "llama hq=2 d=8 lens=4+3 layout=packed tail=2");
  const std::string switched = "llama hq=2 d=8 s=4 mask=on positions=from_mask switch=enable_other_layer+disable_other_layer";
  EXPECT_EQ(canonical_layer(switched), switched);
  EXPECT_NE(parse_case("llama hq=2 d=8 s=4"), parse_case("llama hq=2 d=8 s=4 cache=on"));
}

TEST(LlamaCase, RefusesWhatMeansNothing) {
  EXPECT_THAT(refusal_of_line("llama hq=2 d=7 s=4"), HasSubstr("an even number"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8"), HasSubstr("s= (new tokens) is missing"));
  EXPECT_THAT(refusal_of_line("llama hq=2 s=4"), HasSubstr("d= is missing"));
  EXPECT_THAT(refusal_of_line("llama hq=3 hkv=2 d=8 s=4"), HasSubstr("a divisor of hq=3"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 lens=5"), HasSubstr("at most past + s = 4"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 lens=3 mask=off"), HasSubstr("lens= is what it says"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 lens=uniform(1,3)"), HasSubstr("a list of lengths"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 b=2 lens=3+4"), HasSubstr("the list gives the number of rows"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 chunks=3"), HasSubstr("a divisor of s=4"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 tail=3"), HasSubstr("layout=packed beside it"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 layout=packed"), HasSubstr("needs lens="));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 layout=packed lens=4 s=4"), HasSubstr("no layout=packed beside it"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 layout=packed lens=4 past=2"), HasSubstr("no past="));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 gain=0"), HasSubstr("a number above 0"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 scale=2"), HasSubstr("unknown key 'scale'"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 lora_dtype=fp32"), HasSubstr("lora= beside it"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 positions=none shift=3"), HasSubstr("positions=none has none"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 cast=norms"), HasSubstr("nothing to cast"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 switch=enable_class+disable"), HasSubstr("did you mean 'disable_class'?"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 assume_sm=86"), HasSubstr("as in 7.5"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 assume_torch=two"), HasSubstr("a version"));
}

TEST(LlamaCase, RefusesWhatHasNoEffect) {
  for (const std::string line : {"s=4 pad=left", "s=4 mask=on pad=holes", "layout=packed lens=4+3 pad=left"})
    EXPECT_THAT(refusal_of_line("llama hq=2 d=8 " + line), HasSubstr("nothing is padded")) << line;
  for (const std::string line :
       {"s=4", "s=4 mask=on", "s=4 lens=4+4", "s=4 past=4 lens=5+4 pad=left", "layout=packed lens=4+3"}) {
    EXPECT_THAT(refusal_of_line("llama hq=2 d=8 " + line + " pad_dout=on"), HasSubstr("no new token is padding")) << line;
    EXPECT_THAT(refusal_of_line("llama hq=2 d=8 " + line + " runs=patched"), HasSubstr("padded rows show what runs")) << line;
  }
  for (const std::string line : {"s=4 lens=3", "s=4 past=4 lens=7", "s=4 past=4 lens=3 pad=left", "s=4 past=4 lens=7 pad=holes"})
    EXPECT_TRUE(parse_case("llama hq=2 d=8 " + line + " pad_dout=on runs=patched").llama->pad_dout) << line;
  for (const std::string key : {"mask_keys=5", "positions=from_mask"})
    EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 " + key), HasSubstr("no mask is given")) << key;
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 switch=enable_class+"), HasSubstr("switch=: expected enable_class | "));
}

TEST(LlamaCase, RefusesWhatNoResultCanBe) {
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 # instead=top_left"), HasSubstr("expect=must_differ beside it"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 # expect=must_throw instead=top_left"),
              HasSubstr("expect=must_differ beside it"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 # expect=must_differ"), HasSubstr("instead= beside it"));
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 # expect=must_differ instead=top_left+"), HasSubstr("some of ignores_mask"));
}

TEST(LlamaCase, SaysWhoRunsItAndWhatItEqualsInstead) {
  const Case c = parse_case("llama hq=2 d=8 s=4 # backend=a+b expect=must_differ instead=top_left+ignores_mask");
  EXPECT_THAT(c.metadata.backends, ElementsAre("a", "b"));
  EXPECT_EQ(c.metadata.instead, (Semantics{.key_mask = false, .top_left = true}));
  EXPECT_EQ(parse_case("llama hq=2 d=8 s=4 # expect=must_differ instead=patched+no_weights").metadata.instead,
            (Semantics{.weights = false, .runs = Implementation::patched}));
  EXPECT_EQ(parse_case("llama hq=2 d=8 s=4 # expect=must_differ instead=fp16_overflow").metadata.instead,
            (Semantics{.fp16_overflow = true}));
  EXPECT_EQ(parse_case(format_line(c)).metadata, c.metadata);
  const Case one_pass = parse_case("llama hq=2 d=8 s=4 # pass=backward");
  EXPECT_EQ(one_pass.metadata.pass, Pass::backward);
  EXPECT_EQ(parse_case(format_line(one_pass)).metadata, one_pass.metadata);
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 # pass=backwards"), HasSubstr("did you mean 'backward'?"));
  EXPECT_EQ(parse_case("llama hq=2 d=8 s=4 # expect=must_throw message=\"no past\"").metadata.message, "no past");
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 # instead=not_casual"), HasSubstr("did you mean 'not_causal'?"));
}

TEST(LlamaCase, RefusesMetadataFromWhichNothingFollows) {
  EXPECT_THAT(refusal_of_line("llama hq=2 d=8 s=4 # repeats=3"), HasSubstr("no repeats= in a case of llama"));
  try {
    expand_line("llama hq=2 d=8 s=4 # canary=flash_varlen:dq_zero", "s.suite:4");
    ADD_FAILURE() << "accepted";
  } catch (const CaseError& error) {
    EXPECT_THAT(error.what(), HasSubstr("s.suite:4: canary=flash_varlen:dq_zero: no layer of llama has a planted defect"));
  }
}

class LlamaPlan : public testing::Test {
 protected:
  LlamaPlan() : backends_(3) {
    const char* names[] = {"kernel", "layer", "other_layer"};
    for (size_t i = 0; i < backends_.size(); ++i) {
      backends_[i].name = names[i];
      backends_[i].operation = i == 0 ? "attention" : "llama";
      backends_[i].capabilities.devices = {"cpu"};
    }
  }
  /// "layer forward", …
  std::vector<std::string> planned(const char* line, const Selection& selection = {}) const {
    std::vector<std::string> chosen;
    for (const PlannedCase& one : make_plan({{"s", expand_line(line, "s.suite:4")}}, selection, backends_, {"cpu", 0, {}, ""}))
      for (const auto& [name, pass] : one.runs) chosen.push_back(name + " " + std::string(name_of(pass)));
    return chosen;
  }
  std::string refusal_of_plan(const char* line) const {
    try {
      planned(line);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "planned";
  }
  std::vector<Declaration> backends_;
};

TEST_F(LlamaPlan, HasLayersAloneAndThoseThatTheCaseNames) {
  EXPECT_THAT(planned("llama hq=2 d=8 s=4"),
              ElementsAre("layer forward", "layer backward", "other_layer forward", "other_layer backward"));
  EXPECT_THAT(planned("llama hq=2 d=8 s=4 # backend=other_layer"), ElementsAre("other_layer forward", "other_layer backward"));
  EXPECT_THAT(planned("attention d=8 lq=4"), ElementsAre("kernel forward", "kernel backward"));
}

TEST_F(LlamaPlan, HasThePassThatTheCaseNames) {
  EXPECT_THAT(planned("llama hq=2 d=8 s=4 # backend=layer pass=backward"), ElementsAre("layer backward"));
  EXPECT_THAT(planned("attention d=8 lq=4 # pass=forward"), ElementsAre("kernel forward"));
  Selection forward;
  forward.pass = Pass::forward;
  EXPECT_THAT(planned("llama hq=2 d=8 s=4 # pass=backward", forward), ElementsAre());
}

TEST_F(LlamaPlan, RefusesACaseThatNamesNobody) {
  const std::string refusal = refusal_of_plan("llama hq=2 d=8 s=4 # backend=layer+other_lair");
  EXPECT_THAT(refusal, HasSubstr("s.suite:4: backend=other_lair: no backend of llama has that name"));
  EXPECT_THAT(refusal, HasSubstr("did you mean 'other_layer'?"));
  EXPECT_THAT(refusal_of_plan("attention d=8 lq=4 # backend=layer"), HasSubstr("no backend of attention has that name"));
  backends_.resize(1);  // a worker that has no layers at all knows no names of layers
  EXPECT_EQ(refusal_of_plan("llama hq=2 d=8 s=4 # backend=other_lair"), "planned");
}

}  // namespace
}  // namespace attnbench
