#include "harness/run/files.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include <fmt/format.h>

#include "harness/run/json_reader.hpp"
#include "harness/run/run_data.hpp"

namespace attnbench {

std::string read_file(const std::filesystem::path& path) {
  std::error_code ignored;  // what cannot be looked at cannot be opened either
  if (std::filesystem::is_directory(path, ignored)) throw std::runtime_error(std::strerror(EISDIR));
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error(std::strerror(errno));
  return {std::istreambuf_iterator<char>(in), {}};
}

nlohmann::json read_json(const std::filesystem::path& path) {
  return parse_json(read_file(path));
}

void write_file(const std::filesystem::path& path, const std::string& text) {
  const std::filesystem::path temporary = path.string() + ".part";
  std::ofstream file(temporary, std::ios::binary);
  file << text;
  file.close();
  if (!file) throw RunError(fmt::format("{}: cannot be written: {}", path.string(), std::strerror(errno)));
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) throw RunError(fmt::format("{}: cannot be written: {}", path.string(), error.message()));
}

}  // namespace attnbench
