"""Plots as PNG files: the curves of a run, the planned schedule, and methods compared by AP of base and novel classes.

pyplot is never imported and no global state of matplotlib changes, so that plots can be drawn after every epoch.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ops.files import write_atomic

Rows = Sequence[dict[str, Any]]

_INK, _FAINT, _GRID, _SHADE = "#2b2d33", "#8d949c", "#e4e7ea", "#e1ebf6"
_ALARM = "#c22f3d"
_PART_COLOURS = ("#2f6fb3", "#d1662b", "#3a9a5c", "#8a5bb5", "#b5476b", "#8c6d46")
_AP_LINES = (("map50", "mAP50", "#7a3fb0"), ("map50_95", "mAP50-95", "#12857f"))
_LEGEND_STYLE = {"frameon": False, "fontsize": 9, "labelcolor": _INK, "handlelength": 1.6}
_MAX_MARKERS = 40  # with more points, markers overlap
# The colours of Okabe and Ito, which colour-blind readers can distinguish; in print without colour the shapes differ.
_METHOD_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#2b2d33")
_METHOD_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p", "<")
_LEGEND_WIDTH = 32  # letters; longer names are wrapped, so that the axes keep their width
_RATE_COLOUR, _BIAS_COLOUR = "#2f6fb3", "#d1662b"
_STRIPES = ("#7aa6d6", "#e0a36b", "#8fbf9f", "#b99ad1")


class EpochSpan(NamedTuple):
    """A range of epochs, counted from 0; `last` is not part of it."""

    first: float
    last: float


class PlannedRates(NamedTuple):
    """The learning rates during the training. `epochs` may be fractions, counted from 0."""

    epochs: Sequence[float]
    rates: Sequence[float]
    bias_rates: Sequence[float]


def plot_curves(history: Rows, path: Path | str, loss_parts: Sequence[str] = ("box", "cls", "dfl")) -> Path:
    """Plot the rows of `metrics.jsonl`, one per epoch; there may be none. Returns the path of the PNG.

    `loss_parts`: the fields drawn beside "loss". Epochs with loss spikes are marked. None and NaN leave a gap in a loss
    curve. The AP curve joins the epochs that have a validation.
    """
    figure = _new_figure((12.5, 4.6), wspace=0.05)
    left, right = figure.subplots(1, 2)
    epochs, frozen = _epochs(history), _epochs([row for row in history if row.get("frozen")])
    starts, ends = np.setdiff1d(frozen, frozen + 1), np.setdiff1d(frozen, frozen - 1)  # of the periods, sorted
    for axes, title in ((left, "Training loss"), (right, "Validation")):
        _set_up(axes, title)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.set_xlabel("epoch", fontsize=9, color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))
        if epochs.size:
            axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        for number, (first, last) in enumerate(zip(starts, ends, strict=True)):
            label = "backbone frozen" if number == 0 else None  # one entry in the legend
            axes.axvspan(first - 0.5, last + 0.5, color=_SHADE, linewidth=0, zorder=0, label=label)
    _draw_losses(left, history, loss_parts)
    _draw_learning_rate(left, history)
    _draw_precision(right, history)
    return _write(figure, path)


def plot_base_novel(points: Mapping[str, Sequence[tuple[float, float]]], path: Path | str) -> Path:
    """Plot methods by AP50 of base classes (x axis) and of novel classes (y axis). Returns the path of the PNG.

    `points`: (base, novel) of every run of a method, from 0 to 1. Pairs that are not finite are left out, and so are
    methods without any. A small mark is a run, a large mark the mean of a method. Along each dotted curve the harmonic
    mean of base and novel is constant.
    """
    tables = {name: np.array(pairs, dtype=float).reshape(-1, 2) for name, pairs in points.items()}
    methods = {name: table[np.isfinite(table).all(axis=1)] for name, table in tables.items()}
    methods = {name: pairs for name, pairs in methods.items() if len(pairs)}
    figure = _new_figure((9.2, max(5.6, 1.5 + 0.4 * len(methods))))  # higher than the legend
    axes = figure.subplots()
    _set_up(axes, "AP50 of base and novel classes", pad=18)
    axes.set_xlabel("AP50 of the base classes", fontsize=9, color=_INK)
    axes.set_ylabel("AP50 of the novel classes", fontsize=9, color=_INK)
    if not methods:
        _write_instead(axes, "no run yet")
        return _write(figure, path)
    all_runs = np.concatenate(list(methods.values()))
    axes.set_xlim(*_limits_of(all_runs[:, 0]))
    axes.set_ylim(*_limits_of(all_runs[:, 1]))
    _draw_harmonic_curves(axes)
    handles = [_draw_method(axes, number, name, pairs) for number, (name, pairs) in enumerate(methods.items())]
    handles.append(Line2D([], [], color=_FAINT, linewidth=1, linestyle=":", label="equal harmonic mean"))
    # beside the axes, where it cannot cover a point
    legend = axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.07, 1), borderaxespad=0, **_LEGEND_STYLE)
    for text in legend.get_texts():
        text.set_parse_math(False)  # matplotlib would read a name with two dollar signs as a formula
    return _write(figure, path)


def plot_schedule(planned: PlannedRates, spans: Mapping[str, Sequence[EpochSpan]], path: Path | str) -> Path:
    """Plot the planned learning rates and, below them, a stripe for each name in `spans`. Returns the path of the PNG.

    Names without a span get no stripe.
    """
    stripes = {name: name_spans for name, name_spans in spans.items() if name_spans}
    heights = [3.4, 0.4 * len(stripes)] if stripes else [3.4]
    figure = _new_figure((9.5, 0.9 + sum(heights)), w_pad=0.1, h_pad=0.08)
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    top = axes[0]
    _set_up(top, "Learning rate")
    if list(planned.bias_rates) != list(planned.rates):
        label = f"biases, from {planned.bias_rates[0]:.2g}"  # the start usually lies far above the axes
        top.plot(planned.epochs, planned.bias_rates, color=_BIAS_COLOUR, linewidth=1.3, label=label)
    top.plot(planned.epochs, planned.rates, color=_RATE_COLOUR, linewidth=2, label="weights")
    top.set_ylim(0, 1.15 * max(planned.rates) or 1.0)
    top.grid(axis="y", color=_GRID, linewidth=0.8)
    top.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=_INK)
    if stripes:
        _set_up(axes[1])
        for row, name_spans in enumerate(stripes.values()):
            bars = [(span.first, span.last - span.first) for span in name_spans]
            axes[1].broken_barh(bars, (row - 0.35, 0.7), facecolors=_STRIPES[row % len(_STRIPES)], linewidth=0)
        axes[1].set_yticks(range(len(stripes)), list(stripes))
        axes[1].set_ylim(len(stripes) - 0.5, -0.5)
    axes[-1].set_xlabel("epochs done", fontsize=9, color=_INK)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    return _write(figure, path)


def _new_figure(size: tuple[float, float], w_pad: float = 0.12, h_pad: float = 0.12, wspace: float = 0.02) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=w_pad, h_pad=h_pad, wspace=wspace)
    figure = Figure(figsize=size, dpi=110, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _draw_method(axes: Axes, number: int, name: str, pairs: np.ndarray) -> Line2D:
    """Small marks for the runs and a large one for their mean. Returns the entry for the legend."""
    colour = _METHOD_COLOURS[number % len(_METHOD_COLOURS)]
    mark: dict[str, Any] = {"color": colour, "marker": _METHOD_SHAPES[number % len(_METHOD_SHAPES)], "linestyle": ""}
    if len(pairs) > 1:
        axes.plot(*pairs.T, markersize=4.5, mec="none", zorder=3, clip_on=False, **mark)
    mark |= {"mec": colour, "mew": 1.8, "mfc": (colour, 0.22)}  # transparent: the runs lie below
    axes.plot(*pairs.mean(axis=0), markersize=13, zorder=4, clip_on=False, **mark)
    name = name if len(name) <= 50 else name[:49] + "…"
    runs = f"({len(pairs)}\N{NO-BREAK SPACE}run{'s' if len(pairs) > 1 else ''})"
    return Line2D([], [], markersize=9, label=fill(f"{name} {runs}", _LEGEND_WIDTH), **mark)


def _draw_harmonic_curves(axes: Axes) -> None:
    """Dotted curves; the value is written where the curve leaves the axes, at the right or at the bottom."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    step = 0.1 if max(right - left, top - bottom) > 0.3 else 0.05
    for level in np.arange(step, 1, step):
        # novel = level * base / (2 * base - level), positive and falling for base > level / 2; base likewise from novel
        if 2 * top <= level or level * top / (2 * top - level) >= right:
            continue  # completely above the axes or to the right of them
        base = np.geomspace(level / 2 + 1e-4, 1, 400)
        axes.plot(base, level * base / (2 * base - level), color=_FAINT, linewidth=1, linestyle=":", zorder=1)
        at_right = level * right / (2 * right - level)
        style: dict[str, Any] = {
            "fontsize": 8,
            "color": _FAINT,
            "annotation_clip": False,
            "textcoords": "offset points",
        }
        if at_right >= bottom:
            axes.annotate(f"{level:.2g}", (right, at_right), (4, 0), va="center", **style)
        elif (at_bottom := level * bottom / (2 * bottom - level)) > left + 0.01:
            axes.annotate(f"{level:.2g}", (at_bottom, bottom), (1, 4), **style)


