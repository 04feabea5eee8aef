// Case lines of the operation `training`, and who is planned for them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/case.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/plan.hpp"
#include "harness/run/record.hpp"
#include "harness/run/test_refusal.hpp"

namespace attnbench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

TEST(TrainingCase, HasACanonicalFormAndItsOwnKeys) {
  const std::string all = "training b=4 hq=4 hkv=2 d=64 s=128 dtype=fp16 layout=padded layers=3 steps=50 lora=8 tied=on seed=9";
  EXPECT_EQ(format_case(parse_case(all)), all);
  const Case c = parse_case("training d=64 s=32 layers=2 steps=200 layout=packed");
  EXPECT_EQ(format_case(c), "training d=64 s=32");
  EXPECT_EQ(operation_of(c), "training");
  EXPECT_EQ(c.problem.mask, Mask::causal);
  EXPECT_NE(c, parse_case("training d=64 s=32 tied=on"));
  EXPECT_THAT(refusal_of_line("training d=64"), HasSubstr("s= (bytes of the longest sequence) is missing"));
  EXPECT_THAT(refusal_of_line("training d=63 s=32"), HasSubstr("an even number"));
  EXPECT_THAT(refusal_of_line("training d=64 s=32 past=4"), HasSubstr("unknown key 'past'"));
  EXPECT_THAT(refusal_of_line("training d=64 s=32 steps=0"), HasSubstr("a whole number from 1"));
  EXPECT_THAT(refusal_of_line("trainign d=64 s=32"), HasSubstr("did you mean 'training'?"));
}

TEST(TrainingCase, RefusesMetadataFromWhichNothingFollows) {
  for (const char* metadata : {"expect=must_throw", "expect=must_differ", "instead=top_left", "message=x", "repeats=3"})
    EXPECT_THAT(refusal_of_line(std::string("training d=64 s=32 # ") + metadata), HasSubstr("in a case of training")) << metadata;
  EXPECT_EQ(refusal_of_line("training d=64 s=32 # expect=equal repeats=0 timed=no"), "accepted");
}

TEST(TrainingCase, IsPlannedForTheBackendsOfAttentionOnce) {
  std::vector<Declaration> backends(2);
  backends[0].name = "kernel";
  backends[1].name = "layer";
  backends[1].operation = "llama";
  for (Declaration& backend : backends) backend.capabilities.devices = {"cpu"};
  const auto plan = make_plan({{"s", expand_line("training d=8 s=4", "here")}}, {}, backends, {"cpu", 0, {}, ""});
  ASSERT_EQ(plan.size(), 1);
  EXPECT_THAT(plan[0].runs, ElementsAre(Pair("kernel", Pass::backward)));
  EXPECT_THROW(make_plan({{"s", expand_line("training d=8 s=4 # backend=kernal", "here")}}, {}, backends, {"cpu", 0, {}, ""}),
               UsageError);
}

TEST(TrainingCase, CurvesSurviveTheirRecord) {
  Record record;
  record.case_line = "training d=8 s=4";
  record.backend = "kernel";
  record.device = "cpu";
  record.errors["loss"].by_gates_alone = true;
  record.errors["loss"].gates["band"] = {2.5, 9.5, 2, Gate::Verdict::pass, 9.5};
  record.training = {{{"loss", {5.5, 4.25}}}, {{"loss", {5, 4}}}, {{"loss", {6, 4.5}}}, 123.5, 4096};
  const nlohmann::json line = to_line(record);
  for (const char* number : {"max_abs", "rel_l2", "cosine", "bad", "worst_got"})
    EXPECT_TRUE(line["errors"]["loss"][number].is_null()) << number << ": nobody computed it";
  const Record again = record_from(line);
  EXPECT_TRUE(again.errors.at("loss").by_gates_alone);
  ASSERT_TRUE(again.training);
  EXPECT_EQ(again.training->measured, record.training->measured);
  EXPECT_EQ(again.training->low, record.training->low);
  EXPECT_EQ(again.training->high, record.training->high);
  EXPECT_EQ(again.training->step_us, 123.5);
  EXPECT_EQ(again.training->peak_bytes, 4096);
}

}  // namespace
}  // namespace attnbench
