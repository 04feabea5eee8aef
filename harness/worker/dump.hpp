// What a run was given, what it computed and what it should have, for a look from Python:
//   DIR/CASE/case.txt                     the case line
//   DIR/CASE/INPUTS/q.npy …               q, k, v, dout, cu_q, cu_k, masks as the backend got them; q_rows.npy, k_rows.npy: the
//                                         storage rows of the real tokens. INPUTS: "inputs-nan" or "inputs-finite", by what lies
//                                         in tokens that nobody may read
//   DIR/CASE/BACKEND-PASS/o.npy           float64 [tokens, heads, channels], real tokens alone, as it was judged
//   DIR/CASE/BACKEND-PASS/o_expected.npy  the oracle's; of dq and dk given the kernel's own O where they are judged so
//   DIR/CASE/BACKEND-PASS/o_sigma.npy     standard deviation that the error model allows: z = (o - o_expected) / o_sigma
// and the same for lse, dq, dk, dv.
#pragma once

#include <filesystem>
#include <string>

#include "harness/worker/yardstick.hpp"

namespace attnbench {

/// The letters of a case line that every file system takes; long ones are cut, and end in a number of their own.
std::string folder_of_case(const std::string& case_line);

/// Each throws std::runtime_error if a file cannot be written.
void dump_inputs(const Inputs& inputs, const std::filesystem::path& folder);
void dump_outputs(const Outputs& outputs, Pass pass, const Yardstick& yardstick, const std::filesystem::path& folder);

}  // namespace attnbench
