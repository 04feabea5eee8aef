// attnbench-worker: runs cases on one device for a coordinator, which starts it. By hand: --help.

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include "harness/run/dispatch.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/exit_code.hpp"
#include "harness/run/nearest.hpp"
#include "harness/worker/cuda_device.hpp"
#include "harness/worker/environment.hpp"
#include "harness/worker/memory.hpp"
#include "harness/worker/serve.hpp"
#include "harness/worker/spending.hpp"

namespace {

using namespace attnbench;

/// The device by its name, ready to be used. Throws UsageError with a sentence where it is not there.
Device find_device(const std::string& text) {
  if (text == "cpu") {
    const auto model = environment()["cpu"]["model"];
    return {"cpu", 0, std::nullopt, model.is_string() ? model.get<std::string>() : "unknown CPU"};
  }
  const std::string index = text == "cuda" ? "0" : text.starts_with("cuda:") ? text.substr(5) : "";
  const bool is_number = !index.empty() && index.size() < 4 && index.find_first_not_of("0123456789") == std::string::npos;
  if (!is_number) throw UsageError(fmt::format("--device {}: expected cpu, cuda or cuda:N", text));
  const Device device = find_cuda_device(std::stoi(index));
  watch_cuda_memory();
  count_time_of(device);
  return device;
}

/// The attention backend of that name. Throws UsageError where there is none, or none for this device.
const Backend& attention_named(const Bench& bench, const std::string& name) {
  std::vector<std::string_view> known{kAutoAttention};
  for (const auto& backend : bench.backends) known.push_back(backend->declaration().name);
  const auto named = [&](const auto& backend) { return backend->declaration().name == name; };
  const auto found = std::ranges::find_if(bench.backends, named);
  if (found == bench.backends.end())
    throw UsageError(
        fmt::format("--attention {}: no such backend{}; known: {}", name, did_you_mean(name, known), fmt::join(known, ", ")));
  if (!runs_on((*found)->declaration(), bench.device))
    throw UsageError(fmt::format("--attention {}: it runs on {}, and the device is {}", name,
                                 fmt::join((*found)->declaration().capabilities.devices, ", "), device_text(bench.device)));
  return **found;
}

/// Those of kAutoCandidates that run on the device.
std::vector<const Backend*> auto_candidates(const Bench& bench) {
  std::vector<const Backend*> candidates;
  for (const char* name : kAutoCandidates)
    for (const auto& backend : bench.backends)
      if (backend->declaration().name == name && runs_on(backend->declaration(), bench.device))
        candidates.push_back(backend.get());
  return candidates;
}

std::vector<std::unique_ptr<LlamaBackend>> layers_over(const std::string& attention, const Bench& bench,
                                                       std::optional<int> assume_sm) {
  if (attention != kAutoAttention) return make_llama_backends(bench.device, attention_named(bench, attention));
  return make_dispatched_layers(bench.device, auto_candidates(bench), assume_sm);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Runs attention cases on one device: judges every result, times what passed, and answers with records.\n"
      "attnbench starts it and speaks JSON lines with it over two descriptors; people want attnbench.");
  std::string device = "cpu", attention = kUsualAttention;
  std::optional<int> assume_sm;
  int requests_fd = -1, replies_fd = -1;
  bool hello = false, planted = false;
  app.add_option("--device", device, "cpu, cuda or cuda:N")->capture_default_str();
  CLI::Option* requests = app.add_option("--requests-fd", requests_fd, "descriptor to read requests from (0: stdin)");
  CLI::Option* replies = app.add_option("--replies-fd", replies_fd, "descriptor to write replies to (1: stdout)");
  requests->needs(replies);
  replies->needs(requests);
  app.add_option("--attention", attention, "what computes the attention of layers: a backend, or auto")->capture_default_str();
  app.add_option("--assume-sm", assume_sm, "the SM for which --attention auto picks, 75 for 7.5, instead of the device's");
  app.add_flag("--planted", planted, "have the backends with defects too, which the self-test must see");
  app.add_flag("--hello", hello, "print device, backends and environment as JSON, and end");
  app.footer(
      "Example: echo '{\"request\":{\"id\":1,\"case\":\"attention lq=64 d=64\",\"runs\":[[\"eager\",\"forward\"]],\n"
      "  \"check_only\":true}}' | attnbench-worker --requests-fd 0 --replies-fd 1");
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
    Bench bench{found, make_backends(found), read_calibration(calibration_file(found.kind), found.kind)};
    bench.layers = layers_over(attention, bench, assume_sm);
    bench.trained_attention = trained_attention;
    if (planted) std::ranges::move(make_planted_backends(found), std::back_inserter(bench.backends));
    if (hello) {
      fmt::print("{}\n", nlohmann::json(make_hello(bench)).dump(2));
      return kExitOk;
    }
    if (requests_fd < 0 || replies_fd < 0) {
      fmt::print(stderr, "attnbench-worker: nothing to do: it needs --requests-fd and --replies-fd, or --hello (--help)\n");
      return kExitUsage;
    }
    return serve(bench, requests_fd, replies_fd);
  } catch (const UsageError& e) {
    fmt::print(stderr, "attnbench-worker: {}\n", e.what());
    return kExitUsage;
  } catch (const std::exception& e) {
    fmt::print(stderr, "attnbench-worker: {}\n", e.what());
    return kExitInfrastructure;
  }
}
