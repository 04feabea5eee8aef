#include "harness/worker/watched_run.hpp"

#include <algorithm>
#include <functional>
#include <unordered_set>

#include <fmt/format.h>

#include "harness/worker/memory.hpp"
#include "harness/worker/process_state.hpp"
#include "harness/worker/spending.hpp"

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

std::string name_of_block(const Overrun& overrun, const Inputs& inputs, const Outputs& outputs) {
  for (const auto& [name, tensor] : named_tensors(outputs))
    if (tensor.storage().data() == overrun.block) return "its output " + name;
  for (const auto& [name, tensor] : named_tensors(inputs))
    if (tensor.storage().data() == overrun.block) return "its input " + name;
  return "a block that it allocated";
}

/// What a plain call would have returned, from what a call returned.
Outputs as_plain(Outputs outputs, Pass pass, Call call) {
  if (call == Call::plain) return outputs;
  const MemoryScope unwatched(MemoryMode::off);
  const std::vector<at::Tensor*> negative =
      pass == Pass::forward ? std::vector{&outputs.o} : std::vector{&outputs.dq, &outputs.dk, &outputs.dv};
  for (at::Tensor* tensor : negative)
    if (tensor->defined()) *tensor = tensor->neg();
  return outputs;
}

Outputs timed(const std::function<Outputs()>& function) {
  const SpendingScope calls(Expense::calls);
  return function();
}

Outputs forward(const Window& window, const SealedInputs& inputs, Call call) {
  if (call == Call::plain) return timed(window.forward);
  const SealedInputs::Negated values(inputs, &Inputs::v);
  return timed(window.forward);
}

Outputs backward(const Window& window, const SealedInputs& inputs, Call call) {
  if (call == Call::plain) return timed(window.backward);
  const SealedInputs::Negated gradients(inputs, &Inputs::dout);
  return timed(window.backward);
}

/// What the calls returned. `look` is called between a forward and its backward.
Outputs call_last_window(const Run& run, Pass pass, const SealedInputs& inputs, Call call, const std::function<void()>& look) {
  const Window& window = run.windows.back();
  const WholeCall whole;
  if (pass == Pass::forward) return forward(window, inputs, call);
  Outputs outputs = timed(window.forward);
  look();
  const Outputs gradients = backward(window, inputs, call);
  outputs.dq = gradients.dq;
  outputs.dk = gradients.dk;
  outputs.dv = gradients.dv;
  return outputs;
}

}  // namespace

std::string borrowed(const Outputs& outputs, const NamedTensors& held) {
  for (const auto& [name, tensor] : named_tensors(outputs))
    for (const auto& [other, memory] : held)
      if (tensor.numel() > 0 && tensor.storage().data() == memory.storage().data())
        return fmt::format("{} lies in the memory of {}: every call writes new outputs", name, other);
  return "";
}

Outputs run_unwatched(const Run& run, Pass pass, const SealedInputs& inputs, Call call) {
  const SpendingScope poison(Expense::poison);
  const MemoryScope unwatched(MemoryMode::off);
  return as_plain(call_last_window(run, pass, inputs, call, [] {}), pass, call);
}

Outputs run_again(const Run& run, Pass pass, SealedInputs& inputs, const std::function<void()>& delay) {
  const MemoryScope checked(MemoryMode::checked);
  const auto be_late = [&](at::Tensor Inputs::*tensor) {
    if (delay) inputs.write_late(tensor, delay);
  };
  if (pass == Pass::forward) be_late(&Inputs::v);
  return call_last_window(run, pass, inputs, Call::plain, [&] { be_late(&Inputs::dout); });
}

WatchedRun run_watched(const Run& run, Pass pass, SealedInputs& inputs, Call call) {
  const SpendingScope poison(Expense::poison);
  const MemoryScope checked(MemoryMode::checked);
  WatchedRun watched;
  take_overruns();
  reset_peak_bytes();
  const int64_t before = current_bytes();
  const ProcessState state;
  std::string overwritten;
  watched.handed_out = call_last_window(run, pass, inputs, call, [&] { overwritten = inputs.overwritten(); });
  watched.outputs = as_plain(watched.handed_out, pass, call);
  if (overwritten.empty()) overwritten = inputs.overwritten();
  watched.misconduct = state.restore();
  watched.memory.peak_bytes = peak_bytes() - before;
  watched.memory.workspace_bytes = std::max<int64_t>(0, watched.memory.peak_bytes - bytes_of_outputs(watched.handed_out));
  watched.memory.predicted_bytes = run.predicted_bytes;
  if (const std::vector<Overrun> overruns = take_overruns(); !overruns.empty())
    watched.misconduct = describe(overruns.front(), name_of_block(overruns.front(), inputs.get(), watched.handed_out));
  if (!overwritten.empty()) {
    watched.misconduct = "wrote to its input " + overwritten;
    inputs.restore();
  }
  return watched;
}

}  // namespace attnbench
