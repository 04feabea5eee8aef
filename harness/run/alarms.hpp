// What gave a wrong result away: the gates that failed, or another watch of the worker.
#pragma once

#include <compare>
#include <set>
#include <string>

#include "harness/run/record.hpp"

namespace attnbench {

/// A gate (verdict_gates.hpp) on a tensor; or, without a tensor:
///   memory     wrote past the end or before the start of a block (guard bands)
///   input      wrote to an input
///   borrowed   handed out memory of an input or of an earlier result
///   state      left the process changed: threads, gradients, rounding
///   form       an output is missing, or has another shape, dtype or device
///   repeat     differs when it is called again
///   crash, hang, exception, protocol   how a worker or a call ended
///   other      a reason that none of these covers
struct Alarm {
  std::string gate, tensor;
  auto operator<=>(const Alarm&) const = default;
};

/// "z dq_given_o", "memory".
std::string text_of(const Alarm& alarm);

/// Of a failed or error record at least one, of every other record none. A watch that gave the reason counts beside gates that
/// failed as well.
std::set<Alarm> alarms_of(const Record& record);

}  // namespace attnbench
