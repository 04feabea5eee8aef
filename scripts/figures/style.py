"""How figures look: a fixed colour for each backend, sizes that stay readable on a page, files that come out the same twice."""
import io
import math
import pathlib
import textwrap

import matplotlib
from PIL import Image

matplotlib.use("Agg")
matplotlib.rcdefaults()  # not what a user's own matplotlibrc says

from matplotlib import pyplot  # noqa: E402  (the backend is chosen first)

PAGE_WIDTH = 7.0  # inches: the text of a page, or two columns of a paper
FONT = 8  # points
SMALL = 7
TINY = 6  # values on bars

pyplot.rcParams.update({
    "font.size": FONT, "axes.titlesize": FONT, "axes.labelsize": FONT, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL, "hatch.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#dddddd", "grid.linewidth": 0.5,
    "pdf.fonttype": 42, "figure.constrained_layout.use": True,
})

# Colours of Okabe and Ito, told apart by people who do not see all colours. One hue for the implementations of one origin:
# what takes packed sequences is hatched, and its line is dashed.
#   backend: (colour, hatch, line, marker)
STYLES = {
    "flash_varlen": ("#D55E00", "", "-", "o"),
    "torch_flash_varlen": ("#0072B2", "////", "--", "s"),
    "sdpa_flash": ("#0072B2", "", "-", "s"),
    "torch_cudnn_varlen": ("#009E73", "////", "--", "^"),
    "sdpa_cudnn": ("#009E73", "", "-", "^"),
    "torch_efficient_varlen": ("#CC79A7", "////", "--", "D"),
    "sdpa_efficient": ("#CC79A7", "", "-", "D"),
    "sdpa_auto": ("#999999", "", "-", "x"),
    "sdpa_math": ("#56B4E9", "", "-", "v"),
    "eager": ("#333333", "", "-", "P"),
    "eigen": ("#E69F00", "", "-", "*"),
}
OTHERS = [(colour, "....", ":", marker) for colour, marker in zip(
    ("#882255", "#117733", "#332288", "#999933", "#44AA99", "#AA4499"), "<>hpXd")]


def styles_of(backends) -> dict:
    """backend -> (colour, hatch, line, marker); one that the table does not know gets the next free of OTHERS."""
    unknown = sorted(set(backends) - set(STYLES))
    return {**STYLES, **{name: OTHERS[i % len(OTHERS)] for i, name in enumerate(unknown)}}


def in_order(backends, ours: list) -> list:
    """Ours first, then as the table has them, then the others by name."""
    table = list(STYLES)
    return sorted(backends, key=lambda name: (ours.index(name) if name in ours else len(ours),
                                              table.index(name) if name in table else len(table), name))


def unit_of(tflops) -> tuple:
    """The name of the unit for all of these numbers, and how many of it make one TFLOP/s."""
    return ("TFLOP/s", 1.0) if max(tflops) >= 1 else ("GFLOP/s", 1000.0)


def value_text(value: float) -> str:
    """Three significant digits; whole numbers from 100 on."""
    rounded = float(f"{value:.3g}") if value < 100 else round(value)
    decimals = 2 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{rounded:.{max(decimals, 0)}f}"


def title_of(figure, what: str) -> str:
    return (f"{what}, attention {figure.direction}, {figure.dtype}, {figure.device.split(': ', 1)[-1]}\n"
            f"regime {figure.regime}, suite {figure.suite}; visible pairs over the median time")


def wrapped(title: str, columns: int) -> str:
    """A panel's title in lines that fit over it."""
    return textwrap.fill(title, 100 // columns)


def add_legend(drawing, handles: list) -> None:
    """Below all panels, in rows of about the same length."""
    rows = -(-len(handles) // 5)
    drawing.legend(handles=handles, loc="outside lower center", ncols=-(-len(handles) // rows), handlelength=3, frameon=False)


def save(drawing, folder: pathlib.Path, name: str) -> list:
    """NAME.png and NAME.pdf. Nothing of the date or of the machine goes into them: the same records give the same bytes."""
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    pixels = io.BytesIO()
    drawing.savefig(pixels, format="png", dpi=200)
    Image.open(pixels).convert("RGB").quantize(128).save(paths[0], optimize=True)  # a third of the bytes
    drawing.savefig(paths[1], metadata={"CreationDate": None, "Producer": None, "Creator": None})
    pyplot.close(drawing)
    return paths
