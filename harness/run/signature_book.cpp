#include "harness/run/signature_book.hpp"

#include <algorithm>
#include <limits>
#include <set>

#include <fmt/format.h>

#include "harness/run/data_files.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/files.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/planted.hpp"

namespace attnbench {
namespace {

using nlohmann::json;

constexpr double kSame = 1.6;  ///< signatures of one defect that are as near as this are told once

/// The case without its dtype: the dtypes of a line are too much alike to tell whether a book generalises.
std::string line_of(const std::string& case_line) {
  Case c = parse_case(case_line, "signature");
  c.problem.dtype = Dtype::bf16;
  return format_case(c);
}

std::string text_of_entry(const KnownSignature& known) {
  json entry = to_json_signature(known.signature);
  entry["defect"] = known.defect;
  return to_text(entry);
}

}  // namespace

SignatureBook collect_signatures(const RunData& selftest) {
  SignatureBook book;
  std::set<std::string> backends;  ///< planted ones that say what they do wrong
  for (const auto& [kind, declarations] : selftest.backends)
    for (const Declaration& declaration : declarations) {
      const std::string what = planted_in(declaration.version);
      // Where scores are rounded the same mistake looks otherwise, and would blur the marks that it leaves in a kernel.
      if (what.empty() || declaration.profile.rounds_scores) continue;
      book.defects[defect_of(declaration.name)] = what;
      backends.insert(declaration.name);
    }
  for (const Record& record : selftest.records) {
    if (!backends.contains(record.backend) || record.status != Status::failed) continue;
    if (const auto signature = failure_signature(record)) book.signatures.push_back({defect_of(record.backend), *signature});
  }
  std::set<std::string> seen;
  for (const KnownSignature& known : book.signatures) seen.insert(known.defect);
  std::erase_if(book.defects, [&](const auto& defect) { return !seen.contains(defect.first); });
  return book;
}

SignatureBook condense(const SignatureBook& all) {
  SignatureBook book{all.defects, {}};
  for (const KnownSignature& known : all.signatures) {
    const bool told = std::ranges::any_of(book.signatures, [&](const KnownSignature& kept) {
      return kept.defect == known.defect && kept.signature.pass == known.signature.pass &&
             distance(kept.signature, known.signature) < kSame;
    });
    if (!told) book.signatures.push_back(known);
  }
  return book;
}

std::vector<Resemblance> resemblances(const SignatureBook& book, const Signature& signature) {
  std::map<std::string, double> nearest;
  for (const KnownSignature& known : book.signatures) {
    if (known.signature.pass != signature.pass) continue;
    const double d = distance(known.signature, signature);
    const auto [found, is_new] = nearest.try_emplace(known.defect, d);
    found->second = std::min(found->second, d);
  }
  std::vector<Resemblance> sorted;
  for (const auto& [defect, d] : nearest) sorted.push_back({defect, d});
  std::ranges::stable_sort(sorted, {}, &Resemblance::distance);
  return sorted;
}

bool is_alike(const std::vector<Resemblance>& order) {
  if (order.empty() || order.front().distance > kFurthestAlike) return false;
  return order.front().distance <= kAlike || order.size() == 1 || order[1].distance - order[0].distance >= kAlone;
}

std::string to_text(const SignatureBook& book, const BookScore& score) {
  const json score_json = {{"signatures", score.signatures},         {"named_first", score.first},
                           {"among_three", score.among_three},       {"unknown", score.unknown},
                           {"first_of_known", score.first_of_known}, {"mistaken", score.mistaken}};
  std::string text =
      fmt::format("{{\"score\":{},\n\"defects\":{},\n\"signatures\":[\n", to_text(score_json), json(book.defects).dump(1));
  for (size_t i = 0; i < book.signatures.size(); ++i)
    text += text_of_entry(book.signatures[i]) + (i + 1 < book.signatures.size() ? ",\n" : "\n");
  return text + "]}\n";
}

SignatureBook read_signatures(const std::filesystem::path& file) {
  const std::filesystem::path path = file.empty() ? cases_folder() / "signatures.json" : file;
  try {
    const json object = read_json(path);
    const JsonReader reader(object, "book");
    SignatureBook book;
    const JsonReader defects = reader.object("defects");
    for (const auto& [name, what] : defects.json().items()) book.defects[name] = defects.text(name.c_str());
    for (const json& entry : reader.array("signatures")) {
      const std::string place = fmt::format("signatures[{}]", book.signatures.size());
      book.signatures.push_back({JsonReader(entry, place).text("defect"), signature_from(entry, place)});
    }
    return book;
  } catch (const std::exception& error) {
    throw UsageError(fmt::format("{}: the signatures of known defects cannot be read: {}", path.string(), error.what()));
  }
}

BookScore leave_one_line_out(const SignatureBook& all) {
  std::map<std::string, std::vector<KnownSignature>> by_line;
  for (const KnownSignature& known : all.signatures) by_line[line_of(known.signature.case_line)].push_back(known);
  BookScore score;
  for (const auto& [line, left_out] : by_line) {
    SignatureBook others{all.defects, {}};
    for (const auto& [other, signatures] : by_line)
      if (other != line) others.signatures.insert(others.signatures.end(), signatures.begin(), signatures.end());
    others = condense(others);
    for (const KnownSignature& known : left_out) {
      std::vector<Resemblance> order = resemblances(others, known.signature);
      const auto place = std::ranges::find(order, known.defect, &Resemblance::defect) - order.begin();
      if (place == std::ssize(order)) continue;
      const bool is_known = is_alike(order);
      ++score.signatures;
      score.first += place == 0;
      score.among_three += place < 3;
      score.unknown += !is_known;
      score.first_of_known += is_known && place == 0;
      order.erase(order.begin() + place);
      score.mistaken += is_alike(order);
    }
  }
  return score;
}

}  // namespace attnbench
