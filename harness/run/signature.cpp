#include "harness/run/signature.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <sstream>
#include <stdexcept>

#include <fmt/format.h>

#include "harness/run/json_reader.hpp"

namespace attnbench {
namespace {

using nlohmann::json;

constexpr double kFailedOrNot = 3;  ///< a tensor failed in one and not in the other
constexpr double kKindOfPart = 0.7, kOrdinaryWeight = 0.5;
constexpr const char* kGate = "gate ";

/// What tells mistakes apart counts more; found on the defect matrix, by hand.
const std::map<std::string, double>& weights() {
  static const std::map<std::string, double> all{{"gate nonfinite", 1},
                                                 {"gate exact_zero", 1},
                                                 {"z", 2},
                                                 {"rms", 1},
                                                 {"bad", 2},
                                                 {"rows", 1},
                                                 {"density", 2},
                                                 {"gain", 2},
                                                 {"sign", 1},
                                                 {"cosine", 2},
                                                 {"rel", 3},
                                                 {"zeros", 2},
                                                 {"nonfinite", 2}};
  return all;
}

double rounding_error(Dtype dtype) {
  switch (dtype) {
    case Dtype::bf16:
      return 0x1p-8;
    case Dtype::fp16:
      return 0x1p-11;
    case Dtype::fp32:
      return 0x1p-24;
  }
  throw std::logic_error("a dtype without a rounding error");
}

/// log2(value) / 16 between 0 and 1; 1 for what is not finite.
double on_scale(double value) {
  return std::isfinite(value) ? std::clamp(std::log2(std::max(value, 1.0)) / 16, 0.0, 1.0) : 1;
}

double excess_of_z(const TensorErrors& errors) {
  for (const char* name : {"z", "lse"})
    if (const auto gate = errors.gates.find(name); gate != errors.gates.end() && gate->second.limit > 0)
      return errors.max_z / gate->second.limit;
  return 1;
}

TensorSignature signature_of_tensor(const std::string& tensor, const TensorErrors& errors, double u) {
  const TensorFailure& failure = *errors.failure;
  const BadPattern& pattern = failure.pattern;
  TensorSignature s;
  std::map<std::string, double>& f = s.features;
  for (const auto& [name, gate] : errors.gates)
    if (gate.verdict == Gate::Verdict::fail) f[kGate + name] = 1;
  f["z"] = on_scale(excess_of_z(errors));
  f["rms"] = on_scale(tensor == "lse" ? failure.rms_z : failure.rms_ratio);
  if (errors.bad > 0) {
    const auto bad = double(errors.bad);
    f["bad"] = std::clamp(1 + std::log10(bad / double(std::max<int64_t>(errors.elements, 1))) / 7, 0.0, 1.0);
    f["zeros"] = double(failure.zeros) / bad;
    f["nonfinite"] = double(failure.nans + failure.infinities) / bad;
  }
  if (pattern.rows_hit > 0) {
    const double of_a_row = double(errors.elements) / double(pattern.rows);
    f["rows"] = double(pattern.rows_hit) / double(pattern.rows);
    f["density"] = std::min(1.0, double(errors.bad) / (double(pattern.rows_hit) * of_a_row));
  }
  f["gain"] = std::clamp(failure.gain, -1.2, 1.5);
  f["sign"] = std::copysign(std::min(1.0, std::log2(1 + 10 * std::abs(failure.gain) / u) / 16), failure.gain);
  f["cosine"] = std::clamp(1 + std::log10(std::max(1 - errors.cosine, 1e-8)) / 8, 0.0, 1.0);
  f["rel"] = std::clamp(std::log2(std::max(4 * errors.rel_l2 / u, 1.0)) / 26, 0.0, 1.0);
  for (auto& [name, value] : f) value = std::isfinite(value) ? std::round(1000 * value) / 1000 : 0;
  std::erase_if(f, [](const auto& feature) { return feature.second == 0; });
  s.where = pattern.text.empty() ? std::array<std::string, 4>{"none", "none", "none", "none"}
                                 : std::array{pattern.sequences, pattern.tokens, pattern.heads, pattern.channels};
  return s;
}

double distance_of_tensors(const TensorSignature& a, const TensorSignature& b) {
  double sum = 0;
  const auto value = [](const TensorSignature& s, const std::string& name) {
    const auto found = s.features.find(name);
    return found == s.features.end() ? 0 : found->second;
  };
  std::set<std::string> names;
  for (const TensorSignature* s : {&a, &b})
    for (const auto& [name, feature] : s->features) names.insert(name);
  for (const std::string& name : names) {
    const auto weight = weights().find(name);
    sum += (weight == weights().end() ? kOrdinaryWeight : weight->second) * std::abs(value(a, name) - value(b, name));
  }
  for (size_t axis = 0; axis < a.where.size(); ++axis) sum += a.where[axis] != b.where[axis] ? kKindOfPart : 0;
  return sum;
}

double distance_of_kinds(const CaseKind& a, const CaseKind& b) {
  return (a.mask != b.mask ? 0.3 : 0) + (a.has_window != b.has_window ? 0.3 : 0) + (a.shares_heads != b.shares_heads ? 0.2 : 0) +
         (a.dtype != b.dtype ? 0.2 : 0);
}

}  // namespace

CaseKind::CaseKind(const std::string& case_line) {
  const Problem problem = parse_case(case_line, "signature").problem;
  mask = problem.mask;
  has_window = problem.window.has_value();
  shares_heads = problem.group() > 1;
  dtype = problem.dtype;
}

Signature::Signature(Pass pass, std::string line) : pass(pass), case_line(std::move(line)), kind(case_line) {}

std::optional<Signature> failure_signature(const Record& record) {
  Signature signature(record.pass, record.case_line);
  for (const char* tensor : {"o", "lse", "dq", "dk", "dv"}) {
    auto errors = record.errors.find(std::string(tensor) + "_given_o");
    if (errors == record.errors.end()) errors = record.errors.find(tensor);
    if (errors == record.errors.end() || !errors->second.failure) continue;
    signature.tensors[tensor] = signature_of_tensor(tensor, errors->second, rounding_error(signature.kind.dtype));
  }
  return signature.tensors.empty() ? std::nullopt : std::optional(signature);
}

double distance(const Signature& a, const Signature& b) {
  double sum = distance_of_kinds(a.kind, b.kind);
  for (const auto& [tensor, signature] : a.tensors) {
    const auto other = b.tensors.find(tensor);
    sum += other == b.tensors.end() ? kFailedOrNot : distance_of_tensors(signature, other->second);
  }
  for (const auto& [tensor, signature] : b.tensors) sum += a.tensors.contains(tensor) ? 0 : kFailedOrNot;
  return sum;
}

json to_json_signature(const Signature& signature) {
  json tensors = json::object();
  for (const auto& [tensor, s] : signature.tensors)
    tensors[tensor] = {{"features", s.features},
                       {"where", fmt::format("{} {} {} {}", s.where[0], s.where[1], s.where[2], s.where[3])}};
  return {{"pass", name_of(signature.pass)}, {"case", signature.case_line}, {"tensors", tensors}};
}

Signature signature_from(const json& object, const std::string& path) {
  const JsonReader in(object, path);
  Signature signature(in.one_of("pass", {Pass::forward, Pass::backward}), in.text("case"));
  const JsonReader tensors = in.object("tensors");
  for (const auto& [tensor, value] : tensors.json().items()) {
    const JsonReader fields(value, tensors.field(tensor));
    TensorSignature& s = signature.tensors[tensor];
    const JsonReader features = fields.object("features");
    for (const auto& [name, number] : features.json().items()) s.features[name] = features.number(name.c_str());
    std::istringstream where(fields.text("where"));
    for (std::string& kind : s.where)
      if (!(where >> kind)) throw std::runtime_error(fields.field("where") + ": expected the kinds of 4 axes");
  }
  return signature;
}

}  // namespace attnbench
