// Where a defect of flash_varlen cannot show, proved from shape and mask alone.
#pragma once

#include <string>

#include "harness/run/case.hpp"
#include "kernels/defects.hpp"

namespace attnbench {

/// Whose tiles a proof is about.
enum class Kernels { cpu, cuda };

/// Why the planted kernel computes what the sound one does, for any values in the inputs; empty: no proof.
std::string why_equivalent(flash_varlen::Defect defect, const Case& c, Kernels kernels);

}  // namespace attnbench
