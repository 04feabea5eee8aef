// What did and did not change the bits of results: a row a backend and tensor, a column a relation (harness/run/invariance.hpp).
#pragma once

#include <string>

#include "harness/run/run_data.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// Some record was held against other results, bit by bit.
bool has_invariance(const RunData& run);

/// Over all cases: "equal", "differs 3/8" (cases), "–" where nothing could be compared; * marks what the backend promises.
/// Without rows where no record has anything to say.
TextTable invariance_table(const RunData& run);

/// The table, then every difference once for each backend, tensor and relation, by its first case; broken promises, and red
/// records, first.
std::string audit_console(const RunData& run, const TextStyle& style);

/// The same, and a table of every case that differs.
std::string audit_markdown(const RunData& run);

/// {"run":…, "entries":[{"backend":…,"device":…,"pass":…,"case":…,"status":…, and the fields of the record's "invariance"}]}
std::string audit_json(const RunData& run);

}  // namespace attnbench
