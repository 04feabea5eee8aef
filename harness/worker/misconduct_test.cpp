// Backends that write where they must not, hand out what they did not compute, or leave something behind.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include <immintrin.h>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/fmax.h>
#include <ATen/ops/where.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/attention/emulator.hpp"
#include "harness/worker/every_thread.hpp"
#include "harness/worker/test_run_case.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST_F(RunCase, AnOverwrittenInputFailsAndTheNextBackendGetsTheRightOne) {
  add("vandal", [](int, const Inputs& inputs, Outputs&) { bytes_of_tensor(inputs.k)[3] ^= 1; });
  add("honest");
  const Answers answers = run(Pass::forward);
  EXPECT_EQ(answers.records.at(0).status, Status::failed);
  EXPECT_EQ(answers.records.at(0).reason, "wrote to its input k");
  EXPECT_EQ(answers.records.at(1).status, Status::passed) << answers.records.at(1).reason;
}

TEST_F(RunCase, AnInputOverwrittenOnlyWhileTimedFails) {
  add("vandal", [](int call, const Inputs& inputs, Outputs&) {
    if (call == 5) bytes_of_tensor(inputs.v)[3] ^= 1;
  });
  const Record r = run(Pass::forward, kCase, false).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_FALSE(r.time);
}

TEST_F(RunCase, AWritePastAnInputOnlyWhileTimedFails) {
  add("vandal", [](int call, const Inputs& inputs, Outputs&) {
    if (call == 5) bytes_of_tensor(inputs.q)[inputs.q.storage().nbytes() + 8] = 1;
  });
  const Record r = run(Pass::forward, kCase, false).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_THAT(r.reason, HasSubstr("timed together wrote 1 bytes past the end of a block"));
  EXPECT_FALSE(r.time);
}

TEST_F(RunCase, AWritePastTheEndFails) {
  add("output", [](int, const Inputs&, Outputs& outputs) { bytes_of_tensor(outputs.o)[outputs.o.nbytes()] = 1; });
  add("input", [](int, const Inputs& inputs, Outputs&) { bytes_of_tensor(inputs.q)[inputs.q.storage().nbytes() + 8] = 1; });
  add("scratch", [](int, const Inputs&, Outputs&) { bytes_of_tensor(at::empty({8}, at::kFloat))[-4] = 1; });
  const Answers answers = run(Pass::forward);
  for (const Record& r : answers.records) EXPECT_EQ(r.status, Status::failed) << r.backend;
  EXPECT_THAT(answers.records.at(0).reason, StartsWith("wrote 1 bytes past the end of its output o"));
  EXPECT_THAT(answers.records.at(1).reason, StartsWith("wrote 1 bytes past the end of its input q"));
  EXPECT_THAT(answers.records.at(2).reason, StartsWith("wrote 1 bytes before the start of a block that it allocated"));
}

TEST_F(RunCase, AnUnwrittenOutputFails) {
  add("lazy", [](int, const Inputs&, Outputs& outputs) {
    if (outputs.dv.defined()) outputs.dv = at::empty(outputs.dv.sizes(), outputs.dv.options());
  });
  const Record r = run(Pass::backward).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_THAT(r.reason, HasSubstr("dv"));
  EXPECT_THAT(r.reason, HasSubstr("nonfinite"));
}

TEST_F(RunCase, AWrongShapeFailsAndIsNotCompared) {
  add("flat", [](int, const Inputs&, Outputs& outputs) { outputs.o = outputs.o.view({-1}); });
  add("honest");
  const Answers answers = run(Pass::forward);
  EXPECT_EQ(answers.records.at(0).status, Status::failed);
  EXPECT_THAT(answers.records.at(0).reason, HasSubstr("shape"));
  ASSERT_EQ(answers.comparisons.size(), 1u);
  EXPECT_EQ(answers.comparisons[0].differences.size(), 1u) << "lse alone";
}

