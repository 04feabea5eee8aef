#include "harness/run/json_reader.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace attnbench {
namespace {

/// A value as a message shows it: long ones are cut, bytes that are not UTF-8 replaced.
std::string shown(const nlohmann::json& value) {
  constexpr size_t kLongest = 60;
  std::string text = to_text(value);
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "…";
  return text;
}

[[noreturn]] void expected(const char* what, const nlohmann::json& got, const std::string& path) {
  throw std::runtime_error(fmt::format("{}: expected {}, got {}", path, what, shown(got)));
}

/// Of text that is JSON up to its first error, the depth that a parser reaches.
int depth_of(std::string_view text) {
  int depth = 0, deepest = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted && c == '\\')
      ++i;
    else if (c == '"')
      quoted = !quoted;
    else if (!quoted && (c == '[' || c == '{'))
      deepest = std::max(deepest, ++depth);
    else if (!quoted && (c == ']' || c == '}'))
      --depth;
  }
  return deepest;
}

}  // namespace

nlohmann::json number_to_json(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return std::strtod(fmt::format("{:.{}g}", value, kRecordedDigits).c_str(), nullptr);
}

nlohmann::json parse_json(std::string_view text) {
  if (const int depth = depth_of(text); depth > kDeepest)
    throw std::runtime_error(fmt::format("not JSON of ours: nested {} deep; expected at most {}", depth, kDeepest));
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    throw std::runtime_error(fmt::format("not JSON: {}", error.what()));
  }
}

std::string to_text(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

double number_from_json(const nlohmann::json& value, const std::string& path) {
  if (value.is_number()) return value.get<double>();
  if (value == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  expected("a number", value, path);
}

int64_t integer_from_json(const nlohmann::json& value, const std::string& path) {
  const bool too_large = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max());
  if (!value.is_number_integer() || too_large) expected("a whole number", value, path);
  return value.get<int64_t>();
}

JsonReader::JsonReader(const nlohmann::json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object_.is_object()) expected("an object", object_, path_);
}

const nlohmann::json& JsonReader::value(const char* key) const {
  const auto found = object_.find(key);
  if (found == object_.end()) throw std::runtime_error(fmt::format("{}: the field is missing", field(key)));
  return *found;
}

std::string JsonReader::text(const char* key) const {
  if (!value(key).is_string()) expected("a text", value(key), field(key));
  return value(key).get<std::string>();
}

bool JsonReader::boolean(const char* key) const {
  if (!value(key).is_boolean()) expected("true or false", value(key), field(key));
  return value(key).get<bool>();
}

int64_t JsonReader::integer(const char* key) const {
  return integer_from_json(value(key), field(key));
}

uint64_t JsonReader::unsigned_integer(const char* key) const {
  if (!value(key).is_number_unsigned()) expected("a whole number of at least 0", value(key), field(key));
  return value(key).get<uint64_t>();
}

double JsonReader::number(const char* key) const {
  return number_from_json(value(key), field(key));
}

const nlohmann::json& JsonReader::array(const char* key) const {
  if (!value(key).is_array()) expected("an array", value(key), field(key));
  return value(key);
}

std::vector<std::string> JsonReader::texts(const char* key) const {
  std::vector<std::string> texts;
  for (const nlohmann::json& entry : array(key)) {
    if (!entry.is_string()) expected("texts", entry, field(key));
    texts.push_back(entry.get<std::string>());
  }
  return texts;
}

std::string JsonReader::one_of(const char* key, std::initializer_list<const char*> words) const {
  const std::string got = text(key);
  if (std::ranges::find(words, got) == words.end())
    expected(fmt::format("one of {}", fmt::join(words, ", ")).c_str(), value(key), field(key));
  return got;
}

JsonReader JsonReader::object(const char* key) const {
  return JsonReader(value(key), field(key));
}

std::optional<int> JsonReader::optional_integer(const char* key) const {
  if (value(key).is_null()) return std::nullopt;
  const int64_t number = integer(key);
  if (number < std::numeric_limits<int>::min() || number > std::numeric_limits<int>::max())
    expected("a small whole number", value(key), field(key));
  return static_cast<int>(number);
}

std::string JsonReader::optional_text(const char* key) const {
  return value(key).is_null() ? "" : text(key);
}

bool JsonReader::has(const char* key) const {
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

}  // namespace attnbench
