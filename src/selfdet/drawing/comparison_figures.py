"""The charts of a comparison: bars with gains, AP by labels with what they are worth, AP by step."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from selfdet.drawing.curves import INK, PLAIN, QUIET, canvas, ink_of, label_ends, plot_curves, save
from selfdet.evaluation.comparison import Amount, Comparison, amounts, difference, scores
from selfdet.evaluation.differences import points
from selfdet.evaluation.savings import Equivalent, curves, labels_curve, mean_curve

MANY = 12  # bars from which on the chart is wider than a phone

Names = Mapping[str, str]


def plot_gains(comparison: Comparison, names: Names, out: Path, of: str = "boxes") -> bool:
    """Draw a bar for each start and amount with its gain over the first start above it; returns whether it is wide.

    A bar is the mean, a dot a seed. A gain of which no difference may be claimed is grey.
    """
    groups, count = amounts(comparison), len(comparison.starts)
    wide = len(groups) * count > MANY
    width = min(16.0, 1.0 + 0.4 * len(groups) * (count + 1)) if wide else 6.2
    title = f"{comparison.judged_by(of)}, and what each start adds to {names[comparison.base]}"
    figure, axes = canvas(title, 4.3, width)
    top, bar = 0.0, 0.84 / count
    for group, amount in enumerate(groups):
        for place, start in enumerate(comparison.starts):
            values = [100 * value for value in scores(comparison, start, amount, of=of).values()]
            if not values:
                continue
            x, mean, ink = group + (place - (count - 1) / 2) * bar, statistics.fmean(values), ink_of(place)
            axes.bar(x, mean, width=0.9 * bar, color=ink, alpha=0.4)
            axes.plot([x - 0.45 * bar, x + 0.45 * bar], [mean, mean], color=ink, linewidth=2)
            if len(values) > 1:
                spread = [x + bar * 0.5 * (k / (len(values) - 1) - 0.5) for k in range(len(values))]
                axes.plot(spread, values, "o", color=ink, markersize=3.6, markeredgecolor="white", markeredgewidth=0.5)
            gain = difference(comparison, start, amount, of) if place else None
            found = gain is not None and gain.found
            axes.annotate(
                f"{mean:.1f}" if gain is None else points(gain.mean),
                (x, max(values)),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                color=INK if found or not place else QUIET,
                weight="bold" if found else "normal",
                fontsize=8.5,
            )
            top = max(top, *values)
    ticks = [
        f"{amount.words}\n{amount.share}" if amount.kind == "fraction" else amount.words.replace(" (", "\n(")
        for amount in groups
    ]
    axes.set_xticks(range(len(groups)), ticks, **PLAIN)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, max(len(groups), 1) - 0.5)
    axes.set_ylim(0, 1.1 * top or 1)
    axes.set_ylabel(f"{comparison.judged_by(of)}, %", color=INK, **PLAIN)
    _legend(figure, [names[start] for start in comparison.starts], width)
    save(figure, out)
    return wide


def _legend(figure: Figure, names: Sequence[str], width: float) -> None:
    """A patch and a name for each start, under the chart."""
    wrapped = ["\n".join(textwrap.wrap(name, 34)) or " " for name in names]
    room = int(width / (0.55 + 0.085 * max(len(line) for name in wrapped for line in name.split("\n"))))
    patches = [Patch(facecolor=ink_of(place), alpha=0.6) for place in range(len(names))]
    legend = figure.legend(
        patches,
        wrapped,
        loc="outside lower center",
        ncols=max(1, min(len(names), room)),
        frameon=False,
        fontsize=9,
        handlelength=1.1,
        columnspacing=1.4,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def plot_labels(
    comparison: Comparison, names: Names, own: Sequence[Amount], read: Sequence[Equivalent], out: Path
) -> None:
    """Draw AP against labelled images on a logarithmic scale, with the seeds as dots.

    `own`: amounts of one kind; `read`: read-outs to be drawn as arrows from a start's AP to where the first start has
    the same.
    """
    figure, axes = canvas(f"{comparison.score} with more labels", 4.3)
    ends = []
    base = dict(labels_curve(comparison, comparison.base, own))
    for place, start in enumerate(comparison.starts):
        line = [(images, 100 * ap) for images, ap in labels_curve(comparison, start, own)]
        if not line:
            continue
        ink = ink_of(place)
        axes.plot(*zip(*line), color=ink, linewidth=1.8, marker="o", markersize=4.5)
        for amount in own:
            seeds = [100 * ap for ap in scores(comparison, start, amount).values()]
            axes.plot([amount.images] * len(seeds), seeds, "_", color=ink, markersize=7, alpha=0.55)
        ends.append((names[start], ink, *line[-1]))
    for each in read:
        height = 100 * (base[each.amount.images] + each.difference.mean)
        arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.1, "shrinkA": 4, "shrinkB": 0, "mutation_scale": 9}
        axes.annotate("", (each.labels, height), (each.amount.images, height), arrowprops=arrow)
        axes.annotate(
            each.words(each.labels).replace("about ", "≈ "),
            (each.labels, height),
            xytext=(2, -5),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color=INK,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_ticks([amount.images for amount in own])))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.margins(x=0.04)
    arrows = f"; arrows: where {names[comparison.base]} has the same {comparison.score}" if read else ""
    axes.set_xlabel(f"labelled images, logarithmic\n(dashes: each seed{arrows})", color=INK, **PLAIN)
    axes.set_ylabel(f"{comparison.score}, %", color=INK, **PLAIN)
    label_ends(figure, axes, ends)
    save(figure, out)


def _ticks(images: Sequence[int]) -> list[int]:
    """The numbers that have room for their names on a logarithmic scale."""
    ordered = sorted(set(images))
    kept = ordered[-1:]
    for number in reversed(ordered[:-1]):
        if math.log(kept[-1] / number) > 0.09 * math.log(ordered[-1] / ordered[0]):
            kept.append(number)
    return kept


def plot_steps(comparison: Comparison, names: Names, amount: Amount, out: Path) -> bool:
    """Draw AP against step with one amount of labels, the mean of the seeds over their range; False without curves."""
    lines: dict[str, list[tuple[float, float | None]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    for start, name in names.items():
        own = [dict(curve) for curve in curves(comparison, start, amount).values()]
        mean = mean_curve([list(curve.items()) for curve in own])
        lines[name] = [(step, 100 * ap) for step, ap in mean]
        if len(own) > 1:
            spread = {step: [100 * curve[step] for curve in own] for step, _ in mean}
            bands[name] = [(step, min(aps), max(aps)) for step, aps in spread.items()]
    if not any(lines.values()):
        return False
    plot_curves(
        lines,
        out,
        title=f"Fine-tuning with {amount.words}",
        x_label="optimiser step",
        y_label=f"{comparison.score} on other training images, %",
        bands=bands,
    )
    return True
