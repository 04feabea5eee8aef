// The last word counts, whether it was said to a layer, to its model or to the class; it reaches all it is about and no more.
#include "backends/llama/attention_switch.hpp"

#include <array>

#include <gtest/gtest.h>

namespace attnbench {
namespace {

constexpr Implementation kOriginal = Implementation::original, kPatched = Implementation::patched;

TEST(AttentionSwitch, RunsTheOriginalBeforeAnythingIsSaid) {
  const ModelClass llama("llama");
  const SwitchableModel model(llama, 2);
  EXPECT_EQ(llama.name(), "llama");
  EXPECT_EQ(llama.runs(), kOriginal);
  EXPECT_EQ(model.layers(), 2u);
  EXPECT_EQ(model.runs(), kOriginal);
  EXPECT_EQ(model.layer(1).runs(), kOriginal);
}

TEST(AttentionSwitch, OfAClassReachesModelsMadeBeforeAndAfter) {
  ModelClass llama("llama"), other("other");
  const SwitchableModel before(llama, 2), of_other(other, 2);
  llama.enable();
  const SwitchableModel after(llama, 2);
  EXPECT_EQ(before.runs(), kPatched);
  EXPECT_EQ(after.runs(), kPatched);
  EXPECT_EQ(of_other.runs(), kOriginal);
  llama.disable();
  EXPECT_EQ(before.runs(), kOriginal);
  EXPECT_EQ(after.runs(), kOriginal);
}

TEST(AttentionSwitch, OfAClassRestoresHoweverThePatchHadCome) {
  ModelClass llama("llama");
  SwitchableModel by_model(llama, 2), by_layer(llama, 2);
  by_model.enable();
  by_layer.layer(1).enable();
  llama.disable();
  EXPECT_EQ(by_model.runs(), kOriginal);
  EXPECT_EQ(by_layer.runs(), kOriginal);
}

TEST(AttentionSwitch, OfAModelRestoresItAfterItsClassAndLeavesOthersAlone) {
  ModelClass llama("llama");
  SwitchableModel model(llama, 2), other(llama, 2);
  llama.enable();
  model.disable();
  EXPECT_EQ(model.runs(), kOriginal);
  EXPECT_EQ(other.runs(), kPatched);
  EXPECT_EQ(SwitchableModel(llama, 1).runs(), kPatched);
}

TEST(AttentionSwitch, OfALayerLeavesTheOthersAlone) {
  ModelClass llama("llama");
  SwitchableModel model(llama, 3);
  model.layer(1).enable();
  EXPECT_EQ(model.layer(0).runs(), kOriginal);
  EXPECT_EQ(model.layer(1).runs(), kPatched);
  EXPECT_EQ(model.layer(2).runs(), kOriginal);
  EXPECT_FALSE(model.runs());
  model.enable();
  EXPECT_EQ(model.runs(), kPatched);
  model.layer(2).disable();
  EXPECT_FALSE(model.runs());
}

/// What an adapter's wrapper looks like: another type, around the model's handle.
struct Wrapper {
  SwitchableModel base;
};

TEST(AttentionSwitch, OfAWrapperIsThatOfItsModel) {
  ModelClass llama("llama");
  SwitchableModel model(llama, 2);
  Wrapper wrapper{model};
  wrapper.base.enable();
  EXPECT_EQ(model.runs(), kPatched);
  llama.disable();
  EXPECT_EQ(wrapper.base.runs(), kOriginal);
  model.layer(0).enable();
  EXPECT_EQ(wrapper.base.layer(0).runs(), kPatched);
}

TEST(AttentionSwitch, OfALayerOutlivesModelAndClass) {
  const auto layer_of_a_model_that_is_gone = [] {
    ModelClass llama("llama");
    llama.enable();
    return SwitchableModel(llama, 1).layer(0);
  };
  SwitchableLayer layer = layer_of_a_model_that_is_gone();
  EXPECT_EQ(layer.runs(), kPatched);
  layer.disable();
  EXPECT_EQ(layer.runs(), kOriginal);
}

/// The same by writing to every layer that a word is about, when it is said.
struct WrittenOut {
  Implementation of_class = kOriginal;
  std::vector<std::array<Implementation, 2>> models = {{kOriginal, kOriginal}};
};

/// Words: class, first model, its layers 0 and 1, last model, each enabled and disabled; and a new model.
constexpr int kWords = 11;

void say(int word, ModelClass& llama, std::vector<SwitchableModel>& models, WrittenOut& expected) {
  if (word == kWords - 1) {
    models.emplace_back(llama, 2);
    expected.models.push_back({expected.of_class, expected.of_class});
    return;
  }
  const bool on = word % 2 == 0;
  const Implementation wanted = on ? kPatched : kOriginal;
  switch (word / 2) {
    case 0:
      on ? llama.enable() : llama.disable();
      expected.of_class = wanted;
      for (auto& layers : expected.models) layers.fill(wanted);
      return;
    case 1:
      on ? models.front().enable() : models.front().disable();
      return expected.models.front().fill(wanted);
    case 4:
      on ? models.back().enable() : models.back().disable();
      return expected.models.back().fill(wanted);
    default:
      const auto layer = static_cast<size_t>(word / 2 - 2);
      on ? models.front().layer(layer).enable() : models.front().layer(layer).disable();
      expected.models.front()[layer] = wanted;
  }
}

TEST(AttentionSwitch, HasTheLastWordAfterEverySequenceOfFour) {
  for (int sequence = 0; sequence < kWords * kWords * kWords * kWords; ++sequence) {
    ModelClass llama("llama");
    std::vector<SwitchableModel> models = {SwitchableModel(llama, 2)};
    WrittenOut expected;
    for (int rest = sequence, i = 0; i < 4; ++i, rest /= kWords) say(rest % kWords, llama, models, expected);
    ASSERT_EQ(llama.runs(), expected.of_class) << "sequence " << sequence;
    for (size_t m = 0; m < models.size(); ++m)
      for (size_t layer = 0; layer < 2; ++layer)
        ASSERT_EQ(models[m].layer(layer).runs(), expected.models[m][layer]) << "sequence " << sequence << ", model " << m;
  }
}

TEST(AttentionSwitch, RefusesWhatItCouldNotSwitch) {
  const ModelClass llama("llama");
  EXPECT_THROW(SwitchableModel(llama, 0), std::invalid_argument);
  const SwitchableModel model(llama, 2);
  EXPECT_THROW(model.layer(2), std::out_of_range);
  const auto one = [] { return 1; };
  EXPECT_THROW(SwitchableAttention<int()>(model.layer(0), one, {}), std::invalid_argument);
  EXPECT_THROW(SwitchableAttention<int()>(model.layer(0), {}, one), std::invalid_argument);
}

TEST(SwitchableAttention, AsksAtEachCall) {
  ModelClass llama("llama");
  SwitchableModel model(llama, 2);
  const SwitchableAttention<int(int)> attention(
      model.layer(1), [](int x) { return x; }, [](int x) { return -x; });
  EXPECT_EQ(attention(3), 3);
  model.enable();
  EXPECT_EQ(attention(3), -3);
  EXPECT_EQ(attention.layer().runs(), kPatched);
  llama.disable();
  EXPECT_EQ(attention(3), 3);
  model.layer(0).enable();
  EXPECT_EQ(attention(3), 3);
}

}  // namespace
}  // namespace attnbench
