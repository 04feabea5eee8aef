// The middle of the way of the data: one case through its backends, from its line to records.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "harness/run/calibration.hpp"
#include "harness/run/protocol.hpp"
#include "harness/worker/backend.hpp"
#include "harness/worker/llama_backend.hpp"
#include "harness/worker/measure.hpp"
#include "harness/worker/training.hpp"

namespace attnbench {

/// Where cases run: one device, and the backends of this build.
struct Bench {
  Device device;
  std::vector<std::unique_ptr<Backend>> backends;
  Calibration calibration;        ///< of this kind of device
  MeasureOptions measuring = {};  ///< order_seed and cooled are each case's own
  std::vector<std::unique_ptr<LlamaBackend>> layers = {};
  std::function<TrainedAttention(const Backend&)> trained_attention = {};  ///< training.hpp's; a test's own
};

/// Where the answers go, as they come.
struct Replies {
  std::function<void(const Stage&)> stage;
  std::function<void(const Record&)> record;
  std::function<void(const Comparison&)> comparison;
};

/// A record that says who runs what, and nothing yet of how that went.
Record record_of(const Declaration& declaration, const Case& c, Pass pass, const Device& device);

/// What cannot even be asked.
Record error_record(const Request& request, const std::string& backend, Pass pass, const std::string& reason);

/// Judges every (backend, pass) of the request, then times those that passed against each other, then judges them again.
/// One record for each, whatever happens: an unreadable case or an unknown backend becomes `error` with the sentence.
/// A run that is not timed is answered at once; a comparison for each pass that several backends computed comes last.
void run_case(const Request& request, const Bench& bench, const Replies& replies);

}  // namespace attnbench
