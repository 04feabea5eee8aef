// What a run will do: cases x backends x passes, less what was not asked for.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "harness/run/declaration.hpp"
#include "harness/run/suite.hpp"

namespace attnbench {

/// --shard I/N: every N-th case of the suites, counted before any filter, so that all machines cut alike.
struct Shard {
  int64_t index = 1, count = 1;  ///< 1 <= index <= count
};

struct Selection {
  std::vector<std::string> backends;  ///< empty: all
  std::optional<Pass> pass;           ///< unset: both
  std::string filter;                 ///< regular expression over "backend pass case"; a leading '-' excludes
  Shard shard;
};

/// Backends that are left out because they have nothing for this kind of device. One that `selection` names is never left
/// out: it answers with the sentence why not.
std::vector<std::string> not_on_device(const Selection& selection, const std::vector<Declaration>& backends,
                                       const Device& device);

/// What a selftest runs: of `wanted` (empty: all) the planted backends, by their own name or that of the real one, and the real
/// one of each; those that have nothing for this kind of device are left out. In the order of `backends`. Throws UsageError on an
/// unknown backend, NothingMatched if none is left.
std::vector<std::string> selftest_backends(const std::vector<std::string>& wanted, const std::vector<Declaration>& backends,
                                           const Device& device);

/// One request to the worker.
struct PlannedCase {
  Case c;
  std::string case_line;  ///< canonical identity
  std::string suite;
  std::string case_suite;                          ///< SuiteCase::suite
  std::vector<std::pair<std::string, Pass>> runs;  ///< backend and pass, each backend's forward first
};

/// Cases of equal identity are run once, under the first suite that holds them. Cases for another kind of device, and the
/// backends not_on_device(), are left out, and so are planted backends that are neither named nor canaries of the case. Canaries
/// run in the passes in which their defect can show, where the real backend runs; a worker without planted backends has none.
/// Throws UsageError on an unknown backend, also of a case's own backend=, a canary that a worker with planted backends does not
/// have, or a malformed filter. Empty: nothing matched.
std::vector<PlannedCase> make_plan(const std::vector<Suite>& suites, const Selection& selection,
                                   const std::vector<Declaration>& backends, const Device& device);

size_t count_runs(const std::vector<PlannedCase>& plan);

/// The canaries among the runs, once for each case: [{"case":…,"backend":…},…].
nlohmann::json canaries_of(const std::vector<PlannedCase>& plan, const Selection& selection);

}  // namespace attnbench
