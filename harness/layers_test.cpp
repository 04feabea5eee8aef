// Dependencies point one way. This test reads every source file's #include lines and names each line that breaks a rule of
// the table below; CMake lists must name their sources, and no file a package registry. Its last tests plant violations: a rule
// that cannot fail is none.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

/// What the sources of one folder may include besides the standard library, the system and files of their own folder.
struct Layer {
  std::string folder;
  Names project;       ///< folders or files of this repository
  Names libraries;     ///< names of library_of()
  Names test_project;  ///< what its *_test files may include as well
};

const std::vector<Layer> layers = {
    {"kernels/", {}, {"cuda"}, {}},
    {"harness/run/", {}, {"fmt", "nlohmann_json", "CLI11"}, {}},
    {"reports/", {"harness/run/"}, {"fmt", "nlohmann_json", "benchmark"}, {}},
    {"harness/attention/", {"harness/run/"}, {"fmt", "torch", "Eigen", "cuda"}, {}},
    {"harness/llama/", {"harness/run/", "harness/attention/"}, {"fmt", "torch"}, {}},
    {"harness/training/", {"harness/run/", "harness/attention/", "harness/llama/inputs.hpp"}, {"fmt", "torch"}, {}},
    {"harness/worker/",
     {"harness/run/", "harness/attention/", "harness/llama/", "harness/training/"},
     {"fmt", "nlohmann_json", "CLI11", "torch", "benchmark", "cuda"},
     {"backends/"}},
    // Of the oracle's folder only the inputs and the names of dtypes: a backend shares no code with what judges it, the mask
    // included.
    {"backends/",
     {"harness/run/", "harness/attention/inputs.hpp", "harness/attention/torch_dtype.hpp", "harness/llama/inputs.hpp",
      "harness/worker/backend.hpp", "harness/worker/llama_backend.hpp", "harness/worker/training.hpp", "kernels/"},
     {"fmt", "torch", "Eigen"},
     {"harness/attention/", "harness/training/", "harness/worker/"}},
};

bool starts_with_any(const std::string& text, const Names& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const std::string& prefix) { return text.starts_with(prefix); });
}

/// The library a header in angle brackets belongs to; empty: the standard library or the system.
std::string library_of(const std::string& header) {
  const std::vector<std::pair<std::string, Names>> libraries = {{"torch", {"torch/", "ATen/", "c10/", "caffe2/"}},
                                                                {"Eigen", {"Eigen/", "unsupported/Eigen/", "eigen3/"}},
                                                                {"fmt", {"fmt/"}},
                                                                {"nlohmann_json", {"nlohmann/"}},
                                                                {"CLI11", {"CLI/"}},
                                                                {"benchmark", {"benchmark/"}},
                                                                {"gtest", {"gtest/", "gmock/"}},
                                                                {"cuda", {"cuda", "cute/", "cutlass/", "cub/", "thrust/"}}};
  for (const auto& [name, prefixes] : libraries)
    if (starts_with_any(header, prefixes)) return name;
  return "";
}

bool contains(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_test(const std::string& path) {
  return path.find("_test.") != std::string::npos || path.find("/test_") != std::string::npos;
}

/// Why `layer` may not include what the line says; empty: it may.
std::string why_forbidden(const Layer& layer, const std::string& path, const std::string& header, bool quoted) {
  const bool main_file = path == "harness/run/main.cpp" || path == "harness/worker/main.cpp";
  const bool ours = starts_with_any(header, {"harness/", "backends/", "kernels/", "reports/"});
  if (!quoted && !ours) {
    const std::string library = library_of(header);
    if (library == "gtest") return is_test(path) ? "" : "only tests include GoogleTest";
    return library.empty() || contains(layer.libraries, library) ? "" : layer.folder + " does not depend on " + library;
  }
  if (main_file || header.starts_with(layer.folder) || starts_with_any(header, layer.project)) return "";
  if (is_test(path) && starts_with_any(header, layer.test_project)) return "";
  return layer.folder + " does not depend on it (or it is not named from the root of the repository)";
}

/// The broken rules of one source file, as "path:line: text: why".
Names check_includes(const std::string& path, const std::string& text) {
  const auto layer =
      std::find_if(layers.begin(), layers.end(), [&](const Layer& candidate) { return path.starts_with(candidate.folder); });
  if (layer == layers.end()) return {path + ": the table of layers does not know this folder"};
  static const std::regex include(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)");
  Names broken;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::smatch match;
    if (!std::regex_match(line, match, include)) continue;
    const std::string why = why_forbidden(*layer, path, match[2], match[1] == "\"");
    if (!why.empty()) broken.push_back(path + ":" + std::to_string(number) + ": " + line + ": " + why);
  }
  return broken;
}

/// Sources are listed: a glob does not see a new file before the next configuration.
Names check_cmake(const std::string& path, const std::string& text) {
  static const std::regex glob(R"(\bfile\s*\(\s*GLOB)", std::regex::icase);
  return std::regex_search(text, glob) ? Names{path + ": lists its sources by a glob"} : Names{};
}

