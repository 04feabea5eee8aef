#include "harness/run/exit_code.hpp"

#include <csignal>
#include <filesystem>

#include <fmt/format.h>

#include "harness/run/case.hpp"
#include "harness/run/errors.hpp"
#include "harness/run/interrupt.hpp"
#include "harness/run/run_data.hpp"

namespace attnbench {

ExitCode exit_code_of_signal(int signal) {
  return signal == SIGINT ? kExitInterrupted : kExitTerminated;
}

CommandEnd end_of_command(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const Interrupted& interrupted) {
    return {exit_code_of_signal(interrupted.signal), ""};
  } catch (const NothingMatched& error) {
    return {kExitNoMatch, error.what()};
  } catch (const InfrastructureError& error) {
    return {kExitInfrastructure, error.what()};
  } catch (const UsageError& error) {
    return {kExitUsage, error.what()};
  } catch (const CaseError& error) {
    return {kExitUsage, error.what()};
  } catch (const RunError& error) {
    return {kExitUsage, error.what()};
  } catch (const std::filesystem::filesystem_error& error) {  // a path that the user named
    return {kExitUsage, error.what()};
  } catch (const std::exception& error) {
    return {kExitInfrastructure, fmt::format("an error inside attnbench, please report it: {}", error.what())};
  } catch (...) {
    return {kExitInfrastructure, "an error inside attnbench, please report it: it threw something that is no std::exception"};
  }
}

}  // namespace attnbench
