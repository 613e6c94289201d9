"""The rows of a comparison's tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from selfdet.drawing.report import Cell, Table
from selfdet.evaluation.comparison import Amount, Comparison, Rate, classes, difference, scores, table
from selfdet.evaluation.differences import Difference, points
from selfdet.evaluation.savings import Equivalent, Reach

CLASSES = 20  # that have a line each; of more those that gain most and least
SHOWN = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "small",
    "APm": "medium",
    "APl": "large",
    "pixel_accuracy": "right pixels",
}

Names = Mapping[str, str]
Rows = list[list[Cell]]


def score_table(comparison: Comparison, names: Names) -> Table:
    """Mean ± sample standard deviation of every score that was measured."""
    rows = table(comparison)
    keys = [
        key for key in (*comparison.keys, *comparison.miss_keys) if any(row.values[key] is not None for row in rows)
    ]
    cells: Rows = [
        [row.amount.words, names[row.start], row.of, row.n, *(_spread(row.values[key]) for key in keys)] for row in rows
    ]
    header = ["labels", "start", "of", "n", *(SHOWN.get(key, key.replace("_", " ")) for key in keys)]
    if len(comparison.kinds) == 1:
        header, cells = [*header[:2], *header[3:]], [[*row[:2], *row[3:]] for row in cells]
    measure = "COCO AP" if comparison.score == "AP" else "mIoU and right pixels"
    about = f"{measure} in %, mean ± sample standard deviation over n seeds."
    if comparison.miss_keys:
        about += " MR: the log-average miss rate, of which less is better."
    return Table(header, cells, about)


def _spread(value: tuple[float, float | None] | None) -> str | None:
    if value is None:
        return None
    mean, deviation = value
    return f"{100 * mean:.1f}" if deviation is None else f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def worth_rows(worth: Sequence[Equivalent], names: Names) -> Rows:
    """What each amount is worth in labels of the first start, with bounds; no bounds of one seed."""
    rows: Rows = []
    for each in worth:
        equal, low, high = (each.words(value).replace(" ", "\u00a0") for value in (each.labels, each.low, each.high))
        bounds: list[Cell] = [None, None] if each.difference.n == 1 else [low, high]
        rows.append([each.amount.words, names[each.start], equal, *bounds, each.difference.n])
    return rows


def steps_rows(found: Sequence[Reach], names: Names) -> Rows:
    """Steps to the AP at which the first start ends, and how many times as fast that is."""
    rows: Rows = []
    for each in found:
        times = None if not each.steps else f"{each.base_steps / each.steps:.1f}"
        steps = "not reached" if each.steps is None else f"{each.steps:,.0f}"
        own = ", ".join("not reached" if step is None else f"{step:,.0f}" for step in each.by_seed)
        target = f"{100 * each.target:.1f}"
        rows.append([each.amount.words, names[each.start], target, f"{each.base_steps:,.0f}", steps, times, own])
    return rows


def class_rows(comparison: Comparison, amount: Amount, by: str | None) -> tuple[Rows, str]:
    """A row for each class, and which classes these are in words, if not all.

    With many, those to which the start `by` adds most and least.
    """
    others = list(comparison.starts)[1:]
    found: dict[str, list[Difference | None]] = {
        name: [difference(comparison, start, amount, name=name) for start in others] for name in classes(comparison)
    }
    measured = {name: each for name, each in found.items() if any(each)}
    if not measured:
        return [], ""
    place = others.index(by) if by in others else 0
    order = sorted(measured, key=lambda name: -_mean(measured[name][place]))
    which = ""
    if len(order) > CLASSES:
        which = f"; the {CLASSES // 2} classes that gain most and least of {len(order)}"
        order = order[: CLASSES // 2] + order[-CLASSES // 2 :]
    rows: Rows = []
    for name in order:
        own = list(scores(comparison, comparison.base, amount, name=name).values())
        rows.append([name, f"{100 * statistics.fmean(own):.1f}", *(_bounded(each) for each in measured[name])])
    return rows, which


def _mean(found: Difference | None) -> float:
    return -math.inf if found is None else found.mean


def _bounded(found: Difference | None) -> str | None:
    """`+3.1 (1.9…4.3)` and a mark where no side of it is 0."""
    if found is None:
        return None
    if found.n == 1:
        return f"{points(found.mean)} (one seed)"
    mark = " ●" if found.found else ""
    return f"{points(found.mean)} ({points(found.low)}…{points(found.high)}){mark}"


def rate_rows(found: Sequence[Rate], names: Names, score: str = "AP") -> Rows:
    """The learning rate of every start with what was tried for it, and why it was taken."""
    rows: Rows = []
    for each in found:
        tried = ", ".join(
            f"{rate:g}{'' if multiple is None else f' ({multiple:g} × usual)'}: "
            f"{'none' if ap is None else f'{100 * ap:.1f}'}"
            for rate, multiple, ap in each.tried
        )
        why = "given" if not each.tried else f"highest {score}" if each.best is not None else f"none had an {score}"
        if each.at_edge:
            why += "; at the edge of the grid: one beyond it may suit better"
        used = "; ".join(f"{', '.join(f'{rate:g}' for rate in lr)} with {amount.words}" for amount, lr in each.used)
        same = {rate for _, lr in each.used for rate in lr}
        rows.append([names[each.start], f"{same.pop():g}" if len(same) == 1 else used or None, why, tried or None])
    return rows
