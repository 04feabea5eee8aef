#include "harness/worker/training_case.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "harness/run/data_files.hpp"
#include "harness/run/files.hpp"
#include "harness/training/perturbed_attention.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/sentence.hpp"
#include "harness/worker/statistics.hpp"
#include "harness/worker/training_band.hpp"

namespace attnbench {
namespace {

/// Runs of the reference behind a band.
constexpr int kReferences = 8;

/// So many steps pass between two signs of life.
constexpr int64_t kStepsBetweenStages = 10;

using Announce = std::function<void(const char*)>;

struct Trained {
  Curves curves;
  double step_us = 0;
};

Trained train(Trainer& trainer, int64_t steps, const char* stage, const Announce& announce) {
  Trained result;
  std::vector<double> microseconds;
  for (int64_t step = 0; step < steps; ++step) {
    if (step % kStepsBetweenStages == 0) announce(stage);
    const auto start = std::chrono::steady_clock::now();
    for (const auto& [name, number] : trainer.step()) result.curves[name].push_back(number);
    microseconds.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  result.step_us = median(microseconds);
  return result;
}

/// The most that a further step allocates, in memory that is NaN where nothing was written.
int64_t peak_of_a_step(Trainer& trainer) {
  const MemoryScope checked(MemoryMode::checked);
  reset_peak_bytes();
  const int64_t before = current_bytes();
  trainer.step();
  return peak_bytes() - before;
}

/// The bands of a case, made when the first backend that stores so needs them. Their runs are packed whatever the case's layout
/// is: a batch that is padded has the losses of the packed one.
class ReferenceBands {
 public:
  ReferenceBands(const Case& c, const std::string& text, const Bench& bench) : c_(c), text_(text), bench_(bench) {}

  const Band& band(const Profile& profile, const Announce& announce) {
    const AlsoStored also{profile.rounds_scores, profile.rounds_gqa_partials && c_.problem.group() > 1};
    if (const auto made = bands_.find(also); made != bands_.end()) return made->second;
    Case packed = c_;
    packed.problem.layout = Layout::packed;
    std::vector<Curves> runs;
    for (uint64_t draw = 1; draw <= kReferences; ++draw) {
      const auto trainer = make_small_llama(packed, text_, bench_.device, perturbed_attention(c_.problem.dtype, also, draw));
      runs.push_back(train(*trainer, c_.training->steps, "reference", announce).curves);
    }
    return bands_[also] = band_of(runs);
  }

 private:
  const Case& c_;
  const std::string& text_;
  const Bench& bench_;
  std::map<AlsoStored, Band> bands_;
};

/// A call of attention as the model makes it.
Case attention_of(const Case& c) {
  Case call;
  call.problem = c.problem;
  call.problem.layout = Layout::packed;
  call.problem.lens = UniformLengths{c.problem.lq / 4, c.problem.lq};
  call.metadata.timed = false;
  return call;
}

void train_and_judge(Record& record, const Case& c, const std::string& text, const Backend& backend, const Bench& bench,
                     ReferenceBands& references, const Announce& announce) {
  const auto trainer = make_small_llama(c, text, bench.device, bench.trained_attention(backend));
  const Trained trained = train(*trainer, c.training->steps, "train", announce);
  const int64_t peak = peak_of_a_step(*trainer);
  check_context(bench.device);
  const Band& band = references.band(backend.declaration().profile, announce);
  const BandVerdict verdict = judge_curves(trained.curves, band);
  for (const auto& [name, gate] : verdict.gates) {
    TensorErrors& errors = record.errors[name];
    errors.by_gates_alone = true;
    errors.max_z = gate.value;
    errors.elements = gate.n;
    errors.gates["band"] = gate;
  }
  record.training = {trained.curves, low_edge(band), high_edge(band), trained.step_us, peak};
  record.oracle = "torch";
  record.status = verdict.reason.empty() ? Status::passed : Status::failed;
  record.reason = verdict.reason;
}

}  // namespace

void run_training_case(const Case& c, const Request& request, const Bench& bench, const Replies& replies) {
  const std::string text = read_file(cases_folder() / "text" / "us_constitution.txt");
  ReferenceBands references(c, text, bench);
  for (const auto& [name, pass] : request.runs) {
    const auto named = [&wanted = name](const auto& backend) { return backend->declaration().name == wanted; };
    const auto backend = std::ranges::find_if(bench.backends, named);
    if (backend == bench.backends.end()) {
      replies.record(error_record(request, name, pass, fmt::format("this worker has no backend '{}'", name)));
      continue;
    }
    Record record = record_of((*backend)->declaration(), c, pass, bench.device);
    const auto start = std::chrono::steady_clock::now();
    const Announce announce = [&, &wanted = name, pass = pass](const char* stage) {
      replies.stage({request.id, wanted, pass, stage});
    };
    try {
      if (const auto why = (*backend)->why_not(attention_of(c), pass, bench.device)) {
        record.status = Status::unsupported;
        record.reason = *why;
      } else {
        train_and_judge(record, c, text, **backend, bench, references, announce);
      }
    } catch (const std::exception& e) {
      record.status = Status::error;
      record.reason = sentence_of(e);
    }
    record.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    replies.record(record);
  }
}

}  // namespace attnbench
