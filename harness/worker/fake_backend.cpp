#include "harness/worker/fake_backend.hpp"

#include <memory>

#include <ATen/ops/tensor.h>

#include "harness/attention/emulator.hpp"

namespace attnbench {

Declaration fake_declaration(const std::string& name) {
  Declaration d;
  d.name = name;
  d.version = "1";
  d.implementation = "attnbench";
  d.profile.name = "flash";
  Capabilities& can = d.capabilities;
  can.devices = {"cpu"};
  can.dtypes = {Dtype::bf16, Dtype::fp16, Dtype::fp32};
  can.passes = {Pass::forward, Pass::backward};
  can.layouts = {Layout::packed, Layout::padded};
  can.masks = {Mask::none, Mask::causal};
  can.aligns = {Align::bottom_right, Align::top_left};
  can.strides = {Strides::contiguous};
  return d;
}

Run FakeBackend::prepare(const Case& c, const Inputs& inputs, Pass) const {
  const auto calls = std::make_shared<int>(0);
  const auto compute = [this, c, &inputs, calls](bool forward) {
    const Outputs all = emulate(c, inputs, declaration_.profile, declaration_.conventions.empty_row);
    Outputs outputs;
    if (forward) {
      outputs.o = all.o;
      outputs.lse = all.lse;
    } else {
      outputs.dq = all.dq;
      outputs.dk = all.dk;
      outputs.dv = all.dv;
    }
    ++*calls;
    if (tamper_) tamper_(*calls, inputs, outputs);
    return outputs;
  };
  Run run;
  run.windows = {{"op", [compute] { return compute(true); }, [compute] { return compute(false); }}};
  if (tamper_with_op) {
    const auto packed = [this, compute, &inputs](bool forward) {
      Outputs outputs = compute(forward);
      for (at::Tensor* t : {&outputs.o, &outputs.lse, &outputs.dq, &outputs.dk, &outputs.dv}) {
        if (!t->defined()) continue;
        const bool over_keys = t == &outputs.dk || t == &outputs.dv;
        *t = t->flatten(0, 1).index_select(0, at::tensor(over_keys ? inputs.k_rows : inputs.q_rows, at::kLong));
      }
      tamper_with_op(outputs);
      return outputs;
    };
    run.windows.back().name = "op+layout";
    run.windows.insert(run.windows.begin(), {"op", [packed] { return packed(true); }, [packed] { return packed(false); }});
  }
  run.profile = declaration_.profile;
  run.predicted_bytes = predicted_bytes;
  return run;
}

}  // namespace attnbench
