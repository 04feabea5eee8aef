#include "harness/worker/run_case.hpp"

#include <deque>
#include <optional>

#include <fmt/format.h>

#include "harness/run/planted.hpp"
#include "harness/worker/attempt.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/llama_case.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/process_state.hpp"
#include "harness/worker/training_case.hpp"

namespace attnbench {

namespace {

const Backend* find_backend(const Bench& bench, const std::string& name) {
  for (const auto& backend : bench.backends)
    if (backend->declaration().name == name) return backend.get();
  return nullptr;
}

std::string unknown_backend(const Bench& bench, const std::string& name) {
  std::string known;
  for (const auto& backend : bench.backends) known += (known.empty() ? "" : ", ") + backend->declaration().name;
  return fmt::format("this worker has no backend '{}'; it has: {}", name, known);
}

/// What some timed call did to memory that is not its own; the inputs are as drawn again. Empty: nothing.
std::string misconduct_while_timed(CaseData& data) {
  const std::vector<Overrun> overruns = take_overruns();
  const std::string overwritten = data.restore_inputs();
  if (!overwritten.empty()) return "input " + overwritten + " was overwritten by one of the backends timed together";
  if (overruns.empty()) return "";
  return "one of the backends timed together " + describe(overruns.front());
}

/// Times all of them interleaved, then judges each again.
void measure_all(const std::vector<Attempt*>& attempts, CaseData& data, const Bench& bench, uint64_t order_seed) {
  std::vector<Operation> operations;
  std::vector<size_t> first;
  for (Attempt* attempt : attempts) {
    first.push_back(operations.size());
    for (Operation& operation : attempt->operations()) operations.push_back(std::move(operation));
  }
  first.push_back(operations.size());
  MeasureOptions options = bench.measuring;
  options.order_seed = order_seed;
  options.cooled = data.test_case().metadata.cooled;
  const ProcessState state;
  const std::vector<Measured> measured = measure(operations, options, bench.device);
  check_context(bench.device);
  std::string misconduct = misconduct_while_timed(data);
  if (const std::string left = state.restore(); misconduct.empty() && !left.empty())
    misconduct = "one of the backends timed together " + left;
  for (size_t i = 0; i < attempts.size(); ++i) {
    attempts[i]->take_times({measured.begin() + first[i], measured.begin() + first[i + 1]}, options.order_seed);
    if (attempts[i]->record().status == Status::passed) attempts[i]->judge_again();
    if (attempts[i]->record().status == Status::passed && !misconduct.empty()) attempts[i]->end(Status::failed, misconduct);
  }
}

struct ComparedTensor {
  const char* name;
  Pass pass;
  at::Tensor Outputs::*tensor;
};
constexpr ComparedTensor kCompared[] = {{"o", Pass::forward, &Outputs::o},
                                        {"lse", Pass::forward, &Outputs::lse},
                                        {"dq", Pass::backward, &Outputs::dq},
                                        {"dk", Pass::backward, &Outputs::dk},
                                        {"dv", Pass::backward, &Outputs::dv}};

/// Every pair of real backends that computed this pass; tensors that were not judged (malformed, missing) are left out. Where
/// each drops by a mask of its own their results have to differ.
void compare(const std::deque<Attempt>& attempts, Pass pass, const Case& c, const Replies& replies) {
  if (c.problem.dropout.p > 0) return;
  Comparison comparison;
  comparison.case_line = format_case(c);
  comparison.pass = pass;
  for (const ComparedTensor& compared : kCompared) {
    if (compared.pass != pass) continue;
    std::vector<const Attempt*> judged;
    std::vector<at::Tensor> outputs;
    for (const Attempt& attempt : attempts) {
      const Record& record = attempt.record();
      if (record.pass != pass || record.errors.count(compared.name) == 0 || is_planted(record.backend)) continue;
      judged.push_back(&attempt);
      outputs.push_back(attempt.outputs().*compared.tensor);
    }
    if (judged.size() < 2) continue;
    std::vector<Difference> differences = compare_outputs(c, judged.front()->inputs().get(), compared.name, outputs);
    auto next = differences.begin();
    for (size_t a = 0; a < judged.size(); ++a)
      for (size_t b = a + 1; b < judged.size(); ++b, ++next) {
        next->a = judged[a]->record().backend;
        next->b = judged[b]->record().backend;
      }
    comparison.differences.insert(comparison.differences.end(), differences.begin(), differences.end());
  }
  if (!comparison.differences.empty()) replies.comparison(comparison);
}

}  // namespace

Record record_of(const Declaration& declaration, const Case& c, Pass pass, const Device& device) {
  Record record;
  record.case_line = format_case(c);
  record.name = c.metadata.name;
  record.expect = c.metadata.expect;
  record.backend = declaration.name;
  record.version = declaration.version;
  record.device = device_text(device);
  record.sm = device.sm;
  record.pass = pass;
  return record;
}

Record error_record(const Request& request, const std::string& backend, Pass pass, const std::string& reason) {
  Record record;
  record.case_line = request.case_line;
  record.backend = backend;
  record.pass = pass;
  record.status = Status::error;
  record.reason = reason;
  return record;
}

void run_case(const Request& request, const Bench& bench, const Replies& replies) {
  std::optional<CaseData> data;
  try {
    Case c = parse_case(request.case_line, "request");
    if (c.llama) return run_llama_case(c, request, bench, replies);
    if (c.training) return run_training_case(c, request, bench, replies);
    if (request.check_only) c.metadata.timed = false;  // backends ask the case whether it will be timed
    data.emplace(c, bench.device, bench.calibration);
  } catch (const std::exception& e) {
    for (const auto& [backend, pass] : request.runs) replies.record(error_record(request, backend, pass, e.what()));
    return;
  }
  const auto announce = [&](const Attempt& attempt, const char* stage) {
    replies.stage({request.id, attempt.record().backend, attempt.record().pass, stage});
  };
  std::deque<Attempt> attempts;  // operations refer to them: they stay where they are
  std::vector<Attempt*> to_measure;
  for (const auto& [name, pass] : request.runs) {
    const Backend* backend = find_backend(bench, name);
    if (!backend) {
      replies.record(error_record(request, name, pass, unknown_backend(bench, name)));
      continue;
    }
    Attempt& attempt = attempts.emplace_back(*backend, pass, bench.device, *data, announce);
    attempt.judge();
    if (request.audit_repeats > 0) attempt.audit(request.audit_repeats);
    if (!request.dump.empty()) attempt.dump(request.dump);
    if (!request.check_only && attempt.measurable()) {
      to_measure.push_back(&attempt);
    } else {
      attempt.release();
      replies.record(attempt.record());
    }
  }
  if (!to_measure.empty()) measure_all(to_measure, *data, bench, uint64_t(request.id));
  for (const Attempt* attempt : to_measure) replies.record(attempt->record());
  for (Pass pass : {Pass::forward, Pass::backward}) compare(attempts, pass, data->test_case(), replies);
}

}  // namespace attnbench
