// Files, read and written whole.
#pragma once

#include <filesystem>
#include <string>

#include <nlohmann/json.hpp>

namespace attnbench {

/// Every byte. Throws std::runtime_error with the system's reason alone: callers say which file, and what it should hold.
std::string read_file(const std::filesystem::path& path);

/// Likewise, of a file that is one JSON value; what parse_json() refuses is a reason too.
nlohmann::json read_json(const std::filesystem::path& path);

/// Through a temporary name: a reader never sees half a file. Throws RunError with file and reason.
void write_file(const std::filesystem::path& path, const std::string& text);

}  // namespace attnbench
