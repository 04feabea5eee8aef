// What a backend declares about itself, and is held to. Plain data that travels in the worker's hello message.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "harness/run/case.hpp"
#include "harness/run/invariance.hpp"

namespace attnbench {

/// The rounding points of an implementation (low-precision dtypes; fp32 rounds nothing). The error model and the
/// emulator follow these and nothing else.
struct Profile {
  enum class Probabilities { unnormalised, normalised, not_rounded };  ///< what P is rounded as before P V
  enum class RowSum { from_output, from_p_dp };                        ///< D = rowsum(dO o rounded O) or rowsum(P o dP)
  std::string name;                                                    ///< "flash", "eager", "fp32_inside", …
  Probabilities p = Probabilities::unnormalised;
  bool rounds_ds = true;       ///< dS is rounded before dS K and dS^T Q (and P before P^T dO)
  bool rounds_scores = false;  ///< S, s S, dP and, behind dS, s dS are rounded too (eager)
  RowSum d = RowSum::from_output;
  bool rounds_gqa_partials = false;  ///< dK, dV of each query head are rounded before they are summed over the group
  bool ds_from_rounded_p = false;    ///< dS is computed from the P that was rounded for P^T dO
  bool scales_ds = false;            ///< softmax_scale dS is rounded instead of dS; says nothing beside rounds_scores
  bool operator==(const Profile&) const = default;
};

struct Conventions {
  enum class EmptyRow { zero, uniform, nan };  ///< O of a query that sees no key; uniform: mean of V over all stored keys
  enum class LseEmpty { minus_infinity, plus_infinity, zero, none };  ///< its LSE; none: the backend returns no LSE
  /// What K and V hold where no query sees them, and padded Q: varlen backends must not let NaN leak from there; dense ones
  /// multiply it by 0, and get finite garbage.
  enum class Poison { nan, finite };
  EmptyRow empty_row = EmptyRow::zero;
  LseEmpty lse_empty = LseEmpty::minus_infinity;
  Poison poison = Poison::nan;
  bool padded_rows_zero = true;  ///< O and dQ of padded queries, dK and dV of padded keys, are exactly 0; else undefined
  bool operator==(const Conventions&) const = default;
};

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// -inf, +inf or 0; -inf where the backend returns none.
double lse_of_empty_row(Conventions::LseEmpty convention);

struct Capabilities {
  std::vector<std::string> devices;  ///< "cpu", "cuda"
  int min_sm = 0, max_sm = 999;      ///< 80 = SM 8.0; read only on cuda
  std::vector<Dtype> dtypes;
  int64_t min_head_dim = 1, max_head_dim = 256, head_dim_multiple = 1;
  bool dv_differs = false;  ///< dv != d
  std::vector<Pass> passes;
  std::vector<Layout> layouts;
  std::vector<Mask> masks;
  std::vector<Align> aligns;  ///< where queries and keys differ in number; where they do not, both alignments are one
  bool window = false, softcap = false, alibi = false, sink = false;
  bool dropout = false;         ///< and its forward hands out the mask, Outputs::kept
  bool gqa = true;              ///< hkv < hq
  bool unequal_lengths = true;  ///< lq != lk
  bool empty_sequences = true;  ///< a length of 0
  bool tail = false;            ///< packed tensors with rows behind the last sequence
  std::vector<Strides> strides;
  bool negative_scale = true;  ///< a softmax scale below 0
  bool returns_lse = true;
  bool deterministic = true;  ///< every call gives the same bits, on a GPU whatever its other streams do
  /// Of one that is not: the tensors whose bits may vary from call to call; empty: any of them.
  std::vector<std::string> varying;
  std::vector<Relation> invariant_to;  ///< what else leaves the bits of such tensors alone as do not vary
};

struct Declaration {
  std::string name;            ///< "flash_varlen"
  std::string version;         ///< of the library behind it
  std::string implementation;  ///< row of the safety table: "attnbench", "pytorch_flash", "pytorch_math", "eager", "eigen"
  std::string operation = "attention";  ///< whose cases it takes
  bool ours = false;                    ///< gated by default
  Profile profile;
  Conventions conventions;
  Capabilities capabilities;
  std::string why_unavailable;  ///< a missing dependency or device, as a sentence; empty: available here
};

/// The device that a worker runs on. sm: 90 = SM 9.0; unset on a CPU.
struct Device {
  std::string kind;  ///< "cpu" or "cuda"
  int index = 0;
  std::optional<int> sm;
  std::string name;  ///< as the vendor names it
};

/// "cpu", "cuda:0": as --device takes it and records have it.
std::string device_text(const Device& device);

/// The one with that name, or null.
const Declaration* find_declaration(const std::vector<Declaration>& declarations, std::string_view name);

/// Does the backend have anything for this kind of device, whatever the case?
bool runs_on(const Declaration& declaration, const Device& device);

/// Does it declare that the bits of this tensor are equal, whichever of the two ways they come by?
bool promises(const Declaration& declaration, Relation relation, std::string_view tensor, const Device& device);

/// A sentence why the case lies outside the declared capabilities; empty: it lies inside.
std::optional<std::string> why_not(const Declaration& declaration, const Case& c, Pass pass, const Device& device);

void to_json(nlohmann::json&, const Declaration&);
void from_json(const nlohmann::json&, Declaration&);
void to_json(nlohmann::json&, const Device&);
void from_json(const nlohmann::json&, Device&);

}  // namespace attnbench
