#include "harness/run/declaration.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "harness/run/names.hpp"

namespace attnbench {

namespace {

std::string sm_name(int sm) {
  return fmt::format("{}.{}", sm / 10, sm % 10);
}

template <class E>
bool contains(const std::vector<E>& declared, E value) {
  return std::ranges::find(declared, value) != declared.end();
}

template <class E>
std::vector<std::string> names_in(const std::vector<E>& values) {
  std::vector<std::string> names;
  for (E value : values) names.emplace_back(find_name(value));
  return names;
}

/// "WHAT=got: NAME takes a, b", or nothing if `value` is declared.
template <class E>
std::optional<std::string> outside(const Declaration& backend, std::string_view what, const std::vector<E>& declared, E value) {
  if (contains(declared, value)) return std::nullopt;
  return fmt::format("{}={}: {} takes {}", what, find_name(value), backend.name,
                     declared.empty() ? "none" : fmt::format("{}", fmt::join(names_in(declared), ", ")));
}

std::optional<std::string> why_not_device(const Declaration& backend, const Device& device) {
  const Capabilities& can = backend.capabilities;
  if (!backend.why_unavailable.empty()) return backend.why_unavailable;
  if (!runs_on(backend, device))
    return fmt::format("device {}: {} runs on {}", device.kind, backend.name, fmt::join(can.devices, ", "));
  if (device.kind != "cuda") return std::nullopt;
  if (!device.sm) return fmt::format("a CUDA device of unknown SM: {} needs SM {}", backend.name, sm_name(can.min_sm));
  if (*device.sm < can.min_sm || *device.sm > can.max_sm)
    return fmt::format("SM {}: {} runs on SM {} to {}", sm_name(*device.sm), backend.name, sm_name(can.min_sm),
                       sm_name(can.max_sm));
  return std::nullopt;
}

std::optional<std::string> why_not_head_dims(const Declaration& backend, const Problem& problem) {
  const Capabilities& can = backend.capabilities;
  if (problem.d < can.min_head_dim || problem.d > can.max_head_dim)
    return fmt::format("d={}: {} takes head dims from {} to {}", problem.d, backend.name, can.min_head_dim, can.max_head_dim);
  if (problem.d % can.head_dim_multiple != 0)
    return fmt::format("d={}: {} takes multiples of {}", problem.d, backend.name, can.head_dim_multiple);
  if (problem.dv == problem.d) return std::nullopt;
  if (!can.dv_differs) return fmt::format("dv={}: {} needs dv equal to d={}", problem.dv, backend.name, problem.d);
  if (problem.dv < can.min_head_dim || problem.dv > can.max_head_dim || problem.dv % can.head_dim_multiple != 0)
    return fmt::format("dv={}: {} takes multiples of {} from {} to {}", problem.dv, backend.name, can.head_dim_multiple,
                       can.min_head_dim, can.max_head_dim);
  return std::nullopt;
}

bool has_unequal_lengths(const Case& c) {
  const SequenceLengths lengths = sequence_lengths(c.problem, c.seed);
  return lengths.q != lengths.k;
}

std::optional<std::string> why_not_lengths(const Declaration& backend, const Case& c) {
  const Capabilities& can = backend.capabilities;
  if (can.unequal_lengths && can.empty_sequences) return std::nullopt;
  const SequenceLengths lengths = sequence_lengths(c.problem, c.seed);
  for (size_t n = 0; n < lengths.q.size(); ++n) {
    if (!can.unequal_lengths && lengths.q[n] != lengths.k[n])
      return fmt::format("sequence {} has {} queries and {} keys: {} needs as many of both", n, lengths.q[n], lengths.k[n],
                         backend.name);
    if (!can.empty_sequences && (lengths.q[n] == 0 || lengths.k[n] == 0))
      return fmt::format("sequence {} has {} queries and {} keys: {} needs at least one of both", n, lengths.q[n], lengths.k[n],
                         backend.name);
  }
  return std::nullopt;
}

std::optional<std::string> why_not_features(const Declaration& backend, const Problem& problem) {
  const Capabilities& can = backend.capabilities;
  const auto lacks = [&](std::string_view key) { return fmt::format("{} is set: {} has no {}", key, backend.name, key); };
  if (problem.window && !can.window) return lacks("window");
  if (problem.softcap > 0 && !can.softcap) return lacks("softcap");
  if (problem.tail > 0 && !can.tail) return lacks("tail");
  if (problem.alibi && !can.alibi) return lacks("alibi");
  if (problem.sink && !can.sink) return lacks("sink");
  if (problem.dropout.p > 0 && !can.dropout) return lacks("dropout");
  if (problem.softmax_scale() < 0 && !can.negative_scale)
    return fmt::format("scale={}: {} takes no scale below 0", problem.softmax_scale(), backend.name);
  if (problem.hq != problem.hkv && !can.gqa)
    return fmt::format("hq={} hkv={}: {} needs as many key heads as query heads", problem.hq, problem.hkv, backend.name);
  return std::nullopt;
}

}  // namespace

double lse_of_empty_row(Conventions::LseEmpty convention) {
  switch (convention) {
    case Conventions::LseEmpty::plus_infinity:
      return kInfinity;
    case Conventions::LseEmpty::zero:
      return 0;
    default:
      return -kInfinity;
  }
}

std::string device_text(const Device& device) {
  return device.kind == "cpu" ? device.kind : fmt::format("{}:{}", device.kind, device.index);
}

const Declaration* find_declaration(const std::vector<Declaration>& declarations, std::string_view name) {
  const auto found = std::ranges::find(declarations, name, &Declaration::name);
  return found == declarations.end() ? nullptr : &*found;
}

bool runs_on(const Declaration& backend, const Device& device) {
  return contains(backend.capabilities.devices, device.kind);
}

bool promises(const Declaration& backend, Relation relation, std::string_view tensor, const Device& device) {
  const Capabilities& can = backend.capabilities;
  const bool repeats = can.deterministic || (!can.varying.empty() && !contains(can.varying, std::string(tensor)));
  const bool is_repeat = relation == Relation::repeats || (relation == Relation::concurrency && device.kind != "cpu");
  return repeats && (is_repeat || contains(can.invariant_to, relation));
}

std::optional<std::string> why_not(const Declaration& backend, const Case& c, Pass pass, const Device& device) {
  const Capabilities& can = backend.capabilities;
  const Problem& problem = c.problem;
  if (auto reason = why_not_device(backend, device)) return reason;
  if (auto reason = outside(backend, "pass", can.passes, pass)) return reason;
  if (auto reason = outside(backend, "dtype", can.dtypes, problem.dtype)) return reason;
  if (auto reason = why_not_head_dims(backend, problem)) return reason;
  if (auto reason = outside(backend, "layout", can.layouts, problem.layout)) return reason;
  if (auto reason = outside(backend, "mask", can.masks, problem.mask)) return reason;
  if (problem.uses_alignment() && !contains(can.aligns, problem.align) && has_unequal_lengths(c))
    if (auto reason = outside(backend, "align", can.aligns, problem.align)) return reason;
  if (auto reason = why_not_features(backend, problem)) return reason;
  if (auto reason = outside(backend, "strides", can.strides, c.strides)) return reason;
  return why_not_lengths(backend, c);
}

}  // namespace attnbench
