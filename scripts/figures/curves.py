"""Training: the loss and the gradient norms of every backend over the steps, and the band in which rounding alone takes them."""
from matplotlib import lines, patches, pyplot, ticker

import style

COLUMNS = 2
BAND = "#f0c419"
TITLES = {"loss": "loss", "embed": "gradient norm, embedding", "head": "gradient norm, output projection",
          "mlp": "gradient norm, SwiGLU", "norm": "gradient norm, norms", "lora": "gradient norm, adapters"}


def cases_of(run) -> dict:
    """case -> its results that hold curves, in the order of the records."""
    found = {}
    for result in run.results:
        if result.training:
            found.setdefault((result.device, result.case), []).append(result)
    return found


def name_of(device: str, case: str) -> str:
    return "-".join(["curves", device.split(":")[0], *(word.replace("=", "") for word in case.split()[1:])])


def draw(device: str, case: str, results: list, ours: list):
    """Each curve over the mean of its band, which a plot of the curves themselves would show as one line. Returns the drawing."""
    quantities = sorted(results[0].training["measured"], key=lambda name: (name != "loss", name))
    rows = -(-len(quantities) // COLUMNS)
    drawing, axes = pyplot.subplots(rows + 1, COLUMNS, figsize=(style.PAGE_WIDTH, 0.9 + 1.7 * (rows + 1)), squeeze=False)
    order = style.in_order([result.backend for result in results], ours)
    styles = style.styles_of(order)
    by_backend = {result.backend: result.training for result in results}
    for axis in axes[0]:
        axis.remove()
    whole = drawing.add_subplot(axes[0, 0].get_gridspec()[0, :])
    for name in order:
        loss = by_backend[name]["measured"]["loss"]
        whole.plot(range(1, len(loss) + 1), loss, color=styles[name][0], linestyle=styles[name][2], linewidth=1)
    whole.set_title("loss (nats per byte)")
    whole.set_ylim(bottom=0)
    for quantity, axis in zip(quantities, axes[1:].flat):
        _draw_quantity(axis, quantity, order, styles, by_backend)
    for axis in axes[1:].flat[len(quantities):]:
        axis.remove()
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in drawing.axes:
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    drawing.suptitle(f"{case}, {device.split(': ', 1)[-1]}\nbelow: off the mean of the references, and the band of their rounding",
                     fontsize=style.FONT + 1)
    style.add_legend(drawing, [lines.Line2D([], [], color=styles[name][0], linestyle=styles[name][2], label=name) for name in order]
                     + [patches.Patch(color=BAND, alpha=0.5, label="band")])
    return drawing


def _draw_quantity(axis, quantity: str, order: list, styles: dict, by_backend: dict) -> None:
    low, high = (by_backend[order[0]][edge][quantity] for edge in ("low", "high"))
    means = [(a + b) / 2 for a, b in zip(low, high)]
    steps = range(1, len(means) + 1)

    def off(numbers):
        return [100 * (number / mean - 1) for number, mean in zip(numbers, means)]

    axis.fill_between(steps, off(low), off(high), color=BAND, alpha=0.5, linewidth=0)
    for name in order:
        axis.plot(steps, off(by_backend[name]["measured"][quantity]), color=styles[name][0], linestyle=styles[name][2], linewidth=0.7)
    axis.set_ylabel("off the mean, %")
    axis.set_title(TITLES.get(quantity, f"gradient norm, {quantity}"))
