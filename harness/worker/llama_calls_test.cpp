// A layer of `llama` that is right once may still write to its inputs, or answer a second call with what the first one got.
#include <memory>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/TensorOperators.h>

#include "harness/worker/lent_layer.hpp"
#include "harness/worker/test_wanted_layer.hpp"

namespace attnbench::llama_test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string reason_of(const std::string& line, WantedLayer::Body body, Pass pass = Pass::backward) {
  const Record record = record_of(parse_case(line), std::move(body), pass);
  return record.status == Status::passed ? "" : record.reason;
}

/// Right, but for what `spoil` does to inputs or outputs, with the number of the call.
WantedLayer::Body spoiled(std::function<void(const LlamaInputs&, LlamaOutputs&, int call)> spoil) {
  return [spoil = std::move(spoil), calls = std::make_shared<int>(0)](const Case& c, const LlamaInputs& inputs, Pass pass,
                                                                      const Profile& profile) {
    LlamaOutputs outputs = right_layer(c, inputs, pass, profile);
    spoil(inputs, outputs, ++*calls);
    return outputs;
  };
}

constexpr const char* kPlain = "llama hq=2 d=64 s=24 lens=17+24 pad=left past=3 cache=on seed=7";

TEST(LlamaCalls, ThatWriteToAnInputAreSeen) {
  EXPECT_EQ(reason_of(kPlain, right_layer), "");
  EXPECT_EQ(reason_of(kPlain, spoiled([](const LlamaInputs& in, LlamaOutputs&, int) { in.mask.fill_(true); })),
            "wrote to its input mask");
  EXPECT_EQ(reason_of(kPlain, spoiled([](const LlamaInputs& in, LlamaOutputs&, int) {
                        in.hidden.zero_();
                        in.dout.zero_();
                      })),
            "wrote to its input hidden, dout");
  const auto past_its_end = [](const LlamaInputs&, LlamaOutputs& out, int) {
    static_cast<char*>(out.out.mutable_data_ptr())[out.out.nbytes() + 64] = 0;
  };
  EXPECT_THAT(reason_of(kPlain, spoiled(past_its_end)), HasSubstr("past the end of a block"));
}

TEST(LlamaCalls, AreJudgedAgainWithOtherValues) {
  const auto second = [](const LlamaInputs&, LlamaOutputs& out, int call) {
    if (call == 2) out.dwk *= 2;
  };
  EXPECT_THAT(reason_of(kPlain, spoiled(second)), AllOf(HasSubstr("called again, with V negated: "), HasSubstr("dwk")));
  LlamaOutputs kept;
  const auto from_the_first = [&](const LlamaInputs&, LlamaOutputs& out, int call) {
    if (call == 1) kept = out;
    out = kept;
  };
  EXPECT_THAT(reason_of(kPlain, spoiled(from_the_first)), HasSubstr("called again, with V negated: "));
  const auto into_the_first = [&](const LlamaInputs&, LlamaOutputs& out, int call) {
    if (call == 1) kept = out;
    kept.out.copy_(out.out);
    out.out = kept.out;
  };
  EXPECT_THAT(reason_of(kPlain, spoiled(into_the_first)), HasSubstr("out"));
}

TEST(LlamaCalls, WithNegatedValuesGiveTheSameNumbers) {
  for (const char* line : {"llama hq=4 hkv=2 d=64 s=16 lora=4 qk_norm=on norm=same past=3 cache=on weights=on seed=8",
                           "llama hq=2 d=64 s=16 int8=on seed=9"}) {
    const Case c = parse_case(line);
    const LlamaInputs inputs = make_llama_inputs(c);
    const auto computed = [&](bool negated) {
      return ordinary_layer(c, LentInputs(inputs, negated, at::kCPU).lent, {}, {}, Pass::backward);
    };
    const LlamaOutputs as_they_are = computed(false), again = with_values_as_they_are(computed(true));
    for (at::Tensor LlamaOutputs::*output : {&LlamaOutputs::out, &LlamaOutputs::cache_k, &LlamaOutputs::cache_v,
                                             &LlamaOutputs::weights, &LlamaOutputs::dhidden, &LlamaOutputs::dwo})
      EXPECT_TRUE(same_values(as_they_are.*output, again.*output)) << line;
    for (const Differentiated& d : kDifferentiated)
      EXPECT_TRUE(same_values(as_they_are.*d.gradient, again.*d.gradient)) << line << " " << d.gradient_name;
  }
}

}  // namespace
}  // namespace attnbench::llama_test
