// What a case of `llama` expects is held to its word: a layer that does what the case says is right fails where the case expects
// a difference or an error, and only the difference and the error that it names will do.
#include "harness/worker/llama_case.hpp"

#include <cmath>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>

#include "harness/run/suite.hpp"
#include "harness/worker/test_wanted_layer.hpp"

namespace attnbench::llama_test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// What a case of the suite says of a layer that does what is right; empty: it expects that.
std::string said_of_what_is_right(const Case& c) {
  if (c.metadata.expect == Expect::must_throw) return "expects it to throw";
  if (c.metadata.expect == Expect::must_differ) return "expects it to differ, and it does not";
  return c.metadata.message.empty() ? "" : "the case expects a warning of";
}

/// The suite's cases with heads of 16 channels, on which no expectation depends: their references take no time.
std::vector<Case> narrow_cases_of_the_suite() {
  std::vector<Case> cases;
  std::set<std::string> known;
  for (SuiteCase& line : load_suite("llama").cases) {
    line.c.problem.d = line.c.problem.dv = 16;
    if (known.insert(format_line(line.c)).second) cases.push_back(line.c);
  }
  return cases;
}

/// Every one of the suite, flipped to what would be right; where an error is expected any result is.
TEST(LlamaCases, ThatExpectADifferenceAWarningOrAnErrorFailWhereTheLayerIsRight) {
  std::map<std::string, int> lines, flipped;
  for (const Case& c : narrow_cases_of_the_suite()) {
    const std::string said = said_of_what_is_right(c);
    if (said.empty()) continue;
    const auto any_result = [](const Case&, const LlamaInputs&, Pass, const Profile&) { return LlamaOutputs(); };
    const bool throws = c.metadata.expect == Expect::must_throw;
    EXPECT_FALSE(throws && c.metadata.message.empty()) << format_line(c);
    const Record record = record_of(c, throws ? WantedLayer::Body(any_result) : right_layer, Pass::forward);
    EXPECT_EQ(record.status, Status::failed) << format_line(c);
    EXPECT_THAT(record.reason, HasSubstr(said)) << format_line(c);
    ++lines[said];
    flipped[said] += record.status == Status::failed;
  }
  EXPECT_EQ(lines.size(), 3u);
  EXPECT_EQ(flipped, lines);
}

