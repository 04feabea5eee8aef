#include "harness/run/random_case.hpp"

#include <algorithm>

#include "harness/run/draws.hpp"
#include "harness/run/names.hpp"

namespace attnbench {
namespace {

/// Any value of the enum; `usual` as often as all of them together.
template <class E>
E any_name(Draws& draws, E usual) {
  if (draws.one_in(2)) return usual;
  return draws.of(kNames<E>).value;
}

/// A multiple of a tile, one less or one more.
int64_t near_a_tile(Draws& draws, std::initializer_list<int64_t> tiles) {
  const int64_t tile = draws.of(tiles);
  return tile - 1 + draws.below(3);
}

int64_t random_length(Draws& draws) {
  constexpr int64_t kSmall = 100, kMiddling = 300;
  switch (draws.below(8)) {
    case 0:
      return draws.of<int64_t>({0, 0, 1, 1, 2, 3});
    case 1:
    case 2:
    case 3:
      return near_a_tile(draws, {16, 32, 64, 128});
    case 4:
    case 5:
      return draws.below(kSmall);
    case 6:
      return draws.below(kMiddling);
    default:
      return near_a_tile(draws, {256, 256, 512, 512, 1024, 2048});
  }
}

int64_t random_sequences(Draws& draws) {
  if (draws.one_in(12)) return 1 + draws.below(33);
  return 1 + draws.below(draws.one_in(2) ? 1 : 6);
}

LengthSpec random_list(Draws& draws, int64_t count) {
  std::vector<int64_t> list(static_cast<size_t>(count));
  for (int64_t& length : list) length = random_length(draws);
  return list;
}

LengthSpec random_range(Draws& draws) {
  const int64_t a = random_length(draws), b = random_length(draws);
  return UniformLengths{std::min(a, b), std::max(a, b)};
}

void draw_heads(Draws& draws, Problem& problem) {
  problem.hkv = draws.of<int64_t>({1, 1, 1, 2, 2, 3, 4, 5, 8});
  problem.hq = problem.hkv * draws.of<int64_t>({1, 1, 1, 1, 2, 2, 3, 4, 6, 8, 16});
}

int64_t random_head_dim(Draws& draws) {
  if (draws.one_in(8)) return 1 + draws.below(40);
  if (draws.one_in(40)) return draws.of<int64_t>({320, 512, 1024, 4096});
  const int64_t usual = draws.of<int64_t>({8, 16, 32, 40, 64, 64, 64, 80, 96, 128, 128, 128, 192, 256});
  return draws.one_in(8) ? usual + 2 * draws.below(2) - 1 : usual;
}

void draw_lengths(Draws& draws, Problem& problem) {
  problem.b = random_sequences(draws);
  const int64_t kind = draws.below(10);
  if (kind < 5) {
    problem.lq = random_length(draws);
    problem.lk = draws.one_in(3) ? problem.lq : random_length(draws);
    return;
  }
  problem.lens = kind < 8 ? random_list(draws, problem.b) : random_range(draws);
  if (draws.one_in(2)) return;
  problem.klens = draws.one_in(3) ? random_range(draws) : random_list(draws, problem.b);
  const bool lists = std::holds_alternative<std::vector<int64_t>>(problem.lens);
  if (lists && problem.klens == problem.lens) problem.klens = std::monostate{};
}

int64_t random_bound(Draws& draws) {
  return draws.one_in(2) ? draws.of<int64_t>({-1, 0, 1, 15, 16, 63, 64, 65, 128}) : draws.below(200);
}

void draw_mask(Draws& draws, Problem& problem) {
  problem.mask = draws.of(kNames<Mask>).value;
  if (draws.one_in(8)) {
    problem.window = SlidingWindow{random_bound(draws), random_bound(draws)};
    if (problem.window->left < 0 && problem.window->right < 0) problem.window->left = 0;
  }
  problem.alibi = draws.one_in(12);
  if (problem.uses_alignment()) problem.align = any_name(draws, Align::bottom_right);
}

void draw_rare_options(Draws& draws, Problem& problem) {
  if (draws.one_in(4)) problem.scale = draws.of({0.125, 0.25, 0.5, 1.0, 2.0, 0.01, 0.3, 0.0, -0.25});
  if (draws.one_in(12)) problem.softcap = draws.of({0.5, 1.0, 5.0, 30.0, 50.0});
  problem.sink = draws.one_in(12);
  if (draws.one_in(12)) problem.dropout = {draws.of({0.001, 0.1, 0.5, 0.9}), draws.bits() >> 40};
}

int64_t longest_in(const LengthSpec& spec, int64_t otherwise) {
  if (const auto* list = std::get_if<std::vector<int64_t>>(&spec)) return *std::ranges::max_element(*list);
  if (const auto* range = std::get_if<UniformLengths>(&spec)) return range->high;
  return otherwise;
}

int64_t longest_q(const Problem& problem) {
  return longest_in(problem.lens, problem.lq);
}
int64_t longest_k(const Problem& problem) {
  return longest_in(problem.klens, longest_in(problem.lens, problem.lk));
}

void halve(LengthSpec& spec) {
  if (auto* list = std::get_if<std::vector<int64_t>>(&spec))
    for (int64_t& length : *list) length /= 2;
  if (auto* range = std::get_if<UniformLengths>(&spec)) *range = {range->low / 2, range->high / 2};
}

/// Halves the lengths until the case is small enough; the largest cases are a few among many that cost next to nothing.
void keep_small(Draws& draws, Problem& problem) {
  const int64_t most = draws.one_in(16) ? kMostScores : kMostScores / 16;
  while (scores_of(problem) > most || elements_of(problem) > kMostElements) {
    problem.lq /= 2;
    problem.lk /= 2;
    halve(problem.lens);
    halve(problem.klens);
  }
  if (problem.klens == problem.lens && std::holds_alternative<std::vector<int64_t>>(problem.lens))
    problem.klens = std::monostate{};
}

}  // namespace

int64_t scores_of(const Problem& problem) {
  return problem.b * problem.hq * longest_q(problem) * longest_k(problem);
}

int64_t elements_of(const Problem& problem) {
  const int64_t queries = longest_q(problem) * problem.hq, keys = longest_k(problem) * problem.hkv;
  return problem.b * (queries + keys) * (problem.d + problem.dv);
}

Case random_case(uint64_t seed, uint64_t number) {
  Draws draws(seed, number);
  Case c;
  draw_heads(draws, c.problem);
  c.problem.d = random_head_dim(draws);
  c.problem.dv = draws.one_in(6) ? random_head_dim(draws) : c.problem.d;
  draw_lengths(draws, c.problem);
  c.problem.dtype = draws.of(kNames<Dtype>).value;
  draw_mask(draws, c.problem);
  c.problem.layout = any_name(draws, Layout::packed);
  if (c.problem.layout == Layout::padded) c.problem.pad = draws.of(kNames<Pad>).value;
  if (c.problem.layout == Layout::packed && draws.one_in(8)) c.problem.tail = 1 + draws.below(80);
  draw_rare_options(draws, c.problem);
  c.fill = any_name(draws, Fill::normal);
  c.dout = any_name(draws, Dout::normal);
  // far takes gigabytes.
  if (draws.one_in(3))
    c.strides = draws.of({Strides::contiguous, Strides::transposed, Strides::v_transposed, Strides::dout_transposed,
                          Strides::stride0, Strides::unaligned});
  c.seed = draws.one_in(8) ? draws.bits() : draws.bits() >> 48;
  keep_small(draws, c.problem);
  c.metadata.timed = false;
  return c;
}

}  // namespace attnbench