/// The judged call is the first, the mirrored one the second; then come those that are timed.
TEST_F(RunCase, AResultThatChangesAfterTheFirstCallIsCaughtWithoutTiming) {
  add("fickle", [](int call, const Inputs&, Outputs& outputs) {
    if (call > 1) bytes_of_tensor(outputs.o)[1] ^= 0x40;
  });
  const Record r = run(Pass::forward).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_THAT(r.reason, StartsWith("called again with V negated, whose outputs are negated back: o"));
}

TEST_F(RunCase, AResultThatChangesWhileTimedIsCaughtAfterTiming) {
  add("fickle", [](int call, const Inputs&, Outputs& outputs) {
    if (call > 2) bytes_of_tensor(outputs.o)[1] ^= 0x40;
  });
  const Record r = run(Pass::forward, kCase, false).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_THAT(r.reason, StartsWith("a timed call of op gave another result: o"));
  EXPECT_FALSE(r.time);
}

TEST_F(RunCase, AResultThatIsWrongNowAndThenWhileTimedIsCaught) {
  add("now and then", [](int call, const Inputs&, Outputs& outputs) {
    if (call > 2 && call % 3 == 0) bytes_of_tensor(outputs.o)[1] ^= 0x40;
  });
  const Record r = run(Pass::forward, kCase, false).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_FALSE(r.time);
}

/// Computes anew only when the first bit of V, or of dO, is one that it has not seen.
FakeBackend::Tamper remembering() {
  return [kept = std::map<std::pair<bool, bool>, Outputs>()](int, const Inputs& inputs, Outputs& outputs) mutable {
    const auto is_negative = [](const at::Tensor& t) { return t.flatten()[0].item<float>() < 0; };
    const bool is_forward = outputs.o.defined();
    const auto key = std::pair(is_forward, is_negative(is_forward ? inputs.v : inputs.dout));
    const auto [known, is_new] = kept.try_emplace(key, outputs);
    if (is_new) return;
    for (const auto tensor : {&Outputs::o, &Outputs::lse, &Outputs::dq, &Outputs::dk, &Outputs::dv})
      if ((outputs.*tensor).defined()) outputs.*tensor = (known->second.*tensor).clone();
  };
}

TEST_F(RunCase, AResultRememberedByWhatTheInputsHoldIsCaught) {
  add("remembers", remembering());
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const Record r = run(pass, "attention hq=8 lq=24 lk=40 d=16", false).records.at(0);
    EXPECT_EQ(r.status, Status::failed) << name_of(pass);
    // Of a backward the mirrored call negates V of the second head, at which nobody looked.
    EXPECT_THAT(r.reason, HasSubstr(pass == Pass::forward ? "gave another result" : "called again with dO negated"))
        << name_of(pass);
    EXPECT_FALSE(r.time);
  }
}

/// A backward by the V of the first one. Seen where V is negated: gradients of Q and K that come from it have the wrong sign.
TEST_F(RunCase, GradientsByAnEarlierVAreCaughtWithoutTiming) {
  add("old V", [](int call, const Inputs&, Outputs& outputs) {
    if (call <= 2 || !outputs.dq.defined()) return;  // calls 1 and 2: the first forward and its backward
    const auto negate = [](at::Tensor& gradient, int64_t first, int64_t heads) { gradient.narrow(-2, first, heads).neg_(); };
    negate(outputs.dq, 2, 2);  // heads 2 and 3 read key head 1
    negate(outputs.dk, 1, 1);
  });
  const Record r = run(Pass::backward, "attention hq=4 hkv=2 lq=24 d=16").records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_THAT(r.reason, StartsWith("called again with dO negated, and V of every other key head"));
}

/// A running maximum that starts in memory that nobody wrote: fmax drops the NaN that it finds there at first.
TEST_F(RunCase, UnwrittenMemoryIsCaughtWhereItsNanIsDropped) {
  for (const char* dtype : {"bf16", "fp16", "fp32"}) {
    bench.backends.clear();
    add("fmax", [](int, const Inputs&, Outputs& outputs) {
      if (!outputs.o.defined()) return;
      const at::Tensor unwritten = at::empty(outputs.o.sizes(), outputs.o.options());
      outputs.o = at::fmax(outputs.o, at::where(unwritten.isnan(), outputs.o, unwritten));
    });
    const Record r = run(Pass::forward, std::string("attention hq=2 lq=24 d=16 dtype=") + dtype).records.at(0);
    EXPECT_EQ(r.status, Status::failed) << dtype;
    EXPECT_THAT(r.reason, StartsWith("called again with V negated, whose outputs are negated back: o: ")) << dtype;
  }
}

