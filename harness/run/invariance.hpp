// What should not change the bits of a result, and what a backend's did: `attnbench audit`, and the repeats of a race.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace attnbench {

/// Two ways to compute the same thing, that may or may not give the same bits.
///   repeats      the same call again, into fresh memory
///   alone        each sequence by itself, for each in the batch
///   order        the sequences in reverse order
///   packing      padded rows (padding on the right), for packed sequences, or the other way round
///   concurrency  CPU: other numbers of threads; GPU: another stream at work, and the last input written late
enum class Relation { repeats, alone, order, packing, concurrency };
inline constexpr std::array kRelations{Relation::repeats, Relation::alone, Relation::order, Relation::packing,
                                       Relation::concurrency};
std::string_view name_of(Relation);
/// `field` names where it was read in the sentence of the std::runtime_error that an unknown name throws.
Relation relation_named(std::string_view name, const std::string& field);

/// Position of an element: sequence, head, token (rank within its sequence), channel. lse: channel 0.
using Element = std::array<int64_t, 4>;

/// One relation on one tensor of a judged run. Only real tokens are compared, bit by bit: NaN equals the same NaN, 0 is not -0.
struct Invariance {
  enum class Outcome { equal, differs, not_supported };
  Relation relation = Relation::repeats;
  std::string tensor;  ///< "o", "lse", "dq", "dk", "dv"
  Outcome outcome = Outcome::equal;
  bool promised = false;       ///< the backend declares that the bits are equal
  std::string reason;          ///< of not_supported: a sentence
  int64_t compared = 0;        ///< results held against the judged one
  int64_t differing = 0;       ///< of these
  int64_t elements = 0;        ///< of the tensor
  int64_t changed = 0;         ///< elements that differ, in the result where most do
  double max_ulp = 0;          ///< largest distance of all in units of the last place; inf: one side is not finite
  std::string where = "";      ///< the first result that differs: "call 37", "call 2, with 1 thread"; empty: there is but one
  Element first{};             ///< its first element that differs
  double judged = 0, got = 0;  ///< the values there
};
std::string_view name_of(Invariance::Outcome);

/// "dq differs in 3 of 4096 elements, first at [0,1,2,3]: 0.25, was 0.5 (at most 2 ulp)"; equal and not_supported ones: so.
std::string sentence_of(const Invariance& invariance);

nlohmann::json to_json_invariance(const Invariance& invariance);
/// `path` names it in messages. Throws std::runtime_error.
Invariance invariance_from(const nlohmann::json& object, const std::string& path);

}  // namespace attnbench
