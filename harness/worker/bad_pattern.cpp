#include "harness/worker/bad_pattern.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace attnbench {
namespace {

constexpr std::array<int64_t, 4> kTiles{64, 128, 32, 16};  ///< where several sizes make the same set, the first is told
constexpr std::array<int64_t, 4> kBlocks{8, 16, 32, 64};
constexpr size_t kMostSampled = 1 << 15;  ///< bad elements that a search looks at
constexpr double kBitsOfAKind = 4;        ///< to say which kind of set it is
constexpr double kLeastSaved = 0.3, kLeastExplained = 0.7;
constexpr double kNearlyAll = 0.95;
constexpr int kMostSteps = 12;

enum Axis { kSequences, kTokens, kHeads, kChannels, kAxes };

/// Bits that tell which k of n elements are bad.
double bits_of(double k, double n) {
  const auto term = [](double x) { return x > 0 ? x * std::log2(x) : 0; };
  return n > 0 ? std::max(0.0, term(n) - term(k) - term(n - k)) : 0;
}

/// A set on one axis.
struct Set {
  std::string kind = "all", text;
  double bits = 0;
  std::vector<uint8_t> in;  ///< by unit: sequence, token of all sequences, head, channel
};

/// Of each unit of an axis, within the sets of the other axes.
struct Counts {
  std::vector<double> bad, all;
};

struct Place {
  int64_t sequence, token, head, channel;
};

class Search {
 public:
  explicit Search(const BadElements& e);
  BadPattern run();

 private:
  void sample();
  Counts counts_of(Axis axis) const;
  bool holds(const Place& place, Axis except) const;
  double bits_with(const Counts& counts, const Set& set) const;
  void propose(Axis axis, const Counts& counts, const std::function<void(Set)>& take) const;
  void propose_sequences(const Counts& counts, const std::function<void(Set)>& take) const;
  void propose_tokens(const Counts& counts, const std::function<void(Set)>& take) const;
  void propose_tiles(const Counts& counts, int64_t tile, const std::function<void(Set)>& take) const;
  void propose_heads(const Counts& counts, const std::function<void(Set)>& take) const;
  void propose_channels(const Counts& counts, const std::function<void(Set)>& take) const;
  Set set_of(Axis axis, std::string kind, std::string text, double choices, const std::function<bool(int64_t)>& in) const;
  Set tokens_where(std::string kind, std::string text, double choices,
                   const std::function<bool(int64_t rank, int64_t length)>& in) const;
  int64_t units(Axis axis) const;
  void count_exactly(BadPattern& pattern) const;
  std::string text() const;

