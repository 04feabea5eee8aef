// What the numbers of this worker depend on: machine, libraries, compiler, source revision.
#pragma once

#include <nlohmann/json.hpp>

namespace attnbench {

/// {"cpu":{…},"kernel":…,"torch":{…},"build":{…},"git":{…},"variables":{…}}; what cannot be read is null.
nlohmann::json environment();

}  // namespace attnbench
