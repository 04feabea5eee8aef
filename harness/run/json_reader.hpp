// Reads one JSON object field by field: whatever is not as agreed becomes a sentence that names the field.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace attnbench {

/// Numbers in records have this many significant digits: as many as a float32 needs, and half the bytes of a double's.
inline constexpr int kRecordedDigits = 9;

/// JSON has no non-finite numbers: they are written as "nan", "inf", "-inf".
nlohmann::json number_to_json(double value);

/// Arrays and objects within each other; a record has less than ten.
inline constexpr int kDeepest = 100;

/// Throws std::runtime_error on what is not JSON, and on what is nested deeper than kDeepest: to copy, to compare and to write a
/// value takes stack for each level.
nlohmann::json parse_json(std::string_view text);

/// One line of text without its end; bytes that are not UTF-8 are replaced, so that no text from outside can break a run.
std::string to_text(const nlohmann::json& value);

class JsonReader {
 public:
  /// `path` names the object in messages ("record", "record.errors.dq"). Throws std::runtime_error unless it is an object.
  /// The object must outlive the reader.
  JsonReader(const nlohmann::json& object, std::string path);

  // Each throws std::runtime_error if the field is missing or of another type.
  std::string text(const char* key) const;
  bool boolean(const char* key) const;
  int64_t integer(const char* key) const;
  uint64_t unsigned_integer(const char* key) const;
  double number(const char* key) const;
  const nlohmann::json& array(const char* key) const;
  std::vector<std::string> texts(const char* key) const;  ///< an array of texts
  JsonReader object(const char* key) const;
  const nlohmann::json& value(const char* key) const;
  std::optional<int> optional_integer(const char* key) const;  ///< null: unset
  std::string optional_text(const char* key) const;            ///< null: empty

  bool has(const char* key) const;  ///< present and not null
  std::string field(const std::string& key) const { return path_ + "." + key; }
  const nlohmann::json& json() const { return object_; }

  /// A field that holds one of these words.
  std::string one_of(const char* key, std::initializer_list<const char*> words) const;
  /// A field that holds one of the names of `values`.
  template <class Enum>
  Enum one_of(const char* key, std::initializer_list<Enum> values) const {
    const std::string got = text(key);
    std::string known;
    for (Enum value : values) {
      if (name_of(value) == got) return value;
      known += (known.empty() ? "" : ", ") + std::string(name_of(value));
    }
    throw std::runtime_error(field(key) + ": expected one of " + known + ", got \"" + got + "\"");
  }

 private:
  const nlohmann::json& object_;
  std::string path_;
};

/// A number, or one of the strings that stand for a non-finite one. `path` names it in messages.
double number_from_json(const nlohmann::json& value, const std::string& path);
/// A whole number; a fraction is refused.
int64_t integer_from_json(const nlohmann::json& value, const std::string& path);

}  // namespace attnbench
