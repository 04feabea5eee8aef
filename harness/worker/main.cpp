// attnbench-worker: runs cases on one device for a coordinator, which starts it. By hand: --help.

#include <cstdio>
#include <stdexcept>
#include <string>

#include <ATen/Context.h>
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "harness/run/exit_code.hpp"
#include "harness/worker/environment.hpp"
#include "harness/worker/serve.hpp"

namespace {

using namespace attnbench;

/// Throws std::runtime_error with a sentence where the device is not there.
Device find_device(const std::string& text) {
  const auto cpu_model = environment()["cpu"]["model"];
  if (text == "cpu") return {"cpu", 0, std::nullopt, cpu_model.is_string() ? cpu_model.get<std::string>() : "unknown CPU"};
  if (text != "cuda" && !text.starts_with("cuda:"))
    throw std::runtime_error(fmt::format("--device {}: expected cpu, cuda or cuda:N", text));
  const auto gpus = at::detail::getCUDAHooks().deviceCount();
  if (gpus == 0) throw std::runtime_error(fmt::format("--device {}: LibTorch sees no GPU here; --device cpu is there", text));
  throw std::runtime_error(fmt::format("--device {}: no backend of this build runs on a GPU; --device cpu is there", text));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Runs attention cases on one device: judges every result, times what passed, and answers with records.\n"
      "attnbench starts it and speaks JSON lines with it over two descriptors; people want attnbench.");
  std::string device = "cpu";
  int requests_fd = -1, replies_fd = -1;
  bool hello = false;
  app.add_option("--device", device, "cpu, cuda or cuda:N")->capture_default_str();
  CLI::Option* requests = app.add_option("--requests-fd", requests_fd, "descriptor to read requests from (0: stdin)");
  CLI::Option* replies = app.add_option("--replies-fd", replies_fd, "descriptor to write replies to (1: stdout)");
  requests->needs(replies);
  replies->needs(requests);
  app.add_flag("--hello", hello, "print device, backends and environment as JSON, and end");
  app.footer(
      "Example: echo '{\"request\":{\"id\":1,\"case\":\"attention lq=64 d=64\",\"runs\":[[\"eager\",\"forward\"]],\n"
      "  \"check_only\":true,\"min_rounds\":10,\"time_budget_s\":2}}' | attnbench-worker --requests-fd 0 --replies-fd 1");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    fmt::print(stderr, "attnbench-worker: {} (--help lists the options)\n", e.what());
    return kExitUsage;
  }
  try {
    const Device found = find_device(device);
    const Bench bench{found, make_backends(found)};
    if (hello) {
      fmt::print("{}\n", nlohmann::json(make_hello(bench)).dump(2));
      return kExitOk;
    }
    if (requests_fd < 0 || replies_fd < 0) {
      fmt::print(stderr, "attnbench-worker: nothing to do: it needs --requests-fd and --replies-fd, or --hello (--help)\n");
      return kExitUsage;
    }
    return serve(bench, requests_fd, replies_fd);
  } catch (const std::runtime_error& e) {
    fmt::print(stderr, "attnbench-worker: {}\n", e.what());
    return kExitUsage;
  }
}
