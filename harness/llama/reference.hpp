// What a LLaMA's attention layer should return, in float64, and how far off an ordinary layer in the case's dtype is.
//
// The layer is written once, over tensors that are "stored": after each operation whose result a real layer keeps in a dtype,
// and on the way back after each gradient that it keeps. That is the case's dtype, or float32 behind a float32 norm or adapter.
//   exact    stored as they are: the expected values
//   noisy    plus a random part of up to half an ulp: a first-order model of any implementation's rounding. The mean square of
//            what it changes is the variance of an element
//   rounded  to the dtype: one ordinary implementation, whose errors set the scale of the RMS gate. It is never what is judged
// The mask is made from the case, not from what the layer is given. No code is shared with anything judged.
#pragma once

#include <map>
#include <string>

#include "harness/attention/reference.hpp"
#include "harness/llama/inputs.hpp"

namespace attnbench {

/// One tensor as rows: float64 on the CPU, [rows, 1, channels]; `a` of an adapter, which has few rows, by columns.
struct LayerTensor {
  /// freedom: 1 for each row, since errors of P or dS come to all channels of a row together; of the weight of a norm, which is
  /// one row, and whose every element is a sum over tokens of its own, the channels.
  Expected expected;
  Dtype dtype = Dtype::bf16;  ///< that the layer returns it in
  at::Tensor ordinary;        ///< of `rounded`
  double gain_deviation = 0;  ///< root mean square of the gain (verdict_gates.hpp) that `noisy` has
};

/// By name: "out"; "cache_k", "cache_v", "weights" where the case asks for them; in a backward pass "dhidden", "dwq", "dwk",
/// "dwv", "dwo" (not of int8 weights), and of what the case has beside them "dnorm", "dq_norm", "dk_norm", "dlora_qa",
/// "dlora_qb", "dlora_va", "dlora_vb". `out` has the real queries' rows alone, unless `semantics` lets padding be seen: the
/// others are not defined.
using LayerReference = std::map<std::string, LayerTensor>;

/// semantics: what is computed in the place of what the case says; by default that. profile: where the attention rounds.
LayerReference make_layer_reference(const Case& c, const LlamaInputs& inputs, const Semantics& semantics, const Profile& profile,
                                    Pass pass);

/// One implementation that rounds where the profile does, to nearest; outputs in the dtypes in which a layer returns them.
LlamaOutputs ordinary_layer(const Case& c, const LlamaInputs& inputs, const Semantics& semantics, const Profile& profile,
                            Pass pass);

/// The rows of an output that are judged, as LayerTensor has them; float64, on the CPU.
at::Tensor judged_rows(const std::string& name, const at::Tensor& output, const LlamaInputs& inputs);

/// The outputs by name; undefined ones are there.
std::map<std::string, at::Tensor> by_name(const LlamaOutputs& outputs);

}  // namespace attnbench
