"""Speed over the sequence length: a line for each backend, the 95% confidence interval of the median as a band."""
import math

from matplotlib import lines, pyplot, ticker

import style

COLUMNS = 2


def has_lines(figure) -> bool:
    return any(len(panel.ticks) > 1 for panel in figure.panels)


def draw(figure, ours: list):
    """figure: panels.Figure over the length; its panels of one length are left to the bars. Returns the drawing."""
    panels = [panel for panel in figure.panels if len(panel.ticks) > 1]
    backends = set().union(*({name for _, name in panel.speeds} for panel in panels))
    order = style.in_order(backends, ours)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    drawing, axes = pyplot.subplots(rows, columns, figsize=(style.PAGE_WIDTH, 0.9 + 2.1 * rows), squeeze=False)
    unit, per_tflops = style.unit_of(figure.tops())
    styles = style.styles_of(backends)
    for panel, axis in zip(panels, axes.flat):
        _draw_panel(axis, panel, order, styles, per_tflops)
        axis.set_title(style.wrapped(panel.title, columns))
    for axis in axes.flat[len(panels):]:
        axis.remove()
    for row in axes:
        row[0].set_ylabel(unit)
    for i in range(max(0, len(panels) - columns), len(panels)):
        axes.flat[i].set_xlabel("sequence length")
    drawing.suptitle(style.title_of(figure, "Speed with its 95% confidence interval"), fontsize=style.FONT + 1)
    style.add_legend(drawing, [lines.Line2D([], [], color=styles[name][0], linestyle=styles[name][2], marker=styles[name][3],
                                            markersize=4, label=name) for name in order])
    return drawing


def _draw_panel(axis, panel, order: list, styles: dict, per_tflops: float) -> None:
    for name in order:
        colour, _, line, marker = styles[name]
        speeds = [panel.speeds.get((tick, name)) for tick in panel.ticks]

        def values(field):  # a length without a number breaks the line
            return [getattr(speed, field) * per_tflops if speed else math.nan for speed in speeds]

        axis.plot(panel.ticks, values("tflops"), color=colour, linestyle=line, marker=marker, markersize=4, linewidth=1.2, label=name)
        axis.fill_between(panel.ticks, values("low"), values("high"), color=colour, alpha=0.25, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(ticker.FixedLocator(panel.ticks))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda length, _: f"{length:.0f}"))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set_ylim(bottom=0)
