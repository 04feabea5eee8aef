// What a LLaMA's attention layer should return, in float64, and how far off an ordinary layer in the case's dtype is.
//
// The layer is written once, over tensors that are "stored": after each operation whose result a real layer keeps in a dtype,
// and on the way back after each gradient that it keeps. That is the case's dtype, or float32 behind a float32 norm or adapter.
//   exact    stored as they are: the expected values
//   noisy    plus a random part of up to half an ulp: a first-order model of any implementation's rounding. The mean square of
//            what it changes in kNoiseDraws draws is the variance of an element
//   rounded  to the dtype: one ordinary implementation, whose errors set the scale of the RMS gate. It is never what is judged
// The mask is made from the case, not from what the layer is given. No code is shared with anything judged.
#pragma once

#include <map>
#include <string>

#include "harness/attention/reference.hpp"
#include "harness/llama/inputs.hpp"

namespace attnbench {

inline constexpr int kNoiseDraws = 24;

/// A few draws of an element say little of its variance, and those of its row nothing of the element: an estimate is between
/// them, the mean square of the row weighing as much as so many draws. If row / v of a row's elements (v: variance) is spread as
/// chi^2 of w degrees over w, the estimate has kNoiseDraws + w of them and says all that can be known of v. w = 7 from 512 draws
/// of 119 tensors, 3 to 24 tokens: what decides a limit on z is the mean over elements of exp(-t row / v), t from 3 to 15, and
/// that is nowhere above the (1 + 2 t / w)^(-w / 2) of that spread (w = 7.0 fits dwq of 3 tokens, 14 the output).
inline constexpr double kRowWeight = 7;
inline constexpr double kVarianceFreedom = kNoiseDraws + kRowWeight;

/// One tensor as rows: float64 on the CPU, [rows, 1, channels]; `a` of an adapter, which has few rows, by columns.
struct LayerTensor {
  /// The variance is an estimate, with kVarianceFreedom. freedom: 1 for each row, since errors of P or dS come to all channels of
  /// a row together; of the weight of a norm, which is one row, and whose every element is a sum over tokens of its own, the
  /// channels.
  Expected expected;
  Dtype dtype = Dtype::bf16;  ///< that the layer returns it in
  at::Tensor ordinary;        ///< of `rounded`
  double gain_deviation = 0;  ///< root mean square of the gain (verdict_gates.hpp) that `noisy` has, of kNoiseDraws
  /// Effective number of independent errors, which few tokens make few, however many rows a gradient of a weight has: of z with
  /// a covariance C, (tr C)^2 / tr C^2, since the sum of z^2 has the mean tr C and the variance 2 tr C^2. The latter is the mean
  /// square of the product of two draws: 24 have 276 products, so that it is known to 9 %, where 24 sums would tell it to 29 %.
  double samples = 0;
};

/// By name: "out"; "cache_k", "cache_v", "weights" where the case asks for them; in a backward pass "dhidden", "dwq", "dwk",
/// "dwv", "dwo" (not of int8 weights), and of what the case has beside them "dnorm", "dq_norm", "dk_norm", "dlora_qa",
/// "dlora_qb", "dlora_va", "dlora_vb". `out` and "weights" have the rows of judged_queries().
using LayerReference = std::map<std::string, LayerTensor>;

/// semantics: what is computed in the place of what the case says; by default that. profile: where the attention rounds.
LayerReference make_layer_reference(const Case& c, const LlamaInputs& inputs, const Semantics& semantics, const Profile& profile,
                                    Pass pass);

/// One implementation that rounds where the profile does, to nearest; outputs in the dtypes in which a layer returns them.
LlamaOutputs ordinary_layer(const Case& c, const LlamaInputs& inputs, const Semantics& semantics, const Profile& profile,
                            Pass pass);

/// Queries whose rows are defined, so that they are judged and a gradient comes in there, bool [b, s]: the real ones. Under
/// `semantics` of uniform rows all: padded queries see the keys that the mask leaves them, or no key. But not where float32 parts
/// promote the scores beyond the dtype of the mask, whose lowest number is not theirs: then such a row is no mean.
at::Tensor judged_queries(const Case& c, const LlamaInputs& inputs, const Semantics& semantics);

/// The rows of an output that are judged, as LayerTensor has them; float64, on the CPU.
at::Tensor judged_rows(const std::string& name, const at::Tensor& output, const at::Tensor& queries);

/// The outputs by name; undefined ones are there.
std::map<std::string, at::Tensor> by_name(const LlamaOutputs& outputs);

}  // namespace attnbench
