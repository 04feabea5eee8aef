#include "harness/run/dispatch.hpp"

#include <stdexcept>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace attnbench {
namespace {

std::string why_passed_over(const PassedOver& one) {
  const Safety& found = one.safety;
  const std::string why =
      found.verdict == "ok" ? one.candidate.why_not : fmt::format("{}: {} ({})", found.verdict, found.reason, found.source);
  return fmt::format("{} [{}]", one.candidate.name, why);
}

std::string why_passed_over(const std::vector<PassedOver>& all) {
  std::vector<std::string> parts;
  for (const PassedOver& one : all) parts.push_back(why_passed_over(one));
  return fmt::format("{}", fmt::join(parts, ", "));
}

std::string place_text(const SafetyQuery& where) {
  const std::string sm = where.sm ? fmt::format("on SM {}.{}", *where.sm / 10, *where.sm % 10) : "without a GPU";
  return fmt::format("{} of {} with head dim {}{} {}", where.backward ? "backward" : "forward", name_of(where.dtype),
                     where.head_dim, where.dropout ? " and dropout" : "", sm);
}

}  // namespace

AttentionCandidate candidate_of(const Declaration& declaration, const std::optional<std::string>& why_not) {
  return {declaration.name, declaration.implementation, declaration.version, why_not.value_or("")};
}

AttentionChoice choose_attention(const std::vector<AttentionCandidate>& candidates, const SafetyQuery& where,
                                 const SafetyTable& table) {
  AttentionChoice choice;
  for (const AttentionCandidate& candidate : candidates) {
    SafetyQuery query = where;
    query.implementation = candidate.implementation;
    query.version = candidate.version;
    const Safety found = safety(query, table);
    if (found.verdict == "ok" && candidate.why_not.empty()) {
      choice.picked = candidate;
      choice.safety = found;
      return choice;
    }
    choice.passed_over.push_back({candidate, found});
  }
  throw std::runtime_error(
      fmt::format("{}: no attention is left for a {}: {}", kAutoAttention, place_text(where),
                  choice.passed_over.empty() ? "there are no candidates" : why_passed_over(choice.passed_over)));
}

std::string sentence_of(const AttentionChoice& choice) {
  std::string text = choice.picked.name + ": the safety table has nothing against it here";
  text += choice.passed_over.empty() ? ", and it is the first choice" : "; passed over: " + why_passed_over(choice.passed_over);
  if (choice.safety.sm_below_8) text += "; FlagEmbedding and FastChat warn here, as of any SM below 8.0, whatever the head dim";
  return text;
}

Case attention_of_layer(const Case& c) {
  Case call;
  call.problem = c.problem;
  Problem& p = call.problem;
  p.layout = Layout::packed;
  p.pad = Pad::right;
  p.tail = 0;
  const bool promotes = c.llama->norm == InputNorm::fp32 && c.llama->cast == CastParts::none;
  if (promotes) p.dtype = Dtype::fp32;
  if (c.problem.layout == Layout::packed) return call;
  // Rows of a padded layer have lengths of their own once they are unpadded; what a backend takes does not depend on those.
  p.lens = p.klens = std::monostate{};
  p.lq /= c.llama->chunks;
  return call;
}

}  // namespace attnbench
