#include <fmt/format.h>
#include <fmt/ranges.h>

#include "harness/run/declaration.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/run/names.hpp"

namespace attnbench {

template <>
inline constexpr auto kNames<Profile::Probabilities> =
    std::to_array<Named<Profile::Probabilities>>({{Profile::Probabilities::unnormalised, "unnormalised"},
                                                  {Profile::Probabilities::normalised, "normalised"},
                                                  {Profile::Probabilities::not_rounded, "not_rounded"}});
template <>
inline constexpr auto kNames<Profile::RowSum> = std::to_array<Named<Profile::RowSum>>(
    {{Profile::RowSum::from_output, "from_output"}, {Profile::RowSum::from_p_dp, "from_p_dp"}});
template <>
inline constexpr auto kNames<Conventions::EmptyRow> = std::to_array<Named<Conventions::EmptyRow>>(
    {{Conventions::EmptyRow::zero, "zero"}, {Conventions::EmptyRow::uniform, "uniform"}, {Conventions::EmptyRow::nan, "nan"}});
template <>
inline constexpr auto kNames<Conventions::LseEmpty> =
    std::to_array<Named<Conventions::LseEmpty>>({{Conventions::LseEmpty::minus_infinity, "-inf"},
                                                 {Conventions::LseEmpty::plus_infinity, "+inf"},
                                                 {Conventions::LseEmpty::zero, "0"},
                                                 {Conventions::LseEmpty::none, "none"}});
template <>
inline constexpr auto kNames<Conventions::Poison> =
    std::to_array<Named<Conventions::Poison>>({{Conventions::Poison::nan, "nan"}, {Conventions::Poison::finite, "finite"}});

namespace {

using nlohmann::json;

template <class E>
E enum_from(const json& value, const std::string& field) {
  if (value.is_string())
    if (const auto found = find_value<E>(value.get<std::string>())) return *found;
  throw std::runtime_error(fmt::format("{}: expected one of {}, got {}", field, fmt::join(all_names<E>(), ", "), to_text(value)));
}
template <class E>
E enum_from(const JsonReader& reader, const char* key) {
  return enum_from<E>(reader.value(key), reader.field(key));
}

template <class E>
json names_to_json(const std::vector<E>& values) {
  json names = json::array();
  for (E value : values) names.push_back(find_name(value));
  return names;
}
template <class E>
std::vector<E> enums_from(const JsonReader& reader, const char* key) {
  std::vector<E> values;
  for (const json& value : reader.array(key)) values.push_back(enum_from<E>(value, reader.field(key)));
  return values;
}

int int_from(const JsonReader& reader, const char* key) {
  const auto number = reader.optional_integer(key);
  if (!number) throw std::runtime_error(fmt::format("{}: expected a whole number, got null", reader.field(key)));
  return *number;
}

json profile_to_json(const Profile& profile) {
  return {{"name", profile.name},
          {"p", find_name(profile.p)},
          {"rounds_ds", profile.rounds_ds},
          {"rounds_scores", profile.rounds_scores},
          {"d", find_name(profile.d)},
          {"rounds_gqa_partials", profile.rounds_gqa_partials},
          {"ds_from_rounded_p", profile.ds_from_rounded_p},
          {"scales_ds", profile.scales_ds}};
}

Profile profile_from(const JsonReader& reader) {
  return {.name = reader.text("name"),
          .p = enum_from<Profile::Probabilities>(reader, "p"),
          .rounds_ds = reader.boolean("rounds_ds"),
          .rounds_scores = reader.boolean("rounds_scores"),
          .d = enum_from<Profile::RowSum>(reader, "d"),
          .rounds_gqa_partials = reader.boolean("rounds_gqa_partials"),
          // Absent in older runs:
          .ds_from_rounded_p = reader.has("ds_from_rounded_p") && reader.boolean("ds_from_rounded_p"),
          .scales_ds = reader.has("scales_ds") && reader.boolean("scales_ds")};
}

json conventions_to_json(const Conventions& conventions) {
  return {{"empty_row", find_name(conventions.empty_row)},
          {"lse_empty", find_name(conventions.lse_empty)},
          {"poison", find_name(conventions.poison)},
          {"padded_rows_zero", conventions.padded_rows_zero}};
}

Conventions conventions_from(const JsonReader& reader) {
  return {.empty_row = enum_from<Conventions::EmptyRow>(reader, "empty_row"),
          .lse_empty = enum_from<Conventions::LseEmpty>(reader, "lse_empty"),
          .poison = enum_from<Conventions::Poison>(reader, "poison"),
          .padded_rows_zero = reader.boolean("padded_rows_zero")};
}

json capabilities_to_json(const Capabilities& can) {
  json relations = json::array();
  for (Relation relation : can.invariant_to) relations.push_back(name_of(relation));
  return {{"devices", can.devices},
          {"min_sm", can.min_sm},
          {"max_sm", can.max_sm},
          {"dtypes", names_to_json(can.dtypes)},
          {"min_head_dim", can.min_head_dim},
          {"max_head_dim", can.max_head_dim},
          {"head_dim_multiple", can.head_dim_multiple},
          {"dv_differs", can.dv_differs},
          {"passes", names_to_json(can.passes)},
          {"layouts", names_to_json(can.layouts)},
          {"masks", names_to_json(can.masks)},
          {"aligns", names_to_json(can.aligns)},
          {"window", can.window},
          {"softcap", can.softcap},
          {"alibi", can.alibi},
          {"sink", can.sink},
          {"dropout", can.dropout},
          {"gqa", can.gqa},
          {"unequal_lengths", can.unequal_lengths},
          {"empty_sequences", can.empty_sequences},
          {"tail", can.tail},
          {"strides", names_to_json(can.strides)},
          {"negative_scale", can.negative_scale},
          {"returns_lse", can.returns_lse},
          {"deterministic", can.deterministic},
          {"varying", can.varying},
          {"invariant_to", relations}};
}

Capabilities capabilities_from(const JsonReader& reader) {
  Capabilities can;
  can.devices = reader.texts("devices");
  can.min_sm = int_from(reader, "min_sm");
  can.max_sm = int_from(reader, "max_sm");
  can.dtypes = enums_from<Dtype>(reader, "dtypes");
  can.min_head_dim = reader.integer("min_head_dim");
  can.max_head_dim = reader.integer("max_head_dim");
  can.head_dim_multiple = reader.integer("head_dim_multiple");
  if (can.head_dim_multiple < 1)
    throw std::runtime_error(
        fmt::format("{}: expected at least 1, got {}", reader.field("head_dim_multiple"), can.head_dim_multiple));
  can.dv_differs = reader.boolean("dv_differs");
  can.passes = enums_from<Pass>(reader, "passes");
  can.layouts = enums_from<Layout>(reader, "layouts");
  can.masks = enums_from<Mask>(reader, "masks");
  can.aligns = enums_from<Align>(reader, "aligns");
  can.window = reader.boolean("window");
  can.softcap = reader.boolean("softcap");
  can.alibi = reader.boolean("alibi");
  can.sink = reader.boolean("sink");
  can.dropout = reader.boolean("dropout");
  can.gqa = reader.boolean("gqa");
  can.unequal_lengths = reader.boolean("unequal_lengths");
  can.empty_sequences = reader.boolean("empty_sequences");
  can.tail = reader.has("tail") && reader.boolean("tail");  // absent in older runs
  can.strides = enums_from<Strides>(reader, "strides");
  can.negative_scale = !reader.has("negative_scale") || reader.boolean("negative_scale");  // absent in older runs
  can.returns_lse = reader.boolean("returns_lse");
  can.deterministic = reader.boolean("deterministic");
  if (reader.has("varying")) can.varying = reader.texts("varying");  // absent in older runs, as is the next
  if (reader.has("invariant_to"))
    for (const std::string& name : reader.texts("invariant_to"))
      can.invariant_to.push_back(relation_named(name, reader.field("invariant_to")));
  return can;
}

}  // namespace

void to_json(json& out, const Declaration& declaration) {
  out = {{"name", declaration.name},
         {"version", declaration.version},
         {"implementation", declaration.implementation},
         {"operation", declaration.operation},
         {"ours", declaration.ours},
         {"profile", profile_to_json(declaration.profile)},
         {"conventions", conventions_to_json(declaration.conventions)},
         {"capabilities", capabilities_to_json(declaration.capabilities)},
         {"why_unavailable", declaration.why_unavailable}};
}

void from_json(const json& in, Declaration& declaration) {
  const JsonReader reader(in, "declaration");
  declaration.name = reader.text("name");
  declaration.version = reader.text("version");
  declaration.implementation = reader.text("implementation");
  if (reader.has("operation")) declaration.operation = reader.text("operation");  // absent in older runs
  declaration.ours = reader.boolean("ours");
  declaration.profile = profile_from(reader.object("profile"));
  declaration.conventions = conventions_from(reader.object("conventions"));
  declaration.capabilities = capabilities_from(reader.object("capabilities"));
  declaration.why_unavailable = reader.text("why_unavailable");
  if (declaration.capabilities.returns_lse == (declaration.conventions.lse_empty == Conventions::LseEmpty::none))
    throw std::runtime_error(fmt::format("{}: {} contradicts capabilities.returns_lse; expected `none` where no LSE is returned",
                                         reader.field("conventions.lse_empty"), declaration.name));
}

void to_json(json& out, const Device& device) {
  out = {{"kind", device.kind},
         {"index", device.index},
         {"sm", device.sm ? json(*device.sm) : json(nullptr)},
         {"name", device.name}};
}

void from_json(const json& in, Device& device) {
  const JsonReader reader(in, "device");
  device.kind = reader.text("kind");
  device.index = int_from(reader, "index");
  device.sm = reader.optional_integer("sm");
  device.name = reader.text("name");
}

}  // namespace attnbench