/// Adds what padded keys hold, and drops the NaN that it finds there at first.
TEST_F(RunCase, PaddingIsNobodysEvenWhereItsNanIsDropped) {
  for (const char* line :
       {"attention hq=2 lens=9+5 d=16 layout=padded", "attention hq=2 lq=9 lk=20 d=16 mask=causal align=top_left"}) {
    bench.backends.clear();
    add("leaks", [](int, const Inputs& inputs, Outputs& outputs) {
      if (!outputs.o.defined()) return;
      const at::Tensor last = inputs.v.flatten(0, -3).select(0, -1).select(0, 0);  // a token that nobody sees
      outputs.o = outputs.o + last.nan_to_num(0);
    });
    const Case c = parse_case(line, "test");
    ASSERT_TRUE(holds_poison(c));
    const Record r = run(Pass::forward, line).records.at(0);
    EXPECT_EQ(r.status, Status::failed) << line;
    EXPECT_THAT(r.reason, StartsWith("called again with V negated, whose outputs are negated back: o: ")) << line;
  }
}

std::vector<char> contents(const at::Tensor& t) {
  return {bytes_of_tensor(t), bytes_of_tensor(t) + t.nbytes()};
}

/// Keeps its result by the contents of the inputs: right in every call, and the time of a hit would be one of nothing.
TEST_F(RunCase, WhoKeepsResultsByTheContentsOfTheInputsComputesInEverySample) {
  for (const Pass pass : {Pass::forward, Pass::backward})
    for (const char* heads : {"hq=4 hkv=2", "hq=1"}) {
      std::vector<bool> hits;
      bench.backends.clear();
      add("by contents",
          [&, known = std::pair<std::vector<char>, std::vector<char>>()](int, const Inputs& inputs, Outputs& outputs) mutable {
            if (outputs.o.defined() == (pass == Pass::backward)) return;
            const auto now = std::pair(contents(inputs.v), contents(inputs.dout));
            hits.push_back(now == known);
            if (now == known) return;
            known = now;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));  // a sample of its own
          });
      const Record r = run(pass, fmt::format("attention {} lq=24 d=16", heads), false).records.at(0);
      EXPECT_EQ(r.status, Status::passed) << r.reason;
      // The judged call, the mirrored one and an untimed one come before; after them the inputs are as drawn, and mirrored.
      ASSERT_GT(hits.size(), 15u);
      EXPECT_EQ(std::count(hits.begin() + 3, hits.end() - 2, true), 0) << name_of(pass) << " " << heads;
    }
}

TEST_F(RunCase, ASecondBackwardOfOneForwardIsComputedAnew) {
  add("once a forward", [gradients = Outputs()](int, const Inputs&, Outputs& outputs) mutable {
    if (outputs.o.defined()) {
      gradients = {};
    } else if (!gradients.dq.defined()) {
      gradients = outputs;
    } else {
      outputs = {{}, {}, gradients.dq.clone(), gradients.dk.clone(), gradients.dv.clone()};
    }
  });
  const Record r = run(Pass::backward, "attention hq=8 lq=24 lk=40 d=16", false).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_FALSE(r.time);
}

/// Right results that no call computed: of the first call, kept; from call `from` on.
FakeBackend::Tamper cached(int from, bool cloned) {
  return [from, cloned, kept = Outputs()](int call, const Inputs&, Outputs& outputs) mutable {
    at::Tensor Outputs::*tensor = outputs.o.defined() ? &Outputs::o : &Outputs::dv;
    at::Tensor& first = kept.*tensor;
    if (!first.defined()) first = outputs.*tensor;
    if (call >= from) outputs.*tensor = cloned ? first.clone() : first;
  };
}

