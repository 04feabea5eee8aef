// What a case of `llama` expects is held to its word: a layer that does what the case says is right fails where the case expects
// a difference or an error, and only the difference and the error that it names will do.
#include "harness/worker/llama_case.hpp"

#include <functional>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/llama/reference.hpp"
#include "harness/run/suite.hpp"
#include "harness/run/test_device.hpp"
#include "harness/worker/test_calibration.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;

/// A layer that computes, or throws, what a test wants.
class WantedLayer : public LlamaBackend {
 public:
  using Body = std::function<LlamaOutputs(const Case&, const LlamaInputs&, Pass, const Profile&)>;
  explicit WantedLayer(Body body) : body_(std::move(body)) {
    declaration_.name = "wanted";
    declaration_.operation = "llama";
    declaration_.conventions = {.lse_empty = Conventions::LseEmpty::none, .padded_rows_zero = false};
    Capabilities& can = declaration_.capabilities;
    can.devices = {"cpu"};
    can.dtypes = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
    can.passes = {Pass::forward, Pass::backward};
    can.layouts = {Layout::padded, Layout::packed};
    can.masks = {Mask::causal, Mask::none};
    can.aligns = {Align::bottom_right, Align::top_left};
    can.strides = {Strides::contiguous};
    can.window = can.tail = true;
    can.max_head_dim = 512;
    can.returns_lse = false;
  }
  const Declaration& declaration() const override { return declaration_; }
  LlamaOutputs run(const Case& c, const LlamaInputs& inputs, Pass pass) const override {
    return body_(c, inputs, pass, declaration_.profile);
  }

 private:
  Declaration declaration_;
  Body body_;
};

Record record_of(const Case& c, WantedLayer::Body body, Pass pass = Pass::backward) {
  Bench bench{kCpu, {}, judge_test::formula_alone()};
  bench.layers.push_back(std::make_unique<WantedLayer>(std::move(body)));
  Request request;
  request.case_line = format_line(c);
  request.runs = {{"wanted", pass}};
  Record got;
  run_llama_case(c, request, bench, {[](const Stage&) {}, [&](const Record& record) { got = record; }, [](const Comparison&) {}});
  return got;
}

LlamaOutputs right_layer(const Case& c, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
  return ordinary_layer(c, inputs, {}, profile, pass);
}

/// Every one of the suite, flipped to what would be right.
TEST(LlamaCases, ThatExpectADifferenceOrAnErrorFailWhereTheLayerIsRight) {
  int differ = 0, throws = 0;
  for (const SuiteCase& line : load_suite("llama").cases) {
    const Case& c = line.c;
    if (c.metadata.expect == Expect::equal || c.problem.d > 64) continue;
    const Record record = record_of(c, right_layer, Pass::forward);
    EXPECT_EQ(record.status, Status::failed) << format_line(c);
    if (c.metadata.expect == Expect::must_throw) {
      ++throws;
      EXPECT_FALSE(c.metadata.message.empty()) << format_line(c);
      EXPECT_THAT(record.reason, HasSubstr("expects it to throw")) << format_line(c);
    } else {
      ++differ;
      ASSERT_TRUE(c.metadata.instead) << format_line(c);
      EXPECT_THAT(record.reason, HasSubstr("does not differ")) << format_line(c);
    }
  }
  EXPECT_GE(differ, 6);
  EXPECT_GE(throws, 10);
}

TEST(LlamaCases, ThatDifferHaveToEqualWhatTheyName) {
  const Case c = parse_case("llama hq=2 d=64 s=24 lens=17+9 pad=left seed=4 # expect=must_differ instead=ignores_mask");
  const auto computed = [](Semantics semantics) {
    return [=](const Case& of, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
      return ordinary_layer(of, inputs, semantics, profile, pass);
    };
  };
  const Record passed = record_of(c, computed({.key_mask = false}));
  EXPECT_EQ(passed.status, Status::passed) << passed.reason;
  EXPECT_TRUE(passed.errors.contains("dwk_instead"));
  const Record other = record_of(c, computed({.key_mask = false, .causal = false}));
  EXPECT_EQ(other.status, Status::failed);
  EXPECT_THAT(other.reason, HasSubstr("is not what the case says it equals instead"));
}

TEST(LlamaCases, ThatDifferInAGradientAloneDiffer) {
  const Case c = parse_case("llama hq=2 d=64 s=24 seed=5");
  const Record record = record_of(c, [](const Case& of, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
    LlamaOutputs outputs = right_layer(of, inputs, pass, profile);
    outputs.dwk = outputs.dwk * 1.02;
    return outputs;
  });
  EXPECT_EQ(record.status, Status::failed);
  EXPECT_THAT(record.reason, HasSubstr("dwk"));
}

TEST(LlamaCases, ThatThrowHaveToSayWhatTheyName) {
  const Case c = parse_case("llama hq=2 d=64 s=8 # expect=must_throw message=\"no past\"");
  const auto throwing = [](const char* sentence) {
    return [=](const Case&, const LlamaInputs&, Pass, const Profile&) -> LlamaOutputs { throw std::invalid_argument(sentence); };
  };
  EXPECT_EQ(record_of(c, throwing("there is no past here")).status, Status::passed);
  const Record other = record_of(c, throwing("out of memory"));
  EXPECT_EQ(other.status, Status::failed);
  EXPECT_THAT(other.reason, HasSubstr("says \"out of memory\" and not \"no past\""));
  const Record unexpected = record_of(parse_case("llama hq=2 d=64 s=8"), throwing("there is no past here"));
  EXPECT_EQ(unexpected.status, Status::error);
}

TEST(LlamaCases, OfALayerThatIsNotThereAreErrors) {
  const Case c = parse_case("llama hq=2 d=64 s=8");
  Bench bench{kCpu, {}, judge_test::formula_alone()};
  Request request;
  request.runs = {{"nobody", Pass::forward}};
  Record got;
  run_llama_case(c, request, bench, {[](const Stage&) {}, [&](const Record& record) { got = record; }, [](const Comparison&) {}});
  EXPECT_EQ(got.status, Status::error);
  EXPECT_THAT(got.reason, HasSubstr("no layer 'nobody'"));
}

}  // namespace
}  // namespace attnbench
