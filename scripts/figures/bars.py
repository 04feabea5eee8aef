"""Grouped bars: a group for each length (or mask), a bar for each backend, its value on it."""
from matplotlib import patches, pyplot

import style

COLUMNS = 2
MOST_IN_HALF_A_PAGE = 30  # bars of a panel; more need the whole width for their values to stay readable
UPRIGHT = 18  # points: in narrower bars the values are turned
GAP = 1.0  # between two groups, in bars


def draw(figure, ours: list, x_label: str):
    """figure: panels.Figure. Returns the drawing."""
    order = style.in_order(figure.backends(), ours)
    shown = [[name for name in order if name in panel.backends()] for panel in figure.panels]
    slots = max(len(panel.ticks) * (len(names) + GAP) for panel, names in zip(figure.panels, shown))
    columns = COLUMNS if slots <= MOST_IN_HALF_A_PAGE and len(figure.panels) > 1 else 1
    rows = -(-len(figure.panels) // columns)
    drawing, axes = pyplot.subplots(rows, columns, figsize=(style.PAGE_WIDTH, 0.9 + 1.75 * rows), squeeze=False)
    unit, per_tflops = style.unit_of(figure.tops())
    for panel, names, axis in zip(figure.panels, shown, axes.flat):
        _draw_panel(axis, panel, names, per_tflops, slots)
        axis.set_title(style.wrapped(panel.title, columns))
    for axis in axes.flat[len(figure.panels):]:
        axis.remove()
    for row in axes:
        row[0].set_ylabel(unit)
    _set_x_label(axes, len(figure.panels), x_label)
    drawing.suptitle(style.title_of(figure, "Speed"), fontsize=style.FONT + 1)
    styles = style.styles_of(order)
    style.add_legend(drawing, [patches.Patch(facecolor=styles[name][0], hatch=styles[name][1], edgecolor="white", label=name)
                               for name in order])
    return drawing


def _draw_panel(axis, panel, names: list, per_tflops: float, slots: float) -> None:
    styles = style.styles_of(names)
    group = len(names) + GAP
    turned = axis.get_position().width * style.PAGE_WIDTH * 72 / slots < UPRIGHT
    top = max(speed.tflops for speed in panel.speeds.values()) * per_tflops
    for i, tick in enumerate(panel.ticks):
        for j, name in enumerate(names):
            x = i * group + j
            colour, hatch, _, _ = styles[name]
            if (tick, name) in panel.speeds:
                value = panel.speeds[tick, name].tflops * per_tflops
                axis.bar(x, value, width=1.0, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, label=name)
                _write(axis, x, value, style.value_text(value), "black", turned)
            elif (tick, name) in panel.gaps:
                _write(axis, x, 0, panel.gaps[tick, name], colour, True)
    middle = (len(names) - 1) / 2
    axis.set_xticks([i * group + middle for i in range(len(panel.ticks))], [str(tick) for tick in panel.ticks])
    axis.tick_params(axis="x", length=0)
    centre = ((len(panel.ticks) - 1) * group + len(names) - 1) / 2
    axis.set_xlim(centre - slots / 2, centre + slots / 2)  # bars are as wide in all panels
    axis.set_ylim(0, top * 1.3)  # room for the values


def _write(axis, x: float, y: float, text: str, colour: str, turned: bool) -> None:
    axis.annotate(text, (x, y), xytext=(0, 1.5), textcoords="offset points", rotation=90 * turned, ha="center", va="bottom",
                  fontsize=style.TINY, color=colour)


def _set_x_label(axes, panels: int, x_label: str) -> None:
    """Under the lowest panel of each column."""
    columns = axes.shape[1]
    for column in range(columns):
        lowest = [i for i in range(panels) if i % columns == column][-1]
        axes.flat[lowest].set_xlabel(x_label)