TEST_F(RunCase, AResultKeptFromAnEarlierCallIsCaught) {
  add("keeps the tensor", cached(2, false));
  add("keeps a copy", cached(2, true));
  for (Pass pass : {Pass::forward, Pass::backward})
    for (const Record& r : run(pass).records) {
      EXPECT_EQ(r.status, Status::failed) << r.backend;
      EXPECT_THAT(r.reason, StartsWith("called again with ")) << r.backend;
    }
}

TEST_F(RunCase, AResultKeptOnlyWhileTimedIsCaught) {
  add("keeps the tensor", cached(5, false));
  add("keeps a copy", cached(5, true));
  for (Pass pass : {Pass::forward, Pass::backward}) {
    const Answers answers = run(pass, kCase, false);
    for (const Record& r : answers.records) {
      EXPECT_EQ(r.status, Status::failed) << r.backend;
      EXPECT_FALSE(r.time);
    }
    for (const Record& r : answers.records) EXPECT_THAT(r.reason, StartsWith("a timed call of op gave another result"));
  }
}

TEST_F(RunCase, GradientsComputedInTheForwardAreCaught) {
  add("early", [early = Outputs()](int, const Inputs& inputs, Outputs& outputs) mutable {
    if (outputs.o.defined())
      early = emulate(parse_case(kCase), inputs, fake_declaration("early").profile, Conventions::EmptyRow::zero);
    else
      outputs = {{}, {}, early.dq, early.dk, early.dv};
  });
  EXPECT_EQ(run(Pass::backward).records.at(0).status, Status::failed);
}

TEST_F(RunCase, AnInputHandedOutAsAnOutputIsCaught) {
  add("idle", [](int, const Inputs& inputs, Outputs& outputs) {
    if (outputs.o.defined()) outputs.o = inputs.v;
  });
  const Record r = run(Pass::forward, "attention hq=2 lq=1 d=16").records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_EQ(r.reason, "o lies in the memory of v: every call writes new outputs");
}

/// The same tensor in every call from `from` on, with what the call computed, or with zeros.
FakeBackend::Tamper same_memory(int from, bool zeros) {
  return [from, zeros, kept = Outputs()](int call, const Inputs&, Outputs& outputs) mutable {
    for (const auto tensor : {&Outputs::o, &Outputs::lse, &Outputs::dq, &Outputs::dk, &Outputs::dv}) {
      at::Tensor& ours = kept.*tensor;
      if (call < from || !(outputs.*tensor).defined()) continue;
      if (!ours.defined()) ours = (outputs.*tensor).clone();
      ours.copy_(outputs.*tensor);
      if (zeros && call > from + 1) ours.zero_();
      outputs.*tensor = ours;
    }
  };
}

TEST_F(RunCase, OneTensorForTheResultsOfAllCallsIsCaught) {
  add("one tensor", same_memory(1, false));
  add("one tensor while timed", same_memory(5, false));
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const Answers answers = run(pass, kCase, false);
    for (const Record& r : answers.records) {
      EXPECT_EQ(r.status, Status::failed) << r.backend;
      EXPECT_THAT(r.reason, HasSubstr("every call writes new outputs")) << r.backend;
      EXPECT_FALSE(r.time);
    }
    EXPECT_THAT(answers.records.at(0).reason, StartsWith("called again with "));
    EXPECT_THAT(answers.records.at(1).reason, StartsWith("judged again after timing: "));
  }
}

TEST_F(RunCase, OtherStridesOfAnInputHarmWhoMadeThemAlone) {
  add("vandal", [](int, const Inputs& inputs, Outputs&) {
    inputs.v.unsafeGetTensorImpl()->set_sizes_and_strides(inputs.v.sizes(), {32, 0, 1});
  });
  add("honest");
  const Answers answers = run(Pass::forward);
  EXPECT_EQ(answers.records.at(0).status, Status::failed);
  EXPECT_EQ(answers.records.at(1).status, Status::passed) << answers.records.at(1).reason;
}

