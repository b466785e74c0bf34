"""Pictures of numbers: the curves of a run (loss and its parts, how well the network detects), and methods compared by
what they know about base and novel classes.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

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
_MANY_POINTS = 40  # beyond these, markers run into each other
# Okabe and Ito's colours, told apart by the colour-blind; the shape says it again in print without colour
_METHOD_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#2b2d33")
_METHOD_SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p", "<")
_LEGEND_WIDTH = 32  # letters; longer names are broken, or they would push the axes away


def plot_curves(history: Rows, path: Path | str, loss_parts: Sequence[str] = ("box", "cls", "dfl")) -> Path:
    """Draw the rows of `metrics.jsonl` into a PNG; the file is whole or not there.

    Rows are those of `train.trainer`, one an epoch; there may be none. `loss_parts` names the fields drawn beside
    "loss"; epochs with spikes are marked. None and NaN are gaps in a loss; epochs without validation are skipped by the
    AP, whose points are joined.
    No global state of matplotlib is touched and nothing is kept, so it may be called after every epoch.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.05)
    figure = Figure(figsize=(12.5, 4.6), dpi=110, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        _dress(axes, history)
    _draw_losses(left, history, loss_parts)
    _draw_learning_rate(left, history)
    _draw_precision(right, history)
    return _write(figure, path)


def plot_base_novel(points: Mapping[str, Sequence[tuple[float, float]]], path: Path | str) -> Path:
    """Draw methods by base AP50 (across) and novel AP50 (up) into a PNG; the file is whole or not there.

    `points` holds (base, novel) of every run of a method, 0 to 1; pairs that are not finite are left out, and so is a
    method without any. A run is a small mark, the mean of a method's runs a large one; on a dotted curve the harmonic
    mean of base and novel is the same everywhere.
    """
    methods = {name: _finite_pairs(pairs) for name, pairs in points.items()}
    methods = {name: pairs for name, pairs in methods.items() if len(pairs)}
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    size = (9.2, max(5.6, 1.5 + 0.4 * len(methods)))  # higher than the legend
    figure = Figure(figsize=size, dpi=110, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _quieten(axes)
    axes.set_title("What was kept and what was learned", fontsize=11, color=_INK, loc="left", fontweight="bold", pad=18)
    axes.set_xlabel("AP50 of the base classes", fontsize=9, color=_INK)
    axes.set_ylabel("AP50 of the novel classes", fontsize=9, color=_INK)
    if methods:
        _draw_methods(axes, methods)
    else:
        _say_empty(axes, "no run yet")
    return _write(figure, path)


def _draw_methods(axes: Axes, methods: Mapping[str, np.ndarray]) -> None:
    everything = np.concatenate(list(methods.values()))
    axes.set_xlim(*_span(everything[:, 0]))
    axes.set_ylim(*_span(everything[:, 1]))
    _draw_harmonic_curves(axes)
    handles = [_draw_method(axes, number, name, pairs) for number, (name, pairs) in enumerate(methods.items())]
    handles.append(Line2D([], [], color=_FAINT, linewidth=1, linestyle=":", label="equal harmonic mean"))
    # beside the axes, where no point can be
    legend = axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.07, 1), borderaxespad=0, **_LEGEND_STYLE)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name with two dollar signs is no formula


def _draw_method(axes: Axes, number: int, name: str, pairs: np.ndarray) -> Line2D:
    """Small marks for the runs, a large one for their mean; the legend's entry."""
    colour = _METHOD_COLOURS[number % len(_METHOD_COLOURS)]
    mark: dict[str, Any] = {"color": colour, "marker": _METHOD_SHAPES[number % len(_METHOD_SHAPES)], "linestyle": ""}
    if len(pairs) > 1:
        axes.plot(*pairs.T, markersize=4.5, mec="none", zorder=3, clip_on=False, **mark)
    mark |= {"mec": colour, "mew": 1.8, "mfc": (colour, 0.22)}  # seen through: runs lie below
    axes.plot(*pairs.mean(axis=0), markersize=13, zorder=4, clip_on=False, **mark)
    name = name if len(name) <= 50 else name[:49] + "…"
    runs = f"({len(pairs)}\N{NO-BREAK SPACE}run{'s' if len(pairs) > 1 else ''})"
    return Line2D([], [], markersize=9, label=fill(f"{name} {runs}", _LEGEND_WIDTH), **mark)


