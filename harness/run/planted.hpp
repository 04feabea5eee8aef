// Planted backends: each is a real one with one defect, which the judge has to see. A worker has them with --planted.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/run/declaration.hpp"

namespace attnbench {

/// "flash_varlen:last_key_dropped": the real backend, a colon, the defect. No real backend has a colon in its name.
inline bool is_planted(std::string_view backend) {
  return backend.find(':') != std::string_view::npos;
}

/// Whether any of the backends is planted, so that a worker has to be asked for those.
inline bool names_planted(const std::vector<std::string>& backends) {
  return std::ranges::any_of(backends, is_planted);
}

/// "flash_varlen"; a real backend's own name.
inline std::string real_backend_of(std::string_view backend) {
  return std::string(backend.substr(0, backend.find(':')));
}

/// "last_key_dropped"; empty for a real backend.
inline std::string defect_of(std::string_view backend) {
  return is_planted(backend) ? std::string(backend.substr(backend.find(':') + 1)) : "";
}

/// In the version that a planted backend declares, before what it does wrong: a sentence without its end.
inline constexpr std::string_view kPlantedIn = ", planted: ";

/// "the last key of every sequence is left out"; empty for a version of a real backend.
inline std::string planted_in(std::string_view version) {
  const size_t at = version.find(kPlantedIn);
  return at == std::string_view::npos ? "" : std::string(version.substr(at + kPlantedIn.size()));
}

/// Makes the declaration of a real backend that of its copy with the defect `name`; `what` it does wrong, as planted_in().
inline void declare_planted(Declaration& real, std::string_view name, std::string_view what) {
  real.name += ":";
  real.name += name;
  real.version += kPlantedIn;
  real.version += what;
  real.ours = false;
}

/// How the reason of an unsupported record begins where shape and mask alone prove that the defect cannot show.
inline constexpr std::string_view kEquivalent = "equivalent: ";

/// That reason; nothing where there is no proof.
inline std::optional<std::string> why_not_planted(const std::string& proof) {
  return proof.empty() ? std::nullopt : std::optional(std::string(kEquivalent) + proof);
}

}  // namespace attnbench
