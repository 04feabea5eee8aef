// What the backends declare, on a CPU and on GPUs that need not be there, and what the dispatching ones pick.
#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "backends/test_cases.hpp"

namespace attnbench {
namespace {

const Device kH200{"cuda", 0, 90, "test"};

TEST(Registry, ListsEveryBackendOnEveryDeviceWithACompleteDeclaration) {
  for (const Device& device : {kCpu, kH200}) {
    std::vector<std::string> names;
    for (const auto& backend : make_backends(device)) {
      const Declaration& declaration = backend->declaration();
      names.push_back(declaration.name);
      EXPECT_FALSE(declaration.version.empty() || declaration.implementation.empty() || declaration.profile.name.empty())
          << declaration.name;
      EXPECT_EQ(declaration.ours, declaration.name == "flash_varlen" || declaration.name == "eigen") << declaration.name;
      EXPECT_EQ(declaration.capabilities.returns_lse, declaration.conventions.lse_empty != Conventions::LseEmpty::none);
    }
    EXPECT_EQ(std::set(names.begin(), names.end()).size(), names.size());
    for (const char* name : {"flash_varlen", "torch_flash_varlen", "torch_efficient_varlen", "torch_cudnn_varlen", "sdpa_flash",
                             "sdpa_efficient", "sdpa_cudnn", "sdpa_math", "sdpa_auto", "eager", "eigen"})
      EXPECT_EQ(std::count(names.begin(), names.end(), name), 1) << name;
  }
}

TEST(Registry, BackendsSayWhyTheyDoNotRunOnADevice) {
  const auto why_not_on = [](const Device& device) {
    std::map<std::string, std::string> reasons;
    for (const auto& backend : make_backends(device)) {
      const auto reason = backend->why_not(make_case("lq=64 d=64 dtype=bf16"), Pass::forward, device);
      if (reason) reasons[backend->declaration().name] = *reason;
    }
    return reasons;
  };
  std::map<std::string, std::string> gpu_only;
  for (const char* name : {"torch_flash_varlen", "torch_efficient_varlen", "torch_cudnn_varlen", "sdpa_efficient", "sdpa_cudnn"})
    gpu_only[name] = std::string("device cpu: ") + name + " runs on cuda";
  EXPECT_EQ(why_not_on(kCpu), gpu_only);

  auto on_gpu = why_not_on(kH200);
  EXPECT_EQ(on_gpu.extract("eigen").mapped(), "device cuda: eigen runs on cpu");
  if (const auto ours = on_gpu.extract("flash_varlen"); !ours.empty()) {
    EXPECT_EQ(ours.mapped(), "this build has no CUDA kernels: it needs nvcc, a LibTorch for CUDA, and no sanitizer");
  }
  EXPECT_TRUE(on_gpu.empty());

  const auto on_turing = why_not_on({"cuda", 0, 75, "test"});
  EXPECT_EQ(on_turing.at("sdpa_flash"), "SM 7.5: sdpa_flash runs on SM 8.0 to 12.1");
  EXPECT_EQ(on_turing.at("torch_cudnn_varlen"), "SM 7.5: torch_cudnn_varlen runs on SM 9.0 to 10.9");
  EXPECT_FALSE(on_turing.contains("sdpa_math") || on_turing.contains("eager"));
}

struct CudaCapability {
  std::string backend, keys;
  Pass pass;
  std::string sentence;  ///< empty: inside
};
const std::vector<CudaCapability> kCudaCapabilities = {
    {"sdpa_flash", "lens=5+9 hq=4 hkv=2", Pass::backward, ""},
    {"sdpa_flash", "lens=5+9 layout=padded", Pass::forward, "layout=padded: sdpa_flash takes packed"},
    {"sdpa_flash", "lq=5 lk=9 mask=causal", Pass::forward, ""},
    {"sdpa_flash", "lq=9 mask=causal align=top_left", Pass::forward, ""},
    {"sdpa_flash", "lq=5 lk=9 mask=causal align=top_left", Pass::forward, "align=top_left: sdpa_flash takes bottom_right"},
    {"sdpa_flash", "lq=9 window=4:0", Pass::forward, "window is set: sdpa_flash has no window"},
    {"sdpa_flash", "lq=9 dtype=fp32", Pass::forward, "dtype=fp32: sdpa_flash takes bf16, fp16"},
    {"sdpa_flash", "lq=9 strides=unaligned", Pass::forward,
     "strides=unaligned: sdpa_flash takes contiguous, transposed, v_transposed, dout_transposed, stride0, far"},
    {"sdpa_flash", "lens=5+9 tail=3", Pass::forward, "tail is set: sdpa_flash has no tail"},
    {"torch_flash_varlen", "lens=5+9 tail=3 strides=dout_transposed", Pass::backward, ""},
    {"torch_cudnn_varlen", "lens=5+9 hq=4 hkv=2 tail=3 strides=far", Pass::forward, ""},
    {"sdpa_efficient", "lens=5+9 layout=padded mask=causal dtype=fp32", Pass::backward, ""},
    {"sdpa_efficient", "lq=9 hq=4 hkv=2", Pass::forward, "hq=4 hkv=2: sdpa_efficient needs as many key heads as query heads"},
    {"sdpa_cudnn", "lens=5+9 layout=padded mask=causal hq=4 hkv=2", Pass::backward, ""},
    {"sdpa_cudnn", "lq=9 dtype=fp32", Pass::forward, "dtype=fp32: sdpa_cudnn takes bf16, fp16"},
    {"torch_flash_varlen", "lq=5 lk=9 mask=causal window=4:0 layout=padded", Pass::backward, ""},
    {"torch_flash_varlen", "lq=5 lk=9 mask=causal align=top_left", Pass::forward,
     "align=top_left: torch_flash_varlen takes bottom_right"},
    {"torch_efficient_varlen", "lq=5 lk=9 mask=causal align=top_left layout=padded dtype=fp32", Pass::backward, ""},
    {"torch_efficient_varlen", "lq=9 window=4:0", Pass::forward, "window is set: torch_efficient_varlen has no window"},
    {"torch_cudnn_varlen", "lq=5 lk=9 mask=causal align=top_left layout=padded hq=4 hkv=2", Pass::forward, ""},
    {"torch_cudnn_varlen", "lq=5 lk=9 mask=causal", Pass::forward, "align=bottom_right: torch_cudnn_varlen takes top_left"},
    {"torch_cudnn_varlen", "lq=9", Pass::backward, "pass=backward: torch_cudnn_varlen takes forward"},
    {"sdpa_auto", "lq=9 window=4:0 layout=padded dtype=fp32", Pass::backward, ""},
    {"sdpa_auto", "lq=9 strides=unaligned", Pass::forward,
     "strides=unaligned: sdpa_auto takes contiguous, transposed, v_transposed, dout_transposed, stride0, far"},
    {"eager", "lq=9 strides=unaligned window=4:0 layout=padded", Pass::backward, ""},
};

TEST(Registry, CudaBackendsDeclareWhatTheirOperationsTake) {
  const auto backends = make_backends(kH200);
  for (const CudaCapability& row : kCudaCapabilities) {
    const auto backend = std::ranges::find_if(backends, [&](const auto& b) { return b->declaration().name == row.backend; });
    const auto reason = (*backend)->why_not(make_case("d=64 " + row.keys), row.pass, kH200);
    EXPECT_EQ(reason.value_or(""), row.sentence) << row.backend << ": " << row.keys;
  }
}

TEST(Registry, HeadDimsOfCudnnDependOnTheDevice) {
  const Case c = make_case("lq=9 d=256");
  for (const auto& [sm, takes] : {std::pair{90, true}, {80, false}, {100, false}}) {
    const Device device{"cuda", 0, sm, "test"};
    for (const auto& backend : make_backends(device)) {
      if (backend->declaration().name == "sdpa_cudnn") {
        EXPECT_EQ(!backend->why_not(c, Pass::forward, device), takes) << sm;
      }
    }
  }
}

TEST(Dispatch, AutoRecordsTheKernelAndItsProfile) {
  const auto backends = make_backends(kCpu);
  const auto named = [&](const std::string& name) -> const Backend& {
    return **std::ranges::find_if(backends, [&](const auto& b) { return b->declaration().name == name; });
  };
  const auto run_of = [&](const std::string& keys) {
    const Case c = make_case(keys);
    const Inputs inputs = make_inputs(c, Conventions::Poison::finite);
    return named("sdpa_auto").prepare(c, inputs, Pass::backward);
  };
  const attnbench::Run flash = run_of("lens=6+9 d=16 hq=2 mask=causal");
  EXPECT_EQ(flash.kernel, "sdpa_flash");
  EXPECT_EQ(flash.profile, named("sdpa_flash").declaration().profile);
  const attnbench::Run math = run_of("lens=6+9 d=16 dv=8 hq=2 mask=causal");  // forces the fallback
  EXPECT_EQ(math.kernel, "sdpa_math");
  EXPECT_EQ(math.profile, named("sdpa_math").declaration().profile);
}

TEST(Dispatch, AutoGivesTheBitsOfTheKernelThatItRecords) {
  const auto backends = make_backends(kCpu);
  for (const std::string keys : {"lens=60+90 d=16 hq=2 mask=causal", "lens=60+90 d=16 dv=8 hq=2"}) {
    const Case c = make_case(keys);
    const Inputs inputs = make_inputs(c, Conventions::Poison::finite);
    std::map<std::string, at::Tensor> o;
    std::string picked;
    for (const auto& backend : backends) {
      if (backend->why_not(c, Pass::forward, kCpu)) continue;
      const attnbench::Run run = backend->prepare(c, inputs, Pass::forward);
      o[backend->declaration().name] = run.windows[0].forward().o;
      if (!run.kernel.empty()) picked = run.kernel;
    }
    EXPECT_TRUE(at::equal(o.at("sdpa_auto"), o.at(picked))) << picked;
    const std::string other = picked == "sdpa_flash" ? "sdpa_math" : "eager";
    EXPECT_FALSE(at::equal(o.at("sdpa_auto"), o.at(other))) << "the comparison cannot tell " << picked << " from " << other;
  }
}

TEST(Dispatch, APinnedOperationRefusesWhatItCannotDo) {
  // Through the dispatcher these inputs end silently in the math kernel; pinned, they are an error.
  const at::Tensor q = at::randn({1, 2, 5, 16}), v = at::randn({1, 2, 5, 8});
  EXPECT_EQ(at::_fused_sdp_choice(q, q, v), 0);
  EXPECT_THROW(at::_scaled_dot_product_flash_attention_for_cpu(q, q, v), c10::Error);
  const auto backends = make_backends(kCpu);
  const auto flash = std::ranges::find_if(backends, [](const auto& b) { return b->declaration().name == "sdpa_flash"; });
  const Case c = make_case("lens=6+9 d=16 dv=8 hq=2");
  EXPECT_TRUE((*flash)->why_not(c, Pass::forward, kCpu).has_value());
  const Inputs inputs = make_inputs(c, Conventions::Poison::finite);
  EXPECT_THROW((*flash)->prepare(c, inputs, Pass::forward).windows[0].forward(), c10::Error);
}

/// By their sources: where the scale comes in decides what of a small dS is left in fp16.
TEST(Registry, SaysWhichFusedKernelsRoundTheScaledDs) {
  const auto backends = make_backends(kCpu);
  const auto profile = [&](const std::string& name) {
    const auto backend =
        std::ranges::find_if(backends, [&](const auto& candidate) { return candidate->declaration().name == name; });
    return (*backend)->declaration().profile;
  };
  for (const char* name : {"sdpa_cudnn", "sdpa_efficient", "torch_efficient_varlen"})
    EXPECT_TRUE(profile(name).scales_ds) << name;
  for (const char* name : {"flash_varlen", "torch_flash_varlen", "sdpa_flash"}) EXPECT_FALSE(profile(name).scales_ds) << name;
  for (const char* name : {"sdpa_efficient", "torch_efficient_varlen"}) EXPECT_TRUE(profile(name).ds_from_rounded_p) << name;
  EXPECT_FALSE(profile("sdpa_cudnn").ds_from_rounded_p);
}

}  // namespace
}  // namespace attnbench
