// A judged run computed again, in the same way and in others: which bits differ, and where (harness/run/invariance.hpp).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "harness/worker/backend.hpp"
#include "harness/worker/disturbance.hpp"
#include "harness/worker/sealed_inputs.hpp"
#include "harness/worker/verdict_statistics.hpp"

namespace attnbench {

/// What other results are held against: one backend and pass of one case. Everything outlives the audit.
struct JudgedRun {
  const Backend& backend;
  const Device& device;
  const Case& c;
  Pass pass;
  SealedInputs& inputs;
  const Run& run;
  const Outputs& outputs;  ///< of the judged call, well-formed
  NamedTensors held;       ///< in whose memory no call may return an output
};

class BitAudit {
 public:
  /// `announce` is called before whatever may crash or hang, at most about once a second.
  BitAudit(const JudgedRun& judged, std::function<void()> announce) : judged_(judged), announce_(std::move(announce)) {}

  /// What speaks against the outputs of a call in which one tensor's bits differ as `difference` says; empty: nothing does.
  using Objection = std::function<std::string(const Invariance& difference, const Outputs& outputs)>;

  /// As many calls, each into fresh memory full of NaN, in the conditions of `disturbance` (null: as they are). Compared where
  /// the outputs are. Ends with the first objection, or an output in memory that is held, and returns it.
  std::string repeat(int64_t calls, Disturbance* disturbance, const Objection& objection);

  /// The relations alone, order and packing. An exception of the backend passes through.
  void regroup();

  /// One entry for each relation that was looked at and each tensor of the pass that the backend computes.
  const std::vector<Invariance>& results() const { return results_; }

 private:
  struct Audited;
  static const std::vector<Audited>& tensors();

  bool is_computed(const Audited& t) const;
  TokenShape shape(const Audited& t) const;
  at::Tensor tokens(const Audited& t, const Outputs& outputs, const Inputs& inputs) const;
  Invariance& result(Relation relation, const Audited& t);
  Invariance note(Relation relation, const Audited& t, const std::string& where, const at::Tensor& got);
  void note_equal(Relation relation, const Audited& t);
  std::string compare_call(const Disturbance::Condition& condition, const std::string& where, const Outputs& outputs,
                           const Objection& objection);
  void regroup_as(Relation relation, const std::vector<std::vector<int64_t>>& groups, Layout layout);
  void leave_out(Relation relation, const std::string& reason);
  void announce_if_due();

  const JudgedRun judged_;
  const std::function<void()> announce_;
  double announced_s_ = 0;
  std::vector<Invariance> results_;
};

}  // namespace attnbench
