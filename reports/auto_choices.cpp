#include "reports/auto_choices.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/dispatch.hpp"

namespace attnbench {
namespace {

/// The machine that is spoken of.
Device machine(const Hello& hello, std::optional<int> assume_sm) {
  return assume_sm ? Device{"cuda", 0, assume_sm, "assumed"} : hello.device;
}

std::vector<Declaration> candidates_on(const Device& device, const Hello& hello, bool is_assumed) {
  std::vector<Declaration> candidates;
  for (const char* name : kAutoCandidates)
    if (const Declaration* found = find_declaration(hello.backends, name); found && runs_on(*found, device)) {
      candidates.push_back(*found);
      if (is_assumed) candidates.back().why_unavailable.clear();  // which says what is missing here
    }
  return candidates;
}

std::string answer(const std::vector<Declaration>& declared, const Case& layer, Pass pass, const Device& device) {
  const Case call = attention_of_layer(layer);
  std::vector<AttentionCandidate> candidates;
  for (const Declaration& one : declared) candidates.push_back(candidate_of(one, why_not(one, call, pass, device)));
  try {
    return sentence_of(choose_attention(candidates, safety_query(layer.problem, pass, device.sm)));
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

/// What each answer was given to, in the order in which answers came.
using Answers = std::vector<std::pair<std::string, std::vector<std::string>>>;

std::vector<std::string>& entry(Answers& answers, const std::string& why) {
  const auto same = std::ranges::find_if(answers, [&](const auto& one) { return one.first == why; });
  return same == answers.end() ? answers.emplace_back(why, std::vector<std::string>{}).second : same->second;
}

Answers answers_by_head_dim(const std::vector<Declaration>& candidates, Dtype dtype, Pass pass, const Device& device) {
  Answers answers;
  for (const int64_t d : {64, 96, 128, 192, 224, 256}) {
    const Case layer = parse_case(fmt::format("llama hq=4 d={} s=64 dtype={}", d, name_of(dtype)), "support");
    entry(answers, answer(candidates, layer, pass, device)).push_back(std::to_string(d));
  }
  return answers;
}

}  // namespace

std::string auto_choices(const Hello& hello, std::optional<int> assume_sm) {
  const Device device = machine(hello, assume_sm);
  const std::vector<Declaration> candidates = candidates_on(device, hello, assume_sm.has_value());
  if (candidates.empty()) return "";
  Answers answers;
  for (const Pass pass : {Pass::forward, Pass::backward})
    for (const Dtype dtype : {Dtype::bf16, Dtype::fp16, Dtype::fp32})
      for (const auto& [why, head_dims] : answers_by_head_dim(candidates, dtype, pass, device))
        entry(answers, why).push_back(fmt::format("{} {} d={}", name_of(pass), name_of(dtype), fmt::join(head_dims, ",")));
  std::string text;
  for (const auto& [why, shapes] : answers) text += fmt::format("  {}\n    {}\n", fmt::join(shapes, "; "), why);
  std::string where = device.sm ? fmt::format("on SM {}.{}", *device.sm / 10, *device.sm % 10) : "here";
  if (assume_sm && hello.device.kind == "cpu")
    where += ", from what the backends take on this CPU (on a GPU fewer dtypes and head dims)";
  return fmt::format("Attention that --attention {} picks {}\n{}", kAutoAttention, where, text);
}

}  // namespace attnbench
