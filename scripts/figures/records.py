"""A run read for drawing: the records of results.jsonl as plain numbers, each with the regime in which it was measured."""
import dataclasses
import gzip
import json
import pathlib
import re
import sys
import zlib

SCHEMA = 1


class RunError(Exception):
    """A run that cannot be read: a sentence. Exit code 2."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One (case, backend, pass) on one device."""

    case: str
    backend: str
    direction: str  # "forward" or "backward"
    status: str
    reason: str
    suite: str
    device: str  # "cpu: AMD EPYC"
    times: dict  # regime -> the record's timing; empty unless the record passed: no number without a pass
    training: dict  # "measured", "low", "high": quantity -> a number a step; empty unless a model was trained


@dataclasses.dataclass(frozen=True)
class Run:
    results: list
    ours: list  # names of our own backends, in the order of their declarations


def read_run(path: pathlib.Path) -> Run:
    """A run's folder or its results.jsonl, compressed (.gz) or not. A last line without its end is left out with a warning."""
    file = path / "results.jsonl" if path.is_dir() else path
    compressed = file.with_name(file.name + ".gz")
    if not file.exists() and compressed.exists():
        file = compressed
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RunError(f"{path}: expected a run's folder or its results.jsonl: {error}") from None
    lines = text.split("\n")
    if lines.pop():
        print(f"plot: {file}:{len(lines) + 1}: the last line is cut, and left out", file=sys.stderr)
    headers, records = [], []
    for number, line in enumerate(lines, 1):
        where = f"{file}:{number}"
        try:
            record = json.loads(line)
            if record["schema"] != SCHEMA:
                raise RunError(f"{where}: expected schema {SCHEMA}, got {record['schema']}")
            if record["record"] == "run":
                headers.append(record)
            elif record["record"] == "result":
                records.append(_result(record, headers))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{where}: not a record of schema {SCHEMA}: {type(error).__name__} {error}") from None
    return Run(records, _ours(headers))


def _result(record: dict, headers: list) -> Result:
    times = {}
    if record["status"] == "passed" and record.get("time"):
        for timing in [record["time"], *record.get("other_regimes", [])]:
            times[timing["regime"]] = timing
    return Result(record["case"], record["backend"], record["pass"], record["status"], record["reason"], record["suite"],
                  _device(record, headers), times, record.get("training", {}))


def _device(record: dict, headers: list) -> str:
    """The record's device with its name, by the header of its own run."""
    for header in headers:
        device = header["environment"].get("device", {})
        names = (device.get("kind"), f"{device.get('kind')}:{device.get('index')}")
        if header["run"] == record["run"] and record["device"] in names and device.get("name"):
            return f"{record['device']}: {device['name']}"
    return record["device"]


def _ours(headers: list) -> list:
    declared = [backend for header in headers for backend in header["environment"].get("backends", [])]
    return list(dict.fromkeys(backend["name"] for backend in declared if backend.get("ours")))


def regimes_of(run: Run) -> list:
    return sorted({regime for result in run.results for regime in result.times})


@dataclasses.dataclass(frozen=True)
class Speed:
    """TFLOP/s, exact visible pairs over the median, with the 95% confidence interval of the median."""

    tflops: float
    low: float
    high: float


def speed_of(timing: dict) -> Speed:
    """With unpad and pad where the record has that window: a dense backend needs neither, so the operation alone is no race."""
    operation = timing["windows"].get("op") or timing["windows"]["autograd"]
    window = timing["windows"].get("op+layout", operation)
    flop_us = timing["tflops"] * operation["median_us"]  # TFLOP/s x us
    low_us, high_us = window["ci95_us"]
    return Speed(flop_us / window["median_us"], flop_us / high_us, flop_us / low_us)


def gap_of(result: Result) -> str:
    """What stands in the place of a bar that is not there: "" for what was not to be run at all."""
    if result.status in ("failed", "error", "mistrusted"):
        return "OOM" if "out of memory" in result.reason else result.status
    if result.status == "skipped" and re.search(r"^needs .* free|out of memory", result.reason):
        return "OOM"
    return ""