def _limits_of(values: np.ndarray) -> tuple[float, float]:
    """Axis limits with space for the marks, about within 0 to 1, and at least .2 apart, so that noise looks small."""
    low, high = float(values.min()), float(values.max())
    margin = max(0.12 * (high - low), (0.2 - (high - low)) / 2, 0.02)
    return max(-0.02, low - margin), max(min(1.02, high + margin), high)


def _write(figure: Figure, path: Path | str) -> Path:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return write_atomic(path, content.getvalue())


def _set_up(axes: Axes, title: str = "", pad: float | None = None) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9, color=_FAINT)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=11, color=_INK, loc="left", fontweight="bold", pad=pad)


def _draw_losses(axes: Axes, history: Rows, parts: Sequence[str]) -> None:
    """The total loss, its parts, and a triangle at every epoch with loss spikes."""
    _draw_line(axes, history, "loss", "total", _INK, 2.2)
    for number, part in enumerate(parts):
        _draw_line(axes, history, part, part, _PART_COLOURS[number % len(_PART_COLOURS)], 1.5)
    if not axes.lines:
        _write_instead(axes, "no epoch yet")
        return
    axes.set_ylim(bottom=0)
    spikes = _epochs([row for row in history if row.get("spikes")])
    if spikes.size:
        style: dict[str, Any] = {"color": _ALARM, "marker": "^", "markersize": 6, "linestyle": "", "clip_on": False}
        axes.plot(spikes, np.zeros_like(spikes), label="spikes", zorder=5, **style)
    axes.legend(loc="upper right", **_LEGEND_STYLE)


