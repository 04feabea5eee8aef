// The command line of attnbench: words in, one Command out.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "harness/run/default_device.hpp"
#include "harness/run/dispatch.hpp"
#include "harness/run/plan.hpp"

namespace attnbench {

/// A worker and the device that it is to use.
struct WorkerOptions {
  std::string device = default_device();    ///< cpu, cuda, cuda:N
  std::string command;                      ///< a shell command; empty: attnbench-worker beside this executable
  std::optional<double> timeout_s;          ///< unset: what suits the device
  int workers = 0;                          ///< that judge at once; 0: as many as suit the device and the machine
  bool planted = false;                     ///< with planted backends (planted.hpp)
  std::string attention = kUsualAttention;  ///< what computes the attention of layers: a backend, or kAutoAttention
  std::optional<int> assume_sm;             ///< for which kAutoAttention picks, instead of the device's: 75 = SM 7.5
};

struct RunCommand {
  std::vector<std::string> suites, cases;
  Selection selection;
  std::string gate;  ///< "": the backends marked ours
  bool check_only = false;
  bool selftest = false;              ///< of the backends that `selection` names the planted and the real ones behind them
  std::filesystem::path out, resume;  ///< at most one of them
  std::filesystem::path dump;         ///< empty: none
  std::optional<int> assume_sm;       ///< 75 = SM 7.5
  int64_t audit_repeats = 0;          ///< what is judged is audited by as many calls; 0: it is not
  WorkerOptions worker;
};
struct AuditCommand {
  RunCommand run;
};
struct SelftestCommand {
  RunCommand run;
  std::filesystem::path known;  ///< empty: the list that comes with the program
};
struct FuzzCommand {
  uint64_t seed = 0;
  int64_t count = 256;
  std::optional<double> minutes;  ///< as many cases as these allow, instead of `count`
  Selection selection;            ///< backends and pass
  std::string gate;               ///< "": the backends marked ours
  std::filesystem::path out;
  WorkerOptions worker;
};
/// What is red in a run, by cause; each cause's smallest case is shrunk on a worker where that is asked for.
struct FindingsCommand {
  std::filesystem::path run;  ///< its folder or its results.jsonl
  bool shrink = false;
  WorkerOptions worker;
};
/// Correct implementations, to make limits of their errors or to see whether the limits accuse one.
struct CalibrateCommand {
  bool check = false;                         ///< on other cases: are the limits in force right?
  std::string suite;                          ///< each of its cases comes with every seed
  std::pair<uint64_t, uint64_t> seeds{1, 1};  ///< first and last
  int64_t random = 8;                         ///< random cases beside each seed
  Selection selection;                        ///< backends; empty: those of the calibration
  std::filesystem::path from;                 ///< the run whose records are counted anew; empty: a new one
  std::filesystem::path out;
  WorkerOptions worker;
};
struct ListCommand {
  std::vector<std::string> suites;  ///< empty: the names of all suites
  bool explain = false;
};
struct SupportCommand {
  std::optional<int> assume_sm;
  WorkerOptions worker;
};
struct MergeCommand {
  std::vector<std::filesystem::path> runs;
  std::filesystem::path out;
};
struct ReportCommand {
  std::filesystem::path run;
  std::string format = "table";
};
/// --help: the text to print; no arguments at all: the same, as a usage error.
struct HelpCommand {
  std::string text;
  bool asked_for = true;
};

using Command = std::variant<RunCommand, AuditCommand, SelftestCommand, FuzzCommand, FindingsCommand, CalibrateCommand,
                             ListCommand, SupportCommand, MergeCommand, ReportCommand, HelpCommand>;

/// `arguments` without the program's name. Throws UsageError: unknown options with the nearest known one, values out of range,
/// options that exclude each other. `report_formats`: what --format takes.
Command parse_command_line(const std::vector<std::string>& arguments, const std::vector<std::string>& report_formats);

}  // namespace attnbench
