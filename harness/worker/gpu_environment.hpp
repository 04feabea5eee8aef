// What the numbers of a GPU depend on besides environment.hpp's: the device, its driver and settings, and its state at the start.
#pragma once

#include <nlohmann/json.hpp>

#include "harness/run/declaration.hpp"

namespace attnbench {

/// {"name":…,"uuid_hash":…,"driver":…,"clocks_mhz":{…},"power_limit_w":…,…,"cudnn":…,"tf32":{…}}; what cannot be read is null.
nlohmann::json gpu_environment(const Device& device);

}  // namespace attnbench
