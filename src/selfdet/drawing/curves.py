"""Charts: curves over steps, and a comparison of starts with every seed shown."""

from __future__ import annotations

import io
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from selfdet.data.disk import replacing

# Okabe and Ito's colours, which readers with any colour blindness tell apart, without their yellow (too pale on white).
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
_STYLES = ["-", (0, (5, 2)), (0, (1.5, 1.5))]
INK, QUIET, RULE = "#222222", "#6b6b6b", "#e3e3e3"
_DENSE = 300  # from this many points on, a curve is drawn faint with its running mean on top
PLAIN: dict[str, Any] = {"parse_math": False}  # a class called "a$b$" is no formula

Point = tuple[float, float | None]


def plot_curves(
    series: Mapping[str, Sequence[Point]],
    out: Path,
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    hlines: Mapping[str, float] | None = None,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
) -> Path:
    """Draw one curve for each name and write the chart to `out` (PNG, or SVG by its suffix); returns `out`.

    `series`: name → (x, y) points in order of x; a y that is None or not finite (or, with `log_y`, not positive) leaves
    a gap. A name without points keeps its colour free, so that charts of the same names agree. `hlines`: name → y of a
    dashed level to compare with. `bands`: name → (x, low, high), shaded behind its curve. Names stand beside their
    lines. Curves of 300 points and more are drawn faint with their running mean, which the x axis then says.
    """
    levels = {name: y for name, y in (hlines or {}).items() if math.isfinite(y) and (y > 0 or not log_y)}
    figure, axes = canvas(title, max(3.8, 1.2 + 0.2 * (len(series) + len(levels))))
    ends: list[tuple[str, str, float, float]] = []  # name, colour, x and y of a line's end
    every_x: list[float] = []
    every_y: list[float] = list(levels.values())
    window = 0
    for position, (name, points) in enumerate(series.items()):
        x = np.array([float(point[0]) for point in points])
        y = np.array([math.nan if point[1] is None else float(point[1]) for point in points])
        y[~np.isfinite(y) | ((y <= 0) & log_y)] = math.nan
        known = np.isfinite(y)
        if not known.any():
            continue
        ink, style = ink_of(position), _STYLES[position // len(PALETTE) % len(_STYLES)]
        if shaded := list((bands or {}).get(name, ())):
            places, low, high = zip(*shaded)
            axes.fill_between(places, low, high, color=ink, alpha=0.13, linewidth=0)
        if len(y) >= _DENSE:
            axes.plot(x, y, color=ink, linewidth=0.6, alpha=0.25)
            window = len(y) // 50
            y = _running_mean(y, window)
        axes.plot(x, y, color=ink, linestyle=style, linewidth=1.8, marker="o" if len(y) <= 30 else "", markersize=3.5)
        last = int(np.flatnonzero(known)[-1])
        if name:  # a chart of one curve says in its title what it is
            ends.append((name, ink, float(x[last]), float(y[last])))
        every_x += x[known].tolist()
        every_y += y[known].tolist()
    right = max(every_x, default=1.0)
    for name, level in levels.items():
        axes.axhline(level, color=QUIET, linestyle=(0, (4, 3)), linewidth=1.1)
        ends.append((name, QUIET, right, level))
    if not every_x:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", va="center", color=QUIET)
    else:
        axes.margins(x=0.015)
        if all(value == int(value) for value in every_x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if log_y and every_y:
        _log_scale(axes, min(every_y), max(every_y))
    note = f"\n(faint: as recorded; bold: mean of {window} neighbours)" if window else ""
    axes.set_xlabel(x_label + note, color=INK, **PLAIN)
    axes.set_ylabel(y_label, color=INK, **PLAIN)
    label_ends(figure, axes, ends)
    return save(figure, out)


def plot_bars(
    groups: Mapping[str, Mapping[str, Sequence[float | None]]],
    out: Path,
    *,
    title: str,
    x_label: str,
) -> Path:
    """Draw the mean of each start's values as a bar, with every value as a dot, and write the chart to `out`.

    `groups`: group (such as a label fraction) → start → its values, one a seed, in the unit of `x_label`; None and
    values that are not finite are left out. From two values on, a line spans ± one sample standard deviation.
    """
    starts = list(dict.fromkeys(start for group in groups.values() for start in group))
    rows = sum(len(group) for group in groups.values())
    figure, axes = canvas(title, max(1.9, 1.15 + 0.36 * rows + 0.34 * len(groups)))
    place, ticks, names, spread = 0.0, [], [], False
    top = 0.0
    for group, values_of in groups.items():
        axes.text(0, place, group, transform=axes.get_yaxis_transform(), weight="bold", color=INK, va="center", **PLAIN)
        place += 0.95
        for start, values in values_of.items():
            known = [float(value) for value in values if value is not None and math.isfinite(value)]
            ink = PALETTE[starts.index(start) % len(PALETTE)]
            ticks.append(place)
            names.append(start)
            words, end = "no value", 0.0
            if known:
                mean, end = statistics.fmean(known), max(*known, statistics.fmean(known))
                axes.barh(place, mean, height=0.62, color=ink, alpha=0.35)
                axes.plot([mean, mean], [place - 0.31, place + 0.31], color=ink, linewidth=2.2)
                words = f"{mean:.1f}"
                if len(known) > 1:
                    spread, deviation = True, statistics.stdev(known)
                    end = max(end, mean + deviation)
                    axes.plot([mean - deviation, mean + deviation], [place, place], color=INK, linewidth=1.1)
                    axes.plot(known, [place] * len(known), "o", color=ink, markersize=4, markeredgecolor="white")
                    words += f" ± {deviation:.1f} (n = {len(known)})"
            axes.annotate(
                words, (end, place), xytext=(7, 0), textcoords="offset points", va="center", color=INK, fontsize=9
            )
            top = max(top, end)
            place += 1
        place += 0.25
    axes.set_yticks(ticks, names, **PLAIN)
    axes.set_ylim(place - 0.4, -0.7)
    axes.set_xlim(0, top * 1.35 or 1)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    note = "\n(bar: mean; line: ± sample standard deviation; dots: each of n)" if spread else ""
    axes.set_xlabel(x_label + note, color=INK, **PLAIN)
    return save(figure, out)


def ink_of(position: int) -> str:
    """The colour of the series at this position."""
    return PALETTE[position % len(PALETTE)]


def canvas(title: str, height: float, width: float = 6.2) -> tuple[Figure, Axes]:
    """An empty chart, sizes in inches, of its own (no global figure list, so it works in any thread)."""
    figure = Figure(figsize=(width, height), dpi=170, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    lines = "\n".join(textwrap.wrap(title, round(10.3 * width)))
    axes.set_title(lines, loc="left", fontsize=11, weight="bold", color=INK, **PLAIN)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9a9a9a")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of up to `window` known neighbours of each value, nearer the ends of fewer; gaps stay gaps."""
    known = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    number = np.convolve(known.astype(float), kernel, mode="same")
    return np.where(known, total / np.maximum(number, 1.0), math.nan)


def _log_scale(axes: Axes, low: float, high: float) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if high / low > 4 else MaxNLocator(nbins=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def label_ends(figure: Figure, axes: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Write each name right of its line's end, moved apart where lines end close to each other."""
    figure.draw_without_rendering()  # settles the layout, whose height the names' distances are fractions of
    height = axes.get_window_extent().height
    wrapped = ["\n".join(textwrap.wrap(end[0], 24)) or " " for end in ends]
    line = 9.0 * 1.35 * figure.dpi / 72 / height
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((x, y))[1]) for _, _, x, y in ends]
    sizes = [line * (1 + words.count("\n")) for words in wrapped]
    for (_, ink, x, y), words, place in zip(ends, wrapped, _apart(wanted, sizes)):
        axes.annotate(
            words,
            (x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            color=ink,
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": ink, "linewidth": 0.6, "alpha": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
            **PLAIN,
        )


def _apart(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Centres as near to `wanted` as a single sweep finds at which labels of these sizes do not overlap, in 0…1."""
    places = list(wanted)
    order = sorted(range(len(places)), key=lambda i: places[i])
    floor = 0.0
    for i in order:
        places[i] = max(places[i], floor + sizes[i] / 2)
        floor = places[i] + sizes[i] / 2
    ceiling = 1.0
    for i in reversed(order):
        places[i] = min(places[i], ceiling - sizes[i] / 2)
        ceiling = places[i] - sizes[i] / 2
    return places


def save(figure: Figure, out: Path) -> Path:
    """Save whole or not at all."""
    out = Path(out)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=out.suffix.lstrip(".") or "png")
    with replacing(out) as file:
        file.write(drawn.getvalue())
    return out
