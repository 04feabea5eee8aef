"""What goes where: a figure for each (suite, device, dtype, regime, direction), in it a panel for each head dim and mask.

A panel holds what may be compared: cases that differ only in length (and in the batch, which papers shrink as the length
grows). Regimes never meet in one figure.
"""
import collections
import dataclasses
import re

from records import Result, Run, Speed, gap_of, speed_of

# The grammar's defaults (cases/README.md) of the keys that are read here.
DEFAULTS = {"b": "1", "hq": "1", "dtype": "bf16", "mask": "none", "align": "bottom_right", "layout": "packed"}


@dataclasses.dataclass
class Panel:
    title: str
    ticks: list  # what stands under each group of bars; in a panel over the length, the lengths
    speeds: dict  # (tick, backend) -> Speed
    gaps: dict  # (tick, backend) -> "OOM", "failed", …

    def backends(self) -> set:
        return {backend for _, backend in [*self.speeds, *self.gaps]}


@dataclasses.dataclass
class Figure:
    suite: str
    device: str
    dtype: str
    regime: str
    direction: str
    panels: list

    def name(self) -> str:
        """The end of its files' names."""
        device = re.sub(r"[^a-z0-9]+", "-", self.device.lower().replace(":", "")).strip("-")
        return "-".join([self.suite, device, self.dtype, self.regime, self.direction])

    def backends(self) -> set:
        return {backend for panel in self.panels for backend in panel.backends()}

    def tops(self) -> list:
        return [speed.tflops for panel in self.panels for speed in panel.speeds.values()]


def keys_of(case: str) -> dict:
    """The keys of a canonical case line, with the defaults that matter here."""
    return {**DEFAULTS, **dict(token.split("=", 1) for token in case.split()[1:])}


def figures_over_length(run: Run, regime: str) -> list:
    """Cases of equal lengths. regime: "" for that of each record's own `time`."""
    return _figures(run, regime, lambda keys: "lens" not in keys, _length_panels)


def figures_of_mixes(run: Run, regime: str) -> list:
    """Cases of unequal lengths."""
    return _figures(run, regime, lambda keys: "lens" in keys, _mix_panels)


def _figures(run: Run, regime: str, wanted, panels_of) -> list:
    """wanted(keys of a case) -> bool; panels_of(cells) -> panels, with cells a list of (keys, Result, Speed or None)."""
    cells: dict = collections.defaultdict(list)
    measured = _measured_cases(run, regime)
    for result in run.results:
        keys = keys_of(result.case)
        if not wanted(keys):
            continue
        for name in measured.get(_subject(result), ()):
            speed = speed_of(result.times[name]) if name in result.times else None
            group = (result.suite, result.device, keys["dtype"], name, result.direction)
            cells[group].append((keys, result, speed))
    figures = [Figure(*group, panels_of(members)) for group, members in cells.items()]
    return [figure for figure in figures if figure.panels]


def _subject(result: Result) -> tuple:
    return result.suite, result.device, result.case


def _measured_cases(run: Run, wanted: str) -> dict:
    """(suite, device, case) -> the regimes in which it was to be measured: those of any backend that has a number, else, where
    nothing fitted into memory and nothing ran untimed, those of its suite."""
    measured: dict = collections.defaultdict(set)
    of_suite: dict = collections.defaultdict(set)
    untimed, too_large = set(), set()
    for result in run.results:
        names = {wanted} & set(result.times) if wanted else set(list(result.times)[:1])
        measured[_subject(result)] |= names
        of_suite[result.suite, result.device] |= names
        if result.status == "passed" and not result.times:
            untimed.add(_subject(result))
        elif gap_of(result) == "OOM":
            too_large.add(_subject(result))
    for subject in too_large - untimed:
        measured[subject] = measured[subject] or of_suite[subject[:2]]
    return {subject: sorted(names) for subject, names in measured.items()}


def _length_panels(cells: list) -> list:
    places = collections.defaultdict(set)  # where two cases would fall into one place, the batch tells them apart
    for keys, result, _ in cells:
        places[_variant(keys, {"b"}), keys["mask"], keys["lq"]].add(result.case)
    apart = {variant for (variant, _, _), cases in places.items() if len(cases) > 1}
    panels: dict = {}
    for keys, result, speed in cells:
        variant = _variant(keys, {"b"})
        if variant in apart:
            variant = _variant(keys, set())
        _add(panels, (variant, keys["mask"]), _panel_title(dict(variant), keys["mask"]), int(keys["lq"]), result, speed)
    return _finished(panels, lambda tick: tick)


def _mix_panels(cells: list) -> list:
    panels: dict = {}
    for keys, result, speed in cells:
        variant = _variant(keys, set())
        _add(panels, (variant,), _panel_title(dict(variant)), mask_text(keys["mask"]), result, speed)
    return _finished(panels, lambda tick: (tick != mask_text("none"), tick))


def _variant(keys: dict, without: set) -> tuple:
    """All that one panel has in common, as (key, value) pairs."""
    return tuple(sorted((key, value) for key, value in keys.items() if key not in without | {"mask", "dtype", "lq"}))


def _add(panels: dict, key: tuple, title: str, tick, result: Result, speed) -> None:
    panel = panels.setdefault(key, Panel(title, [], {}, {}))
    if (tick, result.backend) in panel.speeds or (tick, result.backend) in panel.gaps:
        raise ValueError(f"two records of {result.backend} {result.direction} for the same case: {result.case}")
    if tick not in panel.ticks:
        panel.ticks.append(tick)
    if speed:
        panel.speeds[tick, result.backend] = speed
    elif gap_of(result):
        panel.gaps[tick, result.backend] = gap_of(result)


def _finished(panels: dict, order) -> list:
    """Panels that hold a number: by head dim and mask, grouped heads at the end."""

    def rank(item):
        keys = dict(item[0][0])
        return "hkv" in keys, int(keys["d"]), item[0][0], item[0][1:] != ("none",), item[0][1:]

    for panel in panels.values():
        panel.ticks.sort(key=order)
    return [panel for _, panel in sorted(panels.items(), key=rank) if panel.speeds]


def mask_text(mask: str) -> str:
    return "full" if mask == "none" else mask


def _panel_title(keys: dict, mask: str = "") -> str:
    """"head dim 64, 4 heads, causal", then what else is not as the grammar's defaults have it."""
    heads = "1 head" if keys["hq"] == "1" else f"{keys['hq']} heads"
    parts = [f"head dim {keys['d']}", heads + (f" ({keys['hkv']} of K and V)" if "hkv" in keys else "")]
    if mask:
        parts.append(mask_text(mask))
    if "lens" in keys:
        parts.append(lens_text(keys["lens"]))
        parts.append("padded, with unpad and pad" if keys["layout"] == "padded" else "packed")
    elif keys["layout"] != "packed":
        parts.append("padded, with unpad and pad")
    told = {"d", "hq", "hkv", "lens", "layout"}
    parts += [f"{key}={value}" for key, value in sorted(keys.items()) if key not in told and DEFAULTS.get(key) != value]
    return ", ".join(parts)


def lens_text(lens: str) -> str:
    """"12 sequences of 16 to 1024 tokens"; a drawn mix keeps its text."""
    if not re.fullmatch(r"\d+(\+\d+)*", lens):
        return f"lens={lens}"
    lengths = [int(length) for length in lens.split("+")]
    return f"{len(lengths)} sequences of {min(lengths)} to {max(lengths)} tokens"
