// What judging costs beside what is judged.
#pragma once

#include "harness/run/run_data.hpp"
#include "reports/text_table.hpp"

namespace attnbench {

/// By suite of the case and dtype, over the cases that `eager` passed backward: its fastest forward and backward, and the time of
/// all parts of judging these cases (all backends, both passes), as multiples of it. No rows: the records do not say what was
/// spent.
TextTable judging_cost(const RunData& run);

}  // namespace attnbench
