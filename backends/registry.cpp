#include "backends/registry.hpp"

#include <array>

namespace attnbench {

std::vector<std::unique_ptr<Backend>> make_backends() {
  constexpr std::array makers{make_flash_varlen, make_sdpa_flash, make_sdpa_math, make_sdpa_auto, make_eager, make_eigen};
  std::vector<std::unique_ptr<Backend>> backends;
  for (const auto make : makers) backends.push_back(make());
  return backends;
}

}  // namespace attnbench
