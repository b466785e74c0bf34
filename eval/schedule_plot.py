"""What a training is going to do, drawn before it does it: learning rate, frozen backbone, mosaic, teacher."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from ops.files import write_atomic

_INK, _FAINT, _GRID, _LINE, _BIASES = "#2b2d33", "#8d949c", "#e4e7ea", "#2f6fb3", "#d1662b"
_STRIPES = ("#7aa6d6", "#e0a36b", "#8fbf9f", "#b99ad1")


class EpochSpan(NamedTuple):
    """Epochs, counted from 0, from the first to before the last."""

    first: float
    last: float


class PlannedRates(NamedTuple):
    """The learning rates along the training; `epochs` are fractions of epochs, counted from 0."""

    epochs: Sequence[float]
    rates: Sequence[float]
    bias_rates: Sequence[float]


def plot_schedule(planned: PlannedRates, spans: Mapping[str, Sequence[EpochSpan]], path: Path | str) -> Path:
    """Draw the rates, and below them a stripe for each name in `spans`, into a PNG; the file is whole or not there.

    Names without a span get no stripe. No global state of matplotlib is touched.
    """
    stripes = {name: those for name, those in spans.items() if those}
    heights = [3.4, 0.4 * len(stripes)] if stripes else [3.4]
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(9.5, 0.9 + sum(heights)), dpi=110, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _draw_rates(axes[0], planned)
    if stripes:
        _draw_stripes(axes[1], stripes)
    axes[-1].set_xlabel("epochs done", fontsize=9, color=_INK)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return write_atomic(path, content.getvalue())


def _draw_rates(axes: Axes, planned: PlannedRates) -> None:
    _quieten(axes)
    axes.set_title("Learning rate", fontsize=11, color=_INK, loc="left", fontweight="bold")
    if list(planned.bias_rates) != list(planned.rates):
        start = f"biases, from {planned.bias_rates[0]:.2g}"  # most often far above the axes
        axes.plot(planned.epochs, planned.bias_rates, color=_BIASES, linewidth=1.3, label=start)
    axes.plot(planned.epochs, planned.rates, color=_LINE, linewidth=2, label="weights")
    axes.set_ylim(0, 1.15 * max(planned.rates) or 1.0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=_INK)


def _draw_stripes(axes: Axes, stripes: Mapping[str, Sequence[EpochSpan]]) -> None:
    _quieten(axes)
    for row, spans in enumerate(stripes.values()):
        bars = [(span.first, span.last - span.first) for span in spans]
        axes.broken_barh(bars, (row - 0.35, 0.7), facecolors=_STRIPES[row % len(_STRIPES)], linewidth=0)
    axes.set_yticks(range(len(stripes)), list(stripes))
    axes.set_ylim(len(stripes) - 0.5, -0.5)


def _quieten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9, color=_FAINT)
    axes.set_axisbelow(True)
