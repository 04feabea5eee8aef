// The harness proves that it can fail: defects planted in the real flash_varlen and in the real eager, each of which
// must be seen, while the same backends without a defect pass the same case.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <set>

#include <ATen/ops/div.h>
#include <ATen/ops/mul.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/run/test_device.hpp"
#include "harness/worker/run_case.hpp"
#include "harness/worker/test_calibration.hpp"

namespace attnbench {
namespace {

using Prepare = std::function<Run(const Backend& real, const Case&, const Inputs&, Pass)>;

/// What is wrong, and what its record must then say.
struct Defect {
  std::string name;
  std::vector<Pass> passes;
  std::string reason;  ///< part of the record's reason
  Prepare prepare;
};

/// A backend with a defect; its declaration is that of the real one, but for the name.
class Defective final : public Backend {
 public:
  Defective(const Backend& real, Defect defect) : real_(real), defect_(std::move(defect)), declaration_(real.declaration()) {
    declaration_.name += " with " + defect_.name;
  }
  const Declaration& declaration() const override { return declaration_; }
  Run prepare(const Case& c, const Inputs& inputs, Pass pass) const override { return defect_.prepare(real_, c, inputs, pass); }
  const Defect& defect() const { return defect_; }

 private:
  const Backend& real_;
  Defect defect_;
  Declaration declaration_;
};

/// Changes what forward and backward return.
Prepare tamper(std::function<void(Outputs&, const Inputs&)> change) {
  return [change](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    Run run = real.prepare(c, inputs, pass);
    for (Window& window : run.windows)
      for (std::function<Outputs()>* call : {&window.forward, &window.backward}) {
        if (!*call) continue;
        *call = [change, &inputs, original = *call] {
          Outputs outputs = original();
          change(outputs, inputs);
          return outputs;
        };
      }
    return run;
  };
}

/// Computes another case on the same inputs.
Prepare instead(std::function<void(Case&)> change) {
  return [change](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    Case other = c;
    change(other);
    return real.prepare(other, inputs, pass);
  };
}

/// A gradient that sees dO of the first query head of each group only.
Prepare of_one_group_head(at::Tensor Outputs::*gradient) {
  return [gradient](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    const auto narrowed = std::make_shared<Inputs>(inputs);
    narrowed->dout = inputs.dout.clone();
    for (int64_t head = 0; head < c.problem.hq; ++head)
      if (head % c.problem.group() != 0) narrowed->dout.select(-2, head).zero_();
    const auto narrow = std::make_shared<Run>(real.prepare(c, *narrowed, pass));
    Run run = real.prepare(c, inputs, pass);
    for (Window& window : run.windows)
      window.backward = [gradient, narrowed, narrow, right = window.backward] {
        Outputs outputs = right();
        narrow->windows.back().forward();
        outputs.*gradient = narrow->windows.back().backward().*gradient;
        return outputs;
      };
    return run;
  };
}

/// The last sequence (padding on the right) taken to have one key more than it has.
Prepare with_a_padded_key() {
  return [](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    const auto longer = std::make_shared<Inputs>(inputs);
    const auto sequence = static_cast<int64_t>(inputs.lengths.k.size()) - 1;
    longer->k_rows.push_back(sequence * inputs.lengths.k_pitch + longer->lengths.k.back()++);
    longer->cu_k = inputs.cu_k.clone();
    longer->cu_k.select(0, sequence + 1).add_(1);
    const auto run = std::make_shared<Run>(real.prepare(c, *longer, pass));
    Run kept = *run;
    for (Window& window : kept.windows)
      for (std::function<Outputs()>* call : {&window.forward, &window.backward})
        if (*call) *call = [longer, run, original = *call] { return original(); };
    return kept;
  };
}

char* storage_bytes(const at::Tensor& t) {
  return static_cast<char*>(t.storage().mutable_data());
}

/// Rows are tokens: [token, head, channel].
at::Tensor last_row(const at::Tensor& t) {
  return t.select(0, t.size(0) - 1);
}

/// The sentence of a gate of this tensor, given the kernel's own O or not.
std::string by_gate_of(const std::string& tensor) {
  return "^" + tensor + "(_given_o)?: gate ";
}

std::vector<Defect> tensor_defects(const std::string& name, at::Tensor Outputs::*tensor, Pass pass) {
  const auto change = [tensor](std::function<void(const at::Tensor&)> edit) {
    return tamper([tensor, edit](Outputs& outputs, const Inputs&) {
      if ((outputs.*tensor).defined()) edit(outputs.*tensor);
    });
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  return {
      {"a wrong element in " + name, {pass}, by_gate_of(name), change([](const at::Tensor& t) {
         t.select(0, 5).select(0, 1).select(0, 3).neg_();
       })},
      {"a NaN in " + name, {pass}, by_gate_of(name), change([nan](const at::Tensor& t) {
         t.select(0, 7).select(0, 0).select(0, 2).fill_(nan);
       })},
      {"the last row of " + name + " unwritten", {pass}, by_gate_of(name), change([nan](const at::Tensor& t) {
         last_row(t).fill_(nan);
       })},
      {"the last row of " + name + " zero", {pass}, by_gate_of(name), change([](const at::Tensor& t) { last_row(t).zero_(); })},
  };
}

std::vector<Defect> memory_defects(const std::string& written, at::Tensor Outputs::*tensor, Pass pass) {
  return {
      {"its input overwritten", {pass}, "wrote to its input v", tamper([](Outputs&, const Inputs& inputs) {
         storage_bytes(inputs.v)[1] ^= 1;
       })},
      {"a write past the end of " + written,
       {pass},
       "past the end of its output " + written,
       tamper([tensor](Outputs& outputs, const Inputs&) {
         const at::Tensor& t = outputs.*tensor;
         if (t.defined()) std::memset(storage_bytes(t) + t.storage().nbytes(), 0, 2);
       })},
  };
}

std::vector<Defect> all_defects(const Capabilities& can) {
  const std::vector<Pass> both = {Pass::forward, Pass::backward};
  std::vector<Defect> defects = {
      {"the causal mask aligned to the other corner", both, "gate", instead([](Case& c) { c.problem.align = Align::top_left; })},
      {"no mask", both, "gate", instead([](Case& c) { c.problem.mask = Mask::none; })},
      {"dq without the scale", {Pass::backward}, by_gate_of("dq"), tamper([](Outputs& outputs, const Inputs& inputs) {
         if (outputs.dq.defined()) outputs.dq = at::div(outputs.dq, inputs.scale);
       })},
      {"dk of one head of the group", {Pass::backward}, by_gate_of("dk"), of_one_group_head(&Outputs::dk)},
      {"dv of one head of the group", {Pass::backward}, by_gate_of("dv"), of_one_group_head(&Outputs::dv)},
  };
  const auto append = [&](std::vector<Defect> more) { defects.insert(defects.end(), more.begin(), more.end()); };
  append(tensor_defects("o", &Outputs::o, Pass::forward));
  append(tensor_defects("dq", &Outputs::dq, Pass::backward));
  append(tensor_defects("dk", &Outputs::dk, Pass::backward));
  append(tensor_defects("dv", &Outputs::dv, Pass::backward));
  append(memory_defects("o", &Outputs::o, Pass::forward));
  append(memory_defects("dk", &Outputs::dk, Pass::backward));
  // What only some backends can show.
  if (can.window)
    defects.push_back({"the causal mask one key late", both, "gate", instead([](Case& c) {
                         c.problem.mask = Mask::none;
                         c.problem.window = SlidingWindow{-1, 1};
                       })});
  if (can.returns_lse)
    defects.push_back({"lse in log2 units", {Pass::forward}, by_gate_of("lse"), tamper([](Outputs& outputs, const Inputs&) {
                         if (outputs.lse.defined()) outputs.lse = at::mul(outputs.lse, 1 / std::log(2.0));
                       })});
  return defects;
}

const Backend& real_backend(const std::string& name) {
  static const auto backends = make_backends(kCpu);
  for (const auto& backend : backends)
    if (backend->declaration().name == name) return *backend;
  throw std::runtime_error("no backend " + name);
}

/// Records of one pass: the backend as it is, then with each defect of this pass.
std::vector<Record> judge_all(const Backend& real, const std::vector<Defect>& defects, Pass pass, const std::string& line) {
  Bench bench{{"cpu", 0, std::nullopt, "test"}, {}, judge_test::calibration_of_cpu()};
  Request request{1, line, {}, true};
  for (const Defect& defect : defects) {
    bench.backends.push_back(std::make_unique<Defective>(real, defect));
    request.runs.emplace_back(bench.backends.back()->declaration().name, pass);
  }
  std::vector<Record> records;
  run_case(request, bench, {[](const Stage&) {}, [&](const Record& r) { records.push_back(r); }, [](const Comparison&) {}});
  return records;
}

class PlantedDefects : public testing::TestWithParam<std::tuple<const char*, Dtype, Pass>> {};

TEST_P(PlantedDefects, AreCaughtAndTheBackendWithoutThemPasses) {
  const auto [name, dtype, pass] = GetParam();
  const Backend& real = real_backend(name);
  const std::string line =
      "attention b=2 hq=4 hkv=2 lq=40 lk=56 d=32 dtype=" + std::string(name_of(dtype)) + " mask=causal seed=3";
  std::vector<Defect> defects = {{"nothing", {}, "", instead([](Case&) {})}};
  for (const Defect& defect : all_defects(real.declaration().capabilities))
    if (std::count(defect.passes.begin(), defect.passes.end(), pass)) defects.push_back(defect);
  const std::vector<Record> records = judge_all(real, defects, pass, line);
  ASSERT_EQ(records.size(), defects.size());
  EXPECT_EQ(records[0].status, Status::passed) << "without a defect: " << records[0].reason;
  for (size_t i = 1; i < records.size(); ++i) {
    EXPECT_EQ(records[i].status, Status::failed) << records[i].backend << ": " << records[i].reason;
    EXPECT_THAT(records[i].reason, testing::ContainsRegex(defects[i].reason)) << records[i].backend;
  }
}

/// As above, for cases with tokens that nobody may read.
void expect_leaks_are_caught(const std::string& name, const std::string& line, Pass pass, std::vector<Defect> leaks) {
  leaks.insert(leaks.begin(), {"nothing", {}, "", instead([](Case&) {})});
  const std::vector<Record> records = judge_all(real_backend(name), leaks, pass, line);
  ASSERT_EQ(records.size(), leaks.size());
  EXPECT_EQ(records[0].status, Status::passed) << "without a defect: " << records[0].reason;
  for (size_t i = 1; i < records.size(); ++i) {
    EXPECT_EQ(records[i].status, Status::failed) << records[i].backend << ": " << records[i].reason;
    EXPECT_THAT(records[i].reason, testing::ContainsRegex(leaks[i].reason)) << records[i].backend;
  }
}

TEST(Poison, APaddedKeyThatIsReadShows) {
  const std::string line = "attention hq=4 hkv=2 lens=40+17 klens=193+65 d=32 layout=padded seed=5";
  for (const char* name : {"flash_varlen", "eager"})
    for (Pass pass : {Pass::forward, Pass::backward})
      expect_leaks_are_caught(name, line, pass, {{"a padded key read", {pass}, "gate", with_a_padded_key()}});
}

TEST(Poison, APaddedRowLeftUnwrittenShows) {
  const auto unwritten = [](at::Tensor Outputs::*tensor) {
    return tamper([tensor](Outputs& outputs, const Inputs&) {
      const at::Tensor& t = outputs.*tensor;
      if (t.defined() && t.dim() == 4) t.select(0, 1).select(0, t.size(1) - 1).fill_(std::nan(""));
    });
  };
  const std::string line = "attention hq=4 hkv=2 lens=40+17 klens=193+65 d=32 layout=padded seed=5";
  expect_leaks_are_caught("flash_varlen", line, Pass::forward,
                          {{"a padded row of o unwritten", {}, "o: a padded row must be 0", unwritten(&Outputs::o)}});
  for (const auto& [name, tensor] : {std::pair{"dq", &Outputs::dq}, std::pair{"dk", &Outputs::dk}, std::pair{"dv", &Outputs::dv}})
    expect_leaks_are_caught("flash_varlen", line, Pass::backward,
                            {{"a padded row unwritten", {}, std::string(name) + ": a padded row must be 0", unwritten(tensor)}});
}

/// Keys 40 to 55 are seen by no query: they hold NaN, and 0 * NaN is NaN.
TEST(Poison, AnUnseenValueMultipliedByZeroShows) {
  const auto multiplied = tamper([](Outputs& outputs, const Inputs& inputs) {
    if (outputs.o.defined()) outputs.o.select(0, 3).add_(inputs.v.select(0, 50).repeat_interleave(2, 0).mul(0));
  });
  expect_leaks_are_caught("flash_varlen", "attention hq=4 hkv=2 lq=40 lk=56 d=32 mask=causal align=top_left", Pass::forward,
                          {{"an unseen value times 0", {}, "o: gate nonfinite", multiplied}});
}

INSTANTIATE_TEST_SUITE_P(Backends, PlantedDefects,
                         testing::Combine(testing::Values("flash_varlen", "eager"),
                                          testing::Values(Dtype::bf16, Dtype::fp16, Dtype::fp32),
                                          testing::Values(Pass::forward, Pass::backward)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" + std::string(name_of(std::get<1>(info.param))) +
                                  "_" + std::string(name_of(std::get<2>(info.param)));
                         });

/// The mask of the real backend, and what `of` says of another case computed on the same inputs.
Prepare handing_out_the_right_mask(std::function<void(Case&)> change, std::vector<at::Tensor Outputs::*> of) {
  return [change, of](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    Case other_case = c;
    change(other_case);
    const auto other = std::make_shared<Run>(real.prepare(other_case, inputs, pass));
    Run run = real.prepare(c, inputs, pass);
    Window& window = run.windows.back();
    for (auto [call, others] : {std::pair{&window.forward, &Window::forward}, std::pair{&window.backward, &Window::backward}})
      *call = [of, other, others, right = *call] {
        Outputs outputs = right();
        const Outputs wrong = (other->windows.back().*others)();
        for (at::Tensor Outputs::*tensor : of)
          if ((outputs.*tensor).defined()) outputs.*tensor = wrong.*tensor;
        return outputs;
      };
    return run;
  };
}

/// Another mask in every call.
Prepare seeded_by_the_clock() {
  return [](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    const auto now = std::make_shared<Run>(real.prepare(c, inputs, pass));
    const auto ticks = std::make_shared<uint64_t>(c.problem.dropout.seed);
    Run run = *now;
    run.windows.back().forward = [&real, &inputs, c, pass, now, ticks] {
      Case next = c;
      next.problem.dropout.seed = (*ticks)++;
      *now = real.prepare(next, inputs, pass);
      return now->windows.back().forward();
    };
    run.windows.back().backward = [now] { return now->windows.back().backward(); };
    return run;
  };
}

std::vector<Defect> dropout_defects() {
  const std::vector<Pass> both = {Pass::forward, Pass::backward};
  const auto of_mask = [](std::function<at::Tensor(const at::Tensor&)> change) {
    return tamper([change](Outputs& outputs, const Inputs&) {
      if (outputs.kept.defined()) outputs.kept = change(outputs.kept);
    });
  };
  const auto no_dropout = [](Case& c) { c.problem.dropout = {}; };
  const auto other_seed = [](Case& c) { c.problem.dropout.seed += 1; };
  const auto complement = [](Case& c) { c.problem.dropout.p = 1 - c.problem.dropout.p; };
  return {
      {"the mask handed out and never applied", both, by_gate_of("o"),
       handing_out_the_right_mask(no_dropout, {&Outputs::o, &Outputs::dq, &Outputs::dk, &Outputs::dv})},
      {"1 / (1 - p) missing", both, by_gate_of("o"), tamper([](Outputs& outputs, const Inputs&) {
         for (at::Tensor* t : {&outputs.o, &outputs.dv})
           if (t->defined()) *t = at::mul(*t, 0.7);
       })},
      {"1 / (1 - p) missing in dv", {Pass::backward}, by_gate_of("dv"), tamper([](Outputs& outputs, const Inputs&) {
         if (outputs.dv.defined()) outputs.dv = at::mul(outputs.dv, 0.7);
       })},
      {"a backward that drops by another mask",
       {Pass::backward},
       by_gate_of("dq"),
       handing_out_the_right_mask(other_seed, {&Outputs::dq, &Outputs::dk, &Outputs::dv})},
      {"a backward that drops nothing",
       {Pass::backward},
       by_gate_of("dq"),
       handing_out_the_right_mask(no_dropout, {&Outputs::dq, &Outputs::dk, &Outputs::dv})},
      {"dv without the mask", {Pass::backward}, by_gate_of("dv"), handing_out_the_right_mask(no_dropout, {&Outputs::dv})},
      {"p kept, not 1 - p", both, "^kept: .* share of 0.[23].*, expected 0.7", instead(complement)},
      {"the mask the wrong way round", both, "^kept: .*, expected 0.7",
       of_mask([](const at::Tensor& kept) { return kept.logical_not(); })},
      {"one head's mask handed out for another's", both, by_gate_of("o"),
       of_mask([](const at::Tensor& kept) { return kept.flip({-2}); })},
      {"no mask handed out", both, "^kept is missing", of_mask([](const at::Tensor&) { return at::Tensor(); })},
      {"a mask of another shape", both, "^kept has the shape",
       of_mask([](const at::Tensor& kept) { return kept.narrow(-1, 1, 3); })},
      {"a mask of its own in every call", both, "kept: another mask than that of an earlier call", seeded_by_the_clock()},
  };
}

TEST(Dropout, DefectsOfMasksAreCaughtAndTheBackendsWithoutThemPass) {
  for (const char* name : {"eager", "eigen"})
    for (const char* dtype : {"bf16", "fp16", "fp32"})
      for (const Pass pass : {Pass::forward, Pass::backward}) {
        std::vector<Defect> defects;
        for (const Defect& defect : dropout_defects())
          if (std::count(defect.passes.begin(), defect.passes.end(), pass)) defects.push_back(defect);
        expect_leaks_are_caught(
            name, fmt::format("attention b=2 hq=4 hkv=2 lq=40 lk=56 d=32 dtype={} mask=causal dropout=0.3:5 seed=3", dtype), pass,
            defects);
      }
}

TEST(Dropout, AnotherMaskInTheOtherPassIsSeen) {
  const auto by_pass = [](const Backend& real, const Case& c, const Inputs& inputs, Pass pass) {
    Case other = c;
    other.problem.dropout.seed += pass == Pass::backward;
    return real.prepare(other, inputs, pass);
  };
  Bench bench{{"cpu", 0, std::nullopt, "test"}, {}, judge_test::calibration_of_cpu()};
  bench.backends.push_back(std::make_unique<Defective>(real_backend("eigen"), Defect{"a mask for each pass", {}, "", by_pass}));
  const std::string name = bench.backends.back()->declaration().name;
  Request request{1, "attention hq=4 hkv=2 lq=40 d=32 dropout=0.3:5", {{name, Pass::forward}, {name, Pass::backward}}, true};
  std::vector<Record> records;
  run_case(request, bench, {[](const Stage&) {}, [&](const Record& r) { records.push_back(r); }, [](const Comparison&) {}});
  EXPECT_EQ(records.at(0).status, Status::passed) << records.at(0).reason;
  EXPECT_EQ(records.at(1).status, Status::failed);
  EXPECT_THAT(records.at(1).reason, testing::HasSubstr("the mask of its other pass is another one"));
}

/// The timed calls, and those after them, drop by the mask that was judged.
TEST(Dropout, PassesWhenItIsTimed) {
  for (const char* name : {"eager", "eigen"}) {
    Bench bench{{"cpu", 0, std::nullopt, "test"}, {}, judge_test::calibration_of_cpu()};
    const Defect nothing{"nothing", {}, "", instead([](Case&) {})};
    bench.backends.push_back(std::make_unique<Defective>(real_backend(name), nothing));
    const std::string planted = bench.backends.back()->declaration().name;
    const std::string line = "attention hq=4 hkv=2 lens=40+17 d=32 layout=padded mask=causal dropout=0.3:5";
    Request request{1, line, {{planted, Pass::forward}, {planted, Pass::backward}}};
    bench.measuring.time_budget_s = 0.05;
    std::vector<Record> records;
    run_case(request, bench, {[](const Stage&) {}, [&](const Record& r) { records.push_back(r); }, [](const Comparison&) {}});
    for (const Record& record : records) {
      EXPECT_EQ(record.status, Status::passed) << name << ": " << record.reason;
      EXPECT_TRUE(record.time) << name;
    }
  }
}

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
}  // namespace attnbench
