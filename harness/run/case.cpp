#include "harness/run/case.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <numeric>

#include "harness/run/case_keys.hpp"
#include "harness/run/case_limits.hpp"
#include "harness/run/case_text.hpp"
#include "harness/run/names.hpp"
#include "harness/run/nearest.hpp"

namespace attnbench {
namespace {

const std::vector<int64_t>* list_in(const LengthSpec& spec) {
  return std::get_if<std::vector<int64_t>>(&spec);
}
bool is_set(const LengthSpec& spec) {
  return !std::holds_alternative<std::monostate>(spec);
}

const Token* find_token(const std::vector<Token>& tokens, std::string_view key) {
  const auto found = std::ranges::find(tokens, key, &Token::key);
  return found == tokens.end() ? nullptr : &*found;
}
const Token* given(const CaseText& text, std::string_view key) {
  return find_token(text.keys, key);
}

/// Keys that depend on each other, once each has been read.
class Completion {
 public:
  Completion(const CaseText& text, Case& c) : text_(text), problem_(c.problem), strides_(c.strides) {}

  void run() {
    require("d");
    complete_heads();
    complete_lengths();
    check_rows("lens", "lq", problem_.lens, problem_.lq);
    check_rows("klens", "lk", is_set(problem_.klens) ? problem_.klens : problem_.lens, problem_.lk);
    if (problem_.pad != Pad::right && problem_.layout != Layout::padded)
      refuse(*given(text_, "pad"), "layout=padded beside it: packed input has no padding");
    if (problem_.tail > 0 && problem_.layout != Layout::packed)
      refuse(*given(text_, "tail"), "layout=packed beside it: padded input ends with its last row");
    if (strides_ == Strides::far && problem_.hkv == 1)
      refuse(*given(text_, "strides"), "hkv=2 or more beside it: heads lie far apart");
    if (problem_.align != Align::bottom_right && !problem_.uses_alignment())
      refuse(*given(text_, "align"), "mask=causal, a window or alibi beside it: without one the alignment has no effect");
  }

 private:
  void require(std::string_view key) const {
    if (!given(text_, key)) throw CaseError(fmt::format("{}: {}= is missing", text_.place, key));
  }

  void forbid(std::string_view key, std::string_view reason) const {
    if (const Token* token = given(text_, key)) refuse(*token, fmt::format("no {}= here: {}", key, reason));
  }

  void complete_heads() {
    if (!given(text_, "hkv")) problem_.hkv = problem_.hq;
    if (!given(text_, "dv")) problem_.dv = problem_.d;
    if (problem_.hq % problem_.hkv != 0) refuse(*given(text_, "hkv"), fmt::format("a divisor of hq={}", problem_.hq));
  }

  void complete_lengths() {
    if (!is_set(problem_.lens)) {
      if (!given(text_, "lq"))
        throw CaseError(fmt::format("{}: lq= (equal lengths) or lens= (a length each) is missing", text_.place));
      forbid("klens", "it stands beside lens=; beside lq= the keys' length is lk=");
      if (!given(text_, "lk")) problem_.lk = problem_.lq;
      return;
    }
    forbid("lq", "lens= gives the lengths");
    forbid("lk", "lens= and klens= give the lengths");
    const auto* q = list_in(problem_.lens);
    const auto* k = list_in(problem_.klens);
    if (q || k) {
      forbid("b", "the list of lengths gives the number of sequences");
      problem_.b = static_cast<int64_t>(q ? q->size() : k->size());
    }
    if (q && k && q->size() != k->size())
      refuse(*given(text_, "klens"), fmt::format("{} lengths, as many as in lens=", q->size()));
    if (q && problem_.klens == problem_.lens) problem_.klens = std::monostate{};
  }

  /// cu_seqlens is int32: the rows of all sequences, padding included, must fit.
  void check_rows(std::string_view list_key, std::string_view equal_key, const LengthSpec& spec, int64_t equal_length) const {
    const auto* list = list_in(spec);
    const auto* range = std::get_if<UniformLengths>(&spec);
    const int64_t longest = list ? *std::ranges::max_element(*list) : range ? range->high : equal_length;
    int64_t rows = problem_.b * pitch_of(problem_.layout, problem_.pad, longest);
    if (problem_.layout == Layout::packed)
      rows = (list ? std::accumulate(list->begin(), list->end(), int64_t{0}) : problem_.b * longest) + problem_.tail;
    if (rows <= kMaxRows) return;
    const Token* token = given(text_, list_key);
    if (!token) token = given(text_, is_set(spec) ? "lens" : equal_key);
    if (!token) token = given(text_, "lq");
    refuse(*token, fmt::format("at most {} tokens in all sequences together, padding included, got {}", kMaxRows, rows));
  }

