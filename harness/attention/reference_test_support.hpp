// Profiles and conventions that the tests of the judge share.
#pragma once

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "harness/attention/reference.hpp"

namespace attnbench::judge_test {

/// All numbers of a float64 tensor, in order.
inline std::vector<double> numbers(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  const at::Tensor host = tensor.to(at::kCPU).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

inline Profile flash() {
  return {"flash", Profile::Probabilities::unnormalised, true, false, Profile::RowSum::from_output, false, true};
}
/// fp32 inside, D from the rounded O.
inline Profile inside_from_output() {
  return {"fp32_inside_d_from_o", Profile::Probabilities::not_rounded, false, false, Profile::RowSum::from_output, false, false};
}
/// fp32 inside, D from P o dP.
inline Profile inside() {
  return {"fp32_inside", Profile::Probabilities::not_rounded, false, false, Profile::RowSum::from_p_dp, false, false};
}
inline Profile eager() {
  return {"eager", Profile::Probabilities::normalised, true, true, Profile::RowSum::from_p_dp, false, true};
}
inline std::vector<Profile> profiles() {
  return {flash(), inside_from_output(), inside(), eager()};
}

/// As the backends of the profile declare them: eager fills empty rows with the mean of V and returns no LSE.
inline Conventions conventions_of(const Profile& profile) {
  Conventions c;
  if (!profile.rounds_scores) return c;
  c.empty_row = Conventions::EmptyRow::uniform;
  c.lse_empty = Conventions::LseEmpty::none;
  c.poison = Conventions::Poison::finite;
  c.padded_rows_zero = false;
  return c;
}

/// Shapes around tile edges, masks, layouts, empty sequences and rows, GQA, windows.
inline std::vector<std::string> shapes() {
  return {
      "attention hq=2 hkv=2 lq=1 lk=1 d=32",
      "attention b=2 hq=2 hkv=1 lq=65 lk=63 d=64",
      "attention hq=6 hkv=2 lq=129 lk=129 d=64 mask=causal",
      "attention hq=2 hkv=1 lq=100 lk=60 d=64 mask=causal",
      "attention hq=2 hkv=1 lq=60 lk=100 d=64 mask=causal align=top_left",
      "attention hq=4 hkv=1 lens=17+64+0+129 d=64 mask=causal layout=padded pad=left",
      "attention hq=2 hkv=2 lens=17+64+0+9 klens=30+0+20+70 d=64 layout=padded pad=holes",
      "attention hq=2 hkv=1 lens=33+5 klens=20+41 d=128 mask=causal layout=padded",
      "attention hq=2 hkv=1 lq=150 d=32 window=20:3",
  };
}

}  // namespace attnbench::judge_test
