"""scripts/plot: figures of a run from its records alone, as PDF and PNG."""
import argparse
import pathlib
import sys

from records import RunError, read_run, regimes_of

EXIT_USAGE, EXIT_INFRASTRUCTURE, EXIT_NO_MATCH = 2, 3, 4  # harness/run/exit_code.hpp

HELP = """\
Draws, for each suite, device, dtype and direction of a run that was timed:
  bars-….png/.pdf    cases of equal lengths: a panel for each head dim and mask, a group of bars for each length
  lines-….png/.pdf   the same over the length as lines, the 95% confidence interval of the median as a band
  mixes-….png/.pdf   cases of unequal lengths
and for each case in which a model was trained:
  curves-….png/.pdf  loss and gradient norms over the steps, and the band in which rounding alone takes them

A bar is TFLOP/s (GFLOP/s if all are below 1): visible pairs over the median time, as in the run's tables. On padded cases
the time of a backend for packed sequences includes unpad and pad. A backend that did not pass has no bar: what is written
in its place is OOM (too little memory), failed, mistrusted or error; what it does not support leaves no trace.
A figure never mixes regimes. The same records give the same bytes.

  scripts/plot reports/published/2026-11-21-cpu --out /tmp/figures
  scripts/plot runs/today --regime cooled

Exit code 2: a run that cannot be read, a folder that cannot be written; 3: no matplotlib; 4: nothing to draw.
"""


def main(arguments: list) -> int:
    parser = argparse.ArgumentParser(prog="plot", description="Figures of a run, from its records alone.", epilog=HELP,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=pathlib.Path, help="a run's folder, or its results.jsonl")
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, help="where the figures go; default: figures/ beside the records")
    parser.add_argument("--regime", metavar="NAME", default="", help="default: the one that the run's tables show")
    options = parser.parse_args(arguments)
    try:
        run = read_run(options.run)
    except RunError as error:
        return _complain(str(error), EXIT_USAGE)
    regimes = regimes_of(run)
    if not regimes and not any(result.training for result in run.results):
        return _complain(f"{options.run}: none of its {len(run.results)} records was timed or trained: nothing to draw", EXIT_NO_MATCH)
    if options.regime and options.regime not in regimes:
        return _complain(f"{options.run}: no time of the regime {options.regime}; there are: {', '.join(regimes)}", EXIT_NO_MATCH)
    folder = options.out or (options.run if options.run.is_dir() else options.run.parent) / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in _draw_all(run, options.regime, folder):
            print(path)
    except (OSError, ValueError) as error:
        return _complain(str(error), EXIT_USAGE)
    return 0


def _draw_all(run, regime: str, folder: pathlib.Path):
    """Yields the files."""
    import bars
    import curves
    import lines
    import style
    from panels import figures_of_mixes, figures_over_length

    for figure in figures_over_length(run, regime):
        yield from style.save(bars.draw(figure, run.ours, "sequence length"), folder, "bars-" + figure.name())
        if lines.has_lines(figure):
            yield from style.save(lines.draw(figure, run.ours), folder, "lines-" + figure.name())
    for figure in figures_of_mixes(run, regime):
        yield from style.save(bars.draw(figure, run.ours, "mask"), folder, "mixes-" + figure.name())
    for (device, case), results in curves.cases_of(run).items():
        yield from style.save(curves.draw(device, case, results, run.ours), folder, curves.name_of(device, case))


def _complain(sentence: str, code: int) -> int:
    print(f"plot: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
