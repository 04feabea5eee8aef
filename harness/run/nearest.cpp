#include "harness/run/nearest.hpp"

#include <algorithm>
#include <limits>

namespace attnbench {

int edit_cost(std::string_view from, std::string_view to) {
  constexpr int kInsertOrDrop = 2, kReplaceOrSwap = 3;
  std::vector<std::vector<int>> cost(from.size() + 1, std::vector<int>(to.size() + 1));
  for (size_t i = 0; i <= from.size(); ++i) cost[i][0] = static_cast<int>(i) * kInsertOrDrop;
  for (size_t j = 0; j <= to.size(); ++j) cost[0][j] = static_cast<int>(j) * kInsertOrDrop;
  for (size_t i = 1; i <= from.size(); ++i) {
    for (size_t j = 1; j <= to.size(); ++j) {
      cost[i][j] = std::min({cost[i - 1][j] + kInsertOrDrop, cost[i][j - 1] + kInsertOrDrop,
                             cost[i - 1][j - 1] + (from[i - 1] == to[j - 1] ? 0 : kReplaceOrSwap)});
      if (i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1])
        cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + kReplaceOrSwap);
    }
  }
  return cost[from.size()][to.size()];
}

std::string nearest(std::string_view word, const std::vector<std::string_view>& known) {
  constexpr size_t kLongestTypo = 40;  // a longer word is no typo, and the cost grows with its length
  if (word.size() > kLongestTypo) return "";
  std::string_view best;
  int best_cost = std::numeric_limits<int>::max();
  for (std::string_view candidate : known) {
    const int cost = edit_cost(word, candidate);
    if (cost < best_cost) best = candidate, best_cost = cost;
  }
  // Half of the letters may be wrong; beyond that the word was something else.
  const int limit = std::max<int>(2, static_cast<int>(std::max(word.size(), best.size())) * 3 / 2);
  return best_cost <= limit ? std::string(best) : "";
}

std::string did_you_mean(std::string_view word, const std::vector<std::string_view>& known) {
  const std::string candidate = nearest(word, known);
  return candidate.empty() ? "" : "; did you mean '" + candidate + "'?";
}

}  // namespace attnbench
