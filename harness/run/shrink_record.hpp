// From a red record to the record of a small case that is red in the same way, by running smaller and smaller cases.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "harness/run/worker_pool.hpp"

namespace attnbench {

struct ShrunkRecord {
  Record found, smallest;
  int tries = 0;
  bool red_alone = true;  ///< false: run again by itself it was not red, and nothing was shrunk
};

/// Is the second record red in the way of the first? The records are red, both.
using AreAlike = std::function<bool(const Record& found, const Record& other)>;

/// Wrong and crashed are the same to whoever shrinks; to be mistrusted, to refuse what is declared, or to have NaN where the
/// other has a number, is another matter.
bool are_red_alike(const Record& a, const Record& b);

class RecordShrinker {
 public:
  /// `pool` judges what is tried; `tick` is called a few times a second meanwhile.
  RecordShrinker(WorkerPool& pool, RunFields fields, AreAlike are_alike, std::function<void()> tick);

  /// At most kMostTries cases, and no new one after kLongest.
  ShrunkRecord shrink(const Record& found);

 private:
  static constexpr auto kLongest = std::chrono::minutes(10);  // a worker that hangs costs a timeout a try

  Record run_alone(const Case& c, const Record& like);

  WorkerPool& pool_;
  const RunFields fields_;
  const AreAlike are_alike_;
  const std::function<void()> tick_;
};

}  // namespace attnbench
