// `attnbench support` says what each backend takes: nothing that a backend can declare may be left out.
#include "reports/support.hpp"

#include <gtest/gtest.h>

#include "harness/run/names.hpp"

namespace attnbench {
namespace {

template <class E>
std::vector<E> all_of() {
  std::vector<E> values;
  for (const auto& named : kNames<E>) values.push_back(named.value);
  return values;
}

/// Takes everything.
Declaration able() {
  Declaration declaration;
  declaration.name = "able";
  Capabilities& can = declaration.capabilities;
  can.devices = {"cpu"};
  can.dtypes = all_of<Dtype>();
  can.passes = all_of<Pass>();
  can.layouts = all_of<Layout>();
  can.masks = all_of<Mask>();
  can.aligns = all_of<Align>();
  can.strides = all_of<Strides>();
  can.dv_differs = can.window = can.softcap = can.alibi = can.sink = can.dropout = can.tail = true;
  return declaration;
}

std::string report_of(const nlohmann::json& declaration) {
  return support_report({kProtocol, "test", {"cpu", 0, std::nullopt, "test"}, {declaration.get<Declaration>()}, {}}, {}, {});
}

/// Each line of a declaration's JSON, taken back, has to change the table: one that was added without a row fails here.
TEST(Support, ShowsEveryCapability) {
  const nlohmann::json whole = able();
  const std::string all = report_of(whole);
  EXPECT_EQ(all.find("Why not"), std::string::npos) << all;
  int flags = 0, values = 0;
  for (const auto& [key, value] : whole.at("capabilities").items()) {
    nlohmann::json less = whole;
    nlohmann::json& changed = less["capabilities"][key];
    if (value.is_boolean()) {
      changed = !value.get<bool>();
      if (key == "returns_lse") less["conventions"]["lse_empty"] = "none";  // what is not returned has no convention
      EXPECT_NE(report_of(less), all) << key;
      ++flags;
    }
    for (size_t i = 0; value.is_array() && i < value.size(); ++i) {
      changed = value;
      changed.erase(i);
      EXPECT_NE(report_of(less), all) << key << " without " << value[i];
      ++values;
    }
  }
  EXPECT_GE(flags, 12);
  EXPECT_GE(values, 16);
}

/// A machine without a GPU that knows three kernels, two of which are for GPUs too, and a layer.
Hello machine_without_gpu() {
  Declaration ours = able(), flash = able(), math = able(), layer = able();
  ours.name = "flash_varlen";
  ours.implementation = "attnbench";
  ours.capabilities.devices = {"cpu", "cuda"};
  ours.capabilities.min_sm = 80;
  ours.why_unavailable = "built without CUDA";
  flash.name = "torch_flash_varlen";
  flash.implementation = "pytorch_flash";
  flash.version = "2.11.0";
  flash.capabilities.devices = {"cuda"};
  flash.capabilities.dtypes = {Dtype::bf16, Dtype::fp16};
  math.name = "sdpa_math";
  math.implementation = "pytorch_math";
  math.capabilities.devices = {"cpu", "cuda"};
  layer.operation = "llama";
  return {kProtocol, "test", {"cpu", 0, std::nullopt, "test"}, {ours, flash, math, layer}, {}};
}

/// The answer below the line that holds `shape`.
std::string answer_to(const std::string& report, const std::string& shape) {
  const size_t at = report.find(shape), begin = report.find('\n', at);
  if (at == std::string::npos) return "there is no \"" + shape + "\" in\n" + report;
  return report.substr(begin + 5, report.find('\n', begin + 1) - begin - 5);
}

TEST(Support, ShowsWhatAutoPicksOnAnAssumedSm) {
  Hello hello = machine_without_gpu();
  EXPECT_NE(support_report(hello, 75, {}).find("Attention that --attention auto picks on SM 7.5"), std::string::npos);
  const std::string below = answer_to(support_report(hello, 75, {}), "backward bf16 d=64,96,128,192,224,256");
  EXPECT_TRUE(below.starts_with("sdpa_math: ")) << below;
  for (const char* part : {"flash_varlen [refused: attnbench's GPU kernels need SM 8.0",
                           "torch_flash_varlen [refused: ", "FlagEmbedding and FastChat warn here"})
    EXPECT_NE(below.find(part), std::string::npos) << below;
  EXPECT_EQ(answer_to(support_report(hello, 86, {}), "backward bf16 d=64,96,128,192,224,256"),
            "flash_varlen: the safety table has nothing against it here, and it is the first choice");
  std::erase_if(hello.backends, [](const Declaration& one) { return one.name == "flash_varlen"; });
  const std::string report = support_report(hello, 86, {});
  EXPECT_TRUE(answer_to(report, "forward fp16 d=64,96,128,192,224,256").starts_with("torch_flash_varlen: ")) << report;
  EXPECT_TRUE(answer_to(report, "backward fp16 d=64,96,128,192,256").starts_with("torch_flash_varlen: ")) << report;
  EXPECT_TRUE(answer_to(report, "backward fp16 d=224").starts_with("sdpa_math: ")) << report;
  const std::string fp32 = answer_to(report, "forward fp32 d=64,96,128,192,224,256");
  EXPECT_TRUE(fp32.starts_with("sdpa_math: ")) << fp32;
  EXPECT_NE(fp32.find("[dtype=fp32: torch_flash_varlen takes bf16, fp16]"), std::string::npos) << fp32;
}

TEST(Support, ShowsWhatAutoPicksHereWithoutAnSm) {
  Hello hello = machine_without_gpu();
  hello.backends.front().why_unavailable.clear();
  const std::string here = support_report(hello, {}, {});
  EXPECT_NE(here.find("Attention that --attention auto picks here\n"), std::string::npos);
  EXPECT_TRUE(answer_to(here, "forward bf16 d=64,96,128,192,224,256").starts_with("flash_varlen: ")) << here;
  std::erase_if(hello.backends, [](const Declaration& one) { return one.operation == "llama"; });
  EXPECT_EQ(support_report(hello, {}, {}).find("auto picks"), std::string::npos);
}

}  // namespace
}  // namespace attnbench