/// A layer that turns by the places of tokens in their rows, whatever its position ids.
TEST(LlamaCases, OfTheSuiteSeeALayerThatIgnoresItsPositionIds) {
  const auto by_places = [](const Case& c, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
    LlamaInputs other = inputs;
    other.position_ids = at::arange(c.llama->past, c.problem.lk, at::kLong).unsqueeze(0).expand({c.problem.b, c.problem.lq});
    return ordinary_layer(c, other, {}, profile, pass);
  };
  int seen = 0;
  std::set<std::string> layers;
  for (const Case& c : narrow_cases_of_the_suite()) {
    if (c.llama->positions == PositionIds::from_mask) layers.insert(c.metadata.backends.begin(), c.metadata.backends.end());
    if (c.metadata.name != "fc2.rope_gather") continue;
    const Record record = record_of(c, by_places, Pass::forward);
    EXPECT_EQ(record.status, Status::failed) << format_line(c);
    ++seen;
  }
  EXPECT_EQ(seen, 4);
  EXPECT_THAT(layers, testing::IsSupersetOf({"hf_eager", "flagembedding", "fastchat_llama1", "fastchat_llama2",
                                             "fastchat_xformers", "internvl_flash_v1", "internvl_flash_v2", "internvl_sdpa"}));
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

/// With zeros on padded rows where it says that the patch ran.
WantedLayer::Body said(Implementation ran, double factor = 1) {
  return [=](const Case& of, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
    LlamaOutputs outputs = ordinary_layer(of, inputs, {}, profile, pass);
    outputs.out = (outputs.out * factor).to(outputs.out.scalar_type());
    if (ran == Implementation::patched) outputs.out = outputs.out * inputs.real_queries().unsqueeze(-1);
    outputs.ran = ran;
    return outputs;
  };
}

TEST(LlamaCases, ThatNameAnotherImplementationHaveToRunIt) {
  const auto original = Implementation::original, patched = Implementation::patched;
  const Case c = parse_case("llama hq=2 d=64 s=24 lens=17+24 runs=patched seed=6 # expect=must_differ instead=original");
  const auto record = [&](WantedLayer::Body body) { return record_of(c, std::move(body), Pass::backward, true); };
  EXPECT_EQ(record(said(original)).status, Status::passed) << record(said(original)).reason;
  EXPECT_THAT(record(said(original)).reason, HasSubstr("original ran, expected patched"));
  EXPECT_THAT(record(said(patched)).reason, HasSubstr("expects it to differ, and it does not"));
  EXPECT_EQ(record(said(patched)).status, Status::failed);
  const Record off = record(said(original, 1.02));
  EXPECT_EQ(off.status, Status::failed);
  EXPECT_THAT(off.reason, HasSubstr("is not what the case says it equals instead"));
  const Record lie = record([&](const Case& of, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
    LlamaOutputs outputs = said(patched)(of, inputs, pass, profile);
    outputs.ran = original;
    return outputs;
  });
  EXPECT_EQ(lie.status, Status::failed);
  EXPECT_THAT(lie.reason, HasSubstr("original is said to have run"));
}

/// Computes the rows of queries without a key as `semantics` says, then has `planted` in them, unless it is NaN.
WantedLayer::Body rows_without_keys(const Semantics& semantics, double planted = NAN) {
  return [=](const Case& of, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
    LlamaOutputs outputs = ordinary_layer(of, inputs, semantics, profile, pass);
    if (!std::isnan(planted)) outputs.out = outputs.out.clone().masked_fill_(inputs.mask.logical_not().unsqueeze(-1), planted);
    return outputs;
  };
}

TEST(LlamaCases, JudgeRowsThatSeeNoKeyWhereTheLayerDeclaresThem) {
  const Semantics uniform{.uniform_rows = true};
  for (const std::string keys : {"lens=0+12", "lens=3+12 pad=left pad_dout=on", "lens=3+12 pad=left chunks=3 weights=on"}) {
    const Case c = parse_case("llama hq=2 d=64 s=12 seed=8 " + keys);
    const auto record = [&](WantedLayer::Body body, bool declared) {
      const auto empty_row = declared ? Conventions::EmptyRow::uniform : Conventions::EmptyRow::zero;
      return record_of(c, std::move(body), Pass::backward, false, empty_row);
    };
    EXPECT_EQ(record(rows_without_keys(uniform), true).status, Status::passed)
        << keys << ": " << record(rows_without_keys(uniform), true).reason;
    for (const double planted : {0.0, 7.0}) {
      EXPECT_THAT(record(rows_without_keys(uniform, planted), true).reason, HasSubstr("out: gate")) << keys << ": " << planted;
      EXPECT_EQ(record(rows_without_keys({}, planted), false).status, Status::passed) << keys << ": " << planted;
    }
    EXPECT_EQ(record(rows_without_keys({}), true).status, Status::failed) << keys;
  }
}

/// The mean is right, and what comes in there does not reach dV.
TEST(LlamaCases, OfAGradientOnPaddedRowsJudgeItsLeak) {
  const Case c = parse_case("llama hq=2 d=64 s=12 lens=3+12 pad=left pad_dout=on seed=8");
  const auto no_leak = [](const Case& of, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
    LlamaOutputs outputs = ordinary_layer(of, inputs, {}, profile, pass);
    outputs.out = ordinary_layer(of, inputs, {.uniform_rows = true}, profile, pass).out;
    return outputs;
  };
  const Record record = record_of(c, no_leak, Pass::backward, false, Conventions::EmptyRow::uniform);
  EXPECT_EQ(record.status, Status::failed);
  EXPECT_FALSE(record.errors.at("out").gates.contains("z") &&
               record.errors.at("out").gates.at("z").verdict == Gate::Verdict::fail);
  EXPECT_EQ(record.errors.at("dwv").gates.at("z").verdict, Gate::Verdict::fail);
}

/// A layer that pads with zeros may be said to have the mean of V instead.
TEST(LlamaCases, ThatNameUniformRowsHaveThem) {
  const Case c = parse_case("llama hq=2 d=64 s=12 lens=3+12 pad=left seed=8 # expect=must_differ instead=uniform_rows");
  const auto record = [&](const Semantics& semantics) {
    return record_of(c, rows_without_keys(semantics), Pass::backward, true);
  };
  EXPECT_EQ(record({.uniform_rows = true}).status, Status::passed) << record({.uniform_rows = true}).reason;
  EXPECT_THAT(record({}).reason, HasSubstr("and it does not"));
}

TEST(LlamaCases, ThatNameNoProbabilitiesMissThoseAlone) {
  const Case c = parse_case("llama hq=2 d=64 s=24 weights=on seed=7 # expect=must_differ instead=no_weights");
  const auto without = [&](std::vector<at::Tensor LlamaOutputs::*> tensors) {
    return record_of(c, [=](const Case& of, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
      LlamaOutputs outputs = right_layer(of, inputs, pass, profile);
      for (const auto tensor : tensors) outputs.*tensor = at::Tensor();
      return outputs;
    });
  };
  EXPECT_EQ(without({&LlamaOutputs::weights}).status, Status::passed) << without({&LlamaOutputs::weights}).reason;
  for (const auto& tensors : std::vector<std::vector<at::Tensor LlamaOutputs::*>>{
           {}, {&LlamaOutputs::dwk}, {&LlamaOutputs::weights, &LlamaOutputs::dwk}}) {
    const Record record = without(tensors);
    EXPECT_EQ(record.status, Status::failed);
    EXPECT_THAT(record.reason, HasSubstr("expects it to differ, and it does not"));
  }
  Case other = c;
  other.metadata.instead = Semantics{.causal = false};
  const Record record = record_of(other, [](const Case& of, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
    LlamaOutputs outputs = ordinary_layer(of, inputs, {.causal = false}, profile, pass);
    outputs.weights = at::Tensor();
    return outputs;
  });
  EXPECT_THAT(record.reason, HasSubstr("equals instead: weights is missing"));
}

TEST(LlamaCases, ThatNameAWarningHaveToGiveIt) {
  const auto warning = [](std::vector<std::string> warnings) {
    return [=](const Case& of, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
      LlamaOutputs outputs = right_layer(of, inputs, pass, profile);
      outputs.weights = at::Tensor();
      outputs.warnings = warnings;
      return outputs;
    };
  };
  for (const char* line : {"llama hq=2 d=64 s=8 # message=\"returns none\"",
                           "llama hq=2 d=64 s=8 weights=on # expect=must_differ instead=no_weights message=\"returns none\""}) {
    const Case c = parse_case(line);
    EXPECT_EQ(record_of(c, warning({"it returns none here"})).status, Status::passed) << line;
    EXPECT_EQ(record_of(c, warning({"it returns none here", "something else"})).status, Status::failed) << line;
    EXPECT_THAT(record_of(c, warning({})).reason, HasSubstr("the case expects a warning of \"returns none\"")) << line;
    const Record other = record_of(c, warning({"something else"}));
    EXPECT_EQ(other.status, Status::failed) << line;
    EXPECT_THAT(other.reason, HasSubstr("and the layer says \"something else\"")) << line;
  }
  const Case both = parse_case("llama hq=2 d=64 s=8 weights=on # expect=must_differ instead=no_weights message=none");
  EXPECT_THAT(record_of(both, warning({"returns none"})).reason,
              AllOf(HasSubstr("weights is missing"), HasSubstr("; warns, as the case expects: \"returns none\"")));
  const Record unexpected = record_of(parse_case("llama hq=2 d=64 s=8"), warning({"something"}));
  EXPECT_EQ(unexpected.status, Status::failed);
  EXPECT_THAT(unexpected.reason, HasSubstr("warns, which the case does not expect: \"something\""));
}

TEST(LlamaCases, WhoseAttentionLacksTheCallAreUnsupportedAndNeitherThrownNorAnError) {
  const auto lacking = [](const Case&, const LlamaInputs&, Pass, const Profile&) -> LlamaOutputs {
    throw AttentionLacks("dtype=fp32: kernel takes bf16");
  };
  for (const char* line : {"llama hq=2 d=64 s=8", "llama hq=2 d=64 s=8 # expect=must_throw"}) {
    const Record record = record_of(parse_case(line), lacking);
    EXPECT_EQ(record.status, Status::unsupported) << line;
    EXPECT_EQ(record.reason, "dtype=fp32: kernel takes bf16") << line;
  }
}

/// Only padded rows tell by numbers which of two right implementations ran.
TEST(LlamaCases, OfTheSuiteThatSayWhatRunsHavePaddedRows) {
  int cases = 0;
  for (const SuiteCase& line : load_suite("llama").cases) {
    if (!line.c.llama->runs || line.c.metadata.expect == Expect::must_throw) continue;
    EXPECT_FALSE(make_llama_inputs(line.c).real_queries().all().item<bool>()) << format_line(line.c);
    ++cases;
  }
  EXPECT_GE(cases, 20);
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

/// A layer that is right, and says so much.
WantedLayer::Body warning(std::vector<std::string> sentences) {
  return [=](const Case& c, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
    LlamaOutputs outputs = right_layer(c, inputs, pass, profile);
    outputs.warnings = sentences;
    return outputs;
  };
}

TEST(LlamaCases, ThatAreWarnedOfAreJudgedAllTheSame) {
  const Case c = parse_case("llama hq=2 d=64 s=8 # message=\"this is SM 7.5\"");
  const Record record = record_of(c, [](const Case& of, const LlamaInputs& inputs, Pass pass, const Profile& profile) {
    LlamaOutputs outputs = warning({"this is SM 7.5"})(of, inputs, pass, profile);
    outputs.out = outputs.out * 1.05;
    return outputs;
  });
  EXPECT_EQ(record.status, Status::failed);
  EXPECT_THAT(record.reason, HasSubstr("out"));
}

/// Leaves cases to another layer, or throws.
class LeavingLayer : public WantedLayer {
 public:
  explicit LeavingLayer(const LlamaBackend* to)
      : WantedLayer([](const Case&, const LlamaInputs&, Pass, const Profile&) -> LlamaOutputs {
          throw std::logic_error("it leaves the case to another");
        }),
        to_(to) {}
  LayerChoice choose(const Case&, Pass, const Device&) const override {
    if (!to_) throw std::runtime_error("nothing is safe");
    return {*to_, "other: it is there"};
  }

 private:
  const LlamaBackend* to_;
};

class CallingLayer : public WantedLayer {
 public:
  using WantedLayer::WantedLayer;
  std::string attention() const override { return "kernel"; }
};

Record record_of_leaving(const LlamaBackend* to) {
  Bench bench{kCpu, {}, judge_test::formula_alone()};
  bench.layers.push_back(std::make_unique<LeavingLayer>(to));
  Request request;
  request.runs = {{"wanted", Pass::forward}};
  Record got;
  const auto keep = [&](const Record& record) { got = record; };
  run_llama_case(parse_case("llama hq=2 d=64 s=8"), request, bench, {[](const Stage&) {}, keep, [](const Comparison&) {}});
  return got;
}

TEST(LlamaCases, AreRunByTheLayerThatWasChosenAndSaySo) {
  const CallingLayer other(right_layer);
  const Record record = record_of_leaving(&other);
  EXPECT_EQ(record.status, Status::passed) << record.reason;
  EXPECT_EQ(record.attention, "kernel");
  EXPECT_EQ(record.choice, "other: it is there");
  const Record none = record_of_leaving(nullptr);
  EXPECT_EQ(none.status, Status::error);
  EXPECT_EQ(none.reason, "nothing is safe");
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
}  // namespace attnbench::llama_test
