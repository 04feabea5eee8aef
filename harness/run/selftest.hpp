// The answer of a selftest, from its records alone: which planted defects the judge caught and which it let through.
#pragma once

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "harness/run/alarms.hpp"
#include "harness/run/gate.hpp"
#include "harness/run/run_data.hpp"

namespace attnbench {

/// A pair that is known to survive, with the reason why that is accepted.
struct KnownSurvivor {
  std::string defect;          ///< the planted backend: "flash_varlen:last_key_dropped"
  std::string case_line;       ///< canonical
  std::string why;             ///< may be empty
  std::string device = "cpu";  ///< kind of device on which it survives: kernels and their tiles differ
  bool sometimes = false;      ///< it is caught in some runs: a race, or sums in any order next to a limit
};

/// Reads {"survivors":[{"defect":…,"case":…,"why":…,"device":"cuda","sometimes":true},…]}, where no device is a CPU; `file`
/// empty: cases/known_survivors.json. Throws UsageError.
std::vector<KnownSurvivor> read_known_survivors(const std::filesystem::path& file);

/// A gate's statistic beside its limit.
struct Statistic {
  std::string tensor, gate;
  double value = 0, limit = 0;
  double ratio() const;  ///< value / limit; of what must be 0 and is: 0
};

/// What became of a pair.
///   caught      some pass failed or erred
///   equivalent  the defect provably cannot show: so says every pass that is not outside
///   outside     no pass was judged: unsupported for another reason, or skipped
///   survived    all else: some pass passed, or is mistrusted
enum class Fate { caught, equivalent, outside, survived };

/// One planted backend on one case, both passes.
struct PlantedPair {
  std::string defect;  ///< the planted backend
  std::string case_line;
  std::string device;  ///< "cpu", "cuda:0"
  Fate fate = Fate::outside;
  bool known = false;                ///< on the list of known survivors
  std::set<Alarm> alarms;            ///< of a caught one
  std::optional<Statistic> largest;  ///< of a survivor: the nearest to its limit; unset: no gate had power
  std::string repro;                 ///< of a survivor: of the pass that holds `largest`; else of the one that has `reason`
  bool only_erred = false;           ///< caught, though no pass failed: a crash, a hang or an exception, and no gate's work
  std::string reason;                ///< of one that only erred, is equivalent or outside: what a pass says
};

/// A sound backend that was accused: a tensor on which a gate fails, or a record that is red without one.
struct FalseAlarm {
  std::string backend, what, case_line, repro;
};

struct Selftest {
  std::vector<PlantedPair> pairs;    ///< in the order of the run, those outside included
  std::vector<KnownSurvivor> stale;  ///< known, of pairs that ran, and survived no more; not those that do so sometimes
  int64_t tensors = 0;               ///< of the real backends, judged
  std::vector<FalseAlarm> false_alarms;
  std::set<std::string> defects() const;  ///< of the pairs that count, each once however many backends have it
  int64_t count(Fate fate) const;
  int64_t only_erred() const;     ///< of those that were caught
  int64_t counted_pairs() const;  ///< caught, equivalent and survived
};

Selftest evaluate_selftest(const RunData& run, const std::vector<KnownSurvivor>& known);

/// kExitGate for a survivor that is not known, a known one that survives no more, or a false alarm; kExitAllSkipped if no defect
/// could show; else kExitOk.
GateResult conclude(const Selftest& selftest);

}  // namespace attnbench
