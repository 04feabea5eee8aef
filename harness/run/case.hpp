// One line of text is one case: its id, its filter and its repro. Grammar: cases/README.md.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "harness/run/llama_layer.hpp"
#include "harness/run/problem.hpp"
#include "harness/run/training_run.hpp"

namespace attnbench {

/// Data generators for q, k, v (harness/attention/inputs.hpp says what each draws).
enum class Fill { normal, peaked, shifted_negative, deep_negative, ramp, mean_offset, row_scale, sparse_int, unit, ones_v };
/// Generators for dO.
enum class Dout { normal, one_hot, zeros, ones };
/// Memory layout in which the backend receives q, k, v and dO. far: the last head starts 2^31 elements or more behind the first.
enum class Strides { contiguous, transposed, v_transposed, dout_transposed, stride0, unaligned, far };

enum class Expect { equal, must_differ, must_throw };
enum class DeviceKind { cpu, cuda, any };

std::string_view name_of(Fill);
std::string_view name_of(Dout);
std::string_view name_of(Strides);
std::string_view name_of(Expect);
std::string_view name_of(DeviceKind);

/// What stands after '#': not part of the identity.
struct Metadata {
  std::string name;
  Expect expect = Expect::equal;
  std::string source;  ///< a link
  std::string why;
  DeviceKind device = DeviceKind::any;
  bool timed = true;  ///< measured after it passed; suites that only judge say timed=no
  /// On a GPU it is timed in the regime `cooled` too, whose idle takes most of the time of a run that times.
  bool cooled = true;
  int64_t repeats = 0;                     ///< calls after the judged one whose results are held against its bits
  std::vector<std::string> backends = {};  ///< that run it; empty: all of its operation
  std::optional<Pass> pass = {};           ///< the one in which they do; unset: both
  std::optional<Semantics> instead = {};   ///< must_differ: what the result has to equal
  std::string message = "";                ///< what the error (must_throw), else the layer's warning, has to say, or a part of it
  bool operator==(const Metadata&) const = default;
};

struct Case {
  Problem problem;
  std::optional<LlamaLayer> llama;      ///< the operation is `llama`, and the problem its attention
  std::optional<TrainingRun> training;  ///< the operation is `training`, likewise; neither: `attention`
  Fill fill = Fill::normal;
  Dout dout = Dout::normal;
  Strides strides = Strides::contiguous;
  uint64_t seed = 0;
  Metadata metadata;
  /// Identity only: metadata is not compared.
  bool operator==(const Case& other) const {
    return problem == other.problem && llama == other.llama && training == other.training && fill == other.fill &&
           dout == other.dout && strides == other.strides && seed == other.seed;
  }
};

/// "attention", "llama" or "training".
std::string_view operation_of(const Case& c);

/// A sentence that names the file, the line, the column and the nearest known key.
class CaseError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Parses one case without sweeps. `where` names the place in messages ("--case", "cases/smoke.suite:12").
/// Throws CaseError on an unknown or repeated key, a malformed or out-of-range value, a missing required key.
Case parse_case(std::string_view line, std::string_view where = "case");

/// Canonical form of the identity: keys in table order, defaults left out. parse_case(format_case(c)) == c.
std::string format_case(const Case& c);

/// Identity and metadata: "attention … # name=… why=\"…\"". parse_case(format_line(c)) has equal metadata too.
std::string format_line(const Case& c);

}  // namespace attnbench
