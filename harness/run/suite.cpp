#include "harness/run/suite.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <unordered_set>
#include <utility>

#include "harness/run/case_keys.hpp"
#include "harness/run/case_limits.hpp"
#include "harness/run/data_files.hpp"
#include "harness/run/files.hpp"
#include "harness/run/nearest.hpp"
#include "harness/run/planted.hpp"
#include "harness/run/sweep.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kExtension = ".suite";

std::string read_suite_file(const fs::path& file) {
  constexpr size_t kLargest = 16 << 20;
  std::error_code error;
  if (!fs::is_regular_file(file, error))
    throw CaseError(
        fmt::format("{}: expected a suite file, got {}", file.string(), fs::exists(file, error) ? "something else" : "nothing"));
  if (fs::file_size(file, error) > kLargest || error)
    throw CaseError(fmt::format("{}: expected a suite file of at most {} bytes", file.string(), kLargest));
  try {
    return read_file(file);
  } catch (const std::runtime_error& failure) {
    throw CaseError(fmt::format("{}: the suite file cannot be read: {}", file.string(), failure.what()));
  }
}

fs::path suite_file(std::string_view name) {
  std::error_code ignored;
  if (name.find('/') != std::string_view::npos || fs::is_regular_file(name, ignored)) return name;
  const fs::path file = cases_folder() / (std::string(name) + std::string(kExtension));
  if (fs::is_regular_file(file, ignored)) return file;
  const std::vector<std::string> known = known_suites();
  throw CaseError(fmt::format("unknown suite '{}' (known: {}){}", printable(name), fmt::join(known, ", "),
                              did_you_mean(name, {known.begin(), known.end()})));
}

/// What stands behind `include NAME`, with its columns.
std::vector<Token> metadata_of_include(std::string line, size_t hash, const std::string& where) {
  constexpr std::string_view kOperation = "with";
  line.replace(0, hash, hash, ' ').replace(0, kOperation.size(), kOperation);
  return read_case_text(line, where).metadata;
}

/// The tokens of a `with` line that the case line does not set itself.
std::vector<Token> add_defaults(std::vector<Token> own, const std::vector<Token>& defaults) {
  for (const Token& token : defaults)
    if (std::ranges::find(own, token.key, &Token::key) == own.end()) own.push_back(token);
  return own;
}

/// The values of `canary=A+B`, which is taken out: it is the suite's, not the case's.
std::vector<std::string> take_canaries(std::vector<Token>& metadata) {
  const auto token = std::ranges::find(metadata, "canary", &Token::key);
  if (token == metadata.end()) return {};
  std::vector<std::string> canaries;
  std::istringstream names(token->value);
  for (std::string name; std::getline(names, name, '+');) canaries.push_back(name);
  if (canaries.empty() || !std::ranges::all_of(canaries, is_planted))
    throw CaseError(
        fmt::format("{}: canary={}: expected planted backends, as in flash_varlen:last_key_dropped+eager:causal_one_late",
                    token->place, printable(token->value)));
  metadata.erase(token);
  return canaries;
}

class SuiteReader {
 public:
  std::vector<SuiteCase> cases;

  void read_file(const fs::path& file) {
    std::error_code ignored;  // the read below says what is wrong with the file
    const fs::path identity = fs::weakly_canonical(file, ignored);
    if (std::ranges::find(open_, identity) != open_.end())
      throw CaseError(fmt::format("{}: the suite includes itself", file.string()));
    open_.push_back(identity);
    const CaseText outer_defaults = std::exchange(defaults_, {});
    std::istringstream lines(read_suite_file(file));
    int number = 0;
    for (std::string line; std::getline(lines, line);) read_line(line, fmt::format("{}:{}", file.string(), ++number), file);
    defaults_ = outer_defaults;
    open_.pop_back();
  }

  void read_case(CaseText text, const std::string& where) {
    operation(text);  // an unknown one is said first
    text.keys = add_defaults(std::move(text.keys), defaults_.keys);
    text.metadata = add_defaults(std::move(text.metadata), defaults_.metadata);
    text.metadata = add_defaults(overrides_, text.metadata);
    const std::vector<std::string> canaries = take_canaries(text.metadata);
    const std::string suite = open_.empty() ? "" : open_.back().stem().string();
    const int64_t count = count_sweep(text, kMaxCases - static_cast<int64_t>(cases.size()));
    count_bytes(text, count);
    for (const CaseText& line : expand_sweep(text)) {
      const Case c = case_from(line);
      if (c.llama && !canaries.empty())
        throw CaseError(fmt::format("{}: canary={}: no layer of llama has a planted defect", where, fmt::join(canaries, "+")));
      if (identities_.insert(format_case(c)).second)
        cases.push_back({.c = c, .where = where, .suite = suite, .canaries = canaries});
    }
  }