/// Where packages come from is the machine's affair (pip's and apt's own configuration), never a file's of the project.
/// The names are in two parts so that this file does not hold them.
Names check_host_names(const std::string& path, const std::string& text) {
  const std::vector<std::pair<std::string, std::string>> hosts = {{"pypi", ".org"},
                                                                  {"pythonho", "sted.org"},
                                                                  {"download.pytorch", ".org"},
                                                                  {"anaconda", ".org"},
                                                                  {"deb.debian", ".org"},
                                                                  {"archive.ubuntu", ".com"},
                                                                  {"developer.download", ".nvidia.com"},
                                                                  {"registry.npm", "js.org"},
                                                                  {"ghcr", ".io"},
                                                                  {"quay", ".io"}};
  Names broken;
  for (const auto& [name, domain] : hosts)
    if (text.find(name + domain) != std::string::npos) broken.push_back(path + ": holds the name of a package registry's host");
  return broken;
}

std::string read(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  EXPECT_TRUE(stream) << file;
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// Every file of the project, by its path from the root; what is built, installed or measured here is no part of it.
Names project_files() {
  const Names not_ours = {".git/", ".venv/", "build/", "runs/", "dist/"};
  const fs::path root = ATTNBENCH_SOURCE_DIR;
  Names files;
  for (auto entry = fs::recursive_directory_iterator(root); entry != fs::recursive_directory_iterator(); ++entry) {
    const std::string path = fs::relative(entry->path(), root).generic_string();
    if (entry->is_directory() && starts_with_any(path + "/", not_ours)) entry.disable_recursion_pending();
    if (entry->is_regular_file()) files.push_back(path);
  }
  return files;
}

Names check_project(Names (*check)(const std::string&, const std::string&), const std::regex& which, int at_least) {
  Names broken;
  int checked = 0;
  for (const std::string& path : project_files()) {
    if (!std::regex_search(path, which)) continue;
    ++checked;
    const Names found = check(path, read(fs::path(ATTNBENCH_SOURCE_DIR) / path));
    broken.insert(broken.end(), found.begin(), found.end());
  }
  EXPECT_GE(checked, at_least) << "the test does not see the project";
  return broken;
}

std::string joined(const Names& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

TEST(Layers, includes_point_one_way) {
  const std::regex sources(R"(^(harness/[^/]+|kernels|backends|reports)/.*\.(hpp|cpp|cu|cuh)$)");
  const Names broken = check_project(check_includes, sources, 50);
  EXPECT_TRUE(broken.empty()) << joined(broken);
}

TEST(Layers, cmake_lists_its_sources) {
  const Names broken = check_project(check_cmake, std::regex(R"((^|/)CMakeLists\.txt$|\.cmake$)"), 5);
  EXPECT_TRUE(broken.empty()) << joined(broken);
}

TEST(Layers, no_file_names_a_registry) {
  const Names broken = check_project(check_host_names, std::regex(""), 60);
  EXPECT_TRUE(broken.empty()) << joined(broken);
}

TEST(Layers, planted_includes_are_caught) {
  const std::vector<std::pair<std::string, std::string>> planted = {
      {"kernels/cpu/forward.cpp", "#include <ATen/core/Tensor.h>"},
      {"kernels/cpu/forward.cpp", "#include \"harness/run/case.hpp\""},
      {"kernels/cpu/forward.cpp", "#include <fmt/format.h>"},
      {"harness/run/case.cpp", "#include <torch/torch.h>"},
      {"harness/run/case.cpp", "#include \"harness/worker/verdict.hpp\""},
      {"harness/run/coordinator.cpp", "#include \"reports/summary.hpp\""},
      {"harness/run/main.cpp", "#include <c10/core/Device.h>"},
      {"harness/run/case.cpp", "#include \"case.hpp\""},
      {"harness/run/case.cpp", "#include <harness/worker/verdict.hpp>"},
      {"harness/run/case.cpp", "  #  include <gtest/gtest.h>  // indented"},
      {"reports/csv.cpp", "#include \"harness/attention/inputs.hpp\""},
      {"harness/attention/oracle_eigen.cpp", "#include \"backends/attention/eigen.hpp\""},
      {"harness/attention/oracle_torch.cpp", "#include \"kernels/flash_varlen.hpp\""},
      {"harness/worker/run_case.cpp", "#include \"backends/registry.hpp\""},
      {"backends/attention/eigen.cpp", "#include \"harness/attention/oracle.hpp\""},
      {"backends/attention/eigen.cpp", "#include \"harness/worker/verdict.hpp\""},
      {"harness/elsewhere/file.cpp", "#include <vector>"}};
  for (const auto& [path, line] : planted) EXPECT_EQ(check_includes(path, line + "\n").size(), 1u) << path << ": " << line;
}

TEST(Layers, allowed_includes_pass) {
  EXPECT_TRUE(check_includes("harness/run/main.cpp", "#include \"reports/summary.hpp\"\n#include <CLI/CLI.hpp>\n").empty());
  EXPECT_TRUE(
      check_includes("backends/eigen_test.cpp", "#include \"harness/attention/reference.hpp\"\n#include <gtest/gtest.h>\n")
          .empty());
  EXPECT_TRUE(check_includes("kernels/flash_varlen.hpp", "#include <cstdint>\n// #include <torch/torch.h>\n").empty());
}

TEST(Layers, planted_glob_and_host_name_are_caught) {
  EXPECT_EQ(check_cmake("CMakeLists.txt", "file( glob sources *.cpp)").size(), 1u);
  EXPECT_EQ(check_cmake("CMakeLists.txt", "add_library(attnbench_run case.cpp)").size(), 0u);
  EXPECT_EQ(check_host_names("README.md", std::string("pip install --index-url https://download.pytorch") + ".org/whl").size(),
            1u);
  EXPECT_EQ(check_host_names("README.md", "pip install torch").size(), 0u);
}

}  // namespace