  const BadElements& e_;
  std::vector<int64_t> sequence_of_;  ///< by token
  int64_t longest_ = 0;
  double bad_ = 0, all_ = 0;  ///< K and N
  std::vector<Place> sampled_;
  double weight_ = 1;  ///< bad elements that a sampled one stands for
  std::array<Set, kAxes> sets_;
};

Search::Search(const BadElements& e) : e_(e) {
  sequence_of_.resize(size_t(e.offsets.back()));
  for (size_t n = 0; n + 1 < e.offsets.size(); ++n) {
    std::fill(sequence_of_.begin() + e.offsets[n], sequence_of_.begin() + e.offsets[n + 1], int64_t(n));
    longest_ = std::max(longest_, e.offsets[n + 1] - e.offsets[n]);
  }
  all_ = double(e.bad.size());
  bad_ = double(std::count(e.bad.begin(), e.bad.end(), 1));
  for (int axis = 0; axis < kAxes; ++axis) sets_[size_t(axis)].in.assign(size_t(units(Axis(axis))), 1);
  sample();
}

int64_t Search::units(Axis axis) const {
  const std::array<int64_t, kAxes> sizes{int64_t(e_.offsets.size()) - 1, e_.offsets.back(), e_.heads, e_.channels};
  return sizes[axis];
}

/// Every element has the same chance, by a hash of its place: a regular choice would meet the patterns that are looked for.
void Search::sample() {
  const double chance = bad_ > 0 ? std::min(1.0, double(kMostSampled) / bad_) : 1;
  const auto threshold = uint64_t(chance * double(uint64_t(1) << 32));
  const int64_t row = e_.heads * e_.channels;
  for (int64_t i = 0; i < int64_t(e_.bad.size()); ++i) {
    if (!e_.bad[size_t(i)]) continue;
    uint64_t hash = (uint64_t(i) + 1) * 0x9E3779B97F4A7C15u;
    hash = (hash ^ (hash >> 29)) * 0xBF58476D1CE4E5B9u;
    if ((hash >> 32) >= threshold) continue;
    sampled_.push_back({sequence_of_[size_t(i / row)], i / row, i / e_.channels % e_.heads, i % e_.channels});
  }
  if (!sampled_.empty()) weight_ = bad_ / double(sampled_.size());
}

bool Search::holds(const Place& place, Axis except) const {
  return (except == kSequences || sets_[kSequences].in[size_t(place.sequence)]) &&
         (except == kTokens || sets_[kTokens].in[size_t(place.token)]) &&
         (except == kHeads || sets_[kHeads].in[size_t(place.head)]) &&
         (except == kChannels || sets_[kChannels].in[size_t(place.channel)]);
}

Counts Search::counts_of(Axis axis) const {
  Counts counts{std::vector<double>(size_t(units(axis))), std::vector<double>(size_t(units(axis)))};
  const auto size_of = [&](Axis other) { return double(std::count(sets_[other].in.begin(), sets_[other].in.end(), 1)); };
  const double heads = axis == kHeads ? 1 : size_of(kHeads), channels = axis == kChannels ? 1 : size_of(kChannels);
  double tokens = 0;
  for (size_t token = 0; token < sequence_of_.size(); ++token) {
    const auto sequence = size_t(sequence_of_[token]);
    if (axis != kSequences && !sets_[kSequences].in[sequence]) continue;
    if (axis != kTokens && !sets_[kTokens].in[token]) continue;
    if (axis == kSequences) counts.all[sequence] += heads * channels;
    if (axis == kTokens) counts.all[token] = heads * channels;
    tokens += 1;
  }
  if (axis == kHeads || axis == kChannels) std::fill(counts.all.begin(), counts.all.end(), tokens * heads * channels);
  for (const Place& place : sampled_) {
    if (!holds(place, axis)) continue;
    const std::array<int64_t, kAxes> unit{place.sequence, place.token, place.head, place.channel};
    counts.bad[size_t(unit[axis])] += weight_;
  }
  return counts;
}

/// Infinite unless bad elements are denser within the part than outside.
double Search::bits_with(const Counts& counts, const Set& set) const {
  double k = 0, n = 0;
  for (size_t unit = 0; unit < set.in.size(); ++unit) {
    if (!set.in[unit]) continue;
    k += counts.bad[unit];
    n += counts.all[unit];
  }
  k = std::min(k, n);  // of a sample
  const double k_out = std::clamp(bad_ - k, 0.0, all_ - n), n_out = all_ - n;
  if (n == 0 || (n_out > 0 && k / n <= k_out / n_out)) return INFINITY;
  return bits_of(k, n) + bits_of(k_out, n_out);
}

Set Search::set_of(Axis axis, std::string kind, std::string text, double choices, const std::function<bool(int64_t)>& in) const {
  Set set{std::move(kind), std::move(text), kBitsOfAKind + std::log2(std::max(1.0, choices)), {}};
  set.in.resize(size_t(units(axis)));
  for (size_t unit = 0; unit < set.in.size(); ++unit) set.in[unit] = in(int64_t(unit));
  return set;
}

Set Search::tokens_where(std::string kind, std::string text, double choices,
                         const std::function<bool(int64_t, int64_t)>& in) const {
  return set_of(kTokens, std::move(kind), std::move(text), choices, [&](int64_t token) {
    const auto n = size_t(sequence_of_[size_t(token)]);
    return in(token - e_.offsets[n], e_.offsets[n + 1] - e_.offsets[n]);
  });
}

int64_t fullest(const std::vector<double>& bad) {
  return std::max_element(bad.begin(), bad.end()) - bad.begin();
}

/// Sums over neighbouring units, `width` of them each.
std::vector<double> in_steps(const std::vector<double>& of_units, int64_t width) {
  std::vector<double> sums((of_units.size() + size_t(width) - 1) / size_t(width));
  for (size_t unit = 0; unit < of_units.size(); ++unit) sums[unit / size_t(width)] += of_units[unit];
  return sums;
}

void Search::propose_sequences(const Counts& counts, const std::function<void(Set)>& take) const {
  const int64_t count = units(kSequences), most = fullest(counts.bad);
  if (count < 2) return;
  const auto add = [&](const char* kind, const std::string& text, double choices, const std::function<bool(int64_t)>& in) {
    take(set_of(kSequences, kind, text, choices, in));
  };
  add("one", fmt::format("sequence {}", most), double(count), [&](int64_t n) { return n == most; });
  add("first", "sequence 0", 1, [](int64_t n) { return n == 0; });
  add("last", fmt::format("the last sequence ({})", count - 1), 1, [&](int64_t n) { return n == count - 1; });
  if (count == 2) return;
  add("after_first", "every sequence but the first", 1, [](int64_t n) { return n > 0; });
  add("before_last", "every sequence but the last", 1, [&](int64_t n) { return n < count - 1; });
}

/// One tile of all sequences, or those up to, from or between some: the best of each, by sums over the tiles.
void Search::propose_tiles(const Counts& counts, int64_t tile, const std::function<void(Set)>& take) const {
  const int64_t tiles = (longest_ + tile - 1) / tile;
  std::vector<double> bad(size_t(tiles) + 1), all(size_t(tiles) + 1);  // prefix sums
  for (size_t token = 0; token < sequence_of_.size(); ++token) {
    const auto at = size_t((int64_t(token) - e_.offsets[size_t(sequence_of_[token])]) / tile) + 1;
    bad[at] += counts.bad[token];
    all[at] += counts.all[token];
  }
  std::partial_sum(bad.begin(), bad.end(), bad.begin());
  std::partial_sum(all.begin(), all.end(), all.begin());
  struct Best {
    double bits = INFINITY;
    int64_t first = 0, last = 0;  // tiles
  };
  const auto better = [&](Best& best, int64_t first, int64_t last) {
    const double k = bad[size_t(last) + 1] - bad[size_t(first)], n = all[size_t(last) + 1] - all[size_t(first)];
    const double bits = bits_of(std::min(k, n), n) + bits_of(std::clamp(bad_ - k, 0.0, all_ - n), all_ - n);
    if (k > 0 && k / n >= (bad_ - k) / std::max(1.0, all_ - n) && bits < best.bits) best = {bits, first, last};
  };
  const auto add = [&](const char* kind, const Best& best, double choices, const std::string& text) {
    if (best.bits == INFINITY) return;
    take(tokens_where(kind, text, choices,
                      [&](int64_t rank, int64_t) { return rank / tile >= best.first && rank / tile <= best.last; }));
  };
  const std::string plural = e_.token == "query" ? "queries" : "keys";
  Best one, prefix, suffix;
  for (int64_t t = 0; t < tiles; ++t) {
    better(one, t, t);
    if (t + 1 < tiles) better(prefix, 0, t);
    if (t > 0) better(suffix, t, tiles - 1);
  }
  add("tile", one, double(tiles),
      fmt::format("{} {}..{} (tile {} of {})", plural, one.first * tile, (one.last + 1) * tile - 1, one.first, tile));
  add("prefix", prefix, double(tiles), fmt::format("{} 0..{}", plural, (prefix.last + 1) * tile - 1));
  add("suffix", suffix, double(tiles), fmt::format("{} from {} on", plural, suffix.first * tile));
  Best range = one;  // grown from the best tile as long as that is better
  for (bool grown = true; grown && range.bits < INFINITY;) {
    const double before = range.bits;
    if (range.first > 0) better(range, range.first - 1, range.last);
    if (range.last + 1 < tiles) better(range, range.first, range.last + 1);
    grown = range.bits < before;
  }
  if (range.first < range.last)
    add("range", range, double(tiles) * double(tiles),
        fmt::format("{} {}..{}", plural, range.first * tile, (range.last + 1) * tile - 1));
}

void Search::propose_tokens(const Counts& counts, const std::function<void(Set)>& take) const {
  const std::string& token = e_.token;
  const std::string plural = token == "query" ? "queries" : "keys";
  const auto add = [&](const char* kind, const std::string& text, double choices,
                       const std::function<bool(int64_t, int64_t)>& in) { take(tokens_where(kind, text, choices, in)); };
  std::vector<double> by_rank(size_t(longest_), 0);
  for (size_t t = 0; t < sequence_of_.size(); ++t) by_rank[t - size_t(e_.offsets[size_t(sequence_of_[t])])] += counts.bad[t];
  const int64_t most = fullest(by_rank);
  add("one", fmt::format("{} {}", token, most), double(longest_), [&](int64_t rank, int64_t) { return rank == most; });
  add("first", "the first " + token, 1, [](int64_t rank, int64_t) { return rank == 0; });
  add("last", "the last " + token, 1, [](int64_t rank, int64_t length) { return rank == length - 1; });
  add("odd", "odd " + plural, 1, [](int64_t rank, int64_t) { return rank % 2 == 1; });
  add("even", "even " + plural, 1, [](int64_t rank, int64_t) { return rank % 2 == 0; });
  if (std::count(e_.unseen.begin(), e_.unseen.end(), 1) > 0) {
    const std::string sees_none = token == "query" ? "queries that see no key" : "keys that no query sees";
    const std::string sees_some = token == "query" ? "queries that see a key" : "keys that some query sees";
    take(set_of(kTokens, "unseen", sees_none, 1, [&](int64_t t) { return e_.unseen[size_t(t)] == 1; }));
    take(set_of(kTokens, "seen", sees_some, 1, [&](int64_t t) { return e_.unseen[size_t(t)] == 0; }));
  }
  for (const int64_t tile : kTiles) {
    const auto tiles = double(kTiles.size());
    add("first_of_tile", fmt::format("the first {} of each tile of {}", token, tile), tiles,
        [=](int64_t rank, int64_t) { return rank % tile == 0; });
    add("last_of_tile", fmt::format("the last {} of each tile of {}", token, tile), tiles,
        [=](int64_t rank, int64_t length) { return rank % tile == tile - 1 || rank == length - 1; });
    add("tail", fmt::format("the {} behind the last whole tile of {}", plural, tile), tiles,
        [=](int64_t rank, int64_t length) { return rank >= length / tile * tile; });
    add("last_tile", fmt::format("the last tile of {} {}", tile, plural), tiles,
        [=](int64_t rank, int64_t length) { return rank >= (length - 1) / tile * tile; });
    propose_tiles(counts, tile, take);
  }
}

void Search::propose_heads(const Counts& counts, const std::function<void(Set)>& take) const {
  const int64_t count = e_.heads, group = e_.group, most = fullest(counts.bad);
  if (count < 2) return;
  const auto add = [&](const char* kind, const std::string& text, double choices, const std::function<bool(int64_t)>& in) {
    take(set_of(kHeads, kind, text, choices, in));
  };
  add("one", fmt::format("head {}", most), double(count), [&](int64_t h) { return h == most; });
  add("first", "head 0", 1, [](int64_t h) { return h == 0; });
  add("last", fmt::format("the last head ({})", count - 1), 1, [&](int64_t h) { return h == count - 1; });
  if (group > 1 && group < count) {
    const int64_t key_head = fullest(in_steps(counts.bad, group));
    add("group", fmt::format("heads {}..{} (of key head {})", key_head * group, (key_head + 1) * group - 1, key_head),
        double(count / group), [&](int64_t h) { return h / group == key_head; });
    std::vector<double> by_member(static_cast<size_t>(group));
    for (int64_t h = 0; h < count; ++h) by_member[size_t(h % group)] += counts.bad[size_t(h)];
    const int64_t member = fullest(by_member);
    add("member", fmt::format("query head {} of each key head", member), double(group),
        [&](int64_t h) { return h % group == member; });
    add("not_first_member", "all but the first query head of each key head", 1, [&](int64_t h) { return h % group != 0; });
  }
  std::vector<int64_t> some;
  for (int64_t h = 0; h < count; ++h)
    if (counts.bad[size_t(h)] > 0.2 * counts.bad[size_t(most)]) some.push_back(h);
  if (some.size() > 1 && some.size() < size_t(count) && some.size() <= 8)
    add("some", fmt::format("heads {}", fmt::join(some, ", ")), std::exp2(std::min<int64_t>(count, 60)),
        [&](int64_t h) { return std::find(some.begin(), some.end(), h) != some.end(); });
}

void Search::propose_channels(const Counts& counts, const std::function<void(Set)>& take) const {
  const int64_t count = e_.channels, most = fullest(counts.bad);
  if (count < 2) return;
  const auto add = [&](const char* kind, const std::string& text, double choices, const std::function<bool(int64_t)>& in) {
    take(set_of(kChannels, kind, text, choices, in));
  };
  add("one", fmt::format("channel {}", most), double(count), [&](int64_t x) { return x == most; });
  add("odd", "odd channels", 1, [](int64_t x) { return x % 2 == 1; });
  add("even", "even channels", 1, [](int64_t x) { return x % 2 == 0; });
  add("lower_half", fmt::format("channels 0..{}", count / 2 - 1), 1, [&](int64_t x) { return x < count / 2; });
  add("upper_half", fmt::format("channels {}..{}", count / 2, count - 1), 1, [&](int64_t x) { return x >= count / 2; });
  for (const int64_t width : kBlocks) {
    if (width * 2 >= count) continue;
    const int64_t block = fullest(in_steps(counts.bad, width)), last = std::min(count, (block + 1) * width) - 1;
    const bool at_end = last == count - 1;
    add(at_end ? "last_block" : "block", fmt::format("channels {}..{} ({} wide)", block * width, last, last - block * width + 1),
        double(kBlocks.size()) * (at_end ? 1 : double(count / width)), [&](int64_t x) { return x / width == block; });
  }
}

void Search::propose(Axis axis, const Counts& counts, const std::function<void(Set)>& take) const {
  Set all;
  all.in.assign(size_t(units(axis)), 1);
  take(std::move(all));
  if (axis == kSequences) propose_sequences(counts, take);
  if (axis == kTokens) propose_tokens(counts, take);
  if (axis == kHeads) propose_heads(counts, take);
  if (axis == kChannels) propose_channels(counts, take);
}

void Search::count_exactly(BadPattern& pattern) const {
  const int64_t row = e_.heads * e_.channels;
  for (int64_t i = 0; i < int64_t(e_.bad.size()); ++i) {
    if (!holds({sequence_of_[size_t(i / row)], i / row, i / e_.channels % e_.heads, i % e_.channels}, kAxes)) continue;
    ++pattern.elements;
    pattern.explained += e_.bad[size_t(i)];
  }
}

std::string Search::text() const {
  std::vector<std::string> parts;
  for (const Axis axis : {kTokens, kHeads, kChannels, kSequences})
    if (!sets_[axis].text.empty()) parts.push_back(sets_[axis].text);
  if (!sets_[kTokens].text.empty() && sets_[kSequences].kind == "all" && units(kSequences) > 1)
    parts.front() += " of every sequence";
  return fmt::format("{}", fmt::join(parts, ", "));
}

BadPattern Search::run() {
  const double without = bits_of(bad_, all_);
  double best = without;
  for (int step = 0; step < kMostSteps; ++step) {
    std::optional<std::pair<Axis, Set>> chosen;
    for (const Axis axis : {kSequences, kTokens, kHeads, kChannels}) {
      const Counts counts = counts_of(axis);
      double bits_of_others = 0;
      for (int other = 0; other < kAxes; ++other) bits_of_others += other == axis ? 0 : sets_[size_t(other)].bits;
      propose(axis, counts, [&](Set set) {
        const double bits = bits_with(counts, set) + set.bits + bits_of_others;
        if (!(bits < best - 1e-9)) return;
        best = bits;
        chosen = {axis, std::move(set)};
      });
    }
    if (!chosen) break;
    sets_[chosen->first] = std::move(chosen->second);
  }
  BadPattern pattern;
  count_exactly(pattern);
  const bool believed = best <= (1 - kLeastSaved) * without && double(pattern.explained) >= kLeastExplained * bad_;
  if (!believed) return {};
  pattern.sequences = sets_[kSequences].kind;
  pattern.tokens = sets_[kTokens].kind;
  pattern.heads = sets_[kHeads].kind;
  pattern.channels = sets_[kChannels].kind;
  pattern.text = text();
  return pattern;
}

void count_rows(const BadElements& e, BadPattern& pattern) {
  pattern.rows = e.offsets.back() * e.heads;
  for (int64_t row = 0; row < pattern.rows; ++row) {
    const auto begin = e.bad.begin() + row * e.channels;
    pattern.rows_hit += std::find(begin, begin + e.channels, 1) != begin + e.channels;
  }
}

}  // namespace

BadPattern explain(const BadElements& e) {
  BadPattern pattern;
  const auto bad = int64_t(std::count(e.bad.begin(), e.bad.end(), 1)), all = int64_t(e.bad.size());
  if (bad == 1) {
    pattern = {"one", "one", "one", "one", "a single element", 1, 1, 0, 0};
  } else if (bad > 0 && double(bad) >= kNearlyAll * double(all)) {
    pattern = {"all", "all", "all", "all", bad == all ? "every element" : "nearly every element", bad, all, 0, 0};
  } else if (bad > 0) {
    pattern = Search(e).run();
  }
  count_rows(e, pattern);
  return pattern;
}

}  // namespace attnbench
