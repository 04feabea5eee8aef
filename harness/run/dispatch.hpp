// `auto`: which attention backend computes a case, by what the table of safety (safety.hpp) says of each on an SM.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "harness/run/safety.hpp"

namespace attnbench {

/// What --attention says for "pick one", and what layers call where nobody says anything.
inline constexpr const char kAutoAttention[] = "auto", kUsualAttention[] = "flash_varlen";

/// Those that `auto` picks from, in order of preference.
inline constexpr std::array<const char*, 6> kAutoCandidates = {"flash_varlen",   "torch_flash_varlen", "sdpa_flash",
                                                               "sdpa_efficient", "sdpa_math",          "eager"};

struct AttentionCandidate {
  std::string name;
  std::string implementation, version;  ///< of which the table speaks
  std::string why_not;                  ///< a sentence why it cannot take the case at all; empty: it can
};

/// `why_not`: what keeps it from the case, if anything.
AttentionCandidate candidate_of(const Declaration& declaration, const std::optional<std::string>& why_not);

struct PassedOver {
  AttentionCandidate candidate;
  Safety safety;  ///< ok: it cannot take the case
};

struct AttentionChoice {
  AttentionCandidate picked;
  Safety safety;  ///< of the one picked: its verdict is ok
  std::vector<PassedOver> passed_over;
};

/// The first of `candidates` that takes the case and is neither refused nor silently unsafe there. `where` is a query without
/// implementation and version. Throws std::runtime_error with the reasons of all where there is none.
AttentionChoice choose_attention(const std::vector<AttentionCandidate>& candidates, const SafetyQuery& where,
                                 const SafetyTable& table = safety_table());

/// What was picked, why each before it was not, and, where the training stacks warn of the SM, that they do.
std::string sentence_of(const AttentionChoice& choice);

/// The attention that a layer of `c`, a case of llama, asks for; with several calls, that of the last one.
Case attention_of_layer(const Case& c);

}  // namespace attnbench
