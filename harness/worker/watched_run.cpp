#include "harness/worker/watched_run.hpp"

#include <algorithm>
#include <unordered_set>

#include <fmt/format.h>

#include "harness/worker/memory.hpp"

namespace attnbench {

namespace {

/// Bytes of the outputs' storages; tensors that share one count once.
int64_t bytes_of_outputs(const Outputs& outputs) {
  int64_t bytes = 0;
  std::unordered_set<const void*> seen;
  for (const auto& [name, tensor] : named_tensors(outputs))
    if (seen.insert(tensor.storage().data()).second) bytes += int64_t(tensor.storage().nbytes());
  return bytes;
}

std::string describe_block(const Overrun& overrun, const Inputs& inputs, const Outputs& outputs) {
  for (const auto& [name, tensor] : named_tensors(outputs))
    if (tensor.storage().data() == overrun.block) return "its output " + name;
  for (const auto& [name, tensor] : named_tensors(inputs))
    if (tensor.storage().data() == overrun.block) return "its input " + name;
  return "a block that it allocated";
}

std::string describe(const Overrun& overrun, const Inputs& inputs, const Outputs& outputs) {
  return fmt::format("wrote {} bytes {} of {} ({} bytes)", overrun.bytes,
                     overrun.past_the_end ? "past the end" : "before the start", describe_block(overrun, inputs, outputs),
                     overrun.block_bytes);
}

}  // namespace

WatchedRun run_watched(const Run& run, Pass pass, SealedInputs& inputs) {
  const MemoryScope checked(MemoryMode::checked);
  const Window& window = run.windows.back();
  WatchedRun watched;
  take_overruns();
  reset_peak_bytes();
  const int64_t before = current_bytes();
  watched.outputs = window.forward();
  std::string overwritten = inputs.overwritten();
  if (pass == Pass::backward) {
    const Outputs gradients = window.backward();
    watched.outputs.dq = gradients.dq;
    watched.outputs.dk = gradients.dk;
    watched.outputs.dv = gradients.dv;
    if (overwritten.empty()) overwritten = inputs.overwritten();
  }
  watched.memory.peak_bytes = peak_bytes() - before;
  watched.memory.workspace_bytes = std::max<int64_t>(0, watched.memory.peak_bytes - bytes_of_outputs(watched.outputs));
  watched.memory.predicted_bytes = run.predicted_bytes;
  if (const std::vector<Overrun> overruns = take_overruns(); !overruns.empty())
    watched.misconduct = describe(overruns.front(), inputs.get(), watched.outputs);
  if (!overwritten.empty()) {
    watched.misconduct = "wrote to its input " + overwritten;
    inputs.restore();
  }
  return watched;
}

}  // namespace attnbench
