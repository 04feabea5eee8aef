#include "harness/run/worker_process.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <thread>

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness/run/errors.hpp"
#include "harness/run/interrupt.hpp"
#include "harness/run/json_reader.hpp"

namespace attnbench {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int kRequestsDescriptor = 3, kRepliesDescriptor = 4;
constexpr auto kTick = std::chrono::milliseconds(200);
constexpr size_t kLongestLine = size_t{64} << 20;

/// `name(2)` failed.
[[noreturn]] void cannot(const char* name) {
  throw InfrastructureError(fmt::format("a worker cannot be started: {}: {}", name, std::strerror(errno)));
}

struct Pipe {
  int read = -1, write = -1;
};

Pipe make_pipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) cannot("pipe");
  return {ends[0], ends[1]};
}

/// Threads of libgomp that wait for LibTorch's next operation spin a tenth of a millisecond, not the milliseconds of its default:
/// the judge, whose threads are not libgomp's, needs the cores. What the user has set holds.
constexpr char kSpinVariable[] = "GOMP_SPINCOUNT", kSpins[] = "10000";

/// In the child, after fork: only async-signal-safe calls.
[[noreturn]] void become_worker(char* const* arguments, int requests, int replies, int log, pid_t parent) {
  setpgid(0, 0);
  std::signal(SIGPIPE, SIG_DFL);
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // a coordinator that is killed leaves no worker behind
  if (getppid() != parent) _exit(127);
  // Above all descriptors that are about to be assigned, so that none is overwritten before it is used.
  requests = fcntl(requests, F_DUPFD_CLOEXEC, 10);
  replies = fcntl(replies, F_DUPFD_CLOEXEC, 10);
  log = fcntl(log, F_DUPFD_CLOEXEC, 10);
  const int nothing = open("/dev/null", O_RDONLY);
  dup2(nothing, STDIN_FILENO);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  dup2(requests, kRequestsDescriptor);
  dup2(replies, kRepliesDescriptor);
  execvp(arguments[0], arguments);
  constexpr char kMessage[] = ": cannot be executed\n";
  [[maybe_unused]] ssize_t ignored = write(STDERR_FILENO, arguments[0], std::strlen(arguments[0]));
  ignored = write(STDERR_FILENO, kMessage, sizeof kMessage - 1);
  _exit(127);
}

std::string quoted_rubbish(std::string_view line) {
  constexpr size_t kShown = 80;
  return to_text(std::string(line.substr(0, kShown))) + (line.size() > kShown ? "…" : "");
}

}  // namespace

WorkerProcess::WorkerProcess(std::vector<std::string> command, const fs::path& log) {
  command.insert(command.end(),
                 {"--requests-fd", std::to_string(kRequestsDescriptor), "--replies-fd", std::to_string(kRepliesDescriptor)});
  std::vector<char*> arguments;
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);

  static const int spin_variable_is_set = setenv(kSpinVariable, kSpins, 0);  // once, whatever the number of threads
  static_cast<void>(spin_variable_is_set);
  const int log_file = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log_file < 0) cannot(log.c_str());
  const Pipe requests = make_pipe(), replies = make_pipe();
  const pid_t parent = getpid();
  process_ = fork();
  if (process_ < 0) cannot("fork");
  if (process_ == 0) become_worker(arguments.data(), requests.read, replies.write, log_file, parent);
  setpgid(process_, process_);  // here too: a kill of the group must not come before the child's own call
  ::close(requests.read);
  ::close(replies.write);
  ::close(log_file);
  requests_ = requests.write;
  replies_ = replies.read;
  fcntl(requests_, F_SETFL, O_NONBLOCK);
  fcntl(replies_, F_SETFL, O_NONBLOCK);
  std::signal(SIGPIPE, SIG_IGN);  // a write to a dead worker is an error code, not the end
}

WorkerProcess::~WorkerProcess() {
  close(Clock::now());
}

