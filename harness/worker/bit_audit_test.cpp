// Backends whose bits depend on what they should not depend on: each relation, and each gate of a race, has one that it catches.
#include "harness/worker/bit_audit.hpp"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "harness/worker/test_run_case.hpp"

namespace attnbench {
namespace {

using testing::HasSubstr;
using testing::StartsWith;
using Outcome = Invariance::Outcome;

/// The last bit of one element: another result that is as right.
void change_last_bit(const at::Tensor& t) {
  bytes_of_tensor(t)[0] ^= 1;
}
/// The exponent of one element: a wrong one.
void change_exponent(const at::Tensor& t) {
  bytes_of_tensor(t)[1] ^= 0x40;
}

const Invariance& entry(const Record& record, Relation relation, const std::string& tensor) {
  for (const Invariance& i : record.invariance)
    if (i.relation == relation && i.tensor == tensor) return i;
  static const Invariance none;
  ADD_FAILURE() << "no entry for " << name_of(relation) << " of " << tensor;
  return none;
}

class BitAuditTest : public RunCase {
 protected:
  FakeBackend& add_declared(const std::string& name, const std::function<void(Capabilities&)>& declare,
                            FakeBackend::Tamper tamper = {}) {
    Declaration declaration = fake_declaration(name);
    declare(declaration.capabilities);
    bench.backends.push_back(std::make_unique<FakeBackend>(declaration, std::move(tamper)));
    return static_cast<FakeBackend&>(*bench.backends.back());
  }

