#include "harness/run/gate.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace attnbench {
namespace {

Record record_on(const std::string& device, Status status) {
  Record record;
  record.case_line = "attention d=64 dtype=fp32 lq=8";
  record.backend = "flash_varlen";
  record.device = device;
  record.status = status;
  if (device != "cpu") record.sm = 90;
  return record;
}

Declaration declared(const std::string& device, std::vector<Dtype> dtypes) {
  Declaration declaration;
  declaration.name = "flash_varlen";
  declaration.ours = true;
  declaration.capabilities.devices = {device};
  declaration.capabilities.dtypes = std::move(dtypes);
  declaration.capabilities.passes = {Pass::forward};
  declaration.capabilities.layouts = {Layout::packed};
  declaration.capabilities.masks = {Mask::none};
  declaration.capabilities.aligns = {Align::bottom_right};
  declaration.capabilities.strides = {Strides::contiguous};
  return declaration;
}

/// A merged run of a CPU and of a GPU: flash_varlen takes float32 on the one and not on the other.
TEST(Gate, AsksWhatWasDeclaredForTheDeviceOfTheRecord) {
  RunData run;
  run.gated = {"flash_varlen"};
  run.backends["cuda"] = {declared("cuda", {Dtype::bf16})};
  run.backends["cpu"] = {declared("cpu", {Dtype::bf16, Dtype::fp32})};
  run.records = {record_on("cpu", Status::passed), record_on("cuda:0", Status::unsupported)};
  EXPECT_EQ(apply_gate(run).exit_code, kExitOk) << apply_gate(run).sentence;
  run.records.push_back(record_on("cpu", Status::unsupported));
  EXPECT_EQ(apply_gate(run).exit_code, kExitGate) << apply_gate(run).sentence;
}

/// switch= in hf_eager: nothing that a declaration says. Of a backend of attention the same is red.
TEST(Gate, LeavesOutWhatALayerDeclines) {
  RunData run;
  run.gated = {"flash_varlen"};
  run.backends["cpu"] = {declared("cpu", {Dtype::fp32})};
  run.records = {record_on("cpu", Status::passed), record_on("cpu", Status::unsupported)};
  EXPECT_EQ(apply_gate(run).exit_code, kExitGate) << apply_gate(run).sentence;
  run.backends["cpu"].front().operation = "llama";
  EXPECT_EQ(apply_gate(run).exit_code, kExitOk) << apply_gate(run).sentence;
}

/// Red results of backends that are not ours: nobody asked that they decide nothing.
TEST(Gate, WithoutABackendOfOursNothingThatIsJudgedIsGated) {
  RunData run;
  run.backends["cpu"] = {declared("cpu", {Dtype::fp32})};
  run.records = {record_on("cpu", Status::failed), record_on("cpu", Status::passed)};
  const GateResult result = apply_gate(run);
  EXPECT_EQ(result.exit_code, kExitInfrastructure) << result.sentence;
  EXPECT_EQ(
      result.sentence,
      "too little evidence: nothing that was judged is gated (--gate NAME gates other backends): 0 judged, 0 red, 1 finding "
      "in others; no backend is gated");
  run.gates_nothing = true;
  EXPECT_EQ(apply_gate(run).exit_code, kExitOk);
  EXPECT_EQ(apply_gate(run).sentence, "passed: 2 judged, 0 red, 1 finding in others; no backend is gated");
}

TEST(Gate, SaysHowManyGatedResultsWereSkipped) {
  RunData run;
  run.gated = {"flash_varlen"};
  run.backends["cpu"] = {declared("cpu", {Dtype::fp32})};
  run.records = {record_on("cpu", Status::passed), record_on("cpu", Status::skipped), record_on("cpu", Status::skipped)};
  run.records.push_back(run.records.back());
  run.records.back().backend = "eager";
  EXPECT_EQ(apply_gate(run).sentence, "passed: 1 judged, 2 skipped, 0 red, 0 findings in others; gated: flash_varlen");
  EXPECT_EQ(apply_gate(run).exit_code, kExitOk);
}

TEST(Gate, APlantedDefectThatCannotShowBreaksNoDeclaration) {
  Declaration planted = declared("cpu", {Dtype::fp32});
  planted.name = "flash_varlen:last_key_dropped";
  Record record = record_on("cpu", Status::unsupported);
  EXPECT_TRUE(is_red(record, {declared("cpu", {Dtype::fp32}), planted}));
  record.backend = planted.name;
  EXPECT_FALSE(is_red(record, {declared("cpu", {Dtype::fp32}), planted}));
  record.status = Status::failed;
  EXPECT_TRUE(is_red(record, {declared("cpu", {Dtype::fp32}), planted}));
}

/// A run whose real backend passed, with one canary, whose two passes ended so.
GateResult gate_of_canary(Status forward, Status backward) {
  RunData run;
  run.gated = {"flash_varlen"};
  run.backends["cpu"] = {declared("cpu", {Dtype::fp32})};
  run.records = {record_on("cpu", Status::passed)};
  for (const auto& [pass, status] : {std::pair(Pass::forward, forward), std::pair(Pass::backward, backward)}) {
    Record canary = record_on("cpu", status);
    canary.backend = "flash_varlen:last_key_dropped";
    canary.pass = pass;
    canary.reason = fmt::format("so it {}", name_of(status));
    canary.repro = "attnbench --canary";
    run.canaries.push_back(canary);
  }
  return apply_gate(run);
}

TEST(Gate, ACanaryIsCaughtByAFailedPassAlone) {
  for (Status other : {Status::failed, Status::passed, Status::error, Status::skipped, Status::unsupported}) {
    const GateResult result = gate_of_canary(other, Status::failed);
    EXPECT_EQ(result.exit_code, kExitOk) << result.sentence;
    EXPECT_NE(result.sentence.find("1 of 1 canaries caught"), std::string::npos) << result.sentence;
  }
  for (Status missed : {Status::error, Status::skipped, Status::unsupported}) {
    const GateResult result = gate_of_canary(missed, Status::skipped);
    EXPECT_EQ(result.exit_code, kExitGate) << result.sentence;
    const std::string why = fmt::format(
        "FAILED: canary flash_varlen:last_key_dropped was not judged: so it {}; attnbench --canary: ", name_of(missed));
    EXPECT_TRUE(result.sentence.starts_with(why)) << result.sentence;
    EXPECT_NE(result.sentence.find("0 of 1 canaries caught"), std::string::npos) << result.sentence;
  }
  for (Status missed : {Status::passed, Status::mistrusted})
    EXPECT_EQ(gate_of_canary(missed, Status::error).exit_code, kExitGate);
}

}  // namespace
}  // namespace attnbench
