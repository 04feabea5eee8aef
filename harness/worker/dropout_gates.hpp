// Whether the mask that a kernel handed out is one of a dropout with that p: as many kept as there should be, and no part of it a
// copy of another.
//
//   share   N KL(K / N, 1 - p) <= ln(2 T / 1e-6)                    K of the N elements that some query reads were kept
//   copies  M KL(A / M, (1 - p)^2 + p^2) <= ln(2 T / 1e-6)          A of M pairs were both kept or both dropped
// KL(x, y) = x ln(x / y) + (1 - x) ln((1 - x) / (1 - y)), of two coins. A binomial number is as far from its mean with at most
// the probability 2 exp(-N KL) (Chernoff), whatever N and p are, so that T gates of one mask alarm in one of 1e6 correct masks.
// Pairs are elements that differ in one place alone, by a step: heads by every step, sequences, queries and keys by 1, 2, 4, 8,
// …. Of a step those pairs count whose first place is a below step in a + 2 step n, so that no element is in two of them and
// pairs are independent. What a mask of a few elements can show is little: one head that copies another needs some 30 elements at
// p = 0.5, and 2000 at p = 0.01.
// "Kept or dropped alike more often" finds copies, "less often" complements.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "harness/attention/inputs.hpp"
#include "harness/run/record.hpp"

namespace attnbench {

/// The gates "share" and "copies", of which the worst of all steps is told, and a sentence if one fails.
struct DropoutGates {
  std::map<std::string, Gate> gates;
  std::string reason;
};

/// inputs.kept is well-formed. false_alarms: as in GateConstants.
DropoutGates dropout_gates(const Case& c, const Inputs& inputs, Conventions::EmptyRow empty_row, double false_alarms);

/// other: the mask that the kernel hands out for the same inputs with another seed, well-formed. A sentence if the two are kept
/// or dropped alike more or less often than coins are, as those of a mask that follows the data, or no seed; by the same bound.
std::string seed_says_nothing(const Case& c, const Inputs& inputs, const at::Tensor& other, Conventions::EmptyRow empty_row,
                              double false_alarms);

/// A sentence if a mask is missing, or has another shape, dtype or device than Outputs::kept of this case must have, or is there
/// without dropout.
std::optional<std::string> malformed_mask(const Case& c, const Inputs& inputs, const at::Tensor& kept);

}  // namespace attnbench