def _draw_learning_rate(axes: Axes, history: Rows) -> None:
    """Thin, grey and with its own y axis, in the background of the losses."""
    rates = _values(history, "lr")
    if not np.isfinite(rates).any():
        return
    rate_axes = axes.twinx()
    rate_axes.spines[["top", "left", "bottom"]].set_visible(False)
    rate_axes.spines["right"].set_color(_GRID)
    rate_axes.plot(_epochs(history), rates, color=_FAINT, linewidth=0.9, linestyle=(0, (4, 2)), marker=_marker(rates))
    rate_axes.set_ylim(0, float(np.nanmax(rates)) * 1.15 or 1.0)
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    rate_axes.yaxis.get_offset_text().set(color=_FAINT, fontsize=8)
    rate_axes.tick_params(colors=_FAINT, labelsize=8)
    rate_axes.set_ylabel("learning rate (dashed)", fontsize=8, color=_FAINT)


def _draw_precision(axes: Axes, history: Rows) -> None:
    """The AP curves. A ring on each of them at the epoch with the best weights, and its values in the corner."""
    measured = [row for row in history if np.isfinite(_values([row], "map50")).any()]
    axes.set_ylim(0, 1)
    if not measured:
        _write_instead(axes, "no validation yet")
        return
    best, texts, top = next((row for row in reversed(measured) if row.get("is_best")), None), [], 1.0
    for key, name, colour in _AP_LINES:
        _draw_line(axes, measured, key, name, colour, 2.0)
        # the metric of the assignment can exceed 1
        top = float(np.nanmax([top, *(1.05 * _values(measured, key))]))
        value = np.nan if best is None else float(_values([best], key)[0])
        if best and np.isfinite(value):
            axes.plot(best["epoch"] + 1, value, "o", ms=9, mfc="white", mec=colour, mew=2, zorder=4)
            texts.append(f"{name} {value:.3f}")
    axes.set_ylim(0, top)
    if best:
        axes.axvline(best["epoch"] + 1, color=_FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        axes.set_title(f"best: epoch {best['epoch'] + 1},  {',  '.join(texts)}", fontsize=9, color=_INK, loc="right")
    axes.legend(loc="best" if len(measured) < 400 else "lower right", **_LEGEND_STYLE)


def _draw_line(axes: Axes, rows: Rows, key: str, label: str, colour: str, width: float) -> None:
    values = _values(rows, key)
    if np.isfinite(values).any():
        axes.plot(
            _epochs(rows), values, color=colour, linewidth=width, label=label, marker=_marker(values), markersize=3.5
        )


def _marker(values: np.ndarray) -> str:
    """Dots when there are few points, or when a point between two gaps has no line and would be invisible."""
    present = np.concatenate(([False], np.isfinite(values), [False]))
    is_alone = present[1:-1] & ~present[:-2] & ~present[2:]
    return "o" if values.size <= _MAX_MARKERS or is_alone.any() else ""


def _write_instead(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_FAINT, fontsize=11)


def _epochs(rows: Rows) -> np.ndarray:
    return np.array([row["epoch"] + 1 for row in rows], dtype=float)


def _values(rows: Rows, key: str) -> np.ndarray:
    """The field for every epoch; NaN where it is missing, None or not finite."""
    values = np.array([row.get(key) for row in rows], dtype=float)  # None becomes NaN
    return np.where(np.isfinite(values), values, np.nan)
