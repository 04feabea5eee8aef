#include "harness/worker/serve.hpp"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include <fmt/format.h>
#include <unistd.h>

#include "harness/run/exit_code.hpp"
#include "harness/run/json_reader.hpp"
#include "harness/worker/environment.hpp"
#include "harness/worker/gpu_environment.hpp"

namespace attnbench {

namespace {

using nlohmann::json;

/// Nobody reads the replies: there is nothing left to do.
class NoReader : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class LineReader {
 public:
  explicit LineReader(int fd) : fd_(fd) {}

  /// The next line without its end, or nothing at the end. A last line without an end counts.
  std::optional<std::string> next() {
    size_t end;
    while ((end = buffer_.find('\n')) == std::string::npos) {
      char bytes[4096];
      const ssize_t got = read(fd_, bytes, sizeof bytes);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return buffer_.empty() ? std::nullopt : std::optional(std::exchange(buffer_, {}));
      buffer_.append(bytes, size_t(got));
    }
    std::string line = buffer_.substr(0, end);
    buffer_.erase(0, end + 1);
    return line;
  }

 private:
  int fd_;
  std::string buffer_;
};

void send(int fd, const json& message) {
  // Text of libraries may hold bytes that are no UTF-8: replaced, not thrown at.
  const std::string line = message.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  for (size_t sent = 0; sent < line.size();) {
    const ssize_t wrote = write(fd, line.data() + sent, line.size() - sent);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) throw NoReader(fmt::format("attnbench-worker: cannot write to descriptor {}: {}", fd, std::strerror(errno)));
    sent += size_t(wrote);
  }
}

Request parse_request(const std::string& line) {
  const json message = parse_json(line);
  if (!message.is_object() || !message.contains("request")) throw std::runtime_error("expected {\"request\":{…}}");
  return message["request"].get<Request>();
}

void answer(const std::string& line, const Bench& bench, int replies_fd) {
  Request request;
  try {
    request = parse_request(line);
  } catch (const std::exception& e) {
    send(replies_fd, {{"error", {{"message", fmt::format("no request: {}; got: {}", e.what(), line.substr(0, 200))}}}});
    return;
  }
  Replies replies;
  replies.stage = [&](const Stage& stage) { send(replies_fd, {{"stage", stage}}); };
  replies.record = [&](const Record& record) {
    send(replies_fd, {{"result", {{"request", request.id}, {"record", to_line(record)}}}});
  };
  replies.comparison = [&](const Comparison& comparison) {
    send(replies_fd, {{"comparison", {{"request", request.id}, {"comparison", to_line(comparison)}}}});
  };
  run_case(request, bench, replies);
  send(replies_fd, {{"done", {{"request", request.id}}}});
}

}  // namespace

Hello make_hello(const Bench& bench) {
  Hello hello;
  hello.worker = "attnbench-worker";
  hello.device = bench.device;
  for (const auto& backend : bench.backends) hello.backends.push_back(backend->declaration());
  for (const auto& layer : bench.layers) hello.backends.push_back(layer->declaration());
  hello.environment = environment();
  hello.environment["calibration"] = identity_of(bench.calibration);
  if (bench.device.kind == "cuda") hello.environment["gpu"] = gpu_environment(bench.device);
  return hello;
}

int serve(const Bench& bench, int requests_fd, int replies_fd) try {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that went away is an error of write(), not the end of the process
  send(replies_fd, {{"hello", make_hello(bench)}});
  LineReader requests(requests_fd);
  while (const std::optional<std::string> line = requests.next())
    if (!line->empty()) answer(*line, bench, replies_fd);
  return kExitOk;
} catch (const NoReader& e) {
  fmt::print(stderr, "{}\n", e.what());
  return kExitInfrastructure;
}

}  // namespace attnbench
