#include "harness/run/shrink.hpp"

#include <algorithm>
#include <ranges>
#include <set>
#include <string>
#include <vector>

#include "harness/run/case_keys.hpp"

namespace attnbench {
namespace {

using Lengths = std::vector<int64_t>;

bool is_drawn(const LengthSpec& spec) {
  return std::holds_alternative<UniformLengths>(spec);
}
bool are_equal(const LengthSpec& spec) {
  return std::holds_alternative<std::monostate>(spec);
}
bool all_alike(const Lengths& lengths) {
  return std::ranges::all_of(lengths, [&](int64_t length) { return length == lengths.front(); });
}

class Shrinker {
 public:
  Shrinker(const Case& failing, const std::function<bool(const Case&)>& still_fails, int most_tries)
      : current_(failing), still_fails_(still_fails), tries_left_(most_tries), tried_{format_case(failing)} {}

  Case run() {
    for (std::string before; before != format_case(current_);) {
      before = format_case(current_);
      write_lengths_out();
      take_sequences_away();
      lower_lengths();
      lower_heads();
      lower_head_dims();
      drop_keys();
      lower_window();
      lower_tail();
    }
    return current_;
  }

 private:
  /// Goes on from `smaller` if it is a case, was not tried yet, and fails.
  bool take(const Case& smaller) {
    if (tries_left_ == 0) return false;
    Case c;
    try {
      c = parse_case(format_case(smaller));
    } catch (const CaseError&) {  // keys that do not go together
      return false;
    }
    if (!tried_.insert(format_case(c)).second) return false;
    c.metadata = current_.metadata;
    --tries_left_;
    if (!still_fails_(c)) return false;
    current_ = c;
    return true;
  }

  template <class Change>
  bool take_with(Change&& change) {
    Case c = current_;
    change(c.problem);
    return take(c);
  }

  /// Lowers a number from `now`, with which the case fails, to `least`, or by bisection to where it fails no more.
  template <class Set>
  void lower(int64_t now, int64_t least, Set&& set) {
    const auto fails_with = [&](int64_t value) { return take_with([&](Problem& problem) { set(problem, value); }); };
    if (now <= least || fails_with(least)) return;
    for (int64_t good = least; now - good > 1;) {
      const int64_t middle = good + (now - good) / 2;
      (fails_with(middle) ? now : good) = middle;
    }
  }

  static void set_lengths(Problem& problem, const Lengths& q, const Lengths& k) {
    problem.b = static_cast<int64_t>(q.size());
    problem.lens = q;
    problem.klens = k;
  }

  SequenceLengths lengths() const { return sequence_lengths(current_.problem, current_.seed); }
  bool has_lists() const { return !are_equal(current_.problem.lens); }

  /// A list says what was drawn, and can be shortened.
  void write_lengths_out() {
    if (is_drawn(current_.problem.lens) || is_drawn(current_.problem.klens))
      take_with([&](Problem& problem) { set_lengths(problem, lengths().q, lengths().k); });
  }

  bool take_without(size_t begin, size_t end) {
    Lengths q = lengths().q, k = lengths().k;
    if (end - begin >= q.size()) return false;
    const auto cut = [&](Lengths& list) {
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(begin), list.begin() + static_cast<std::ptrdiff_t>(end));
    };
    cut(q);
    cut(k);
    return take_with([&](Problem& problem) { set_lengths(problem, q, k); });
  }

  /// Halves of the list, quarters, …, single sequences.
  void take_sequences_away() {
    if (!has_lists()) return lower(current_.problem.b, 1, [](Problem& problem, int64_t value) { problem.b = value; });
    if (is_drawn(current_.problem.lens) || is_drawn(current_.problem.klens)) return;
    for (size_t size = std::max<size_t>(1, lengths().q.size() / 2); size > 0; size /= 2) {
      for (size_t begin = 0; begin < lengths().q.size();) {
        const size_t end = std::min(begin + size, lengths().q.size());
        if (!take_without(begin, end)) begin = end;
      }
    }
    const SequenceLengths now = lengths();
    if (!all_alike(now.q) || !all_alike(now.k)) return;
    const auto as_one_length = [&](Problem& problem) {
      problem.lens = problem.klens = std::monostate{};
      problem.lq = now.q.front();
      problem.lk = now.k.front();
    };
    if (take_with(as_one_length)) return;
    take_with([&](Problem& problem) {
      as_one_length(problem);
      problem.pad = Pad::right;  // a layer without lens= has nothing to pad
    });
  }

