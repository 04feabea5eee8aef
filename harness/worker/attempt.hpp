// One backend and one pass of one case, from `why_not` to the finished record.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "harness/worker/backend.hpp"
#include "harness/worker/bit_audit.hpp"
#include "harness/worker/case_data.hpp"
#include "harness/worker/measure.hpp"
#include "harness/worker/watched_run.hpp"

namespace attnbench {

class Attempt {
 public:
  /// `announce` is called before each step that may crash or hang: "prepare", "run", "judge", "time", ….
  Attempt(const Backend& backend, Pass pass, const Device& device, CaseData& data,
          std::function<void(const Attempt&, const char* stage)> announce);

  /// Asks why_not, prepares, runs watched and judges. Whatever the backend throws becomes an `error` record.
  void judge();

  /// Holds other calls and other ways to compute it against what was judged, bit by bit: Record::invariance. Where it breaks what
  /// the backend declares, the record fails.
  void audit(int64_t repeats);

  /// Writes what was given, computed and expected to a folder of `root` (dump.hpp), if something well-formed was computed.
  void dump(const std::filesystem::path& root);

  /// Nothing is run again: what the backend keeps for that, such as an autograd graph, is freed.
  void release() { run_.reset(); }

  /// It passed, its case is timed and expects equality: it may be measured.
  bool measurable() const;

  /// One for each window, in their order; they keep the outputs of their last call, and refer to this Attempt.
  std::vector<Operation> operations();

  /// What measure() said about operations(), in their order.
  void take_times(const std::vector<Measured>& measured, uint64_t order_seed);

  /// Judges the outputs of the last timed call of every window, and of a fresh watched run. A failure removes the time.
  void judge_again();

  /// Ends with this status and sentence, without a time.
  void end(Status status, std::string reason);

  /// Those that this backend is given.
  SealedInputs& inputs() const { return data_.inputs(backend_.declaration().conventions.poison); }
  const Record& record() const { return record_; }
  /// Of the judged run; undefined tensors where there was none.
  const Outputs& outputs() const { return outputs_; }

 private:
  void guarded(const std::function<void()>& step);
  void clean_up(Status status, const std::string& sentence);
  void prepare();
  void prepare_and_judge();
  bool fits(int64_t bytes, const char* what);
  Judge judge_for() const;
  Verdict judge_first();
  std::string wrong(const Outputs& outputs) const;
  std::string wrong(const Outputs& outputs, const std::vector<std::string>& same) const;
  void judge_mirrored();
  void judge_other_seed();
  bool is_computed() const;
  void hold_bits(const char* stage, const std::function<std::string(BitAudit&)>& body);
  void repeat();
  Outputs call_window(size_t window);
  void look_at_series(size_t window);
  void change_signs(size_t window);
  Outputs last_of_series(size_t window) const;
  NamedTensors held() const;

  const Backend& backend_;
  const Device& device_;
  CaseData& data_;
  std::function<void(const Attempt&, const char*)> announce_;
  Record record_;
  Inputs lent_;  ///< what the backend got; `run_` refers to it
  std::optional<Run> run_;
  Outputs outputs_;     ///< of the judged call: copies, which no later call can reach
  Outputs handed_out_;  ///< the tensors that the judged call returned: held, so that no later one gets their memory anew
  std::vector<std::string> repeats_;  ///< names of the outputs that a second call gave again, value by value

  /// The timed calls of a window. Each sample has other signs in the heads of V (forward) or dO (backward): who hands out what an
  /// earlier sample computed is seen, and who keeps results by the contents of the inputs computes anew.
  struct Series {
    Outputs last;  ///< of the last call, which had these signs
    SealedInputs::HeadSigns signs;
  };
  std::vector<Series> series_;  ///< by window
  std::string wrong_while_timed_;
  std::mt19937_64 random_signs_;
};

}  // namespace attnbench
