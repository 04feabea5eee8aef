#include "harness/worker/llama_case.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/dispatch.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/lent_layer.hpp"
#include "harness/worker/llama_verdict.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/sentence.hpp"

namespace attnbench {

std::optional<std::string> LlamaBackend::why_not(const Case& c, Pass pass, const Device& device) const {
  return attnbench::why_not(declaration(), c, pass, device);
}

Case LlamaBackend::attention_case(const Case& c) const {
  return attention_of_layer(c);
}

namespace {

/// What the layers of a case share: its inputs, and a reference for each way to round and to read the case.
class LayerCase {
 public:
  explicit LayerCase(const Case& c) : c_(c), inputs_(make_llama_inputs(c)) {}

  const Case& test_case() const { return c_; }
  const LlamaInputs& inputs() const { return inputs_; }

  /// Of both passes.
  const LayerReference& reference(const Profile& profile, Semantics semantics) {
    semantics.weights = true;  // neither changes a number
    semantics.runs.reset();
    for (const auto& [of_profile, of_semantics, reference] : references_)
      if (of_profile == profile && of_semantics == semantics) return reference;
    const LayerReference made = make_layer_reference(c_, inputs_, semantics, profile, Pass::backward);
    return std::get<LayerReference>(references_.emplace_back(profile, semantics, made));
  }

 private:
  const Case& c_;
  const LlamaInputs inputs_;
  std::deque<std::tuple<Profile, Semantics, LayerReference>> references_;
};

/// One layer and one pass of one case.
class LayerAttempt {
 public:
  LayerAttempt(const LlamaBackend& named, LayerCase& data, Pass pass, const Bench& bench)
      : layer_(&named),
        data_(data),
        c_(data.test_case()),
        bench_(bench),
        record_(record_of(named.declaration(), c_, pass, bench.device)) {}

  const Record& run(const std::function<void(const char*)>& announce) {
    const auto start = std::chrono::steady_clock::now();
    try {
      choose();
      if (const auto why = layer_->why_not(c_, record_.pass, bench_.device)) {
        end(Status::unsupported, *why);
      } else {
        announce("run");
        run_and_judge(announce);
      }
    } catch (const std::exception& e) {
      end(Status::error, sentence_of(e));
    }
    record_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return record_;
  }

 private:
  /// Who it is that runs, and is judged by what it declares.
  void choose() {
    const LayerChoice choice = layer_->choose(c_, record_.pass, bench_.device);
    layer_ = &choice.layer;
    record_.version = layer_->declaration().version;
    record_.attention = layer_->attention();
    record_.choice = choice.why;
  }

  void end(Status status, const std::string& reason) {
    record_.status = status;
    record_.reason = reason;
  }

  /// Twice, the second time with the values of V negated: what is kept from an earlier call is seen. Both are judged when both
  /// have run, so that outputs which the second call writes over are seen too.
  void run_and_judge(const std::function<void(const char*)>& announce) {
    LlamaOutputs first, second;
    try {
      first = call(false);
      if (record_.status != Status::passed) return;
      if (record_.expect == Expect::must_throw) return end(Status::failed, "computed a result, and the case expects it to throw");
      second = with_values_as_they_are(call(true));
      if (record_.status != Status::passed) return;
    } catch (const AttentionLacks& e) {
      return end(Status::unsupported, e.what());
    } catch (const std::exception& e) {
      return thrown(sentence_of(e));
    }
    announce("judge");
    record_.oracle = "torch";
    judge_call(first);
    if (record_.status != Status::passed) return;
    const Record of_first = record_;
    judge_call(second);
    const Record of_second = std::exchange(record_, of_first);
    if (of_second.status != Status::passed) end(of_second.status, "called again, with V negated: " + of_second.reason);
  }

  /// On inputs of its own, in memory that is NaN where nothing was written. Ends the attempt where it wrote to what is not its
  /// own.
  LlamaOutputs call(bool negated) {
    const MemoryScope checked(MemoryMode::checked);
    take_overruns();
    const LentInputs inputs(data_.inputs(), negated, c10::Device(device_text(bench_.device)));
    LlamaOutputs outputs = layer_->run(c_, inputs.lent, record_.pass);
    check_context(bench_.device);
    record_.status = Status::passed;
    if (const std::string names = inputs.overwritten(); !names.empty())
      end(Status::failed, "wrote to its input " + names);
    else if (const auto overruns = take_overruns(); !overruns.empty())
      end(Status::failed, describe(overruns.front()));
    return outputs;
  }

