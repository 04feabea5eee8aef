#include "harness/run/suite.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <sstream>

#include "harness/run/case_keys.hpp"
#include "harness/run/data_files.hpp"
#include "harness/run/names.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

class SuiteFiles : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("attnbench-suite-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return (folder_ / name).string();
  }

  std::vector<std::string> lines(const std::string& text) const {
    std::vector<std::string> result;
    for (const SuiteCase& entry : load_suite(write("x.suite", text)).cases) result.push_back(format_line(entry.c));
    return result;
  }

  std::string message(const std::string& text) const {
    try {
      load_suite(write("x.suite", text));
    } catch (const CaseError& error) {
      return error.what();
    }
    return "accepted";
  }

  fs::path folder_;
};

using Lines = std::vector<std::string>;

void expect_part(const std::string& message, std::string_view part) {
  EXPECT_NE(message.find(part), std::string::npos) << message << "\n  lacks " << part;
}

TEST_F(SuiteFiles, CommasSweepAndTheLastKeyVariesFastest) {
  EXPECT_EQ(lines("attention d=64,128 lq=1,2"),
            (Lines{"attention d=64 lq=1", "attention d=64 lq=2", "attention d=128 lq=1", "attention d=128 lq=2"}));
  EXPECT_EQ(lines("attention d=8 lens=uniform(1,9),3+4"), (Lines{"attention d=8 lens=uniform(1,9)", "attention d=8 lens=3+4"}));
}

TEST_F(SuiteFiles, CommentsAndBlankLinesAreSkippedAndDuplicatesDropped) {
  const Suite suite = load_suite(write("x.suite",
                                       "# a comment, with=commas\r\n\n   # another\nattention d=8 lq=1 # timed=no\n"
                                       "attention lq=1,2 d=8\r\n"));
  ASSERT_EQ(suite.name, "x");
  ASSERT_EQ(suite.cases.size(), 2u);
  EXPECT_FALSE(suite.cases[0].c.metadata.timed);
  EXPECT_EQ(suite.cases[0].where, (folder_ / "x.suite").string() + ":4");
  EXPECT_EQ(suite.cases[1].where, (folder_ / "x.suite").string() + ":5");
}

TEST_F(SuiteFiles, WithGivesDefaultsThatTheLineOverrides) {
  EXPECT_EQ(lines("with d=64 dtype=fp16,fp32 # timed=no\n"
                  "attention lq=1\n"
                  "attention lq=1 dtype=bf16 # timed=yes name=x\n"
                  "with d=8\n"
                  "attention lq=2\n"
                  "with\n"
                  "attention lq=3 d=1\n"),
            (Lines{"attention d=64 lq=1 dtype=fp16 # timed=no", "attention d=64 lq=1 dtype=fp32 # timed=no",
                   "attention d=64 lq=1 # name=x", "attention d=8 lq=2", "attention d=1 lq=3"}));
}

TEST_F(SuiteFiles, IncludeTakesTheFileBesideAndItsDefaultsStayInside) {
  write("other.suite", "with d=16\nattention lq=1\n");
  EXPECT_EQ(lines("with d=8\ninclude other\nattention lq=1,2\n"),
            (Lines{"attention d=16 lq=1", "attention d=8 lq=1", "attention d=8 lq=2"}));
  expect_part(message("include nowhere"), "x.suite:1: unknown suite 'nowhere'");
  expect_part(message("include x"), "includes itself");
  expect_part(message("include"), "expected 'include NAME'");
  expect_part(message("include a b"), "expected 'include NAME'");
}

TEST_F(SuiteFiles, ACaseIsOfTheSuiteInWhoseFileItStands) {
  write("inner.suite", "attention d=16 lq=1\n");
  write("x.suite", "include inner\nattention d=16 lq=2\nattention d=16 lq=1\n");
  const Suite suite = load_suite((folder_ / "x.suite").string());
  ASSERT_EQ(suite.cases.size(), 2u);
  EXPECT_EQ(suite.cases[0].suite, "inner");
  EXPECT_EQ(suite.cases[1].suite, "x");
  EXPECT_EQ(expand_line("attention d=16 lq=1", "--case").front().suite, "");
}

