#include "harness/worker/attempt.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <fstream>

#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include "harness/attention/flops.hpp"
#include "harness/attention/tokens.hpp"
#include "harness/worker/bits.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/dropout_gates.hpp"
#include "harness/worker/dump.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/process_state.hpp"
#include "harness/worker/run_case.hpp"
#include "harness/worker/sentence.hpp"
#include "harness/worker/spending.hpp"
#include "harness/worker/verdict_report.hpp"
#include "harness/worker/z_gate.hpp"

namespace attnbench {

namespace {

/// The names of the tensors of `a` that have the same values in `b`.
std::vector<std::string> repeated(const Outputs& a, const Outputs& b) {
  const NamedTensors ours = named_tensors(a), theirs = named_tensors(b);
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs;
  for (size_t i = 0; i < std::min(ours.size(), theirs.size()); ++i) pairs.emplace_back(ours[i].second, theirs[i].second);
  const std::vector<bool> same = same_values(pairs);
  std::vector<std::string> names;
  for (size_t i = 0; i < same.size(); ++i)
    if (same[i] && ours[i].first == theirs[i].first) names.push_back(ours[i].first);
  return names;
}

/// Another value than the oracle's; a missing, misshaped or non-finite output is no difference that a case may expect.
bool differs_in_value(const Verdict& verdict) {
  if (verdict.malformed) return false;
  for (const auto& [tensor, errors] : verdict.errors)
    if (const auto gate = errors.gates.find("nonfinite");
        gate != errors.gates.end() && gate->second.verdict == Gate::Verdict::fail)
      return false;
  return true;
}

/// What a verdict means for a case that expects equality or, on purpose, a difference.
void settle(Record& record, const Verdict& verdict) {
  record.errors = verdict.errors;
  record.status = verdict.status;
  record.reason = verdict.reason;
  if (record.expect != Expect::must_differ || verdict.status == Status::mistrusted) return;
  const bool differs = verdict.status == Status::failed && differs_in_value(verdict);
  record.status = differs ? Status::passed : Status::failed;
  record.reason =
      differs ? "differs, as the case expects: " + verdict.reason
              : "the case expects it to differ, and it does not in value" + (verdict.reason.empty() ? "" : ": " + verdict.reason);
}

/// Rows of packed tokens at the storage rows of a padded case, zeros elsewhere; `like` has the padded leading dimensions.
at::Tensor padded(const at::Tensor& packed, const at::Tensor& like, const std::vector<int64_t>& rows) {
  if (!packed.defined()) return packed;
  std::vector<int64_t> flat = packed.sizes().vec(), sizes = {like.size(0), like.size(1)};
  flat[0] = like.size(0) * like.size(1);
  sizes.insert(sizes.end(), flat.begin() + 1, flat.end());
  return at::zeros(flat, packed.options()).index_copy_(0, to_tensor(rows, packed.device()), packed).view(sizes);
}

/// What the window of a packed operation computed for a padded case, as the judge wants it.
Outputs in_case_layout(const Outputs& packed, const Inputs& inputs) {
  return {.o = padded(packed.o, inputs.q, inputs.q_rows),
          .lse = padded(packed.lse, inputs.q, inputs.q_rows),
          .dq = padded(packed.dq, inputs.q, inputs.q_rows),
          .dk = padded(packed.dk, inputs.k, inputs.k_rows),
          .dv = padded(packed.dv, inputs.v, inputs.k_rows),
          .kept = {}};  // no window of a packed operation drops
}

/// The timing of this regime among `timings`, made where it is missing.
Timing& timing_in(std::vector<Timing>& timings, const std::string& regime) {
  const auto found = std::find_if(timings.begin(), timings.end(), [&](const Timing& timing) { return timing.regime == regime; });
  if (found != timings.end()) return *found;
  timings.emplace_back().regime = regime;
  return timings.back();
}

double gib(int64_t bytes) {
  return double(bytes) / double(int64_t(1) << 30);
}

void add(Spending& sum, const Spending& more) {
  for (const auto& [name, item] : more.items) {
    sum.items[name].seconds += item.seconds;
    sum.items[name].times += item.times;
  }
  if (more.fastest_call_s > 0)
    sum.fastest_call_s = sum.fastest_call_s > 0 ? std::min(sum.fastest_call_s, more.fastest_call_s) : more.fastest_call_s;
}

/// In memory that no backend knows.
Outputs copies_of(Outputs outputs) {
  for (at::Tensor* tensor : {&outputs.o, &outputs.lse, &outputs.dq, &outputs.dk, &outputs.dv, &outputs.kept})
    if (tensor->defined()) *tensor = tensor->clone();
  return outputs;
}

}  // namespace

Attempt::Attempt(const Backend& backend, Pass pass, const Device& device, CaseData& data,
                 std::function<void(const Attempt&, const char*)> announce)
    : backend_(backend),
      device_(device),
      data_(data),
      announce_(std::move(announce)),
      record_(record_of(backend.declaration(), data.test_case(), pass, device)) {}

void Attempt::guarded(const std::function<void()>& step) {
  take_spending();  // what was spent on nobody's account, while times were taken
  const auto start = std::chrono::steady_clock::now();
  try {
    step();
  } catch (const c10::OutOfMemoryError& e) {
    // Twice what it said that it needs is there: this is no case that is too large for the device.
    const bool was_there = run_ && run_->predicted_bytes < available_bytes(device_) / 2;
    clean_up(was_there ? Status::error : Status::skipped, "ran out of memory: " + sentence_of(e));
  } catch (const std::exception& e) {
    clean_up(Status::error, sentence_of(e));
  } catch (...) {
    clean_up(Status::error, "threw something that is no std::exception");
  }
  record_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  add(record_.spent, take_spending());
}

/// After an exception, before which it may have written where it must not.
void Attempt::clean_up(Status status, const std::string& sentence) {
  check_context(device_);
  data_.restore_inputs();
  const std::vector<Overrun> overruns = take_overruns();
  if (overruns.empty()) return end(status, sentence);
  end(Status::error, fmt::format("{}, then: {}", describe(overruns.front()), sentence));
}

void Attempt::end(Status status, std::string reason) {
  record_.status = status;
  record_.reason = std::move(reason);
  record_.time.reset();
  record_.other_regimes.clear();
}

bool Attempt::fits(int64_t bytes, const char* what) {
  const int64_t available = available_bytes(device_);
  if (bytes <= available) return true;
  end(Status::skipped, fmt::format("needs {:.1f} GiB for {}, {:.1f} GiB free", gib(bytes), what, gib(available)));
  return false;
}

void Attempt::judge() {
  guarded([this] { prepare_and_judge(); });
  if (record_.expect != Expect::must_throw) return;
  if (record_.status == Status::error) {
    record_.status = Status::passed;
    record_.reason = "throws, as the case expects: " + record_.reason;
  } else if (record_.status == Status::passed) {
    end(Status::failed, "computed a result, and the case expects it to throw");
  }
}

void Attempt::prepare() {
  const MemoryScope checked(MemoryMode::checked);  // buffers that the backend keeps are guarded too
  take_overruns();
  const ProcessState state;
  lent_ = inputs().lend();
  run_ = backend_.prepare(data_.test_case(), lent_, record_.pass);
  record_.kernels = run_->kernel;
  if (const std::string left = state.restore(); !left.empty()) end(Status::failed, left + " after it prepared the case");
  if (const auto overruns = take_overruns(); !overruns.empty())
    end(Status::failed, describe(overruns.front()) + " while it prepared the case");
}

void Attempt::prepare_and_judge() {
  if (const auto why = backend_.why_not(data_.test_case(), record_.pass, device_)) return end(Status::unsupported, *why);
  if (!fits(data_.predicted_bytes(), "inputs and oracle")) return;
  announce_(*this, "prepare");
  prepare();
  if (record_.status == Status::failed) return;
  if (!fits(run_->predicted_bytes, "the pass")) return;
  announce_(*this, "run");
  WatchedRun watched = run_watched(*run_, record_.pass, inputs());
  announce_(*this, "judge");
  handed_out_ = std::move(watched.handed_out);
  outputs_ = copies_of(handed_out_);
  record_.memory = watched.memory;
  if (record_.expect == Expect::must_throw) return;
  record_.oracle = name_of(oracle_for(backend_.declaration(), data_.test_case(), device_));
  settle(record_, judge_first());
  if (watched.misconduct.empty()) watched.misconduct = borrowed(handed_out_, named_tensors(inputs().get()));
  if (!watched.misconduct.empty()) return end(Status::failed, watched.misconduct);
  if (record_.status == Status::passed && record_.expect == Expect::equal) judge_mirrored();
  if (record_.status == Status::passed && record_.expect == Expect::equal && outputs_.kept.defined()) judge_other_seed();
  if (record_.status == Status::passed && record_.expect == Expect::equal && data_.test_case().metadata.repeats > 0) repeat();
}

/// By the mask that it handed out, if the case drops: without one nothing can be judged.
Verdict Attempt::judge_first() {
  const Case& c = data_.test_case();
  Verdict verdict;
  const auto malformed = malformed_mask(c, inputs().get(), outputs_.kept);
  if (malformed) {
    fail_malformed(verdict, *malformed);
    return verdict;
  }
  verdict = judge_for().judge(outputs_, record_.pass);
  if (outputs_.kept.defined() && !at::equal(data_.first_mask(record_.backend, outputs_.kept), outputs_.kept))
    fail(verdict, "kept: the mask of its other pass is another one, with the same seed");
  return verdict;
}

/// It was judged, whatever the verdict: all tensors of the pass are there and well-formed.
bool Attempt::is_computed() const {
  return record_.errors.count("o") > 0 && (record_.pass == Pass::forward || record_.errors.count("dv") > 0);
}

void Attempt::dump(const std::filesystem::path& root) {
  if (!is_computed()) return;
  try {
    const std::filesystem::path folder = root / folder_of_case(record_.case_line);
    const bool holds_nan = backend_.declaration().conventions.poison == Conventions::Poison::nan;
    dump_inputs(inputs().get(), folder / (holds_nan ? "inputs-nan" : "inputs-finite"));
    const Judge judge = judge_for();
    dump_outputs(outputs_, record_.pass, judge.yardstick(),
                 folder / fmt::format("{}-{}", record_.backend, name_of(record_.pass)));
    std::ofstream(folder / "case.txt") << record_.case_line << '\n';
  } catch (const std::exception& e) {
    end(Status::error, fmt::format("--dump: {}", sentence_of(e)));
  }
}

/// The second call, on other inputs: who hands out what an earlier call left is seen, timed or not.
void Attempt::judge_mirrored() {
  announce_(*this, "run again");
  const WatchedRun mirrored = run_watched(*run_, record_.pass, inputs(), Call::mirrored);
  repeats_ = repeated(outputs_, mirrored.outputs);
  std::string reason = mirrored.misconduct.empty() ? wrong(mirrored.outputs, repeats_) : mirrored.misconduct;
  if (reason.empty()) reason = borrowed(mirrored.handed_out, held());
  if (!reason.empty())
    end(Status::failed, fmt::format("called again with {}: {}", mirror_of(inputs().get(), record_.pass), reason));
}

/// The forward of the same case with another seed: its mask has to be another one.
void Attempt::judge_other_seed() {
  announce_(*this, "run with another seed");
  Case other = data_.test_case();
  ++other.problem.dropout.seed;
  const Inputs lent = inputs().lend();
  const Run run = backend_.prepare(other, lent, Pass::forward);
  const at::Tensor kept = run_unwatched(run, Pass::forward, inputs(), Call::plain).kept;
  if (const auto malformed = malformed_mask(other, inputs().get(), kept)) return end(Status::failed, *malformed);
  const Judge judge = judge_for();
  const Yardstick& y = judge.yardstick();
  const double false_alarms = y.limits("o").constants().false_alarms;
  if (const std::string reason = seed_says_nothing(other, y.inputs(), kept, y.empty_row(), false_alarms); !reason.empty())
    end(Status::failed, reason);
}

/// Runs `body`, which returns what is wrong, and looks at what the calls did to memory and process.
void Attempt::hold_bits(const char* stage, const std::function<std::string(BitAudit&)>& body) {
  announce_(*this, stage);
  take_overruns();
  const ProcessState state;
  BitAudit audit({backend_, device_, data_.test_case(), record_.pass, inputs(), *run_, outputs_, held()},
                 [this, stage] { announce_(*this, stage); });
  std::string reason = body(audit);
  record_.invariance = audit.results();
  if (const std::string left = state.restore(); !left.empty()) reason = left + " when it was called again";
  if (const auto overruns = take_overruns(); !overruns.empty()) reason = describe(overruns.front()) + " when it was called again";
  if (const std::string overwritten = inputs().overwritten(); !overwritten.empty()) {
    reason = "wrote to its input " + overwritten + " when it was called again";
    inputs().restore();
  }
  if (!reason.empty() && record_.status == Status::passed) end(Status::failed, reason);
}

/// Of a case with repeats: other bits than promised are wrong; others are noted, unless a gate fails.
void Attempt::repeat() {
  hold_bits("repeat", [this](BitAudit& audit) {
    const Judge judge = judge_for();
    const auto disturbance = make_disturbance(device_);
    return audit.repeat(data_.test_case().metadata.repeats, disturbance.get(),
                        [&](const Invariance& difference, const Outputs& outputs) -> std::string {
                          const std::string found = fmt::format("{}: {}", difference.where, sentence_of(difference));
                          if (difference.promised) return found + "; it declares that its bits repeat";
                          if (within_z_limit(judge.yardstick(), difference.tensor, outputs)) return "";
                          const std::string reason = wrong(outputs);
                          return reason.empty() ? "" : fmt::format("{}; {}", found, reason);
                        });
  });
}

void Attempt::audit(int64_t repeats) {
  if (!run_ || !is_computed() || record_.expect != Expect::equal) return;
  constexpr int64_t kDisturbedRepeats = 8;  // on a CPU twice each number of threads
  guarded([&] {
    hold_bits("audit", [&](BitAudit& audit) -> std::string {
      if (std::string reason = audit.repeat(repeats, nullptr, {}); !reason.empty()) return reason;
      if (std::string reason = audit.repeat(kDisturbedRepeats, make_disturbance(device_).get(), {}); !reason.empty())
        return reason;
      audit.regroup();
      for (const Invariance& i : audit.results())
        if (i.promised && i.outcome == Invariance::Outcome::differs)
          return fmt::format("{}: {}{}{}; it declares that these bits are equal", name_of(i.relation), i.where,
                             i.where.empty() ? "" : ": ", sentence_of(i));
      return "";
    });
  });
}

Judge Attempt::judge_for() const {
  const Declaration& declaration = backend_.declaration();
  return data_.judge(run_->profile, declaration.conventions, oracle_for(declaration, data_.test_case(), device_), outputs_.kept);
}

bool Attempt::measurable() const {
  return record_.status == Status::passed && record_.expect == Expect::equal && data_.test_case().metadata.timed;
}

/// One timed call: the forward, or the backward of the forward that the first call has made.
Outputs Attempt::call_window(size_t index) {
  const Window& window = run_->windows[index];
  if (record_.pass == Pass::forward) return window.forward();
  Outputs outputs = series_[index].last.o.defined() ? series_[index].last : window.forward();
  const Outputs gradients = window.backward();
  outputs.dq = gradients.dq;
  outputs.dk = gradients.dk;
  outputs.dv = gradients.dv;
  return outputs;
}

/// What the last call of a window's last series would have computed on the inputs as drawn, in the case's layout.
Outputs Attempt::last_of_series(size_t index) const {
  const auto& [last, signs] = series_[index];
  const bool is_forward = record_.pass == Pass::forward;
  const Outputs outputs = is_forward ? without_signs(last, signs, {}) : without_signs(last, {}, signs);
  return index + 1 == series_.size() ? outputs : in_case_layout(outputs, inputs().get());
}

/// The series that ended: an output that used to repeat and did not is judged.
void Attempt::look_at_series(size_t index) {
  if (!series_[index].last.o.defined() || !wrong_while_timed_.empty()) return;
  const Outputs last = last_of_series(index);
  const std::vector<std::string> again = repeated(outputs_, last);
  const bool as_before =
      std::ranges::all_of(repeats_, [&](const std::string& name) { return std::ranges::find(again, name) != again.end(); });
  if (as_before) return;
  if (const std::string reason = wrong(last, again); !reason.empty())
    wrong_while_timed_ = fmt::format("a timed call of {} gave another result: {}", run_->windows[index].name, reason);
  repeats_ = again;
}

/// Gives V or dO other signs than the sample before had.
void Attempt::change_signs(size_t index) {
  SealedInputs::HeadSigns signs(size_t(data_.test_case().problem.hkv));
  const bool share_memory = inputs().get().v.stride(-2) == 0;
  do {
    for (size_t head = 0; head < signs.size(); ++head) signs[head] = random_signs_() & 1;
    if (share_memory) signs.assign(signs.size(), signs.front());
  } while (signs == series_[index].signs);
  const bool is_forward = record_.pass == Pass::forward;
  inputs().negate_heads(is_forward ? signs : SealedInputs::HeadSigns(), is_forward ? SealedInputs::HeadSigns() : signs);
  series_[index].signs = std::move(signs);
  if (run_->windows[index].refresh) run_->windows[index].refresh();
}

std::vector<Operation> Attempt::operations() {
  series_.assign(run_->windows.size(), {});
  std::vector<Operation> operations;
  for (size_t i = 0; i < run_->windows.size(); ++i)
    operations.push_back({fmt::format("{} {} {}", record_.backend, name_of(record_.pass), run_->windows[i].name),
                          [this, i] { series_[i].last = call_window(i); },
                          [this, i] {
                            announce_(*this, "time");
                            look_at_series(i);
                          },
                          i == 0, [this, i] { change_signs(i); }});
  return operations;
}

void Attempt::take_times(const std::vector<Measured>& measured, uint64_t order_seed) {
  std::vector<Timing> timings;  // in the order of the first window, which is in every regime
  for (size_t i = 0; i < measured.size(); ++i) {
    const Measured& m = measured[i];
    if (!m.error.empty()) return end(m.out_of_memory ? Status::skipped : Status::error, "while it was timed: " + m.error);
    for (const auto& [regime, time] : measured[i].times) timing_in(timings, regime).windows[run_->windows[i].name] = time;
  }
  const Problem& p = data_.test_case().problem;
  const SequenceLengths& lengths = inputs().get().lengths;
  for (Timing& timing : timings) {
    const double picoseconds = 1e6 * timing.windows.at(run_->windows.front().name).median_us;  // the operation alone
    timing.tflops = exact_flops(p, lengths, record_.pass) / picoseconds;
    timing.tflops_paper = paper_flops(p, lengths, record_.pass) / picoseconds;
    timing.order_seed = order_seed;
  }
  record_.time = std::move(timings.front());
  record_.other_regimes.assign(std::next(timings.begin()), timings.end());
}

/// What was handed to the backend or by it, and is held: no later call may return memory of these.
NamedTensors Attempt::held() const {
  NamedTensors tensors = named_tensors(inputs().get());
  for (const auto& [name, tensor] : named_tensors(handed_out_)) tensors.emplace_back(name + " of an earlier call", tensor);
  return tensors;
}

/// Why `outputs` are not right; empty: they are. Those that equal the judged ones need no new judgement.
std::string Attempt::wrong(const Outputs& outputs) const {
  return wrong(outputs, repeated(outputs_, outputs));
}

/// same: the names of those that equal the judged ones.
std::string Attempt::wrong(const Outputs& outputs, const std::vector<std::string>& same) const {
  if (same.size() == named_tensors(outputs_).size() && same.size() == named_tensors(outputs).size()) return "";
  const Verdict verdict = judge_for().judge(outputs, record_.pass);
  return verdict.status == Status::passed ? "" : verdict.reason;
}

void Attempt::judge_again() {
  guarded([this] {
    NamedTensors earlier = held();
    if (!wrong_while_timed_.empty()) return end(Status::failed, wrong_while_timed_);
    for (size_t i = 0; i < series_.size(); ++i) {
      if (const std::string found = borrowed(series_[i].last, earlier); !found.empty())
        return end(Status::failed, fmt::format("the last timed call of {}: {}", run_->windows[i].name, found));
      const std::string timed = wrong(last_of_series(i));
      if (timed.empty()) continue;
      return end(Status::failed, fmt::format("the last timed call of {} gave another result: {}", run_->windows[i].name, timed));
    }
    for (const Series& series : series_)
      for (const auto& [name, tensor] : named_tensors(series.last)) earlier.emplace_back(name + " of a timed call", tensor);
    announce_(*this, "run after timing");
    const WatchedRun again = run_watched(*run_, record_.pass, inputs());
    std::string reason = again.misconduct.empty() ? wrong(again.outputs) : again.misconduct;
    if (reason.empty()) reason = borrowed(again.handed_out, earlier);
    if (!reason.empty()) return end(Status::failed, "judged again after timing: " + reason);
    if (backend_.declaration().capabilities.deterministic && !same_bits(again.outputs, outputs_))
      return end(Status::failed, "declares that it is deterministic, and gave other bits when it was judged again after timing");
    const std::string mirrored = wrong(run_unwatched(*run_, record_.pass, inputs(), Call::mirrored));
    if (!mirrored.empty())
      end(Status::failed,
          fmt::format("called again after timing with {}: {}", mirror_of(inputs().get(), record_.pass), mirrored));
  });
}

}  // namespace attnbench
