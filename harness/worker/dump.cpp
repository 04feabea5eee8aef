#include "harness/worker/dump.hpp"

#include <cctype>
#include <functional>

#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include "harness/attention/tokens.hpp"
#include "harness/worker/npy.hpp"
#include "harness/worker/sealed_inputs.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;

void dump_tensor(const fs::path& folder, const std::string& name, const at::Tensor& got, const Expected& expected) {
  write_npy(folder / (name + ".npy"), got);
  write_npy(folder / (name + "_expected.npy"), expected.value);
  write_npy(folder / (name + "_sigma.npy"), expected.variance.sqrt());
}

}  // namespace

std::string folder_of_case(const std::string& case_line) {
  constexpr size_t kLongest = 150;
  std::string name;
  for (const char c : case_line) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) || std::string_view("=+.-").find(c) != std::string_view::npos;
    name += plain ? c : '_';
  }
  if (name.size() <= kLongest) return name;
  return fmt::format("{}-{:016x}", name.substr(0, kLongest), std::hash<std::string>{}(case_line));
}

void dump_inputs(const Inputs& inputs, const fs::path& folder) {
  fs::create_directories(folder);
  for (const auto& [name, tensor] : named_tensors(inputs)) write_npy(folder / (name + ".npy"), tensor);
  write_npy(folder / "q_rows.npy", to_tensor(inputs.q_rows, at::kCPU));
  write_npy(folder / "k_rows.npy", to_tensor(inputs.k_rows, at::kCPU));
}

void dump_outputs(const Outputs& outputs, Pass pass, const Yardstick& yardstick, const fs::path& folder) {
  fs::create_directories(folder);
  const auto tokens = [&](const JudgedTensor& t) { return yardstick.tokens(t, outputs); };
  dump_tensor(folder, "o", tokens(kOutput), yardstick.reference().o);
  if (outputs.kept.defined()) write_npy(folder / "kept.npy", outputs.kept);
  if (pass == Pass::forward) {
    if (!outputs.lse.defined()) return;
    const at::Tensor lse = tokens_of(outputs.lse, yardstick.rows(kOutput), yardstick.shape(kOutput).heads, 1);
    return dump_tensor(folder, "lse", lse, yardstick.reference().lse);
  }
  const bool conditional = yardstick.rounding().conditional();
  const ConditionalGradients given = conditional ? yardstick.given(outputs.o) : ConditionalGradients{};
  dump_tensor(folder, "dq", tokens(kQueryGradient), conditional ? given.dq : yardstick.reference().dq);
  dump_tensor(folder, "dk", tokens(kKeyGradient), conditional ? given.dk : yardstick.reference().dk);
  dump_tensor(folder, "dv", tokens(kValueGradient), yardstick.reference().dv);
}

}  // namespace attnbench
