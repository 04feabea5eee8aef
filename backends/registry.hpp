// The makers of every attention backend, one a file; backends/registry.cpp lists them in the order of the reports.
#pragma once

#include <memory>

#include "harness/worker/backend.hpp"

namespace attnbench {

std::unique_ptr<Backend> make_flash_varlen();
std::unique_ptr<Backend> make_sdpa_flash();
std::unique_ptr<Backend> make_sdpa_math();
std::unique_ptr<Backend> make_sdpa_auto();
std::unique_ptr<Backend> make_eager();
std::unique_ptr<Backend> make_eigen();

}  // namespace attnbench