TEST_F(RunCase, AnotherNumberOfThreadsLeftBehindWhileTimedIsCaughtAndPutBack) {
  const int before = at::get_num_threads();
  add("saboteur", [before](int call, const Inputs&, Outputs&) {
    if (call > 2) at::set_num_threads(before + 1);
  });
  const Record r = run(Pass::forward, kCase, false).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_THAT(r.reason, HasSubstr("threads to LibTorch"));
  EXPECT_FALSE(r.time);
  EXPECT_EQ(at::get_num_threads(), before);
}

/// In a thread of the pool that is not the calling one: what LibTorch computes there is wrong in its last bits from then on.
TEST_F(RunCase, AnotherRoundingLeftInAThreadOfThePoolIsCaughtAndPutBack) {
  const int before = at::get_num_threads();
  at::set_num_threads(2);
  const auto leave = [](unsigned bits) {
    on_every_thread([caller = std::this_thread::get_id(), bits] {
      if (std::this_thread::get_id() != caller) _mm_setcsr(bits);
    });
  };
  add("rounds to zero", [&](int call, const Inputs&, Outputs&) {
    if (call == 1) leave(_mm_getcsr() | _MM_ROUND_TOWARD_ZERO);
  });
  add("flushes while timed", [&](int call, const Inputs&, Outputs&) {
    if (call == 4) leave(_mm_getcsr() | _MM_FLUSH_ZERO_ON);
  });
  const Answers answers = run(Pass::forward, kCase, false);
  EXPECT_EQ(answers.records.at(0).reason,
            "left the processor with another rounding, or another treatment of subnormals, in 1 of 2 threads");
  EXPECT_THAT(answers.records.at(1).reason, HasSubstr("timed together left the processor with another rounding"));
  for (const Record& r : answers.records) EXPECT_EQ(r.status, Status::failed) << r.backend;
  std::atomic<int> others = 0;
  on_every_thread([&] { others += (_mm_getcsr() & (_MM_ROUND_MASK | _MM_FLUSH_ZERO_MASK)) != 0; });
  EXPECT_EQ(others, 0);
  at::set_num_threads(before);
}

/// What the emulator multiplies in, and other backends.
TEST_F(RunCase, AnotherPrecisionOfLibTorchIsCaughtAndPutBack) {
  at::Context& torch = at::globalContext();
  add("medium", [&](int, const Inputs&, Outputs&) { torch.setFloat32MatmulPrecision("medium"); });
  add("no flash", [&](int, const Inputs&, Outputs&) { torch.setSDPUseFlash(false); });
  add("fp16 sums", [&](int, const Inputs&, Outputs&) { torch.setAllowFP16ReductionCuBLAS(false, false); });
  const Answers answers = run(Pass::forward);
  EXPECT_EQ(answers.records.at(0).reason, "left LibTorch with another precision of float32 products");
  EXPECT_EQ(answers.records.at(1).reason, "left LibTorch with another use of flash attention");
  EXPECT_EQ(answers.records.at(2).reason, "left LibTorch with another reduced precision of sums in fp16");
  for (const Record& r : answers.records) EXPECT_EQ(r.status, Status::failed) << r.backend;
  EXPECT_EQ(torch.float32MatmulPrecision(), at::Float32MatmulPrecision::HIGHEST);
  EXPECT_EQ(torch.float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL),
            at::Context().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL));
  EXPECT_TRUE(torch.userEnabledFlashSDP());
  EXPECT_EQ(torch.allowFP16ReductionCuBLAS(), at::CuBLASReductionOption::AllowReducedPrecisionWithSplitK);
}

TEST_F(RunCase, AnotherNumberOfThreadsLeftBehindIsCaughtAndPutBack) {
  const int before = at::get_num_threads();
  add("greedy", [before](int, const Inputs&, Outputs&) { at::set_num_threads(before + 1); });
  const Record r = run(Pass::forward).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_THAT(r.reason, HasSubstr(fmt::format("left {} threads to LibTorch, which had {}", before + 1, before)));
  EXPECT_EQ(at::get_num_threads(), before);
}

}  // namespace
}  // namespace attnbench
