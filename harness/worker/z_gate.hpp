// The gate z alone, for results that come by the thousand: one wait for the device, no sums, no sentence.
#pragma once

#include <string_view>

#include "harness/worker/yardstick.hpp"

namespace attnbench {

/// True: every element of the tensor ("o", "lse", "dq", "dk", "dv") of these outputs, in the case's layout, is finite, within the
/// gate's limit (verdict_gates.hpp), and 0 where the mask makes it 0; dq and dk given the outputs' own O where the profile says
/// so. False: the judge has to say, which knows infinities too.
bool within_z_limit(const Yardstick& yardstick, std::string_view tensor, const Outputs& outputs);

}  // namespace attnbench
