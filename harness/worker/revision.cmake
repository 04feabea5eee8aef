# Writes OUTPUT, a header with the git revision of SOURCE. It is touched only when the revision changes, so that a build
# of unchanged sources compiles nothing. Outside of a git checkout the revision is "unknown".
execute_process(COMMAND git -C ${SOURCE} rev-parse HEAD OUTPUT_VARIABLE sha OUTPUT_STRIP_TRAILING_WHITESPACE
                ERROR_QUIET RESULT_VARIABLE no_git)
execute_process(COMMAND git -C ${SOURCE} status --porcelain --untracked-files=no OUTPUT_VARIABLE changes ERROR_QUIET)
if(no_git)
  set(sha unknown)
endif()
set(dirty false)
if(changes)
  set(dirty true)
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT [[
// Written by revision.cmake.
#pragma once
namespace attnbench {
inline constexpr char kGitSha[] = "@sha@";
inline constexpr bool kGitDirty = @dirty@;
}  // namespace attnbench
]] @ONLY)