TEST_F(SuiteFiles, MetadataOfAnIncludeOutranksThatOfItsCases) {
  write("inner.suite", "with d=16 # cooled=yes\nattention lq=1 # name=x\nattention lq=2 # timed=no\n");
  write("outer.suite", "include inner # cooled=no timed=yes\nattention d=16 lq=3\n");
  EXPECT_EQ(lines("include outer # timed=no\nattention d=16 lq=4\n"),
            (Lines{"attention d=16 lq=1 # name=x timed=no cooled=no", "attention d=16 lq=2 # timed=no cooled=no",
                   "attention d=16 lq=3 # timed=no", "attention d=16 lq=4"}));
  expect_part(message("include inner # cooled=perhaps"), "x.suite:1, column 17: cooled=perhaps: expected yes | no");
  expect_part(message("include inner # colled=no"), "did you mean 'cooled'");
}

TEST_F(SuiteFiles, AnErrorNamesFileLineAndColumn) {
  expect_part(message("\nattention d=64 lq=1\nattention d=64 lqq=1\n"), "x.suite:3, column 16: unknown key 'lqq'");
  expect_part(message("attention d=64 lq=1,x\n"), "x.suite:1, column 16: lq=x: expected a whole number");
  expect_part(message("attention d=64, lq=1\n"), "a value on each side of every comma");
  expect_part(message("with dtype=fp61\nattention d=64 lq=1\n"), "x.suite:1, column 6: dtype=fp61");
  expect_part(message("with hd=64\n"), "x.suite:1, column 6: unknown key 'hd'");
  expect_part(message("with d=0\nattention d=64 lq=1\n"), "x.suite:1, column 6: d=0");
  expect_part(message("width d=0\n"), "unknown operation 'width'");
  expect_part(message("# nothing\n"), "the suite holds no case");
}

