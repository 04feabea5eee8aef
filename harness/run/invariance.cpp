#include "harness/run/invariance.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/json_reader.hpp"
#include "harness/run/names.hpp"

namespace attnbench {

template <>
inline constexpr auto kNames<Relation> = std::to_array<Named<Relation>>({{Relation::repeats, "repeats"},
                                                                         {Relation::alone, "alone"},
                                                                         {Relation::order, "order"},
                                                                         {Relation::packing, "packing"},
                                                                         {Relation::concurrency, "concurrency"}});
template <>
inline constexpr auto kNames<Invariance::Outcome> =
    std::to_array<Named<Invariance::Outcome>>({{Invariance::Outcome::equal, "equal"},
                                               {Invariance::Outcome::differs, "differs"},
                                               {Invariance::Outcome::not_supported, "not_supported"}});

std::string_view name_of(Relation relation) {
  return find_name(relation);
}
Relation relation_named(std::string_view name, const std::string& field) {
  if (const auto relation = find_value<Relation>(name)) return *relation;
  throw std::runtime_error(
      fmt::format("{}: expected one of {}, got \"{}\"", field, fmt::join(all_names<Relation>(), ", "), name));
}
std::string_view name_of(Invariance::Outcome outcome) {
  return find_name(outcome);
}

std::string sentence_of(const Invariance& invariance) {
  const Invariance& i = invariance;
  switch (i.outcome) {
    case Invariance::Outcome::equal:
      return fmt::format("{} is equal", i.tensor);
    case Invariance::Outcome::not_supported:
      return fmt::format("{} was not compared: {}", i.tensor, i.reason);
    case Invariance::Outcome::differs:
      break;
  }
  return fmt::format("{} differs in {} of {} elements, first at [{}]: {:.9g}, was {:.9g} (at most {:g} ulp)", i.tensor, i.changed,
                     i.elements, fmt::join(i.first, ","), i.got, i.judged, i.max_ulp);
}

nlohmann::json to_json_invariance(const Invariance& i) {
  nlohmann::json object = {
      {"relation", name_of(i.relation)}, {"tensor", i.tensor}, {"outcome", name_of(i.outcome)}, {"promised", i.promised}};
  if (i.outcome == Invariance::Outcome::not_supported) {
    object["reason"] = i.reason;
    return object;
  }
  object["compared"] = i.compared;
  object["elements"] = i.elements;
  if (i.outcome == Invariance::Outcome::equal) return object;
  object["differing"] = i.differing;
  object["changed"] = i.changed;
  object["max_ulp"] = number_to_json(i.max_ulp);
  object["where"] = i.where;
  object["first"] = i.first;
  object["judged"] = number_to_json(i.judged);
  object["got"] = number_to_json(i.got);
  return object;
}

Invariance invariance_from(const nlohmann::json& object, const std::string& path) {
  const JsonReader in(object, path);
  Invariance i;
  i.relation = relation_named(in.text("relation"), in.field("relation"));
  i.tensor = in.text("tensor");
  i.outcome =
      in.one_of("outcome", {Invariance::Outcome::equal, Invariance::Outcome::differs, Invariance::Outcome::not_supported});
  i.promised = in.boolean("promised");
  if (i.outcome == Invariance::Outcome::not_supported) {
    i.reason = in.text("reason");
    return i;
  }
  i.compared = in.integer("compared");
  i.elements = in.integer("elements");
  if (i.outcome == Invariance::Outcome::equal) return i;
  i.differing = in.integer("differing");
  i.changed = in.integer("changed");
  i.max_ulp = in.number("max_ulp");
  i.where = in.text("where");
  const nlohmann::json& first = in.array("first");
  if (first.size() != i.first.size())
    throw std::runtime_error(fmt::format("{}: expected {} numbers, got {}", in.field("first"), i.first.size(), first.size()));
  for (size_t n = 0; n < i.first.size(); ++n) i.first[n] = integer_from_json(first[n], in.field("first"));
  i.judged = in.number("judged");
  i.got = in.number("got");
  return i;
}

}  // namespace attnbench
