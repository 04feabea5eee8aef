#include "harness/run/case_keys.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>

#include "harness/run/case_limits.hpp"
#include "harness/run/names.hpp"
#include "harness/run/nearest.hpp"

namespace attnbench {
namespace {

template <class Number>
std::optional<Number> to_number(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return number;
}

/// `part`: the piece of the token's value that is to be a number.
int64_t whole_number(const Token& token, std::string_view part, int64_t low, int64_t high) {
  const auto number = to_number<int64_t>(part);
  if (!number || *number < low || *number > high) {
    const std::string subject = part == token.value ? "" : fmt::format(", got '{}'", printable(part));
    refuse(token, fmt::format("a whole number from {} to {}{}", low, high, subject));
  }
  return *number;
}
int64_t whole_number(const Token& token, int64_t low, int64_t high) {
  return whole_number(token, token.value, low, high);
}

uint64_t seed_number(const Token& token, std::string_view part) {
  const auto number = to_number<uint64_t>(part);
  if (!number) refuse(token, fmt::format("a seed from 0 to {}", std::numeric_limits<uint64_t>::max()));
  return *number;
}

double real_number(const Token& token, std::string_view part, std::string_view expected) {
  const auto number = to_number<double>(part);
  if (!number || !std::isfinite(*number)) refuse(token, expected);
  return *number + 0.0;  // -0 becomes 0
}

template <class E>
E one_of(const Token& token) {
  if (const auto value = find_value<E>(token.value)) return *value;
  const auto names = all_names<E>();
  refuse(token, fmt::format("{}{}", fmt::join(names, " | "), did_you_mean(token.value, names)));
}

bool one_of_two(const Token& token, std::string_view yes, std::string_view no) {
  if (token.value != yes && token.value != no)
    refuse(token, fmt::format("{} | {}{}", yes, no, did_you_mean(token.value, {yes, no})));
  return token.value == yes;
}

/// The two parts around a colon.
std::pair<std::string_view, std::string_view> around_colon(const Token& token, std::string_view expected) {
  const std::string_view value = token.value;
  const size_t colon = value.find(':');
  if (colon == std::string_view::npos) refuse(token, expected);
  return {value.substr(0, colon), value.substr(colon + 1)};
}

LengthSpec lengths(const Token& token) {
  std::string_view value = token.value;
  constexpr std::string_view kUniform = "uniform(";
  if (value.starts_with(kUniform)) {
    constexpr std::string_view kExpected = "uniform(low,high) with low <= high";
    const size_t comma = value.find(',');
    if (!value.ends_with(')') || comma == std::string_view::npos) refuse(token, kExpected);
    const UniformLengths range{whole_number(token, value.substr(kUniform.size(), comma - kUniform.size()), 0, kMaxLength),
                               whole_number(token, value.substr(comma + 1, value.size() - comma - 2), 0, kMaxLength)};
    if (range.low > range.high) refuse(token, kExpected);
    return range;
  }
  if (!value.empty() && std::isalpha(static_cast<unsigned char>(value.front())))
    refuse(token, fmt::format("lengths such as 17+64+0+129, or uniform(256,4096){}",
                              did_you_mean(value.substr(0, value.find('(')), {"uniform"})));
  std::vector<int64_t> list;
  for (bool more = true; more;) {
    const size_t plus = value.find('+');
    list.push_back(whole_number(token, value.substr(0, plus), 0, kMaxLength));
    if (static_cast<int64_t>(list.size()) > kMaxSequences) refuse(token, fmt::format("at most {} lengths", kMaxSequences));
    more = plus != std::string_view::npos;
    if (more) value.remove_prefix(plus + 1);
  }
  return list;
}

std::string format_lengths(const LengthSpec& spec) {
  if (const auto* range = std::get_if<UniformLengths>(&spec)) return fmt::format("uniform({},{})", range->low, range->high);
  if (const auto* list = std::get_if<std::vector<int64_t>>(&spec)) return fmt::format("{}", fmt::join(*list, "+"));
  return "none";
}

void parse_window(const Token& token, Case& c) {
  constexpr std::string_view kExpected = "left:right in keys, -1 = unlimited, not both";
  if (token.value == "none") return;
  const auto [left, right] = around_colon(token, kExpected);
  c.problem.window = {whole_number(token, left, -1, kMaxLength), whole_number(token, right, -1, kMaxLength)};
  if (c.problem.window->left < 0 && c.problem.window->right < 0) refuse(token, kExpected);
}

void parse_dropout(const Token& token, Case& c) {
  constexpr std::string_view kExpected = "off, or p:seed with 0 < p < 1";
  if (token.value == "off") return;
  const auto [p, seed] = around_colon(token, kExpected);
  c.problem.dropout = {real_number(token, p, kExpected), seed_number(token, seed)};
  if (!(c.problem.dropout.p > 0 && c.problem.dropout.p < 1)) refuse(token, kExpected);
}

void parse_softcap(const Token& token, Case& c) {
  constexpr std::string_view kExpected = "off, or a number above 0";
  if (token.value == "off") return;
  c.problem.softcap = real_number(token, token.value, kExpected);
  if (!(c.problem.softcap > 0)) refuse(token, kExpected);
}

void parse_scale(const Token& token, Case& c) {
  if (token.value != "auto") c.problem.scale = real_number(token, token.value, "auto (1/sqrt(d)), or a number");
}

template <auto member>
void parse_problem_name(const Token& token, Case& c) {
  using E = std::remove_reference_t<decltype(c.problem.*member)>;
  c.problem.*member = one_of<E>(token);
}
template <auto member>
void parse_case_name(const Token& token, Case& c) {
  using E = std::remove_reference_t<decltype(c.*member)>;
  c.*member = one_of<E>(token);
}
template <auto member, int64_t low, int64_t high>
void parse_count(const Token& token, Case& c) {
  c.problem.*member = whole_number(token, low, high);
}
template <auto member>
void parse_switch(const Token& token, Case& c) {
  c.problem.*member = one_of_two(token, "on", "off");
}
template <auto member>
std::string format_count(const Case& c) {
  return std::to_string(c.problem.*member);
}
template <auto member>
std::string format_problem_name(const Case& c) {
  return std::string(name_of(c.problem.*member));
}
template <auto member>
std::string format_case_name(const Case& c) {
  return std::string(name_of(c.*member));
}
template <auto member>
std::string format_switch(const Case& c) {
  return c.problem.*member ? "on" : "off";
}

/// Of the part that an operation adds to a case.
template <auto part, auto member, int64_t low, int64_t high>
void parse_part_count(const Token& token, Case& c) {
  (*(c.*part)).*member = whole_number(token, low, high);
}
template <auto part, auto member>
std::string format_part_count(const Case& c) {
  return std::to_string((*(c.*part)).*member);
}
template <auto part, auto member>
void parse_part_switch(const Token& token, Case& c) {
  (*(c.*part)).*member = one_of_two(token, "on", "off");
}
template <auto part, auto member>
std::string format_part_switch(const Case& c) {
  return (*(c.*part)).*member ? "on" : "off";
}
template <auto member>
void parse_layer_name(const Token& token, Case& c) {
  using E = std::remove_reference_t<decltype((*c.llama).*member)>;
  (*c.llama).*member = one_of<E>(token);
}
template <auto member>
std::string format_layer_name(const Case& c) {
  return std::string(find_name((*c.llama).*member));
}

/// "a+" holds an empty name, which nothing has.
std::vector<std::string> names_joined(std::string_view text) {
  std::vector<std::string> names;
  for (size_t plus; (plus = text.find('+')) != std::string_view::npos; text.remove_prefix(plus + 1))
    names.emplace_back(text.substr(0, plus));
  names.emplace_back(text);
  return names;
}

void parse_steps(const Token& token, Case& c) {
  for (const std::string& name : names_joined(token.value))
    c.llama->switching.push_back(one_of<SwitchStep>({token.key, name, token.place}));
}

std::string format_steps(const Case& c) {
  std::vector<std::string_view> names;
  for (const SwitchStep step : c.llama->switching) names.push_back(find_name(step));
  return names.empty() ? "none" : fmt::format("{}", fmt::join(names, "+"));
}

/// A compute capability, 8.6.
void parse_assumed_sm(const Token& token, Case& c) {
  constexpr std::string_view kExpected = "a compute capability, as in 7.5";
  const size_t dot = token.value.find('.');
  if (dot == std::string::npos) refuse(token, kExpected);
  const std::string_view value = token.value;
  c.llama->assume.sm =
      static_cast<int>(10 * whole_number(token, value.substr(0, dot), 0, 99) + whole_number(token, value.substr(dot + 1), 0, 9));
}

std::string format_assumed_sm(const Case& c) {
  const std::optional<int> sm = c.llama->assume.sm;
  return sm ? fmt::format("{}.{}", *sm / 10, *sm % 10) : "own";
}

template <auto member>
void parse_assumed_version(const Token& token, Case& c) {
  const bool digits_and_dots = token.value.find_first_not_of("0123456789.") == std::string::npos && !token.value.empty();
  if (!digits_and_dots) refuse(token, "a version, as in 2.1.0");
  c.llama->assume.*member = token.value;
}
template <auto member>
std::string format_assumed_version(const Case& c) {
  return c.llama->assume.*member;
}

void parse_gain(const Token& token, Case& c) {
  constexpr std::string_view kExpected = "a number above 0";
  c.llama->gain = real_number(token, token.value, kExpected);
  if (!(c.llama->gain > 0)) refuse(token, kExpected);
}

/// A sliding window of w keys to the left, as LLaMA's configurations have it.
void parse_left_window(const Token& token, Case& c) {
  if (token.value != "none") c.problem.window = {whole_number(token, 0, kMaxLength), -1};
}

void parse_only_pass(const Token& token, Case& c) {
  if (token.value != "both") c.metadata.pass = one_of<Pass>(token);
}

struct NamedSemantics {
  std::string_view name;
  void (*set)(Semantics&);
};
constexpr NamedSemantics kSemantics[] = {{"ignores_mask", [](Semantics& s) { s.key_mask = false; }},
                                         {"not_causal", [](Semantics& s) { s.causal = false; }},
                                         {"top_left", [](Semantics& s) { s.top_left = true; }},
                                         {"uniform_rows", [](Semantics& s) { s.uniform_rows = true; }},
                                         {"no_weights", [](Semantics& s) { s.weights = false; }},
                                         {"fp16_overflow", [](Semantics& s) { s.fp16_overflow = true; }},
                                         {"casts_back", [](Semantics& s) { s.casts_back = true; }},
                                         {"original", [](Semantics& s) { s.runs = Implementation::original; }},
                                         {"patched", [](Semantics& s) { s.runs = Implementation::patched; }}};

void parse_instead(const Token& token, Case& c) {
  std::vector<std::string_view> known;
  for (const NamedSemantics& named : kSemantics) known.push_back(named.name);
  Semantics instead;
  for (const std::string& name : names_joined(token.value)) {
    const auto found = std::ranges::find(kSemantics, name, &NamedSemantics::name);
    if (found == std::end(kSemantics))
      refuse(token, fmt::format("some of {}, joined by +{}", fmt::join(known, ", "), did_you_mean(name, known)));
    found->set(instead);
  }
  c.metadata.instead = instead;
}

std::string format_instead(const Case& c) {
  if (!c.metadata.instead) return "";
  std::vector<std::string_view> names;
  for (const NamedSemantics& named : kSemantics) {
    Semantics with = *c.metadata.instead;
    named.set(with);
    if (with == *c.metadata.instead) names.push_back(named.name);
  }
  return fmt::format("{}", fmt::join(names, "+"));
}

bool has_lens(const Case& c) {
  return !std::holds_alternative<std::monostate>(c.problem.lens);
}
bool is_list(const LengthSpec& spec) {
  return std::holds_alternative<std::vector<int64_t>>(spec);
}

std::string no_default(const Case&) {
  return "";
}
std::string none(const Case&) {
  return "none";
}
std::string off(const Case&) {
  return "off";
}
std::string zero(const Case&) {
  return "0";
}

/// A list of lengths says how many sequences there are.
std::string default_b(const Case& c) {
  return is_list(c.problem.lens) || is_list(c.problem.klens) ? std::to_string(c.problem.b) : "1";
}
std::string default_lq(const Case& c) {
  return has_lens(c) ? format_count<&Problem::lq>(c) : "";
}
std::string default_lk(const Case& c) {
  return has_lens(c) ? format_count<&Problem::lk>(c) : format_count<&Problem::lq>(c);
}

std::string format_scale(const Case& c) {
  return c.problem.scale ? fmt::format("{}", *c.problem.scale) : "auto";
}
std::string format_softcap(const Case& c) {
  return c.problem.softcap > 0 ? fmt::format("{}", c.problem.softcap) : "off";
}
std::string format_window(const Case& c) {
  return c.problem.window ? fmt::format("{}:{}", c.problem.window->left, c.problem.window->right) : "none";
}
std::string format_dropout(const Case& c) {
  return c.problem.dropout.p > 0 ? fmt::format("{}:{}", c.problem.dropout.p, c.problem.dropout.seed) : "off";
}

// clang-format off
const Key kCaseKeys[] = {
    {"b", parse_count<&Problem::b, 1, kMaxSequences>, format_count<&Problem::b>, default_b},
    {"hq", parse_count<&Problem::hq, 1, kMaxHeads>, format_count<&Problem::hq>, [](const Case&) { return std::string("1"); }},
    {"hkv", parse_count<&Problem::hkv, 1, kMaxHeads>, format_count<&Problem::hkv>, format_count<&Problem::hq>},
    {"d", parse_count<&Problem::d, 1, kMaxHeadDim>, format_count<&Problem::d>, no_default},
    {"dv", parse_count<&Problem::dv, 1, kMaxHeadDim>, format_count<&Problem::dv>, format_count<&Problem::d>},
    {"lq", parse_count<&Problem::lq, 0, kMaxLength>, format_count<&Problem::lq>, default_lq},
    {"lk", parse_count<&Problem::lk, 0, kMaxLength>, format_count<&Problem::lk>, default_lk},
    {"lens", [](const Token& t, Case& c) { c.problem.lens = lengths(t); },
     [](const Case& c) { return format_lengths(c.problem.lens); }, none},
    {"klens", [](const Token& t, Case& c) { c.problem.klens = lengths(t); },
     [](const Case& c) { return format_lengths(c.problem.klens); }, none},
    {"dtype", parse_problem_name<&Problem::dtype>, format_problem_name<&Problem::dtype>, [](const Case&) { return std::string("bf16"); }},
    {"mask", parse_problem_name<&Problem::mask>, format_problem_name<&Problem::mask>, none},
    {"align", parse_problem_name<&Problem::align>, format_problem_name<&Problem::align>, [](const Case&) { return std::string("bottom_right"); }},
    {"window", parse_window, format_window, none},
    {"layout", parse_problem_name<&Problem::layout>, format_problem_name<&Problem::layout>, [](const Case&) { return std::string("packed"); }},
    {"pad", parse_problem_name<&Problem::pad>, format_problem_name<&Problem::pad>, [](const Case&) { return std::string("right"); }},
    {"tail", parse_count<&Problem::tail, 0, kMaxLength>, format_count<&Problem::tail>, zero},
    {"scale", parse_scale, format_scale, [](const Case&) { return std::string("auto"); }},
    {"softcap", parse_softcap, format_softcap, off},
    {"alibi", parse_switch<&Problem::alibi>, format_switch<&Problem::alibi>, off},
    {"sink", parse_switch<&Problem::sink>, format_switch<&Problem::sink>, off},
    {"dropout", parse_dropout, format_dropout, off},
    {"fill", parse_case_name<&Case::fill>, format_case_name<&Case::fill>, [](const Case&) { return std::string("normal"); }},
    {"dout", parse_case_name<&Case::dout>, format_case_name<&Case::dout>, [](const Case&) { return std::string("normal"); }},
    {"strides", parse_case_name<&Case::strides>, format_case_name<&Case::strides>, [](const Case&) { return std::string("contiguous"); }},
    {"seed", [](const Token& t, Case& c) { c.seed = seed_number(t, t.value); }, [](const Case& c) { return std::to_string(c.seed); }, zero},
};

const Key kLlamaKeys[] = {
    {"b", parse_count<&Problem::b, 1, kMaxSequences>, format_count<&Problem::b>, default_b},
    {"hq", parse_count<&Problem::hq, 1, kMaxHeads>, format_count<&Problem::hq>, [](const Case&) { return std::string("1"); }},
    {"hkv", parse_count<&Problem::hkv, 1, kMaxHeads>, format_count<&Problem::hkv>, format_count<&Problem::hq>},
    {"d", parse_count<&Problem::d, 2, kMaxHeadDim>, format_count<&Problem::d>, no_default},
    {"s", parse_count<&Problem::lq, 1, kMaxLength>, format_count<&Problem::lq>,
     [](const Case& c) { return c.problem.layout == Layout::packed ? format_count<&Problem::lq>(c) : ""; }},
    {"past", parse_part_count<&Case::llama, &LlamaLayer::past, 0, kMaxLength>, format_part_count<&Case::llama, &LlamaLayer::past>, zero},
    {"lens", [](const Token& t, Case& c) { c.problem.lens = lengths(t); },
     [](const Case& c) { return format_lengths(c.problem.lens); }, none},
    {"pad", parse_problem_name<&Problem::pad>, format_problem_name<&Problem::pad>, [](const Case&) { return std::string("right"); }},
    {"layout", parse_problem_name<&Problem::layout>, format_problem_name<&Problem::layout>, [](const Case&) { return std::string("padded"); }},
    {"tail", parse_count<&Problem::tail, 0, kMaxLength>, format_count<&Problem::tail>, zero},
    {"dtype", parse_problem_name<&Problem::dtype>, format_problem_name<&Problem::dtype>, [](const Case&) { return std::string("bf16"); }},
    {"causal", [](const Token& t, Case& c) { c.problem.mask = one_of_two(t, "on", "off") ? Mask::causal : Mask::none; },
     [](const Case& c) { return std::string(c.problem.mask == Mask::causal ? "on" : "off"); }, [](const Case&) { return std::string("on"); }},
    {"window", parse_left_window, [](const Case& c) { return c.problem.window ? std::to_string(c.problem.window->left) : "none"; }, none},
    {"mask", parse_part_switch<&Case::llama, &LlamaLayer::mask>, format_part_switch<&Case::llama, &LlamaLayer::mask>,
     [](const Case& c) { return std::string(has_lens(c) && c.problem.layout == Layout::padded ? "on" : "off"); }},
    {"mask_keys", parse_part_count<&Case::llama, &LlamaLayer::mask_keys, 0, kMaxLength>, format_part_count<&Case::llama, &LlamaLayer::mask_keys>, zero},
    {"chunks", parse_part_count<&Case::llama, &LlamaLayer::chunks, 1, kMaxLength>, format_part_count<&Case::llama, &LlamaLayer::chunks>, [](const Case&) { return std::string("1"); }},
    {"cache", parse_part_switch<&Case::llama, &LlamaLayer::cache>, format_part_switch<&Case::llama, &LlamaLayer::cache>, off},
    {"weights", parse_part_switch<&Case::llama, &LlamaLayer::weights>, format_part_switch<&Case::llama, &LlamaLayer::weights>, off},
    {"train", parse_part_switch<&Case::llama, &LlamaLayer::train>, format_part_switch<&Case::llama, &LlamaLayer::train>, [](const Case&) { return std::string("on"); }},
    {"positions", parse_layer_name<&LlamaLayer::positions>, format_layer_name<&LlamaLayer::positions>, [](const Case&) { return std::string("own"); }},
    {"shift", parse_part_count<&Case::llama, &LlamaLayer::shift, 0, kMaxLength>, format_part_count<&Case::llama, &LlamaLayer::shift>, zero},
    {"pad_dout", parse_part_switch<&Case::llama, &LlamaLayer::pad_dout>, format_part_switch<&Case::llama, &LlamaLayer::pad_dout>, off},
    {"gain", parse_gain, [](const Case& c) { return fmt::format("{}", c.llama->gain); }, [](const Case&) { return std::string("1"); }},
    {"norm", parse_layer_name<&LlamaLayer::norm>, format_layer_name<&LlamaLayer::norm>, none},
    {"qk_norm", parse_part_switch<&Case::llama, &LlamaLayer::qk_norm>, format_part_switch<&Case::llama, &LlamaLayer::qk_norm>, off},
    {"lora", parse_part_count<&Case::llama, &LlamaLayer::lora, 0, kMaxHeadDim>, format_part_count<&Case::llama, &LlamaLayer::lora>, zero},
    {"lora_dtype", parse_layer_name<&LlamaLayer::lora_dtype>, format_layer_name<&LlamaLayer::lora_dtype>, [](const Case&) { return std::string("same"); }},
    {"cast", parse_layer_name<&LlamaLayer::cast>, format_layer_name<&LlamaLayer::cast>, none},
    {"int8", parse_part_switch<&Case::llama, &LlamaLayer::int8>, format_part_switch<&Case::llama, &LlamaLayer::int8>, off},
    {"switch", parse_steps, format_steps, none},
    {"runs", [](const Token& t, Case& c) { c.llama->runs = one_of<Implementation>(t); },
     [](const Case& c) { return std::string(c.llama->runs ? find_name(*c.llama->runs) : "any"); }, [](const Case&) { return std::string("any"); }},
    {"assume_sm", parse_assumed_sm, format_assumed_sm, [](const Case&) { return std::string("own"); }},
    {"assume_flash_attn", parse_assumed_version<&AssumedPlace::flash_attn>, format_assumed_version<&AssumedPlace::flash_attn>, no_default},
    {"assume_torch", parse_assumed_version<&AssumedPlace::torch>, format_assumed_version<&AssumedPlace::torch>, no_default},
    {"strides", parse_case_name<&Case::strides>, format_case_name<&Case::strides>, [](const Case&) { return std::string("contiguous"); }},
    {"seed", [](const Token& t, Case& c) { c.seed = seed_number(t, t.value); }, [](const Case& c) { return std::to_string(c.seed); }, zero},
};

const Key kTrainingKeys[] = {
    {"b", parse_count<&Problem::b, 1, kMaxSequences>, format_count<&Problem::b>, [](const Case&) { return std::string("1"); }},
    {"hq", parse_count<&Problem::hq, 1, kMaxHeads>, format_count<&Problem::hq>, [](const Case&) { return std::string("1"); }},
    {"hkv", parse_count<&Problem::hkv, 1, kMaxHeads>, format_count<&Problem::hkv>, format_count<&Problem::hq>},
    {"d", parse_count<&Problem::d, 2, kMaxHeadDim>, format_count<&Problem::d>, no_default},
    {"s", parse_count<&Problem::lq, 4, kMaxTrainedLength>, format_count<&Problem::lq>, no_default},
    {"dtype", parse_problem_name<&Problem::dtype>, format_problem_name<&Problem::dtype>, [](const Case&) { return std::string("bf16"); }},
    {"layout", parse_problem_name<&Problem::layout>, format_problem_name<&Problem::layout>, [](const Case&) { return std::string("packed"); }},
    {"layers", parse_part_count<&Case::training, &TrainingRun::layers, 1, 64>, format_part_count<&Case::training, &TrainingRun::layers>, [](const Case&) { return std::string("2"); }},
    {"steps", parse_part_count<&Case::training, &TrainingRun::steps, 1, kMaxSteps>, format_part_count<&Case::training, &TrainingRun::steps>, [](const Case&) { return std::string("200"); }},
    {"lora", parse_part_count<&Case::training, &TrainingRun::lora, 0, kMaxHeadDim>, format_part_count<&Case::training, &TrainingRun::lora>, zero},
    {"tied", parse_part_switch<&Case::training, &TrainingRun::tied>, format_part_switch<&Case::training, &TrainingRun::tied>, off},
    {"seed", [](const Token& t, Case& c) { c.seed = seed_number(t, t.value); }, [](const Case& c) { return std::to_string(c.seed); }, zero},
};

const Key kMetadataKeys[] = {
    {"name", [](const Token& t, Case& c) { c.metadata.name = t.value; }, [](const Case& c) { return c.metadata.name; }, no_default},
    {"expect", [](const Token& t, Case& c) { c.metadata.expect = one_of<Expect>(t); },
     [](const Case& c) { return std::string(name_of(c.metadata.expect)); }, [](const Case&) { return std::string("equal"); }},
    {"source", [](const Token& t, Case& c) { c.metadata.source = t.value; }, [](const Case& c) { return c.metadata.source; }, no_default},
    {"why", [](const Token& t, Case& c) { c.metadata.why = t.value; }, [](const Case& c) { return c.metadata.why; }, no_default},
    {"device", [](const Token& t, Case& c) { c.metadata.device = one_of<DeviceKind>(t); },
     [](const Case& c) { return std::string(name_of(c.metadata.device)); }, [](const Case&) { return std::string("any"); }},
    {"timed", [](const Token& t, Case& c) { c.metadata.timed = one_of_two(t, "yes", "no"); },
     [](const Case& c) { return std::string(c.metadata.timed ? "yes" : "no"); }, [](const Case&) { return std::string("yes"); }},
    {"cooled", [](const Token& t, Case& c) { c.metadata.cooled = one_of_two(t, "yes", "no"); },
     [](const Case& c) { return std::string(c.metadata.cooled ? "yes" : "no"); }, [](const Case&) { return std::string("yes"); }},
    {"backend", [](const Token& t, Case& c) { c.metadata.backends = names_joined(t.value); },
     [](const Case& c) { return fmt::format("{}", fmt::join(c.metadata.backends, "+")); }, no_default},
    {"pass", parse_only_pass, [](const Case& c) { return std::string(c.metadata.pass ? find_name(*c.metadata.pass) : "both"); },
     [](const Case&) { return std::string("both"); }},
    {"instead", parse_instead, format_instead, no_default},
    {"message", [](const Token& t, Case& c) { c.metadata.message = t.value; }, [](const Case& c) { return c.metadata.message; }, no_default},
    {"repeats", [](const Token& t, Case& c) { c.metadata.repeats = whole_number(t, 0, kMaxRepeats); },
     [](const Case& c) { return std::to_string(c.metadata.repeats); }, zero},
};
// clang-format on

}  // namespace

std::span<const Key> case_keys() {
  return kCaseKeys;
}
std::span<const Key> llama_keys() {
  return kLlamaKeys;
}
std::span<const Key> training_keys() {
  return kTrainingKeys;
}
std::span<const Key> metadata_keys() {
  return kMetadataKeys;
}

const Key& find_key(std::span<const Key> keys, const Token& token) {
  const auto found = std::ranges::find(keys, token.key, &Key::name);
  if (found != keys.end()) return *found;
  std::vector<std::string_view> names;
  for (const Key& key : keys) names.push_back(key.name);
  throw CaseError(fmt::format("{}: unknown key '{}' (known: {}){}", token.place, printable(token.key), fmt::join(names, ", "),
                              did_you_mean(token.key, names)));
}

}  // namespace attnbench
