#include "harness/worker/watched_run.hpp"

#include <algorithm>
#include <functional>
#include <optional>
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

/// What is negated.
struct MirrorSigns {
  SealedInputs::HeadSigns v, dout;
};

/// A backward's: where V is negated too, gradients of Q and K have the signs that they had, but from no V or O of an earlier
/// call; where it is not, they have others, which are in no gradient of an earlier call.
MirrorSigns mirror_signs(const Inputs& inputs, Pass pass) {
  const auto heads = static_cast<size_t>(inputs.v.size(-2));
  MirrorSigns signs;
  if (pass == Pass::forward) {
    signs.v.assign(heads, true);
    return signs;
  }
  signs.dout.assign(heads, true);
  const bool share_memory = inputs.v.stride(-2) == 0;
  for (size_t head = 0; head < heads && !share_memory; ++head) signs.v.push_back(head % 2 == 1);
  return signs;
}

/// What a plain call would have returned, from what a call returned.
Outputs as_plain(const Outputs& outputs, const Inputs& inputs, Pass pass, Call call) {
  if (call == Call::plain) return outputs;
  const MemoryScope unwatched(MemoryMode::off);
  const MirrorSigns signs = mirror_signs(inputs, pass);
  return without_signs(outputs, signs.v, signs.dout);
}

Outputs timed(const std::function<Outputs()>& function) {
  const SpendingScope calls(Expense::calls);
  return function();
}

/// What the calls returned. `look` is called between a forward and its backward, no head negated.
Outputs call_last_window(const Run& run, Pass pass, SealedInputs& inputs, Call call, const std::function<void()>& look) {
  const Window& window = run.windows.back();
  const MirrorSigns signs = call == Call::mirrored ? mirror_signs(inputs.get(), pass) : MirrorSigns();
  const auto with = [&](const SealedInputs::HeadSigns& dout, const std::function<Outputs()>& function) {
    const SealedInputs::Signs negated(inputs, signs.v, dout);
    return timed(function);
  };
  const WholeCall whole;
  Outputs outputs = with({}, window.forward);
  if (pass == Pass::forward) return outputs;
  look();
  const Outputs gradients = with(signs.dout, window.backward);
  outputs.dq = gradients.dq;
  outputs.dk = gradients.dk;
  outputs.dv = gradients.dv;
  return outputs;
}

}  // namespace

const char* mirror_of(const Inputs& inputs, Pass pass) {
  if (pass == Pass::forward) return "V negated, whose outputs are negated back";
  const SealedInputs::HeadSigns v = mirror_signs(inputs, pass).v;
  if (std::ranges::find(v, true) == v.end()) return "dO negated, whose gradients are negated back";
  return "dO negated, and V of every other key head, whose outputs and gradients are negated back";
}

std::string borrowed(const Outputs& outputs, const NamedTensors& held) {
  for (const auto& [name, tensor] : named_tensors(outputs))
    for (const auto& [other, memory] : held)
      if (tensor.numel() > 0 && tensor.storage().data() == memory.storage().data())
        return fmt::format("{} lies in the memory of {}: every call writes new outputs", name, other);
  return "";
}

Outputs run_unwatched(const Run& run, Pass pass, SealedInputs& inputs, Call call) {
  const SpendingScope poison(Expense::poison);
  const MemoryScope unwatched(MemoryMode::off);
  return as_plain(call_last_window(run, pass, inputs, call, [] {}), inputs.get(), pass, call);
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
  const bool is_mirrored = call == Call::mirrored;
  const MemoryScope checked(is_mirrored ? MemoryMode::finite : MemoryMode::checked);
  WatchedRun watched;
  take_overruns();
  reset_peak_bytes();
  const int64_t before = current_bytes();
  const ProcessState state;
  std::optional<SealedInputs::FinitePoison> finite;
  if (is_mirrored) finite.emplace(inputs);
  std::string overwritten;
  watched.handed_out = call_last_window(run, pass, inputs, call, [&] { overwritten = inputs.overwritten(); });
  watched.outputs = as_plain(watched.handed_out, inputs.get(), pass, call);
  if (overwritten.empty()) overwritten = inputs.overwritten();
  finite.reset();
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