  void judge_call(const LlamaOutputs& outputs) {
    const Verdict verdict = judge(outputs, {});
    record_.errors = verdict.errors;
    if (record_.expect == Expect::equal)
      end(verdict.status, verdict.reason);
    else
      must_differ(outputs, verdict);
    if (record_.status == Status::passed) judge_warnings(outputs.warnings);
  }

  /// Each says what the case names; there is none where it names nothing.
  void judge_warnings(const std::vector<std::string>& warnings) {
    const std::string& message = c_.metadata.message;
    const std::string given = warnings.empty() ? "nothing" : fmt::format("\"{}\"", fmt::join(warnings, "\", \""));
    const auto says = [&](const std::string& warning) { return warning.find(message) != std::string::npos; };
    if (message.empty() && !warnings.empty()) return end(Status::failed, "warns, which the case does not expect: " + given);
    if (message.empty()) return;
    if (warnings.empty() || !std::ranges::all_of(warnings, says))
      return end(Status::failed, fmt::format("the case expects a warning of \"{}\", and the layer says {}", message, given));
    end(Status::passed, record_.reason + (record_.reason.empty() ? "" : "; ") + "warns, as the case expects: " + given);
  }

  /// What the case expects to be thrown has to say so.
  void thrown(const std::string& sentence) {
    if (record_.expect != Expect::must_throw) return end(Status::error, sentence);
    const std::string& message = c_.metadata.message;
    if (sentence.find(message) == std::string::npos)
      return end(Status::failed, fmt::format("throws, as the case expects, but says \"{}\" and not \"{}\"", sentence, message));
    end(Status::passed, "throws, as the case expects: " + sentence);
  }

  /// `semantics` and what the layer declares of queries that see no key.
  Verdict judge(const LlamaOutputs& outputs, Semantics semantics) const {
    const Declaration& declaration = layer_->declaration();
    const bool zero = declaration.conventions.padded_rows_zero && semantics.key_mask && !semantics.uniform_rows;
    semantics.uniform_rows |= declaration.conventions.empty_row == Conventions::EmptyRow::uniform;
    return judge_layer(
        outputs, record_.pass,
        {c_, data_.inputs(), data_.reference(declaration.profile, semantics), bench_.calibration, zero, semantics});
  }

  /// It is another value than the case's, and the one that the case names instead: both are judged.
  void must_differ(const LlamaOutputs& outputs, const Verdict& verdict) {
    if (verdict.status != Status::failed || verdict.malformed)
      return end(Status::failed,
                 "the case expects it to differ, and it does not" + (verdict.reason.empty() ? "" : ": " + verdict.reason));
    if (!c_.metadata.instead)
      return end(Status::failed, "differs, but the case does not say what it equals instead (instead=): " + verdict.reason);
    const Verdict instead = judge(outputs, *c_.metadata.instead);
    for (const auto& [name, errors] : instead.errors) record_.errors[name + "_instead"] = errors;
    if (instead.status != Status::passed)
      return end(Status::failed, "differs, but is not what the case says it equals instead: " + instead.reason);
    end(Status::passed, "differs, as the case expects, and equals what it names instead: " + verdict.reason);
  }

  const LlamaBackend* layer_;  ///< the one that was named, then the one that it chose
  LayerCase& data_;
  const Case& c_;
  const Bench& bench_;
  Record record_;
};

}  // namespace

void run_llama_case(const Case& c, const Request& request, const Bench& bench, const Replies& replies) {
  LayerCase data(c);
  for (const auto& [name, pass] : request.runs) {
    const auto named = [&, &wanted = name](const auto& layer) { return layer->declaration().name == wanted; };
    const auto layer = std::ranges::find_if(bench.layers, named);
    if (layer == bench.layers.end()) {
      replies.record(error_record(request, name, pass, fmt::format("this worker has no layer '{}'", name)));
      continue;
    }
    LayerAttempt attempt(**layer, data, pass, bench);
    replies.record(attempt.run([&, &backend = name, pass = pass](const char* stage) {
      replies.stage({request.id, backend, pass, stage});
    }));
  }
}

}  // namespace attnbench
