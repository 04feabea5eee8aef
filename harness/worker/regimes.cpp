#include "harness/worker/regimes.hpp"

#include <stdexcept>

#include <fmt/format.h>

namespace attnbench {

// What a GPU costs, by the records of suite perf on an H200 (reports/published/2026-11-21-h200/perf: 17 cases of at most 19
// (backend, pass) each): cooled takes 5 rounds x (200 ms of idle + about 9 ms of samples), about a second for each of them, 16 to
// 20 s a case. The idle is nearly all of it, so samples after it are cheap and further rounds are not.

std::vector<Regime> regimes_of(const Device& device, bool with_cooled) {
  if (device.kind == "cpu") return {{.name = "cpu_hot"}};
  if (device.kind != "cuda") throw std::invalid_argument(fmt::format("no regimes for devices of kind '{}'", device.kind));
  // A power-limited GPU runs on a budget that it has saved up while it was idle. 200 ms make what ran before immaterial (in
  // the published runs on an H200 nine of ten medians repeat within 0.81%); the samples are to end before the budget does, hence
  // few. Five rounds, since the smallest and the largest of five hold the median with 94%.
  const Regime cooled{.name = "cooled",
                      .all_windows = false,
                      .idle_s = 0.2,
                      .min_rounds = 5,
                      .max_samples = 10,
                      .max_series_s = 0.03,
                      .budget_share = 0.8};
  // The power limit settles the clock within some 100 ms of full load.
  const Regime sustained{.name = "sustained", .warm_up_s = 0.5, .max_samples = 10, .max_series_s = 0.01};
  if (!with_cooled) return {sustained};
  return {cooled, sustained};
}

}  // namespace attnbench