TEST_F(SuiteFiles, LongLinesAreRefusedBeforeASweepRepeatsThem) {
  std::string lengths = "1", dims = "1", ones = "1";
  for (int i = 0; i < 100'000; ++i) lengths += "+1";
  for (int i = 2; i <= 4096; ++i) dims += "," + std::to_string(i);
  for (int i = 0; i < 200'000; ++i) ones += ",1";
  expect_part(message("attention lens=" + lengths + " d=" + dims),
              "x.suite:1, column 1: the cases up to here stand for more than 67108864 bytes of text");
  std::string many = "with lens=" + lengths + "\n";
  for (int i = 1; i <= 1000; ++i) many += "attention d=" + std::to_string(i) + "\n";
  expect_part(message(many), "stand for more than 67108864 bytes of text");
  expect_part(message("attention lq=1 d=" + dims + " # why=" + std::string(100'000, 'a')), "stand for more than 67108864 bytes");
  expect_part(message("attention d=1 lq=" + ones), "expected at most 100000 values");
}

TEST_F(SuiteFiles, HugeSweepsAreRefusedBeforeTheyAreExpanded) {
  std::string values = "0";
  for (int i = 1; i < 1000; ++i) values.append(",").append(std::to_string(i));
  expect_part(message("attention d=64 lq=" + values + " lk=" + values + " seed=" + values),
              "x.suite:1, column 1: the sweeps of this line stand for more than 100000 cases");
  expect_part(message("with d=64 lq=" + values + " lk=" + values + "\n"), "more than 100000 cases");
  std::string many_lines;
  for (int i = 0; i < 101; ++i) many_lines += "attention d=64 lk=" + std::to_string(i) + " lq=" + values + "\n";
  expect_part(message(many_lines), "x.suite:101, column 1");
}

TEST_F(SuiteFiles, BinaryNoiseIsRefusedWithASentence) {
  std::mt19937_64 random(3);
  for (int file = 0; file < 200; ++file) {
    std::string noise(1 + random() % 3000, '\0');
    for (char& byte : noise) byte = static_cast<char>(random());
    expect_part(message("attention d=64 lq=1\n\x01" + noise), "x.suite:2, column 1: byte 0x01 is not text");
    EXPECT_NE(message(noise), "accepted");
  }
}

TEST_F(SuiteFiles, MutatedSuitesNeverCrash) {
  std::mt19937_64 random(4);
  const std::string text =
      "with d=64 # timed=no\nattention lq=1,2 lk=3\ninclude smoke\nattention lens=uniform(1,2) mask=causal,none\n";
  for (int i = 0; i < 2000; ++i) {
    std::string changed = text;
    for (int change = 0; change < 3; ++change) changed[random() % changed.size()] = static_cast<char>(random());
    EXPECT_FALSE(message(changed).empty());
  }
}

TEST_F(SuiteFiles, AMissingFileOrFolderIsASentence) {
  EXPECT_THROW(load_suite((folder_ / "absent.suite").string()), CaseError);
  EXPECT_THROW(load_suite(folder_.string()), CaseError);
  EXPECT_THROW(load_suite(std::string(5000, 'x')), CaseError);
  EXPECT_THROW(load_suite("/dev/zero"), CaseError);
  EXPECT_THROW(load_suite(""), CaseError);
  try {
    load_suite("smok");
    FAIL();
  } catch (const CaseError& error) {
    expect_part(error.what(),
                "unknown suite 'smok' (known: audit, calibration, calibration_check, defects, edge, flash_attention_tests, full, "
                "gradient, huge, llama, nightly, parity, perf, race, regressions, smoke, training)");
    expect_part(error.what(), "did you mean 'smoke'?");
  }
}

TEST(ExpandLine, SweepsAndNamesItsPlace) {
  const auto cases = expand_line("attention d=64,128 lq=5", "--case");
  ASSERT_EQ(cases.size(), 2u);
  EXPECT_EQ(cases[1].where, "--case");
  try {
    expand_line("with d=64", "--case");
    FAIL();
  } catch (const CaseError& error) {
    expect_part(error.what(), "--case, column 1: unknown operation 'with'");
  }
}

TEST_F(SuiteFiles, TheHomeIsFoundByVariableProgramOrSource) {
  const fs::path home = folder_ / "home", other = folder_ / "other";
  fs::create_directories(home / "cases");
  fs::create_directories(home / "build" / "bin");
  fs::create_directories(other);
  std::ofstream(home / "cases" / "full.suite") << "attention d=1 lq=1\n";
  EXPECT_EQ(find_home(home.string(), "/nowhere/x", "/nowhere"), home);
  EXPECT_EQ(find_home(std::nullopt, home / "build" / "bin" / "attnbench", "/nowhere"), home);
  EXPECT_EQ(find_home(std::nullopt, other / "attnbench", home), home);
  EXPECT_EQ(find_home(std::nullopt, "", home), home);
  EXPECT_THROW(find_home(other.string(), home / "build" / "x", home), CaseError);
  EXPECT_THROW(find_home(std::nullopt, "/nowhere/x", "/nowhere"), CaseError);
}

/// The suites that come with the program.
std::set<std::string> identities(const Suite& suite) {
  std::set<std::string> result;
  for (const SuiteCase& entry : suite.cases) result.insert(format_case(entry.c));
  return result;
}

TEST(Suites, AreTheseAndFullHoldsThoseOfAChange) {
  EXPECT_EQ(known_suites(),
            (Lines{"audit", "calibration", "calibration_check", "defects", "edge", "flash_attention_tests", "full", "gradient",
                   "huge", "llama", "nightly", "parity", "perf", "race", "regressions", "smoke", "training"}));
  const Lines apart{"audit", "calibration", "calibration_check", "defects", "flash_attention_tests",
                    "huge",  "llama",       "nightly",           "race",    "training"};
  const auto full = identities(load_suite("full"));
  for (const std::string& name : known_suites()) {
    if (std::ranges::count(apart, name) > 0) continue;
    const auto part = identities(load_suite(name));
    EXPECT_TRUE(std::ranges::includes(full, part)) << name;
  }
}

TEST(Suites, ARaceRepeatsEveryCaseAndTheNightKeepsItsRepeats) {
  std::set<std::pair<DeviceKind, Dtype>> seen;
  std::map<std::string, int64_t> repeats;
  for (const SuiteCase& entry : load_suite("race").cases) {
    seen.insert({entry.c.metadata.device, entry.c.problem.dtype});
    repeats[format_case(entry.c)] = entry.c.metadata.repeats;
    EXPECT_GE(entry.c.metadata.repeats, entry.c.metadata.device == DeviceKind::cuda ? 1000 : 20) << entry.where;
    EXPECT_NE(entry.c.metadata.device, DeviceKind::any) << entry.where;
  }
  EXPECT_TRUE(seen.contains({DeviceKind::cuda, Dtype::bf16}) && seen.contains({DeviceKind::cuda, Dtype::fp16}));
  const Suite night = load_suite("nightly");
  for (const SuiteCase& entry : night.cases)
    EXPECT_EQ(entry.c.metadata.repeats, repeats.contains(format_case(entry.c)) ? repeats[format_case(entry.c)] : 0);
  EXPECT_EQ(night.cases.size(), repeats.size() + load_suite("full").cases.size() + load_suite("huge").cases.size())
      << "no case of a race or of huge is one of full";
}

TEST(Suites, OnlySmokeAndPerfAreTimedAndFullKeepsTheirTimes) {
  for (const std::string name : {"audit", "defects", "edge", "flash_attention_tests", "gradient", "huge", "llama", "parity",
                                 "race", "regressions", "training"})
    for (const SuiteCase& entry : load_suite(name).cases) EXPECT_FALSE(entry.c.metadata.timed) << entry.where;
  std::set<std::string> timed;
  for (const SuiteCase& entry : load_suite("full").cases)
    if (entry.c.metadata.timed) timed.insert(format_case(entry.c));
  for (const SuiteCase& entry : load_suite("perf").cases) EXPECT_TRUE(timed.contains(format_case(entry.c))) << entry.where;
}

TEST(Suites, EveryCaseOfALayerSaysWhereItComesFromAndWhy) {
  for (const SuiteCase& entry : load_suite("llama").cases) {
    EXPECT_TRUE(entry.c.metadata.source.starts_with("https://")) << entry.where;
    EXPECT_FALSE(entry.c.metadata.name.empty() || entry.c.metadata.why.empty()) << entry.where;
  }
}

/// The mechanisms of the three systems from which the suite of layers comes; it may show others beside them.
TEST(Suites, OfLayersHoldEveryMechanismByItsName) {
  std::set<std::string> held;
  for (const SuiteCase& entry : load_suite("llama").cases) held.insert(entry.c.metadata.name);
  const std::set<std::string> mechanisms = {"fe.qkvpacked.nomask",
                                            "fe.rightpad",
                                            "fe.leftpad",
                                            "fe.holes",
                                            "fe.pad_rows_exact_zero",
                                            "fe.empty_seq",
                                            "fe.use_cache_export",
                                            "fe.past_must_throw",
                                            "fe.gqa_must_throw",
                                            "fe.enable_class",
                                            "fe.enable_instance",
                                            "fe.disable",
                                            "fe.reload_leaves_old_class",
                                            "fe.upcast",
                                            "fe.capability_warn",
                                            "iv.dispatch",
                                            "iv.v1_v2_entry",
                                            "iv.forward_asserts",
                                            "iv.sdpa_train_rightpad_equal",
                                            "iv.sdpa_train_leftpad_must_differ",
                                            "iv.eval_4dmask",
                                            "iv.eval_mask_shape_throw",
                                            "iv.eval_fullmask_uniformV",
                                            "iv.eval_fp16_qk_overflow",
                                            "iv.llava_gqa_repeat",
                                            "iv.packed_cuseqlens",
                                            "iv.packed_window_w_plus_1",
                                            "iv.vit_noncausal_qknorm",
                                            "fc1.packed",
                                            "fc2.alltrue_dense",
                                            "fc2.kvpacked_gqa_pad",
                                            "fc2.chunked_cache_equals_oneshot",
                                            "fc2.decode_q1",
                                            "fc2.bottomright_vs_topleft",
                                            "fc2.version_gate",
                                            "fc2.mask_double_prefix_reject",
                                            "fc2.cached_leftpad_counted_valid",
                                            "fc2.rope_gather",
                                            "fcx.tri_ignores_pad",
                                            "fcx.none_is_noncausal",
                                            "fcx.chunk_leak",
                                            "fcx.output_attentions",
                                            "fcx.one_key_throws",
                                            "fcl.cast_no_lora",
                                            "fcl.fp32_refused",
                                            "x.safety_table",
                                            "x.position_shift_invariance",
                                            "x.seqlen_not_mult_128",
                                            "x.noncontiguous_qkv"};
  EXPECT_EQ(mechanisms.size(), 49u);
  for (const std::string& name : mechanisms) EXPECT_TRUE(held.contains(name)) << name;
}

TEST(Suites, HoldTheCoreMatrix) {
  std::set<std::string> seen;
  for (const SuiteCase& entry : load_suite("parity").cases) {
    const Problem& p = entry.c.problem;
    if (p.hq != 6 || entry.c.metadata.device == DeviceKind::cuda) continue;
    seen.insert(std::string(name_of(p.dtype)) + std::to_string(p.d) + std::string(name_of(p.layout)) +
                std::string(name_of(p.mask)) + std::string(name_of(p.align)) + std::to_string(p.hkv));
  }
  for (std::string dtype : {"fp16", "bf16"})
    for (std::string d : {"64", "128"})
      for (std::string layout : {"packed", "padded"})
        for (std::string mask : {"nonebottom_right", "causalbottom_right", "causaltop_left"})
          for (std::string hkv : {"6", "2", "1"})
            EXPECT_TRUE(seen.contains(dtype + d + layout + mask + hkv)) << dtype << d << layout << mask << hkv;
}

TEST(Suites, GradientUsesEveryGeneratorInEveryDtype) {
  std::set<std::pair<Fill, Dtype>> fills;
  std::set<std::pair<Dout, Dtype>> douts;
  for (const SuiteCase& entry : load_suite("gradient").cases) {
    fills.insert({entry.c.fill, entry.c.problem.dtype});
    douts.insert({entry.c.dout, entry.c.problem.dtype});
  }
  EXPECT_EQ(fills.size(), kNames<Fill>.size() * kNames<Dtype>.size());
  EXPECT_EQ(douts.size(), kNames<Dout>.size() * kNames<Dtype>.size());
}

/// Every generator with every value of each axis of the core matrix, in some case.
TEST(Suites, GradientPairsEveryGeneratorWithTheCore) {
  std::set<std::pair<std::string_view, std::string>> pairs;
  for (const SuiteCase& entry : load_suite("gradient").cases) {
    const Problem& p = entry.c.problem;
    const std::string align = p.mask == Mask::none ? "" : std::string(name_of(p.align));
    const std::string sharing = p.hkv == p.hq ? "MHA" : p.hkv == 1 ? "MQA" : "GQA";
    for (const std::string& value : {std::string(name_of(p.dtype)), std::to_string(p.d), std::string(name_of(p.layout)),
                                     std::string(name_of(p.mask)) + align, sharing})
      pairs.insert({name_of(entry.c.fill), value});
  }
  for (std::string_view fill : all_names<Fill>())
    for (std::string value :
         {"fp16", "bf16", "64", "128", "packed", "padded", "none", "causalbottom_right", "causaltop_left", "MHA", "GQA", "MQA"})
      EXPECT_TRUE(pairs.contains({fill, value})) << fill << " with " << value;
}

/// Each in a case that a CPU runs, too.
TEST(Suites, EdgeHasWhatOtherSuitesDoNot) {
  const std::map<std::string, bool (*)(const Case&)> wanted{
      {"packed V laid out unlike K",
       [](const Case& c) { return c.strides == Strides::v_transposed && c.problem.layout == Layout::packed; }},
      {"padded V laid out unlike K",
       [](const Case& c) { return c.strides == Strides::v_transposed && c.problem.layout == Layout::padded; }},
      {"V laid out unlike K over many tiles",
       [](const Case& c) { return c.strides == Strides::v_transposed && c.problem.lq >= 300; }},
      {"a window with d=128", [](const Case& c) { return c.problem.window && c.problem.d == 128; }},
      {"a window with d=256", [](const Case& c) { return c.problem.window && c.problem.d == 256; }},
      {"a window with a group of three", [](const Case& c) { return c.problem.window && c.problem.hq == 3 * c.problem.hkv; }},
      {"a window with more than 512 keys",
       [](const Case& c) { return c.problem.window && sequence_lengths(c.problem, c.seed).max_k() > 512; }},
      {"a scale below 0", [](const Case& c) { return c.problem.softmax_scale() < 0; }},
      {"top_left with more than eight sequences",
       [](const Case& c) { return c.problem.align == Align::top_left && c.problem.mask == Mask::causal && c.problem.b > 8; }},
      {"more than 4200 keys", [](const Case& c) { return sequence_lengths(c.problem, c.seed).max_k() > 4200; }},
      {"causal with d=16", [](const Case& c) { return c.problem.mask == Mask::causal && c.problem.d == 16; }},
  };
  const Suite edge = load_suite("edge");
  for (const auto& [what, holds] : wanted)
    EXPECT_TRUE(std::ranges::any_of(edge.cases, [&](const SuiteCase& entry) {
      return entry.c.metadata.device != DeviceKind::cuda && holds(entry.c);
    })) << what;
}

std::string readme() {
  std::stringstream text;
  text << std::ifstream(fs::path(ATTNBENCH_SOURCE_DIR) / "cases" / "README.md").rdbuf();
  return text.str();
}

/// The lines of all fenced blocks of this kind.
Lines examples(const std::string& kind) {
  Lines result;
  bool inside = false;
  std::istringstream text(readme());
  for (std::string line; std::getline(text, line);) {
    if (line.starts_with("```"))
      inside = line.substr(3) == kind;
    else if (inside)
      result.push_back(line);
  }
  return result;
}

TEST(Readme, ItsExamplesParseAndComeBack) {
  const Lines lines = examples("attnbench");
  EXPECT_GE(lines.size(), 8u);
  for (const std::string& line : lines) {
    const auto cases = expand_line(line, "README.md");
    if (cases.size() == 1) {
      EXPECT_EQ(format_line(cases[0].c), line);
    }
    for (const SuiteCase& entry : cases) EXPECT_EQ(parse_case(format_line(entry.c)), entry.c) << line;
  }
  EXPECT_EQ(expand_line("attention hq=6 hkv=6,2 d=64,128 lq=257 dtype=fp16,bf16", "").size(), 8u);
}

TEST_F(SuiteFiles, TheReadmesSuiteIsOne) {
  std::string text;
  for (const std::string& line : examples("attnbench-suite")) text += line + "\n";
  EXPECT_EQ(lines(text).size(), 4u);
}

TEST(Readme, ExplainsEveryKeyAndEveryName) {
  const std::string text = readme();
  for (auto keys : {case_keys(), metadata_keys()})
    for (const Key& key : keys) EXPECT_NE(text.find("| `" + std::string(key.name) + "` |"), std::string::npos) << key.name;
  for (const auto& names : {all_names<Dtype>(), all_names<Fill>(), all_names<Dout>(), all_names<Strides>(), all_names<Pad>()})
    for (std::string_view name : names) EXPECT_NE(text.find(name), std::string::npos) << name;
  for (const std::string& name : known_suites()) EXPECT_NE(text.find("| " + name + " |"), std::string::npos) << name;
}

}  // namespace
}  // namespace attnbench