bool WorkerProcess::send(const nlohmann::json& message, Deadline deadline) {
  const std::string text = to_text(message) + '\n';
  for (size_t sent = 0; sent < text.size();) {
    throw_if_interrupted();
    const ssize_t count = write(requests_, text.data() + sent, text.size() - sent);
    if (count > 0) {
      sent += static_cast<size_t>(count);
    } else if (errno == EAGAIN) {
      pollfd writable{requests_, POLLOUT, 0};
      poll(&writable, 1, static_cast<int>(kTick.count()));
      if (has_ended() || Clock::now() >= deadline) return false;
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

std::optional<WorkerEvent> WorkerProcess::poll_once(Deadline deadline) {
  throw_if_interrupted();
  if (auto line = take_line()) return line;
  // A grandchild may hold the descriptor open: the end of the process ends the conversation too.
  const bool ended = has_ended();
  if (!replies_closed_) read_available();
  if (auto line = take_line()) return line;
  if (ended || replies_closed_) return WorkerEvent{WorkerEvent::Kind::ended, {}, ""};
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
  if (left.count() <= 0) return WorkerEvent{WorkerEvent::Kind::silence, {}, ""};
  pollfd readable{replies_, POLLIN, 0};
  poll(&readable, 1, static_cast<int>(std::min(left, kTick).count()));
  return std::nullopt;
}

void WorkerProcess::read_available() {
  char buffer[1 << 16];
  while (received_.size() <= kLongestLine) {
    const ssize_t count = read(replies_, buffer, sizeof buffer);
    if (count > 0) {
      received_.append(buffer, static_cast<size_t>(count));
    } else {
      replies_closed_ = count == 0;
      return;
    }
  }
}

std::optional<WorkerEvent> WorkerProcess::take_line() {
  const size_t end = received_.find('\n');
  if (end == std::string::npos) {
    if (received_.size() <= kLongestLine) return std::nullopt;
    return WorkerEvent{WorkerEvent::Kind::rubbish, {}, quoted_rubbish(received_)};
  }
  const std::string line = received_.substr(0, end);
  received_.erase(0, end + 1);
  try {
    nlohmann::json message = parse_json(line);
    if (message.is_object()) return WorkerEvent{WorkerEvent::Kind::message, std::move(message), ""};
  } catch (const std::runtime_error&) {  // not JSON
  }
  return WorkerEvent{WorkerEvent::Kind::rubbish, {}, quoted_rubbish(line)};
}

/// The end is only noticed, not collected: until close() collects it, no other process can get the group's number.
bool WorkerProcess::has_ended() {
  siginfo_t info{};
  return process_ < 0 || (waitid(P_PID, process_, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == process_);
}

std::string WorkerProcess::close(Deadline deadline) {
  if (process_ < 0) return "has ended";
  ::close(requests_);
  while (!has_ended() && Clock::now() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ::close(replies_);
  const bool had_to_be_killed = !has_ended();
  kill(-process_, SIGKILL);  // its children too, also those of a worker that ended by itself
  int status = 0;
  waitpid(process_, &status, 0);
  process_ = -1;
  if (had_to_be_killed) return "had to be killed";
  if (WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    const char* const name = sigabbrev_np(signal);  // a real-time signal has none
    if (!name) return fmt::format("was killed by signal {}", signal);
    return fmt::format("was killed by signal {} (SIG{}: {})", signal, name, strsignal(signal));
  }
  exit_code_ = WEXITSTATUS(status);
  return fmt::format("exited with code {}", exit_code_);
}

std::string last_lines(const fs::path& log, std::uintmax_t begin, size_t count) {
  constexpr size_t kShown = 300;
  std::ifstream in(log, std::ios::binary);
  in.seekg(static_cast<std::streamoff>(begin));
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    const size_t text = line.find_first_not_of(" \t");
    const bool is_frame = text != std::string::npos && (line.starts_with("frame #") || line[text] == '#');
    if (text != std::string::npos && !is_frame) lines.push_back(line.substr(text, kShown));
  }
  if (lines.size() > count) lines.erase(lines.begin(), lines.end() - static_cast<std::ptrdiff_t>(count));
  return fmt::format("{}", fmt::join(lines, " | "));
}

}  // namespace attnbench