  void lower_lengths() {
    if (!has_lists()) return lower_equal_lengths();
    if (is_drawn(current_.problem.lens) || is_drawn(current_.problem.klens)) return;
    for (size_t n = 0; n < lengths().q.size(); ++n) {
      const auto set = [n](bool q, bool k) {
        return [n, q, k](Problem& problem, int64_t value) {
          SequenceLengths all = sequence_lengths(problem, 0);
          if (q) all.q[n] = value;
          if (k) all.k[n] = value;
          set_lengths(problem, all.q, all.k);
        };
      };
      if (lengths().q[n] == lengths().k[n]) lower(lengths().q[n], 0, set(true, true));
      lower(lengths().k[n], 0, set(false, true));
      lower(lengths().q[n], 0, set(true, false));
    }
    // The lengths of a padded layer are of real tokens, beside which others stand.
    if (current_.llama && current_.problem.layout == Layout::padded)
      lower(current_.problem.lq, 1, [](Problem& problem, int64_t value) { problem.lq = value; });
  }

  void lower_equal_lengths() {
    const Problem& now = current_.problem;
    if (now.lq == now.lk) lower(now.lq, 0, [](Problem& problem, int64_t value) { problem.lq = problem.lk = value; });
    lower(now.lk, 0, [](Problem& problem, int64_t value) { problem.lk = value; });
    lower(now.lq, 0, [](Problem& problem, int64_t value) { problem.lq = value; });
  }

  /// Few query heads, each with the numbers of key heads that divide it; then fewer key heads where they are fewer already.
  void lower_heads() {
    constexpr int64_t kFew = 4;
    const int64_t hq = current_.problem.hq, hkv = current_.problem.hkv, group = current_.problem.group();
    const auto take_heads = [&](int64_t q, int64_t k) {
      return q % k == 0 && take_with([&](Problem& problem) {
               problem.hq = q;
               problem.hkv = k;
             });
    };
    for (int64_t q = 1; q < hq; ++q)
      if (q <= kFew || q == group || q == hq / 2)
        for (int64_t k = 1; k <= std::min(q, hkv); ++k)
          if (take_heads(q, k)) return;
    for (int64_t k = 1; k < hkv && hkv < hq; ++k)
      if (take_heads(hq, k)) return;
  }

  void lower_head_dims() {
    const auto set_both = [](Problem& problem, int64_t value) { problem.d = problem.dv = value; };
    const auto set_d = [](Problem& problem, int64_t value) { problem.d = value; };
    const auto set_dv = [](Problem& problem, int64_t value) { problem.dv = value; };
    if (current_.problem.d == current_.problem.dv) return lower_head_dim(current_.problem.d, set_both);
    lower_head_dim(current_.problem.d, set_d);
    if (current_.problem.d != current_.problem.dv) lower_head_dim(current_.problem.dv, set_dv);
  }

  /// What most backends take first: bisection alone would end at the first dim that lies outside their capabilities.
  template <class Set>
  void lower_head_dim(int64_t now, Set&& set) {
    for (const int64_t usual : {1, 8, 16, 32, 64, 128})
      if (usual < now && take_with([&](Problem& problem) { set(problem, usual); })) return;
    lower(now, 1, set);
  }

  /// The case with one key at its default, the last first: those before it may be what it depends on.
  void drop_keys() {
    for (const Key& key : operation(current_).keys | std::views::reverse) {
      CaseText text = read_case_text(format_case(current_), "shrink");
      if (std::erase_if(text.keys, [&](const Token& token) { return token.key == key.name; }) == 0) continue;
      try {
        const Case c = case_from(text);
        const bool more_keys = sequence_lengths(c.problem, c.seed).total_k() > lengths().total_k();
        if (!more_keys) take(c);
      } catch (const CaseError&) {  // what is left needs this key
      }
    }
  }

  void lower_window() {
    if (!current_.problem.window) return;
    lower(current_.problem.window->left, 0, [](Problem& problem, int64_t value) { problem.window->left = value; });
    lower(current_.problem.window->right, 0, [](Problem& problem, int64_t value) { problem.window->right = value; });
  }

  void lower_tail() {
    lower(current_.problem.tail, 0, [](Problem& problem, int64_t value) { problem.tail = value; });
  }

  Case current_;
  const std::function<bool(const Case&)>& still_fails_;
  int tries_left_;
  std::set<std::string> tried_;
};

}  // namespace

Case shrink(const Case& failing, const std::function<bool(const Case&)>& still_fails, int most_tries) {
  return Shrinker(failing, still_fails, most_tries).run();
}

}  // namespace attnbench
