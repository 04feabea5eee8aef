#include "harness/attention/head_rows.hpp"

namespace attnbench::head_rows {
namespace {

struct GatherStep {
  Gathering from;
  double* rows;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t row) const {
    const int64_t head = row / from.longest, sequence = head / from.heads;
    const int64_t place = sequence * from.longest + row % from.longest, token = from.token_at ? from.token_at[place] : place;
    const int64_t of_token = (from.first + head % from.heads) / from.group;
    const int64_t first = (token * from.all_heads + of_token) * from.channels;
    team.each(from.channels, [&](int64_t x) {
      const double number = token < 0 ? 0 : from.tokens.at(first + x);
      rows[row * from.channels + x] = from.nan_is_0 && number != number ? 0 : number;
    });
  }
};

struct PlaceStep {
  Places at;
  Moves moves;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const int64_t token = index / at.heads, head = index % at.heads, place = at.places[token];
    const int64_t row = (place / at.longest * at.heads + head) * at.longest + place % at.longest;
    const int64_t to = at.tokens[token] * at.all_heads + at.first + head;
    for (int i = 0; i < moves.count; ++i) {
      const Move& move = moves.move[i];
      team.each(move.channels, [&](int64_t x) {
        double value = move.from[row * move.channels + x];
        if (move.squared) value *= value;
        if (move.allowance && value != 0)
          value += move.allowance[row * move.channels + x] * move.allowance[row * move.channels + x];
        move.to[to * move.channels + x] = value;
      });
    }
  }
};

/// A "row" is a token's key head.
struct SharesStep {
  Places at;
  Shares shares;

  ATTNBENCH_ON_BOTH int64_t first_key_head() const { return at.first / shares.group; }
  ATTNBENCH_ON_BOTH int64_t key_heads() const { return (at.first + at.heads - 1) / shares.group + 1 - first_key_head(); }

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t index) const {
    const int64_t token = index / key_heads(), key_head = first_key_head() + index % key_heads(), place = at.places[token];
    const int64_t sequence = place / at.longest, key = place % at.longest;
    const int64_t to = at.tokens[token] * (at.all_heads / shares.group) + key_head;
    const int64_t begin = key_head * shares.group < at.first ? at.first : key_head * shares.group;
    const int64_t end = (key_head + 1) * shares.group < at.first + at.heads ? (key_head + 1) * shares.group : at.first + at.heads;
    for (int i = 0; i < shares.count; ++i) {
      const Share& share = shares.share[i];
      team.each(share.channels, [&](int64_t x) {
        double sum = 0;
        for (int64_t head = begin; head < end; ++head) {
          const int64_t from = ((sequence * at.heads + head - at.first) * at.longest + key) * share.channels + x;
          sum += share.from[from];
          if (share.rounded) sum += shares.spacing.variance_at(share.rounded[from]);
        }
        share.to[to * share.channels + x] += sum;
      });
    }
    if (shares.seen && team.writes() && shares.seen_in[place]) shares.seen[to] = 1;
  }
};

struct FinishStep {
  Sum sum;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t row) const {
    const bool seen = sum.seen[row * sum.seen_stride] != 0;
    const double accumulated = sum.accumulation * static_cast<double>(sum.terms[row / sum.heads]);
    team.each(sum.channels, [&](int64_t x) {
      const int64_t at = row * sum.channels + x;
      const double value = sum.value[at], allowance = sum.allowance ? sum.allowance[at] : 0;
      const double variance = sum.variance[at] + sum.spacing.variance_at(value) + allowance * allowance;
      sum.variance[at] = !seen ? 0 : accumulated > 0 ? variance + value * value * accumulated : variance;
    });
    if (!sum.freedom || !team.writes()) return;
    sum.freedom[row] =
        sum.sum2 ? effective_sources(sum.sum2[row], sum.sum4[row], sum.channels) : static_cast<double>(sum.channels);
  }
};

struct FreedomStep {
  Freedom of;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t row) const {
    double parts = 0;
    team.each(of.channels, [&](int64_t x) {
      const int64_t at = row * of.channels + x;
      double variance = of.variance[at];
      if (of.allowance && variance != 0) variance += of.allowance[at] * of.allowance[at];
      of.variance[at] = variance;
      if (variance > 0) parts += 1 - of.spacing.variance_at(of.value[at]) / variance;
    });
    const double c = static_cast<double>(of.channels), part = team.sum(parts) / c;
    const double beyond = of.correlated[row % of.heads / of.group] - c;
    const double independent = c * c / (c + part * part * (beyond > 0 ? beyond : 0)), limit = independent < 1 ? 1 : independent;
    if (team.writes()) of.freedom[row] = of.most[row] < limit ? of.most[row] : limit;
  }
};

struct CorrelateStep {
  const double* products;
  int64_t channels;
  double* correlated;

  ATTNBENCH_ON_BOTH void operator()(const RowTeam& team, int64_t head) const {
    const double* of_head = products + head * channels * channels;
    double sum = 0;
    team.each(channels * channels, [&](int64_t i) {
      const double squares = of_head[i / channels * (channels + 1)] * of_head[i % channels * (channels + 1)];
      if (squares > 0 && squares < INFINITY) sum += of_head[i] * of_head[i] / squares;
    });
    sum = team.sum(sum);
    if (team.writes()) correlated[head] = sum;
  }
};

}  // namespace

void gather(bool on_gpu, const Gathering& from, double* rows) {
  for_each_row(on_gpu, from.sequences * from.heads * from.longest, from.channels, GatherStep{from, rows});
}

void place(bool on_gpu, const Places& at, const Moves& moves) {
  for_each_row(on_gpu, at.count * at.heads, moves.move[0].channels, PlaceStep{at, moves});
}

void add_shares(bool on_gpu, const Places& at, const Shares& shares) {
  const SharesStep step{at, shares};
  for_each_row(on_gpu, at.count * step.key_heads(), shares.share[0].channels, step);
}

void finish(bool on_gpu, const Sum& sum) {
  for_each_row(on_gpu, sum.tokens * sum.heads, sum.channels, FinishStep{sum});
}

void limit_freedom(bool on_gpu, const Freedom& of) {
  for_each_row(on_gpu, of.tokens * of.heads, of.channels, FreedomStep{of});
}

void correlate(bool on_gpu, const double* products, int64_t heads, int64_t channels, double* correlated) {
  for_each_row(on_gpu, heads, channels * channels, CorrelateStep{products, channels, correlated});
}

}  // namespace attnbench::head_rows
