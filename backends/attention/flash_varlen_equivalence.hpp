// Where a defect of flash_varlen cannot show, proved from shape and mask alone.
#pragma once

#include <string>

#include "harness/run/case.hpp"
#include "kernels/defects.hpp"

namespace attnbench {

/// Why the planted CPU kernel computes what the sound one does, for any values in the inputs; empty: no proof.
std::string why_equivalent(flash_varlen::Defect defect, const Case& c);

}  // namespace attnbench
