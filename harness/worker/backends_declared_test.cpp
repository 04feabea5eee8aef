// What real backends declare: all that they say they can do they are asked to do, in no more memory than they predict.
#include <algorithm>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "harness/worker/test_defective.hpp"

namespace attnbench::defects_test {
namespace {

/// Cases inside everything that a backend declares, each capability at its edges.
std::vector<std::string> declared_cases(const Capabilities& can) {
  const auto has = [](const auto& all, auto value) { return std::ranges::count(all, value) > 0; };
  const std::string heads = can.gqa ? "hq=4 hkv=2" : "hq=4", lengths = can.unequal_lengths ? "lq=5 lk=7" : "lq=5";
  const std::string small = "attention " + heads + " " + lengths + " ";
  std::vector<std::string> cases;
  for (Layout layout : can.layouts)
    for (Mask mask : can.masks)
      for (Align align : can.aligns) {
        if (mask == Mask::none && align == Align::top_left) continue;  // the grammar refuses it: it would say nothing
        cases.push_back(fmt::format("{}d=64 mask={} align={} layout={}", small, name_of(mask), name_of(align), name_of(layout)));
      }
  const int64_t step = can.head_dim_multiple, least = (can.min_head_dim + step - 1) / step * step;
  const int64_t most = std::min<int64_t>(can.max_head_dim, 320) / step * step;
  for (int64_t d : std::set<int64_t>{least, std::max(least, 40 / step * step), std::max(least, 72 / step * step), most})
    cases.push_back(fmt::format("{}d={}", small, d));
  if (can.dv_differs) cases.push_back(fmt::format("{}d={} dv={}", small, 8 * step, 4 * step));
  for (Strides strides : can.strides) cases.push_back(fmt::format("{}d=64 strides={}", small, name_of(strides)));
  if (can.window && has(can.masks, Mask::causal)) cases.push_back(small + "d=64 window=2:1");
  if (can.softcap) cases.push_back(small + "d=64 softcap=2");
  if (can.alibi) cases.push_back(small + "d=64 alibi=on");
  if (can.sink) cases.push_back(small + "d=64 sink=on");
  if (can.dropout) cases.push_back(small + "d=64 dropout=0.1:7");
  if (can.empty_sequences) cases.push_back("attention " + heads + " lens=0+5+0 d=64");
  if (can.empty_sequences && can.unequal_lengths) cases.push_back("attention " + heads + " lens=3+5 klens=0+9 d=64");
  return cases;
}

/// "No silence": what a backend declares it can do, it is asked to do, and it does.
TEST(Capabilities, NothingDeclaredIsUnsupported) {
  const Defect nothing{"nothing", {}, "", instead([](Case&) {})};
  for (const auto& backend : make_backends(kCpu)) {
    const Declaration& declaration = backend->declaration();
    if (!runs_on(declaration, kCpu)) continue;
    int asked = 0;
    for (const std::string& line : declared_cases(declaration.capabilities))
      for (Dtype dtype : declaration.capabilities.dtypes)
        for (Pass pass : declaration.capabilities.passes) {
          const Case c = parse_case(fmt::format("{} dtype={}", line, name_of(dtype)));
          const std::string what = fmt::format("{} {} {}", declaration.name, name_of(pass), format_case(c));
          EXPECT_EQ(backend->why_not(c, pass, kCpu), std::nullopt) << what;
          const Record record = judge_all(*backend, {nothing}, pass, format_case(c)).at(0);
          EXPECT_TRUE(is_judged(record)) << what << ": " << name_of(record.status) << ": " << record.reason;
          if (declaration.ours) {
            EXPECT_EQ(record.status, Status::passed) << what << ": " << record.reason;
          }
          ++asked;
        }
    EXPECT_GE(asked, 60) << declaration.name;
  }
}

/// A prediction below what a run takes would let a case start that does not fit.
TEST(Memory, APassTakesNoMoreThanPredicted) {
  const Defect nothing{"nothing", {}, "", instead([](Case&) {})};
  const auto backends = make_backends(kCpu);
  for (const std::string shape : {"b=2 hq=4 lq=1 lk=192", "hq=2 hkv=1 lq=239 lk=1", "hq=2 hkv=1 lq=130 lk=257 mask=causal",
                                  "hq=2 lens=17+64+65+300 mask=causal", "hq=2 lens=40+300 layout=padded", "hq=2 lq=400",
                                  "hq=2 hkv=1 lq=130 lk=257 softcap=5", "hq=2 lens=40+300 alibi=on sink=on mask=causal",
                                  "hq=2 lq=239 dropout=0.5:1", "hq=2 lens=40+300 softcap=5 alibi=on sink=on dropout=0.5:1"})
    for (const char* dtype : {"bf16", "fp32"})
      for (Pass pass : {Pass::forward, Pass::backward})
        for (const auto& backend : backends) {
          if (!runs_on(backend->declaration(), kCpu)) continue;
          const Record record =
              judge_all(*backend, {nothing}, pass, fmt::format("attention {} d=64 dtype={}", shape, dtype)).at(0);
          if (record.status == Status::unsupported) continue;
          ASSERT_TRUE(record.memory) << record.backend << " " << record.case_line << ": " << record.reason;
          EXPECT_LE(record.memory->peak_bytes, record.memory->predicted_bytes)
              << backend->declaration().name << " " << name_of(pass) << " " << record.case_line;
        }
}

}  // namespace
}  // namespace attnbench::defects_test
