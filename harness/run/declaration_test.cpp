#include "harness/run/declaration.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "harness/run/names.hpp"
#include "harness/run/test_device.hpp"

namespace attnbench {
namespace {

/// Takes everything that the grammar can say.
Declaration takes_all() {
  Declaration backend;
  backend.name = "all", backend.version = "1.2", backend.implementation = "eager", backend.ours = true;
  backend.profile = {.name = "eager",
                     .p = Profile::Probabilities::normalised,
                     .rounds_ds = false,
                     .rounds_scores = true,
                     .d = Profile::RowSum::from_p_dp,
                     .rounds_gqa_partials = true,
                     .ds_from_rounded_p = true,
                     .scales_ds = true};
  backend.conventions = {Conventions::EmptyRow::uniform, Conventions::LseEmpty::plus_infinity, Conventions::Poison::finite,
                         false};
  Capabilities& can = backend.capabilities;
  can.devices = {"cpu", "cuda"};
  can.min_sm = 80, can.max_sm = 121;
  can.dtypes = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
  can.dv_differs = true;
  can.passes = {Pass::forward, Pass::backward};
  can.layouts = {Layout::packed, Layout::padded};
  can.masks = {Mask::none, Mask::causal};
  can.aligns = {Align::bottom_right, Align::top_left};
  can.varying = {"dq"};
  can.invariant_to = {Relation::alone, Relation::packing};
  can.window = can.softcap = can.alibi = can.sink = can.dropout = can.tail = true;
  can.strides = {Strides::contiguous, Strides::transposed, Strides::v_transposed, Strides::dout_transposed,
                 Strides::stride0,    Strides::unaligned,  Strides::far};
  return backend;
}

Device gpu(int sm) {
  return {"cuda", 0, sm, "a GPU"};
}

/// Without `restrict` the case is inside; with it, outside, with a sentence that names got and expected.
struct Restriction {
  std::string line;
  std::function<void(Declaration&)> restrict;
  std::string sentence;
  Pass pass = Pass::forward;
  Device device = kCpu;
};

const std::vector<Restriction> kRestrictions = {
    {"lq=4", [](auto& b) { b.why_unavailable = "built without LibTorch"; }, "built without LibTorch"},
    {"lq=4", [](auto& b) { b.capabilities.devices = {"cuda"}; }, "device cpu: all runs on cuda"},
    {"lq=4", [](auto& b) { b.capabilities.min_sm = 90; }, "SM 8.6: all runs on SM 9.0 to 12.1", Pass::forward, gpu(86)},
    {"lq=4", [](auto& b) { b.capabilities.max_sm = 80; }, "SM 8.6: all runs on SM 8.0 to 8.0", Pass::forward, gpu(86)},
    {"lq=4", [](auto& b) { b.capabilities.passes = {Pass::forward}; }, "pass=backward: all takes forward", Pass::backward},
    {"lq=4 dtype=fp32",
     [](auto& b) {
       b.capabilities.dtypes = {Dtype::bf16, Dtype::fp16};
     },
     "dtype=fp32: all takes bf16, fp16"},
    {"lq=4", [](auto& b) { b.capabilities.dtypes = {}; }, "dtype=bf16: all takes none"},
    {"lq=4", [](auto& b) { b.capabilities.max_head_dim = 32; }, "d=64: all takes head dims from 1 to 32"},
    {"lq=4", [](auto& b) { b.capabilities.min_head_dim = 65; }, "d=64: all takes head dims from 65 to 256"},
    {"lq=4", [](auto& b) { b.capabilities.head_dim_multiple = 48; }, "d=64: all takes multiples of 48"},
    {"lq=4 dv=32", [](auto& b) { b.capabilities.dv_differs = false; }, "dv=32: all needs dv equal to d=64"},
    {"lq=4 dv=128", [](auto& b) { b.capabilities.max_head_dim = 64; }, "dv=128: all takes multiples of 1 from 1 to 64"},
    {"lq=4 dv=24", [](auto& b) { b.capabilities.head_dim_multiple = 16; }, "dv=24: all takes multiples of 16 from 1 to 256"},
    {"lq=4 layout=padded", [](auto& b) { b.capabilities.layouts = {Layout::packed}; }, "layout=padded: all takes packed"},
    {"lq=4 mask=causal", [](auto& b) { b.capabilities.masks = {Mask::none}; }, "mask=causal: all takes none"},
    {"lq=4 lk=5 mask=causal align=top_left", [](auto& b) { b.capabilities.aligns = {Align::bottom_right}; },
     "align=top_left: all takes bottom_right"},
    {"lens=4+5 klens=4+6 window=1:1", [](auto& b) { b.capabilities.aligns = {Align::top_left}; },
     "align=bottom_right: all takes top_left"},
    {"lq=4 window=1:1", [](auto& b) { b.capabilities.window = false; }, "window is set: all has no window"},
    {"lq=4 softcap=3", [](auto& b) { b.capabilities.softcap = false; }, "softcap is set: all has no softcap"},
    {"lq=4 tail=3", [](auto& b) { b.capabilities.tail = false; }, "tail is set: all has no tail"},
    {"lq=4 alibi=on", [](auto& b) { b.capabilities.alibi = false; }, "alibi is set: all has no alibi"},
    {"lq=4 sink=on", [](auto& b) { b.capabilities.sink = false; }, "sink is set: all has no sink"},
    {"lq=4 dropout=0.5:1", [](auto& b) { b.capabilities.dropout = false; }, "dropout is set: all has no dropout"},
    {"lq=4 scale=-0.5", [](auto& b) { b.capabilities.negative_scale = false; }, "scale=-0.5: all takes no scale below 0"},
    {"lq=4 hq=6 hkv=2", [](auto& b) { b.capabilities.gqa = false; }, "hq=6 hkv=2: all needs as many key heads as query heads"},
    {"lens=4+5 klens=4+6", [](auto& b) { b.capabilities.unequal_lengths = false; },
     "sequence 1 has 5 queries and 6 keys: all needs as many of both"},
    {"lens=4+0+4", [](auto& b) { b.capabilities.empty_sequences = false; },
     "sequence 1 has 0 queries and 0 keys: all needs at least one of both"},
    {"lq=4 strides=stride0",
     [](auto& b) {
       b.capabilities.strides = {Strides::contiguous, Strides::transposed};
     },
     "strides=stride0: all takes contiguous, transposed"},
    {"lq=4 strides=transposed", [](auto& b) { b.capabilities.strides = {Strides::contiguous}; },
     "strides=transposed: all takes contiguous"},
    {"lq=4 hq=2 strides=far", [](auto& b) { b.capabilities.strides = {Strides::contiguous}; },
     "strides=far: all takes contiguous"},
    {"lq=4 strides=unaligned", [](auto& b) { b.capabilities.strides = {Strides::contiguous}; },
     "strides=unaligned: all takes contiguous"},
};

TEST(Promises, AreWhatIsDeclaredOfRepeatsAndRelations) {
  const Relation all[] = {Relation::repeats, Relation::alone, Relation::order, Relation::packing, Relation::concurrency};
  Declaration backend = takes_all();
  const auto promised = [&](std::string_view tensor, const Device& device) {
    std::vector<Relation> relations;
    for (Relation relation : all)
      if (promises(backend, relation, tensor, device)) relations.push_back(relation);
    return relations;
  };
  using Relations = std::vector<Relation>;
  backend.capabilities.invariant_to.clear();
  EXPECT_EQ(promised("dq", kCpu), Relations{Relation::repeats}) << "deterministic";
  EXPECT_EQ(promised("dq", gpu(90)), (Relations{Relation::repeats, Relation::concurrency})) << "whatever other streams do";
  backend.capabilities.invariant_to = {Relation::alone, Relation::concurrency};
  EXPECT_EQ(promised("dq", kCpu), (Relations{Relation::repeats, Relation::alone, Relation::concurrency}));
  backend.capabilities.deterministic = false;
  backend.capabilities.varying.clear();
  EXPECT_TRUE(promised("o", kCpu).empty()) << "any tensor may vary";
  backend.capabilities.varying = {"dq"};
  EXPECT_TRUE(promised("dq", kCpu).empty());
  EXPECT_EQ(promised("dv", kCpu), (Relations{Relation::repeats, Relation::alone, Relation::concurrency}));
}

TEST(WhyNot, AlignmentsAreOneWhereLengthsAreEqual) {
  Declaration backend = takes_all();
  backend.capabilities.aligns = {Align::top_left};
  const Case c = parse_case("attention d=64 lens=4+5 mask=causal window=2:0");
  EXPECT_FALSE(why_not(backend, c, Pass::forward, kCpu));
}

TEST(WhyNot, EveryCapabilityRefusesWhatItLacksAndNothingElse) {
  for (const Restriction& row : kRestrictions) {
    const Case c = parse_case("attention d=64 " + row.line);
    Declaration backend = takes_all();
    EXPECT_EQ(why_not(backend, c, row.pass, row.device), std::nullopt) << row.line;
    row.restrict(backend);
    EXPECT_EQ(why_not(backend, c, row.pass, row.device), row.sentence) << row.line;
    // A restriction touches only cases that need what it takes away; the rows of the plain case take away the whole backend.
    if (row.line == "lq=4") continue;
    EXPECT_EQ(why_not(backend, parse_case("attention d=64 lq=4"), row.pass, row.device), std::nullopt) << row.line;
  }
}

TEST(WhyNot, WalksTheWholeMatrixOfPlainCapabilities) {
  for (const auto& dtype : kNames<Dtype>)
    for (const auto& layout : kNames<Layout>)
      for (const auto& mask : kNames<Mask>)
        for (const auto& strides : kNames<Strides>)
          for (const auto& pass : kNames<Pass>) {
            Declaration backend = takes_all();
            backend.capabilities.dtypes = {dtype.value}, backend.capabilities.layouts = {layout.value};
            backend.capabilities.masks = {mask.value}, backend.capabilities.strides = {strides.value};
            backend.capabilities.passes = {pass.value};
            for (const auto& other_dtype : kNames<Dtype>)
              for (const auto& other_layout : kNames<Layout>)
                for (const auto& other_mask : kNames<Mask>)
                  for (const auto& other_strides : kNames<Strides>)
                    for (const auto& other_pass : kNames<Pass>) {
                      Case c = parse_case("attention d=64 lq=4");
                      c.problem.dtype = other_dtype.value, c.problem.layout = other_layout.value;
                      c.problem.mask = other_mask.value, c.strides = other_strides.value;
                      const bool inside = dtype.value == other_dtype.value && layout.value == other_layout.value &&
                                          mask.value == other_mask.value && strides.value == other_strides.value &&
                                          pass.value == other_pass.value;
                      ASSERT_EQ(!why_not(backend, c, other_pass.value, kCpu), inside) << format_case(c);
                    }
          }
}

TEST(WhyNot, AnUnknownSmIsNoSupport) {
  EXPECT_EQ(why_not(takes_all(), parse_case("attention d=64 lq=4"), Pass::forward, {"cuda", 0, std::nullopt, ""}),
            "a CUDA device of unknown SM: all needs SM 8.0");
}

TEST(WhyNot, AlignmentIsNoMatterWithoutADiagonal) {
  Declaration backend = takes_all();
  backend.capabilities.aligns = {Align::top_left};
  EXPECT_EQ(why_not(backend, parse_case("attention d=64 lq=4"), Pass::forward, kCpu), std::nullopt);
}

TEST(Conventions, AnEmptyRowHasTheDeclaredLse) {
  EXPECT_EQ(lse_of_empty_row(Conventions::LseEmpty::minus_infinity), -INFINITY);
  EXPECT_EQ(lse_of_empty_row(Conventions::LseEmpty::plus_infinity), INFINITY);
  EXPECT_EQ(lse_of_empty_row(Conventions::LseEmpty::zero), 0);
}

TEST(DeclarationJson, ComesBackAsItWas) {
  const Declaration before = takes_all();
  const nlohmann::json json = before;
  const auto after = json.get<Declaration>();
  EXPECT_EQ(nlohmann::json(after), json);
  EXPECT_EQ(after.profile, before.profile);
  EXPECT_EQ(after.conventions, before.conventions);
  EXPECT_EQ(after.capabilities.strides, before.capabilities.strides);
  EXPECT_EQ(after.capabilities.varying, before.capabilities.varying);
  EXPECT_EQ(after.capabilities.invariant_to, before.capabilities.invariant_to);
  EXPECT_EQ(json["conventions"]["lse_empty"], "+inf");
  EXPECT_EQ(json["capabilities"]["dtypes"], nlohmann::json({"bf16", "fp16", "fp32"}));
  EXPECT_EQ(nlohmann::json(Declaration{}).get<Declaration>().profile, Profile{});
}

TEST(DeclarationJson, AFieldThatOlderRunsHaveIsNoObstacle) {
  nlohmann::json older = takes_all();
  older["profile"]["lazy_rescale"] = false;
  EXPECT_EQ(older.get<Declaration>().profile, takes_all().profile);
}

TEST(DeclarationJson, EveryFieldIsNeededAndChecked) {
  const nlohmann::json good = takes_all();
  for (const char* part : {"", "/profile", "/conventions", "/capabilities"}) {
    const nlohmann::json::json_pointer pointer(part);
    for (const auto& [key, value] : good[pointer].items()) {
      const bool newer = key == "ds_from_rounded_p" || key == "scales_ds" || key == "negative_scale" || key == "tail" ||
                         key == "varying" || key == "invariant_to" || key == "operation";  // absent in older runs
      nlohmann::json bad = good;
      bad[pointer].erase(key);
      if (!newer) {
        EXPECT_THROW(bad.get<Declaration>(), std::runtime_error) << part << "/" << key;
      }
      for (const nlohmann::json& rubbish : {nlohmann::json({{"x", 1}}), nlohmann::json({1.5}), nlohmann::json(nullptr)}) {
        if (newer && rubbish.is_null()) continue;
        bad = good;
        bad[pointer][key] = rubbish;
        EXPECT_THROW(bad.get<Declaration>(), std::runtime_error) << part << "/" << key << " = " << rubbish;
      }
    }
  }
  nlohmann::json unknown = good;
  unknown["capabilities"]["masks"] = {"diagonal"};
  try {
    unknown.get<Declaration>();
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "declaration.capabilities.masks: expected one of none, causal, got \"diagonal\"");
  }
  unknown = good;
  unknown["capabilities"]["head_dim_multiple"] = 0;
  EXPECT_THROW(unknown.get<Declaration>(), std::runtime_error);
}

TEST(DeviceJson, ComesBackAsItWas) {
  for (const Device& before : {kCpu, gpu(90)}) {
    const auto after = nlohmann::json(before).get<Device>();
    EXPECT_EQ(after.kind, before.kind);
    EXPECT_EQ(after.sm, before.sm);
    EXPECT_EQ(after.name, before.name);
  }
  EXPECT_THROW(nlohmann::json("cpu").get<Device>(), std::runtime_error);
}

}  // namespace
}  // namespace attnbench
