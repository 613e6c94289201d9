"""Which places of two views are taken for the same: lines between the views, and maps of one point's similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from selfdet.drawing.curves import INK, PLAIN, save
from selfdet.evaluation.correspondence import Matches, Pair

# Without the darkest blues, which no photograph shows.
COLOURS = LinearSegmentedColormap.from_list("similarity", colormaps["plasma"](np.linspace(0.3, 1.0, 64)))
GAP = 0.05  # between the two views of a pair, of a view's side
SIDE = 1.55  # of a view, inches
# How a match is drawn without colour: right, beside the true cell, elsewhere.
RIGHT, BESIDE, WRONG = 0, 1, 2
SIGNS: tuple[dict[str, Any], ...] = (
    {"linestyle": "-", "marker": "o", "linewidth": 1.8},
    {"linestyle": "-", "marker": "s", "linewidth": 0.9},
    {"linestyle": (0, (2.2, 1.6)), "marker": "X", "linewidth": 1.1},
)
MEANING = (
    "bold, round ends: the cell that shows the same point (right)",
    "thin, square ends: a cell beside it",
    "dashed, crossed ends: elsewhere (wrong)",
)


@dataclass(frozen=True)
class Row:
    """What one backbone makes of the pairs that are shown, in their order."""

    name: str
    found: Sequence[Matches]


def draw_matches(pairs: Sequence[Pair], rows: Sequence[Row], out: Path, threshold: float) -> Path:
    """Draw a row for each backbone and a column for each pair: lines between mutual nearest cells; returns `out` (PNG).

    A line's colour is its similarity, from `threshold` (lower ones are left out) to 1. Where the truth is known, lines
    to the cell of the same point are bold with round ends, to one beside it thin with square ends, others dashed with
    crosses. Level lines of one row would hide each other, and are bent apart.
    """
    shades = Normalize(threshold, 1.0)
    known = any(pair.known for pair in pairs)
    columns = 3 if len(pairs) > 2 else 1  # of the legend, which a narrow sheet would cut off
    figure, panels = _sheet(pairs, rows, "Mutual nearest cells", 0.35 + 0.2 * (3 // columns if known else 0))
    for row, line in zip(rows, panels):
        for pair, found, axes in zip(pairs, row.found, line):
            _show(axes, pair)
            kept = found.values >= threshold
            kinds, bent = match_kinds(found), bends(found, kept)
            # The least similar first, so that the surest lie on top.
            for place in reversed(kept.nonzero().flatten().tolist()):
                start, end = (found.centres(cells[place]).tolist() for cells in (found.query, found.key))
                ink = COLOURS(shades(float(found.values[place])))
                _line(axes, pair, start, end, ink, SIGNS[RIGHT if kinds is None else kinds[place]], bent[place])
            right = None if kinds is None else sum(kinds[place] == RIGHT for place in kept.nonzero().flatten().tolist())
            axes.set_xlabel(_tally(int(kept.sum()), right, threshold), **_small())
    _colour_bar(figure, panels, shades, "similarity")
    if known:
        signs = [Line2D([], [], color=INK, label=words, markersize=5, **sign) for words, sign in zip(MEANING, SIGNS)]
        figure.legend(handles=signs, loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)
    return save(figure, out)


def draw_heat(pair: Pair, rows: Sequence[Row], cells: Sequence[int], out: Path) -> Path:
    """Draw for each backbone how similar every key cell is to one query cell of a pair; returns `out` (PNG).

    `cells`: the query cell on each backbone's grid, framed. In the key view a frame marks the most similar cell and a
    ring the place that shows the same point, where it is known and seen there. Every map has its own scale, as
    backbones differ in how similar unlike things are to them.
    """
    title, foot = "Similarity to the framed cell of the left view", 0.5 if pair.known else 0.3
    figure, panels = _sheet([pair], rows, title, foot, width=1.35)
    ringed = False
    for row, cell, (axes,) in zip(rows, cells, panels):
        _show(axes, pair)
        (found,) = row.found
        heat = found.similarity[cell].reshape(found.grid, found.grid).numpy()
        drawn = axes.imshow(heat, extent=_place(pair, 1), cmap=COLOURS, alpha=0.62, interpolation="nearest", zorder=2)
        best = int(found.similarity[cell].argmax())
        for side, shown in ((0, cell), (1, best)):
            _frame(axes, pair, side, shown, found.grid)
        if found.true is not None and found.points is not None and found.true[cell] >= 0:
            ringed = True
            x, y = found.points[cell].tolist()
            for width, ink in ((3.2, "black"), (1.6, "white")):
                centre = (x + _offset(pair, 1), y)
                axes.add_patch(Circle(centre, pair.size * 0.035, fill=False, edgecolor=ink, linewidth=width, zorder=5))
        words = f"most similar (framed): {float(heat.flat[best]):.2f}, median {float(np.median(heat)):.2f}"
        unseen = "" if found.true is None or found.true[cell] >= 0 else "\nthe right view does not show this point"
        axes.set_xlabel(words + unseen, **_small())
        _bar(figure, axes, drawn)
    if ringed:
        figure.supxlabel("ring: where the same point really is", x=0.01, ha="left", **_small())
    return save(figure, out)


def _sheet(
    pairs: Sequence[Pair], rows: Sequence[Row], title: str, foot: float, width: float = 1.0
) -> tuple[Figure, list[list[Axes]]]:
    size = (2.2 * SIDE * len(pairs) * width + 1.1, (SIDE + 0.42) * len(rows) + foot + 0.35)
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    panels = figure.subplots(len(rows), len(pairs), squeeze=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold", color=INK)
    for row, line in zip(rows, panels):
        line[0].set_ylabel(row.name, fontsize=10, color=INK, **PLAIN)
    for pair, axes in zip(pairs, panels[0]):
        axes.set_title(pair.name, fontsize=8.5, color=INK, **PLAIN)
    return figure, [list(line) for line in panels]


def _offset(pair: Pair, side: int) -> float:
    return side * pair.size * (1 + GAP)


def _place(pair: Pair, side: int) -> tuple[float, float, float, float]:
    left = _offset(pair, side)
    return left, left + pair.size, pair.size, 0


def _show(axes: Axes, pair: Pair) -> None:
    """Both views side by side, in view pixels; those of the second are `_offset` to the right."""
    for side, view in enumerate((pair.views.query, pair.views.key)):
        axes.imshow(view.permute(1, 2, 0).numpy(), extent=_place(pair, side), zorder=1)
    axes.set_xlim(0, _offset(pair, 1) + pair.size)
    axes.set_ylim(pair.size, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def match_kinds(found: Matches) -> list[int] | None:
    """Of each match whether it is RIGHT, BESIDE the true cell or WRONG; None where nobody knows."""
    hits, beside = found.hits, found.beside
    if hits is None or beside is None:
        return None
    return [RIGHT if hit else BESIDE if near else WRONG for hit, near in zip(hits.tolist(), beside.tolist())]


def bends(found: Matches, kept: Tensor) -> list[float]:
    """How far down the middle of each match's line is bent, view pixels, so that level lines of one row lie apart.

    `kept` (M,) bool: which matches are drawn. All stay nearer to their own row of cells than to another.
    """
    bent, grid = [0.0] * len(kept), found.grid
    rows: dict[int, list[int]] = {}
    for place in kept.nonzero().flatten().tolist():
        query, key = int(found.query[place]), int(found.key[place])
        if query // grid == key // grid:
            rows.setdefault(query // grid, []).append(place)
    for places in rows.values():
        for number, place in enumerate(sorted(places, key=lambda place: int(found.query[place]))):
            bent[place] = (number - (len(places) - 1) / 2) / len(places) * 0.9 * found.size / grid
    return bent


def _line(
    axes: Axes,
    pair: Pair,
    start: Sequence[float],
    end: Sequence[float],
    ink: Any,
    sign: dict[str, Any],
    bend: float,
) -> None:
    along = np.linspace(0, 1, 33 if bend else 2)
    x = start[0] + along * (end[0] + _offset(pair, 1) - start[0])
    y = start[1] + along * (end[1] - start[1]) + 4 * bend * along * (1 - along)
    under = {**sign, "linewidth": sign["linewidth"] + 1.2, "marker": ""}
    axes.plot(x, y, color="black", alpha=0.5, zorder=3, **under)  # a dark edge: it has to be seen on any ground
    ends: dict[str, Any] = {"markevery": [0, len(x) - 1], "markeredgecolor": "black", "markeredgewidth": 0.5}
    axes.plot(x, y, color=ink, zorder=4, markersize=4.2, **ends, **sign)


def _frame(axes: Axes, pair: Pair, side: int, cell: int, grid: int) -> None:
    step = pair.size / grid
    corner = (cell % grid * step + _offset(pair, side), cell // grid * step)
    for width, ink in ((3.4, "black"), (1.8, "white")):
        axes.add_patch(Rectangle(corner, step, step, fill=False, edgecolor=ink, linewidth=width, zorder=4))


def _tally(matches: int, hits: int | None, threshold: float) -> str:
    if not matches:
        return f"none of at least {threshold:g}"
    return f"{matches} of at least {threshold:g}" + ("" if hits is None else f", {hits} right")


def _small() -> dict[str, Any]:
    return {"fontsize": 8.5, "color": INK, **PLAIN}


def _colour_bar(figure: Figure, panels: list[list[Axes]], shades: Normalize, label: str) -> None:
    from matplotlib.cm import ScalarMappable

    every = [axes for line in panels for axes in line]
    bar = figure.colorbar(ScalarMappable(shades, COLOURS), ax=every, fraction=0.025, pad=0.01, aspect=30)
    bar.set_label(label, fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8)


def _bar(figure: Figure, axes: Axes, drawn: Any) -> None:
    bar = figure.colorbar(drawn, ax=axes, fraction=0.03, pad=0.01)
    bar.ax.tick_params(labelsize=7.5)
