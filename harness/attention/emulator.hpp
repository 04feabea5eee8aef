// The same-precision emulator: a correct implementation with the profile's rounding points, in fp32 arithmetic.
#pragma once

#include "harness/attention/inputs.hpp"
#include "harness/run/declaration.hpp"

namespace attnbench {

/// Its errors say what is ordinary (verdict_gates.hpp: R, and the room of z and bias); it is never what is judged. Outputs in the
/// case's layout, contiguous, on the device of the inputs; padded rows are 0, and so is everything that no query reads, whatever
/// is stored there. A dropout is that of inputs.kept, which is among the outputs.
Outputs emulate(const Case& c, const Inputs& inputs, const Profile& profile, Conventions::EmptyRow empty_row);

}  // namespace attnbench
