# shellcheck shell=bash
# What the scripts share: where the repository is, how they speak, how they run something long. Sourced by bash.

root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
setup=$root/build/setup  # what scripts/bootstrap found, locks and logs

# Everything is said on standard error: standard output belongs to attnbench.
say() { printf 'attnbench: %s\n' "$*" >&2; }

# Exit code 3: the machine, not the user's command line, is at fault.
fail() {
  say "$*"
  exit 3
}

# take_lock NAME: one process at a time does what NAME says; the lock is let go when this shell ends.
take_lock() {
  mkdir -p "$setup"
  exec 9>"$setup/$1.lock"
  command -v flock >/dev/null || return 0
  flock -n 9 && return 0
  say "waiting for another process to end its $1"
  flock 9
}

# The last line of a log, fit for one line of a terminal.
last_line() { tail -c 2000 "$1" | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 | cut -c "1-$2" || true; }

# Says LABEL after a second, and then that it goes on: on a terminal in one line that is written over, elsewhere once a minute.
show_progress() {
  local label=$1 log=$2 seconds=0
  while sleep 1; do
    seconds=$((seconds + 1))
    if ((seconds == 1)); then say "$label"; fi
    if [[ -t 2 ]]; then
      printf '\r\033[K%4d s  %s' "$seconds" "$(last_line "$log" 100)" >&2
    elif ((seconds % 60 == 0)); then
      say "$label ($seconds s): $(last_line "$log" 80)"
    fi
  done
}

# run_logged LABEL LOG COMMAND…: runs it with its output in LOG, shows progress, returns its status.
# What takes less than a second says nothing; a failure shows the end of the log.
run_logged() {
  local label=$1 log=$2 status=0 started=$SECONDS progress
  shift 2
  mkdir -p "$(dirname "$log")"
  : >"$log"
  show_progress "$label" "$log" 9>&- &
  progress=$!
  trap 'kill "$progress" 2>/dev/null' EXIT
  "$@" >"$log" 2>&1 9>&- || status=$?
  kill "$progress" 2>/dev/null
  wait "$progress" 2>/dev/null || true
  trap - EXIT
  if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
  if ((status != 0)); then
    tail -n 40 "$log" >&2
    say "failed (exit $status): $label; the whole log is $log"
    return "$status"
  fi
  if ((SECONDS - started > 1)); then say "done in $((SECONDS - started)) s: $label"; fi
}

# python_with MODULE: prints the first Python that imports it: the user's, the one that the set-up found, .venv, the system's.
python_with() {
  local candidate
  for candidate in "${ATTNBENCH_PYTHON:-}" "$(sed -n 's/^python=//p' "$setup/environment.sh" 2>/dev/null)" \
    "$root/.venv/bin/python" python3; do
    if [[ -n $candidate ]] && "$candidate" -c "import $1" 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# help_of SCRIPT: prints the comment that SCRIPT begins with, and ends.
help_of() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$1"
  exit 0
}