  Answers audit(Pass pass, const std::string& line = kCase, int64_t repeats = 4) {
    Request request{7, line, {}, true};
    request.audit_repeats = repeats;
    for (const auto& backend : bench.backends) request.runs.emplace_back(backend->declaration().name, pass);
    return run(request);
  }
  Answers race(Pass pass, int64_t repeats = 33) { return run(pass, kCase + fmt::format(" # repeats={} timed=no", repeats)); }
};

/// The emulator's bits do depend on the batch, whose sequences it pads to one matrix: that is nobody's promise here.
TEST_F(BitAuditTest, LooksAtEveryRelationOfEveryTensorAndFindsNoFlawWhereThereIsNone) {
  add_declared("honest", [](Capabilities& can) { can.invariant_to = {Relation::concurrency}; });
  for (const char* line : {"attention hq=4 hkv=2 d=16 lens=24+1+40 klens=17+64+33 layout=padded pad=holes",
                           "attention hq=2 d=16 lens=0+24+9 dtype=fp32 mask=causal"})
    for (const auto& [pass, tensors] :
         {std::pair{Pass::forward, std::vector{"o", "lse"}}, std::pair{Pass::backward, std::vector{"dq", "dk", "dv"}}}) {
      const Record r = audit(pass, line).records.at(0);
      EXPECT_EQ(r.status, Status::passed) << r.reason;
      EXPECT_EQ(r.invariance.size(), kRelations.size() * tensors.size());
      for (Relation relation : kRelations)
        for (const char* tensor : tensors) {
          const Invariance& i = entry(r, relation, tensor);
          const bool promised = relation == Relation::repeats || relation == Relation::concurrency;
          EXPECT_EQ(i.promised, promised) << name_of(relation);
          EXPECT_TRUE(!promised || i.outcome == Outcome::equal) << line << ": " << name_of(relation) << ": " << sentence_of(i);
          EXPECT_NE(i.outcome, Outcome::not_supported) << i.reason;
          EXPECT_GT(i.compared, 0);
          EXPECT_GT(i.elements, 0);
        }
      EXPECT_GE(entry(r, Relation::repeats, tensors.front()).compared, 4);
    }
}

TEST_F(BitAuditTest, WithoutAnAuditNothingIsHeldAgainstTheBits) {
  add("honest");
  EXPECT_TRUE(run(Pass::forward).records.at(0).invariance.empty());
}

/// Of the judged call, the mirrored one and 40 repeats it is repeat 35.
FakeBackend::Tamper in_call_37(const std::function<void(const at::Tensor&)>& change) {
  return [change](int call, const Inputs&, Outputs& outputs) {
    if (call == 37) change(outputs.o.defined() ? outputs.o : outputs.dv);
  };
}

TEST_F(BitAuditTest, OneCallInManyIsSeen) {
  add("wavers", in_call_37(change_last_bit));
  add_declared(
      "wavers, and says so", [](Capabilities& can) { can.deterministic = false; }, in_call_37(change_last_bit));
  const Answers answers = audit(Pass::forward, kCase, 40);
  const Record &promises = answers.records.at(0), &says_so = answers.records.at(1);
  EXPECT_EQ(promises.status, Status::failed);
  EXPECT_THAT(promises.reason, StartsWith("repeats: repeat 35 of 40: o differs in 1 of 3072 elements, first at [0,0,0,0]: "));
  EXPECT_THAT(promises.reason, HasSubstr("(at most 1 ulp); it declares that these bits are equal"));
  EXPECT_EQ(says_so.status, Status::passed) << says_so.reason;
  const Invariance& o = entry(says_so, Relation::repeats, "o");
  EXPECT_EQ(o.outcome, Outcome::differs);
  EXPECT_FALSE(o.promised);
  EXPECT_EQ(o.differing, 1);
  EXPECT_EQ(o.where, "repeat 35 of 40");
  EXPECT_NE(o.judged, o.got);
  EXPECT_EQ(entry(says_so, Relation::repeats, "lse").outcome, Outcome::equal);
}

TEST_F(BitAuditTest, OnlyTheTensorsThatAreDeclaredToVaryMay) {
  const auto dq_varies = [](Capabilities& can) {
    can.deterministic = false;
    can.varying = {"dq"};
  };
  const auto change = [](at::Tensor Outputs::*tensor) {
    return [tensor](int call, const Inputs&, Outputs& outputs) {
      if (call > 8 && (outputs.*tensor).defined()) change_last_bit(outputs.*tensor);
    };
  };
  add_declared("dq", dq_varies, change(&Outputs::dq));
  add_declared("dk", dq_varies, change(&Outputs::dk));
  for (const Answers& answers : {audit(Pass::backward), race(Pass::backward, 8)}) {
    EXPECT_EQ(answers.records.at(0).status, Status::passed) << answers.records.at(0).reason;
    EXPECT_EQ(entry(answers.records.at(0), Relation::repeats, "dq").outcome, Outcome::differs);
    EXPECT_EQ(answers.records.at(1).status, Status::failed);
    EXPECT_THAT(answers.records.at(1).reason, HasSubstr("dk differs in 1 of 1536 elements"));
  }
}

/// A flaw that shows in one relation and in no other.
struct Flaw {
  Relation relation;
  std::pair<Pass, const char*> shows_in;
  std::function<bool(const Inputs&)> shows;
};

TEST_F(BitAuditTest, EachRelationSeesItsOwnFlawAndAPromiseMakesItAFailure) {
  const int usual_threads = at::get_num_threads();
  const std::vector<Flaw> flaws{
      {Relation::alone, {Pass::backward, "dk"}, [](const Inputs& inputs) { return inputs.lengths.q.size() == 1; }},
      {Relation::order,
       {Pass::forward, "lse"},
       [](const Inputs& inputs) {
         return inputs.lengths.q == std::vector<int64_t>{40, 24};
       }},
      {Relation::packing, {Pass::backward, "dk"}, [](const Inputs& inputs) { return inputs.q.dim() == 4; }},
      {Relation::concurrency, {Pass::forward, "lse"}, [=](const Inputs&) { return at::get_num_threads() != usual_threads; }}};
  for (const Flaw& flaw : flaws) {
    const auto tamper = [flaw](int, const Inputs& inputs, Outputs& outputs) {
      if (flaw.shows(inputs)) change_last_bit(outputs.o.defined() ? outputs.lse : outputs.dk);
    };
    bench.backends.clear();
    add("says nothing", tamper);
    add_declared(
        "promises", [&](Capabilities& can) { can.invariant_to = {flaw.relation}; }, tamper);
    const auto& [pass, tensor] = flaw.shows_in;
    const Answers answers = audit(pass, "attention hq=4 hkv=2 d=16 lens=24+40 mask=causal");
    const Record &says_nothing = answers.records.at(0), &promises = answers.records.at(1);
    EXPECT_EQ(says_nothing.status, Status::passed) << says_nothing.reason;
    for (const Invariance& i : says_nothing.invariance)
      EXPECT_EQ(i.outcome == Outcome::differs, i.relation == flaw.relation && i.tensor == tensor)
          << name_of(flaw.relation) << ": " << name_of(i.relation) << ": " << sentence_of(i);
    EXPECT_EQ(promises.status, Status::failed) << name_of(flaw.relation);
    EXPECT_THAT(promises.reason, StartsWith(std::string(name_of(flaw.relation)) + ": "));
    EXPECT_THAT(promises.reason, HasSubstr(tensor + std::string(" differs in ")));
  }
}

TEST_F(BitAuditTest, SaysWhereInTheBatchItIs) {
  add("second alone", [](int, const Inputs& inputs, Outputs& outputs) {
    if (inputs.lengths.q == std::vector<int64_t>{40}) change_last_bit(outputs.o);
  });
  const Record r = audit(Pass::forward, "attention hq=4 hkv=2 d=16 lens=24+40 mask=causal").records.at(0);
  const Invariance& o = entry(r, Relation::alone, "o");
  EXPECT_EQ(o.changed, 1);
  EXPECT_EQ(o.first, (Element{1, 0, 0, 0}));
  EXPECT_EQ(o.max_ulp, 1);
}

TEST_F(BitAuditTest, WhatABackendDoesNotTakeIsNotSupported) {
  add_declared("packed only", [](Capabilities& can) { can.layouts = {Layout::packed}; });
  const Record r = audit(Pass::forward, "attention hq=2 d=16 lq=24").records.at(0);
  EXPECT_EQ(r.status, Status::passed) << r.reason;
  EXPECT_EQ(entry(r, Relation::alone, "o").reason, "the case has one sequence");
  const Invariance& packing = entry(r, Relation::packing, "lse");
  EXPECT_EQ(packing.outcome, Outcome::not_supported);
  EXPECT_THAT(packing.reason, HasSubstr("layout=padded"));
}

TEST_F(BitAuditTest, AnExceptionOnTheWayIsAnErrorAndTheNextBackendGoesOn) {
  add("throws when padded", [](int, const Inputs& inputs, Outputs&) {
    if (inputs.q.dim() == 4) throw std::runtime_error("no kernel for padding");
  });
  add("honest");
  const Answers answers = audit(Pass::forward);
  EXPECT_EQ(answers.records.at(0).status, Status::error);
  EXPECT_EQ(answers.records.at(0).reason, "no kernel for padding");
  EXPECT_EQ(answers.records.at(1).status, Status::passed);
}

TEST_F(BitAuditTest, AWrongBackendIsAuditedAndStaysWrong) {
  add("wrong", [](int, const Inputs&, Outputs& outputs) { change_exponent(outputs.o); });
  const Record r = audit(Pass::forward).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_THAT(r.reason, StartsWith("o: "));
  EXPECT_EQ(entry(r, Relation::repeats, "o").outcome, Outcome::equal);
}

TEST_F(BitAuditTest, ARaceOfAnHonestBackendPasses) {
  add("honest");
  for (Pass pass : {Pass::forward, Pass::backward}) {
    const Answers answers = race(pass);
    EXPECT_EQ(answers.records.at(0).status, Status::passed) << answers.records.at(0).reason;
    const Invariance& i = entry(answers.records.at(0), Relation::repeats, pass == Pass::forward ? "o" : "dq");
    EXPECT_TRUE(i.promised);
    EXPECT_GE(i.compared, 9);
    EXPECT_THAT(answers.stages, testing::Contains("honest repeat"));
  }
}

/// Of a race: repeats 1, 5, 9, … have the usual number of threads; call 35 is repeat 33.
TEST_F(BitAuditTest, ARaceFailsWithTheRepeatTheTensorTheElementAndBothValues) {
  add("wavers", [](int call, const Inputs&, Outputs& outputs) {
    if (call == 35) change_last_bit(outputs.o);
  });
  const Record r = race(Pass::forward).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_THAT(r.reason, StartsWith("repeat 33 of 33: o differs in 1 of 3072 elements, first at [0,0,0,0]: "));
  const Invariance& o = entry(r, Relation::repeats, "o");
  EXPECT_THAT(r.reason, HasSubstr(fmt::format("{:.9g}, was {:.9g} (at most 1 ulp); it declares", o.got, o.judged)));
}

TEST_F(BitAuditTest, ARaceNotesOtherBitsThatNobodyPromisedAndFailsWrongOnes) {
  const auto may_vary = [](Capabilities& can) { can.deterministic = false; };
  const auto from_call_7 = [](const std::function<void(const at::Tensor&)>& change, at::Tensor Outputs::*tensor) {
    return [=](int call, const Inputs&, Outputs& outputs) {
      if (call >= 7 && (outputs.*tensor).defined()) change(outputs.*tensor);
    };
  };
  const std::vector<std::pair<Pass, at::Tensor Outputs::*>> tensors{{Pass::forward, &Outputs::o},
                                                                    {Pass::forward, &Outputs::lse},
                                                                    {Pass::backward, &Outputs::dq},
                                                                    {Pass::backward, &Outputs::dk},
                                                                    {Pass::backward, &Outputs::dv}};
  for (const auto& [pass, tensor] : tensors) {
    bench.backends.clear();
    add_declared("varies", may_vary, from_call_7(change_last_bit, tensor));
    add_declared("is wrong now and then", may_vary,
                 from_call_7([](const at::Tensor& t) { bytes_of_tensor(t)[t.element_size() - 1] ^= 0x40; }, tensor));
    const Answers answers = race(pass, 8);
    EXPECT_EQ(answers.records.at(0).status, Status::passed) << answers.records.at(0).reason;
    EXPECT_TRUE(std::ranges::any_of(answers.records.at(0).invariance,
                                    [](const Invariance& i) { return i.outcome == Outcome::differs && i.differing > 1; }));
    EXPECT_EQ(answers.records.at(1).status, Status::failed);
    EXPECT_THAT(answers.records.at(1).reason, HasSubstr("differs in 1 of"));
    EXPECT_THAT(answers.records.at(1).reason, testing::MatchesRegex("repeat .*; .*limit.*"));
  }
}

/// From call 3 on: the judged and the mirrored one are as they should be. Zeros in what is held would equal zeros.
TEST_F(BitAuditTest, TheSameMemoryInEveryRepeatIsSeenAndWhatWasJudgedStays) {
  const auto kept_from_call_3 = [](int call, const Inputs&, Outputs& outputs) {
    static at::Tensor kept;
    if (call < 3) return;
    if (call == 3) kept = outputs.o;
    outputs.o = kept;
  };
  const auto writes_to_the_judged = [](int call, const Inputs&, Outputs& outputs) {
    static at::Tensor judged;
    if (call == 1) judged = outputs.o;
    if (call < 3) return;
    judged.zero_();
    outputs.o.zero_();
  };
  add("one tensor", kept_from_call_3);
  add("zeros", writes_to_the_judged);
  for (const Answers& answers : {race(Pass::forward), audit(Pass::forward)}) {
    EXPECT_EQ(answers.records.at(0).status, Status::failed);
    EXPECT_THAT(answers.records.at(0).reason, HasSubstr("repeat 2 of"));
    EXPECT_THAT(answers.records.at(0).reason, HasSubstr("o lies in the memory of o of the call before"));
    EXPECT_EQ(answers.records.at(1).status, Status::failed);
    EXPECT_THAT(answers.records.at(1).reason, HasSubstr("repeat 1 of"));
    EXPECT_THAT(answers.records.at(1).reason, HasSubstr("o differs in 3072 of 3072 elements"));
  }
}

TEST_F(BitAuditTest, AnElementThatOneCallDoesNotWriteIsSeen) {
  add_declared(
      "lazy now and then", [](Capabilities& can) { can.deterministic = false; },
      [](int call, const Inputs&, Outputs& outputs) {
        if (call == 20 && outputs.o.defined()) outputs.o = at::empty(outputs.o.sizes(), outputs.o.options());
      });
  const Record r = race(Pass::forward).records.at(0);
  EXPECT_EQ(r.status, Status::failed);
  EXPECT_THAT(r.reason, HasSubstr("o differs in 3072 of 3072 elements"));
  EXPECT_THAT(r.reason, HasSubstr("nan"));
}

TEST_F(BitAuditTest, MisconductInARepeatFails) {
  add("writes past", [](int call, const Inputs&, Outputs& outputs) {
    if (call == 20) bytes_of_tensor(outputs.o)[outputs.o.nbytes()] = 1;
  });
  add("vandal", [](int call, const Inputs& inputs, Outputs&) {
    if (call == 35) bytes_of_tensor(inputs.k)[3] ^= 1;  // the last of them
  });
  add("honest");
  const Answers answers = race(Pass::forward);
  EXPECT_THAT(answers.records.at(0).reason, HasSubstr("wrote 1 bytes past the end of a block"));
  EXPECT_EQ(answers.records.at(1).reason, "wrote to its input k when it was called again");
  EXPECT_EQ(answers.records.at(1).status, Status::failed);
  EXPECT_EQ(answers.records.at(2).status, Status::passed) << answers.records.at(2).reason;
}

TEST_F(BitAuditTest, TheNumberOfThreadsIsWhatItWas) {
  const int threads = at::get_num_threads();
  add("honest");
  race(Pass::forward);
  audit(Pass::backward);
  EXPECT_EQ(at::get_num_threads(), threads);
}

}  // namespace
}  // namespace attnbench
