#include "harness/run/progress.hpp"

#include <cmath>

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace attnbench {
namespace {

constexpr auto kBetweenLines = std::chrono::seconds(15);
constexpr auto kBetweenBars = std::chrono::milliseconds(100);
constexpr size_t kBarWidth = 24;

size_t terminal_width(std::FILE* out) {
  winsize size{};
  const bool known = ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace

std::string duration_text(double seconds) {
  const auto whole = static_cast<long long>(std::llround(seconds));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
}

Progress::Progress(std::FILE* out, size_t total_runs)
    : out_(out), terminal_(isatty(fileno(out)) == 1), total_(total_runs), begin_(Clock::now()), last_shown_(begin_) {}

Progress::~Progress() {
  erase();
}

std::string Progress::summary() const {
  std::string text = fmt::format("{}/{}", done_, total_);
  if (failures_ > 0) text += fmt::format(", {} failure{}", failures_, failures_ == 1 ? "" : "s");
  if (findings_ > 0) text += fmt::format(", {} finding{}", findings_, findings_ == 1 ? "" : "s");
  if (done_ == 0) return text;
  const double spent_s = std::chrono::duration<double>(Clock::now() - begin_).count();
  const double left_s = spent_s / static_cast<double>(done_) * static_cast<double>(total_ - done_);
  return text + fmt::format(", {} left", duration_text(left_s));
}

void Progress::count_failure(const Record& record) {
  ++failures_;
  erase();
  fmt::print(out_, "{}: {} {}: {}\n", name_of(record.status), record.backend, name_of(record.pass), record.case_line);
}

void Progress::tick() {
  const auto now = Clock::now();
  if (now - last_shown_ < (terminal_ ? Clock::duration(kBetweenBars) : Clock::duration(kBetweenLines))) return;
  last_shown_ = now;
  if (terminal_)
    draw();
  else
    fmt::print(out_, "{}: {}\n", summary(), what_);
  std::fflush(out_);
}

void Progress::draw() {
  const size_t filled = total_ == 0 ? 0 : kBarWidth * done_ / total_;
  std::string line = fmt::format("[{:=<{}}{: <{}}] {}  {}", "", filled, "", kBarWidth - filled, summary(), what_);
  const size_t width = terminal_width(out_) - 1;
  if (line.size() > width) line.resize(width);
  fmt::print(out_, "\r\x1b[2K{}", line);
  drawn_ = true;
}

void Progress::erase() {
  if (drawn_) fmt::print(out_, "\r\x1b[2K");
  drawn_ = false;
  std::fflush(out_);
}

}  // namespace attnbench