 private:
  /// One long list of lengths in a sweep over other keys, or below a `with`, would fill any memory.
  void count_bytes(const CaseText& text, int64_t count) {
    const int64_t line = longest_line(text);
    if (line > (kMaxCaseBytes - bytes_) / count)
      throw CaseError(
          fmt::format("{}: the cases up to here stand for more than {} bytes of text, {} in each of {} cases of this line",
                      text.place, kMaxCaseBytes, line, count));
    bytes_ += count * line;
  }

  void read_line(const std::string& line, const std::string& where, const fs::path& file) {
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos || line[first] == '#') return;
    std::istringstream words(line);
    std::string directive;
    if (words >> directive; directive == "include") return include(line, where, file);
    CaseText text = read_case_text(line, where);
    if (text.operation != "with") return read_case(std::move(text), where);
    check_defaults(text);
    defaults_ = std::move(text);
  }

  /// include NAME [# key=value …]: its metadata outranks that of the included cases.
  void include(const std::string& line, const std::string& where, const fs::path& file) {
    const size_t hash = line.find('#');
    std::istringstream words(line.substr(0, hash));
    std::string directive, name, more;
    words >> directive >> name >> more;
    if (name.empty() || !more.empty())
      throw CaseError(fmt::format("{}: expected 'include NAME' or 'include NAME # key=value'", where));
    CaseText text;
    if (hash != std::string::npos) text.metadata = metadata_of_include(line, hash, where);
    check_defaults(text);
    const std::vector<Token> outer = std::exchange(overrides_, add_defaults(overrides_, text.metadata));
    const fs::path beside = file.parent_path() / (name + std::string(kExtension));
    try {
      std::error_code ignored;
      read_file(fs::is_regular_file(beside, ignored) ? beside : suite_file(name));
    } catch (const CaseError& error) {
      throw CaseError(fmt::format("{}: {}", where, error.what()));
    }
    overrides_ = outer;
  }

  /// Of the first operation that has such a key; attention's where none has.
  static std::span<const Key> keys_that_know(std::string_view name) {
    for (const Operation& one : operations())
      if (std::ranges::find(one.keys, name, &Key::name) != one.keys.end()) return one.keys;
    return case_keys();
  }

  /// A value that no case below makes use of is checked all the same.
  static void check_defaults(const CaseText& text) {
    count_sweep(text, kMaxCases);
    Case scratch;
    for (const Operation& one : operations()) one.begin(scratch);
    for (const Token& token : text.keys) {
      const Key& key = find_key(keys_that_know(token.key), token);
      for (const Token& value : sweep_values(token)) key.parse(value, scratch);
    }
    for (const Token& token : text.metadata) find_key(metadata_keys(), token).parse(token, scratch);
  }

  std::vector<fs::path> open_;    ///< files that are being read, the outermost first
  CaseText defaults_;             ///< the last `with` of the file being read
  std::vector<Token> overrides_;  ///< metadata of the `include` lines on the way to it
  std::unordered_set<std::string> identities_;
  int64_t bytes_ = 0;  ///< of the lines that the cases would be
};

}  // namespace

Suite load_suite(std::string_view name_or_path) {
  const fs::path file = suite_file(name_or_path);
  SuiteReader reader;
  reader.read_file(file);
  if (reader.cases.empty()) throw CaseError(fmt::format("{}: the suite holds no case", file.string()));
  return {file.stem().string(), std::move(reader.cases)};
}

std::vector<SuiteCase> expand_line(std::string_view line, std::string_view where) {
  SuiteReader reader;
  reader.read_case(read_case_text(line, where), std::string(where));
  return std::move(reader.cases);
}

std::vector<std::string> known_suites() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(cases_folder()))
    if (entry.path().extension() == kExtension) names.push_back(entry.path().stem().string());
  std::ranges::sort(names);
  return names;
}

}  // namespace attnbench
