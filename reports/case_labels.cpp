#include "reports/case_labels.hpp"

#include <algorithm>
#include <set>
#include <sstream>

#include "harness/run/case.hpp"

namespace attnbench {
namespace {

std::vector<std::string> words_of(const std::string& line) {
  std::istringstream stream(line);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

std::string key_of(const std::string& word) {
  return word.substr(0, word.find('='));
}

/// What a case line means that does not write the key; empty where that is "off" or follows from other keys.
std::string default_of(const std::string& key) {
  const Problem problem;
  const Case c;
  if (key == "b") return std::to_string(problem.b);
  if (key == "hq") return std::to_string(problem.hq);
  if (key == "dtype") return std::string(name_of(problem.dtype));
  if (key == "mask") return std::string(name_of(problem.mask));
  if (key == "align") return std::string(name_of(problem.align));
  if (key == "layout") return std::string(name_of(problem.layout));
  if (key == "fill") return std::string(name_of(c.fill));
  if (key == "dout") return std::string(name_of(c.dout));
  if (key == "strides") return std::string(name_of(c.strides));
  if (key == "seed") return std::to_string(c.seed);
  return "";
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

}  // namespace

CaseLabels label_cases(const std::vector<std::string>& case_lines) {
  const std::set<std::string> distinct(case_lines.begin(), case_lines.end());
  if (distinct.size() == 1) return {"", {{*distinct.begin(), *distinct.begin()}}};

  std::map<std::string, std::size_t> uses;
  std::vector<std::string> keys;  // a new key stands behind its neighbour of the line: the grammar's order is kept
  for (const std::string& line : distinct) {
    auto place = keys.begin();
    for (const std::string& word : words_of(line)) {
      ++uses[word];
      const auto found = std::find(keys.begin(), keys.end(), key_of(word));
      place = (found == keys.end() ? keys.insert(place, key_of(word)) : found) + 1;
    }
  }
  CaseLabels labels;
  std::vector<std::string> common;
  for (const std::string& line : distinct) {
    std::map<std::string, std::string> word_of;
    for (const std::string& word : words_of(line)) word_of[key_of(word)] = word;
    std::vector<std::string> differing;
    common.clear();
    for (const std::string& key : keys) {
      const auto found = word_of.find(key);
      if (found != word_of.end() && uses[found->second] == distinct.size()) {
        common.push_back(found->second);
      } else if (found != word_of.end()) {
        differing.push_back(found->second);
      } else if (const std::string value = default_of(key); !value.empty()) {
        differing.push_back(key + "=" + value);
      }
    }
    labels.label[line] = joined(differing);
  }
  labels.common = joined(common);
  return labels;
}

}  // namespace attnbench