def _draw_harmonic_curves(axes: Axes) -> None:
    """Dotted, with the figure where the curve leaves the axes, at the right or at the bottom."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    step = 0.1 if max(right - left, top - bottom) > 0.3 else 0.05
    for level in np.arange(step, 1, step):
        # novel = level * base / (2 * base - level), positive and falling for base > level / 2; and the other way round
        if 2 * top <= level or level * top / (2 * top - level) >= right:
            continue  # wholly above the axes, or to the right of them
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


def _span(values: np.ndarray) -> tuple[float, float]:
    """Limits around the values, with room for marks, hardly beyond 0 to 1, not so narrow that noise looks large."""
    low, high = float(values.min()), float(values.max())
    room = max(0.12 * (high - low), (0.2 - (high - low)) / 2, 0.02)
    return max(-0.02, low - room), max(min(1.02, high + room), high)


def _finite_pairs(pairs: Sequence[tuple[float, float]]) -> np.ndarray:
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[np.isfinite(table).all(axis=1)]


def _write(figure: Figure, path: Path | str) -> Path:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return write_atomic(path, content.getvalue())


def _quieten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9, color=_FAINT)
    axes.set_axisbelow(True)


def _dress(axes: Axes, history: Rows) -> None:
    """Quiet axes over all epochs, with the epochs in which the backbone was frozen shaded."""
    _quieten(axes)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_xlabel("epoch", fontsize=9, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))
    epochs = _epochs(history)
    if epochs.size:
        axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    for number, (first, last) in enumerate(_frozen_spans(history)):
        label = "backbone frozen" if number == 0 else None  # once in the legend
        axes.axvspan(first - 0.5, last + 0.5, color=_SHADE, linewidth=0, zorder=0, label=label)


def _draw_losses(axes: Axes, history: Rows, parts: Sequence[str]) -> None:
    axes.set_title("Training loss", fontsize=11, color=_INK, loc="left", fontweight="bold")
    _draw_line(axes, history, "loss", "total", _INK, 2.2)
    for number, part in enumerate(parts):
        _draw_line(axes, history, part, part, _PART_COLOURS[number % len(_PART_COLOURS)], 1.5)
    if axes.lines:
        axes.set_ylim(bottom=0)
        _mark_spikes(axes, history)
        axes.legend(loc="upper right", **_LEGEND_STYLE)
    else:
        _say_empty(axes, "no epoch yet")


def _mark_spikes(axes: Axes, history: Rows) -> None:
    """A triangle at the foot of every epoch with steps whose loss or gradient was far above what is usual."""
    epochs = _epochs([row for row in history if row.get("spikes")])
    if epochs.size:
        style: dict[str, Any] = {"color": _ALARM, "marker": "^", "markersize": 6, "linestyle": "", "clip_on": False}
        axes.plot(epochs, np.zeros_like(epochs), label="spikes", zorder=5, **style)


def _draw_learning_rate(axes: Axes, history: Rows) -> None:
    """Thin and grey on an axis of its own: background to the losses."""
    rates = _values(history, "lr")
    if not np.isfinite(rates).any():
        return
    beside = axes.twinx()
    beside.spines[["top", "left", "bottom"]].set_visible(False)
    beside.spines["right"].set_color(_GRID)
    beside.plot(_epochs(history), rates, color=_FAINT, linewidth=0.9, linestyle=(0, (4, 2)), marker=_marker(rates))
    beside.set_ylim(0, float(np.nanmax(rates)) * 1.15 or 1.0)
    beside.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    beside.yaxis.get_offset_text().set(color=_FAINT, fontsize=8)
    beside.tick_params(colors=_FAINT, labelsize=8)
    beside.set_ylabel("learning rate (dashed)", fontsize=8, color=_FAINT)


def _draw_precision(axes: Axes, history: Rows) -> None:
    axes.set_title("Validation", fontsize=11, color=_INK, loc="left", fontweight="bold")
    measured = [row for row in history if np.isfinite(_values([row], "map50")).any()]
    axes.set_ylim(0, 1)
    if not measured:
        _say_empty(axes, "no validation yet")
        return
    top = 0.0
    for key, name, colour in _AP_LINES:
        _draw_line(axes, measured, key, name, colour, 2.0)
        top = float(np.nanmax([top, *_values(measured, key)]))
    axes.set_ylim(0, max(1.0, top * 1.05))  # the assignment's figure may pass 1
    _mark_best(axes, measured)
    axes.legend(loc="best" if len(measured) < 400 else "lower right", **_LEGEND_STYLE)


def _mark_best(axes: Axes, measured: Rows) -> None:
    """A ring on each line at the epoch whose weights were kept as best, and its figures in the corner."""
    best = [row for row in measured if row.get("is_best")]
    if not best:
        return
    row, told = best[-1], []
    axes.axvline(row["epoch"] + 1, color=_FAINT, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    for key, name, colour in _AP_LINES:
        value = float(_values([row], key)[0])
        if np.isfinite(value):
            axes.plot(row["epoch"] + 1, value, "o", ms=9, mfc="white", mec=colour, mew=2, zorder=4)
            told.append(f"{name} {value:.3f}")
    axes.set_title(f"best: epoch {row['epoch'] + 1},  {',  '.join(told)}", fontsize=9, color=_INK, loc="right")


def _draw_line(axes: Axes, rows: Rows, key: str, label: str, colour: str, width: float) -> None:
    values = _values(rows, key)
    if np.isfinite(values).any():
        axes.plot(
            _epochs(rows), values, color=colour, linewidth=width, label=label, marker=_marker(values), markersize=3.5
        )


def _marker(values: np.ndarray) -> str:
    """Dots while the points are few, or where one stands between two gaps, without a line to be seen by."""
    present = np.concatenate(([False], np.isfinite(values), [False]))
    is_alone = present[1:-1] & ~present[:-2] & ~present[2:]
    return "o" if values.size <= _MANY_POINTS or is_alone.any() else ""


def _say_empty(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_FAINT, fontsize=11)


def _epochs(rows: Rows) -> np.ndarray:
    return np.array([row["epoch"] + 1 for row in rows], dtype=float)


def _values(rows: Rows, key: str) -> np.ndarray:
    """The field over the epochs, NaN where it is missing, None or not finite."""
    values = np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _frozen_spans(rows: Rows) -> Iterator[tuple[int, int]]:
    """First and last epoch of each stretch with a frozen backbone."""
    frozen = sorted(row["epoch"] + 1 for row in rows if row.get("frozen"))
    starts = [epoch for epoch in frozen if epoch - 1 not in frozen]
    ends = [epoch for epoch in frozen if epoch + 1 not in frozen]
    return zip(starts, ends, strict=True)