  const CaseText& text_;
  Problem& problem_;
  const Strides strides_;
};

std::string format_keys(std::span<const Key> keys, const Case& c, std::string (*write)(std::string_view)) {
  std::string text;
  for (const Key& key : keys) {
    const std::string value = key.format(c);
    if (value != key.default_text(c)) text += fmt::format(" {}={}", key.name, write(value));
  }
  return text;
}

}  // namespace

std::string_view name_of(Fill value) {
  return find_name(value);
}
std::string_view name_of(Dout value) {
  return find_name(value);
}
std::string_view name_of(Strides value) {
  return find_name(value);
}
std::string_view name_of(Expect value) {
  return find_name(value);
}
std::string_view name_of(DeviceKind value) {
  return find_name(value);
}

std::string_view name_of(SwitchStep value) {
  return find_name(value);
}

namespace {

/// What the attention of a model needs: heads of an even size, for RoPE.
void complete_model_heads(const CaseText& text, Problem& p) {
  if (!given(text, "d")) throw CaseError(fmt::format("{}: d= is missing", text.place));
  if (p.d % 2 != 0) refuse(*given(text, "d"), "an even number: RoPE turns pairs of channels");
  p.dv = p.d;
  if (!given(text, "hkv")) p.hkv = p.hq;
  if (p.hq % p.hkv != 0) refuse(*given(text, "hkv"), fmt::format("a divisor of hq={}", p.hq));
}

/// Whether some new token is padding; with pad=holes and a past it may be that only tokens of the past are.
bool pads_queries(const Problem& p) {
  const auto* list = list_in(p.lens);
  return list && p.layout == Layout::padded && std::ranges::min(*list) < (p.pad == Pad::left ? p.lq : p.lk);
}

/// Keys of a layer that would have no effect.
void check_effects(const CaseText& text, const Case& c) {
  const Problem& p = c.problem;
  const LlamaLayer& layer = *c.llama;
  const bool padded = p.layout == Layout::padded;
  if (p.pad != Pad::right && !(padded && is_set(p.lens)))
    refuse(*given(text, "pad"), "lens= beside it, and no layout=packed: nothing is padded");
  if (layer.pad_dout && !pads_queries(p))
    refuse(*given(text, "pad_dout"), "lens= with fewer real tokens beside it: no new token is padding");
  if (layer.runs && !pads_queries(p))
    refuse(*given(text, "runs"), "lens= with fewer real tokens beside it: padded rows show what runs");
  if (layer.mask_keys > 0 && !layer.mask) refuse(*given(text, "mask_keys"), "mask=on or lens= beside it: no mask is given");
  if (layer.positions == PositionIds::from_mask && !layer.mask)
    refuse(*given(text, "positions"), "mask=on or lens= beside it: no mask is given");
  if (layer.positions == PositionIds::none && layer.shift > 0)
    refuse(*given(text, "shift"), "position ids: positions=none has none");
  if (layer.lora_dtype != PartDtype::same && layer.lora == 0) refuse(*given(text, "lora_dtype"), "lora= beside it");
  if (layer.cast != CastParts::none && layer.norm == InputNorm::none && layer.lora == 0)
    refuse(*given(text, "cast"), "norm= or lora= beside it: there is nothing to cast");
}

/// What a case says it equals instead is asked where it must differ, and has to be said there.
void check_difference(const CaseText& text, const Case& c) {
  const bool differs = c.metadata.expect == Expect::must_differ;
  if (c.metadata.instead && !differs) refuse(*find_token(text.metadata, "instead"), "expect=must_differ beside it");
  if (c.llama && differs && !c.metadata.instead)
    refuse(*find_token(text.metadata, "expect"), "instead= beside it: what the result equals then");
}

/// Metadata from which nothing would follow.
void forbid_metadata(const CaseText& text, const Case& c, std::string_view name, std::string_view reason) {
  const Token* token = find_token(text.metadata, name);
  if (!token) return;
  const Key& key = find_key(metadata_keys(), *token);
  if (key.format(c) != key.default_text(c))
    refuse(*token, fmt::format("no {}= in a case of {}: {}", name, text.operation, reason));
}

void complete_training(const CaseText& text, Case& c) {
  Problem& p = c.problem;
  for (const char* key : {"expect", "instead", "message", "repeats"})
    forbid_metadata(text, c, key, "a training stays inside its band, or fails");
  complete_model_heads(text, p);
  if (!given(text, "s")) throw CaseError(fmt::format("{}: s= (bytes of the longest sequence) is missing", text.place));
  p.lk = p.lq;
  p.mask = Mask::causal;
}

void complete_llama(const CaseText& text, Case& c) {
  Problem& p = c.problem;
  forbid_metadata(text, c, "repeats", "a layer is called twice, and no more");
  LlamaLayer& layer = *c.llama;
  complete_model_heads(text, p);
  if (!given(text, "layout")) p.layout = Layout::padded;
  if (!given(text, "causal")) p.mask = Mask::causal;
  const auto* list = list_in(p.lens);
  if (is_set(p.lens) && !list) refuse(*given(text, "lens"), "a list of lengths, as in 17+64");
  if (list) {
    if (const Token* b = given(text, "b")) refuse(*b, "no lens= beside it: the list gives the number of rows");
    p.b = static_cast<int64_t>(list->size());
  }
  if (p.layout == Layout::packed) {
    if (!list) throw CaseError(fmt::format("{}: layout=packed needs lens=, the samples", text.place));
    if (layer.past > 0 || layer.mask) refuse(*given(text, "layout"), "no past= and no mask= beside it");
    if (const Token* s = given(text, "s")) refuse(*s, "no layout=packed beside it: lens= and tail= give the tokens");
    p.lq = std::accumulate(list->begin(), list->end(), p.tail);
  }
  if (p.lq == 0) throw CaseError(fmt::format("{}: s= (new tokens) is missing", text.place));
  p.lk = layer.past + p.lq;
  if (list && p.layout == Layout::padded && std::ranges::max(*list) > p.lk)
    refuse(*given(text, "lens"), fmt::format("at most past + s = {} real tokens a row", p.lk));
  if (p.layout == Layout::padded && p.tail > 0) refuse(*given(text, "tail"), "layout=packed beside it");
  if (!given(text, "mask")) layer.mask = list && p.layout == Layout::padded;
  if (list && p.layout == Layout::padded && !layer.mask) refuse(*given(text, "mask"), "on: lens= is what it says");
  if (p.lq % layer.chunks != 0) refuse(*given(text, "chunks"), fmt::format("a divisor of s={}", p.lq));
  check_effects(text, c);
}

}  // namespace

std::span<const Operation> operations() {
  static const Operation all[] = {
      {"attention", case_keys(), [](Case&) {}, [](const CaseText& text, Case& c) { Completion(text, c).run(); }, "attention"},
      {"llama", llama_keys(), [](Case& c) { c.llama.emplace(); }, complete_llama, "llama"},
      {"training", training_keys(), [](Case& c) { c.training.emplace(); }, complete_training, "attention"}};
  return all;
}

const Operation& operation(const Case& c) {
  return operations()[c.llama ? 1 : c.training ? 2 : 0];
}

const Operation& operation(const CaseText& text) {
  const auto found = std::ranges::find(operations(), text.operation, &Operation::name);
  if (found != operations().end()) return *found;
  std::vector<std::string_view> known;
  for (const Operation& one : operations()) known.push_back(one.name);
  throw CaseError(fmt::format("{}: unknown operation '{}' (known: {}){}", text.place, printable(text.operation),
                              fmt::join(known, ", "), did_you_mean(text.operation, known)));
}

std::string_view operation_of(const Case& c) {
  return operation(c).name;
}

Case case_from(const CaseText& text) {
  const Operation& its = operation(text);
  Case c;
  its.begin(c);
  for (const Token& token : text.keys) find_key(its.keys, token).parse(token, c);
  for (const Token& token : text.metadata) find_key(metadata_keys(), token).parse(token, c);
  its.complete(text, c);
  check_difference(text, c);
  return c;
}

Case parse_case(std::string_view line, std::string_view where) {
  const CaseText text = read_case_text(line, where);
  for (const Token& token : text.keys)
    if (sweep_values(token).size() > 1) refuse(token, "one value: a comma sweeps, and one case is wanted here");
  return case_from(text);
}

std::string format_case(const Case& c) {
  const Operation& its = operation(c);
  return std::string(its.name) + format_keys(its.keys, c, [](std::string_view value) { return std::string(value); });
}

std::string format_terms(const Case& c) {
  constexpr std::string_view kTerms[] = {"expect", "instead", "message", "repeats"};
  std::vector<Key> keys;
  std::ranges::copy_if(metadata_keys(), std::back_inserter(keys),
                       [&](const Key& key) { return std::ranges::find(kTerms, key.name) != std::end(kTerms); });
  const std::string text = format_keys(keys, c, quoted_if_needed);
  return text.empty() ? text : text.substr(1);
}

Case case_with_terms(const std::string& line, const std::string& terms) {
  return parse_case(terms.empty() ? line : line + " # " + terms, "record");
}

std::string format_line(const Case& c) {
  const std::string metadata = format_keys(metadata_keys(), c, quoted_if_needed);
  return metadata.empty() ? format_case(c) : format_case(c) + " #" + metadata;
}

}  // namespace attnbench
