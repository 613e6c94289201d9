"""What a setting gives to detection and to what features tell apart, over its values, one panel below the other."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from selfdet.drawing.curves import INK, PLAIN, QUIET, RULE, ink_of, save
from selfdet.errors import UserError
from selfdet.evaluation.probe import CLASSIFIERS, TASKS

Series = Mapping[str, Mapping[float, Sequence[float]]]
"""Name of a line → value of the setting → what was measured, in percent."""


def plot_trade(
    panels: Mapping[str, Series],
    out: Path,
    *,
    title: str,
    x_label: str,
    levels: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Path:
    """Draw a panel for each label of a y axis, with a line through the means of each series; returns `out` (PNG).

    Every value is a dot; where there are two and more, a bar spans ± one sample standard deviation. `levels`: label →
    name → values of what has no such setting, as a dashed line.
    """
    figure = Figure(figsize=(6.2, 0.7 + 2.4 * len(panels)), dpi=170, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold", color=INK, **PLAIN)
    for place, (label, series) in enumerate(panels.items()):
        axes = figure.add_subplot(len(panels), 1, place + 1)
        for number, (name, points) in enumerate(series.items()):
            places = sorted(x for x, values in points.items() if values)
            means = [statistics.fmean(points[x]) for x in places]
            spreads = [statistics.stdev(points[x]) if len(points[x]) > 1 else math.nan for x in places]
            ink, sign = ink_of(number), "osD^v"[number % 5]
            axes.errorbar(
                places, means, yerr=spreads, color=ink, marker=sign, markersize=5, linewidth=1.7, capsize=3, label=name
            )
            for x in places:
                axes.plot([x] * len(points[x]), points[x], sign, color=ink, markersize=2.6, alpha=0.6)
        for number, (name, values) in enumerate((levels or {}).get(label, {}).items()):
            if values:
                dashes = ((5, 3), (1.5, 2))[number % 2]
                mean = statistics.fmean(values)
                axes.axhline(mean, color=QUIET, linestyle=(0, dashes), linewidth=1.1, label=name)
        axes.set_ylabel(label, fontsize=9, color=INK, **PLAIN)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)
        else:
            axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", va="center", color=QUIET)
        if place == len(panels) - 1:
            axes.set_xlabel(x_label, fontsize=9, color=INK, **PLAIN)
    return save(figure, out)


def draw_trade(
    settings: Mapping[str, float], results: Path, probe: Path, out: Path, *, fraction: float, x_label: str = "λ"
) -> Path:
    """Draw detection and probes over a setting such as λ, of starts that a comparison and a probe had as `--init`.

    Dashed: the untrained network, where the comparison had `scratch` and the probe one architecture.

    Args:
        settings: each start as written after `--init` in both commands, with its value of the setting.
        results: results.json of `selfdet compare`.
        probe: probe.json of `selfdet probe`.
        out: PNG file to write.
        fraction: label fraction of the comparison to show.
        x_label: name of the setting.

    Raises: UserError when a file is not what it should be, or lacks one of the starts.
    """
    cells, models = _entries(results, "cells"), _entries(probe, "models")
    detection: dict[float, list[float]] = {}
    for init, value in settings.items():
        detection[value] = _scores(cells, init, fraction)
        if not any(cell["init"] == init and _is(cell, fraction) for cell in cells):
            raise UserError(
                f"{results} has no cell of {init} with {100 * fraction:g} % of the labels", "Compare it too"
            )
    told = {model["init"]: model["scores"] for model in models}
    if missing := [init for init in settings if init not in told]:
        raise UserError(f"{probe} has no {missing[0]}", "Probe it too, written in the same way")
    first = f"AP with {100 * fraction:g} % of labels, %"
    panels: dict[str, Series] = {first: {"detection": detection}}
    levels = {first: {"from scratch": _scores(cells, "scratch", fraction)}}
    untrained = [model["scores"] for model in models if model["init"] is None]
    for task in told[next(iter(settings))]:
        label = f"probe of {TASKS[task]},\nbalanced accuracy, %"
        panels[label] = {
            words: {value: _percent(told[init][task][kind]) for init, value in settings.items()}
            for kind, words in CLASSIFIERS.items()
        }
        if len(untrained) == 1:
            levels[label] = {
                f"untrained, {words}": _percent(untrained[0][task][kind]) for kind, words in CLASSIFIERS.items()
            }
    return plot_trade(panels, out, title="Detection and what features tell apart", x_label=x_label, levels=levels)


def _scores(cells: Sequence[Mapping[str, Any]], init: str, fraction: float) -> list[float]:
    """The AP, %, of each seed of a start."""
    found = [cell["AP"] for cell in cells if cell["init"] == init and _is(cell, fraction)]
    return [100 * score for score in found if score is not None]


def _percent(score: Mapping[str, Any]) -> list[float]:
    return [100 * each for each in score["balanced_accuracy"]["values"]]


def _is(cell: Mapping[str, Any], fraction: float) -> bool:
    """Whether this is a fine-tuning with that fraction of the labels."""
    return cell["kind"] == "finetune" and cell.get("fraction") is not None and math.isclose(cell["fraction"], fraction)


def _entries(file: Path, key: str) -> list[dict[str, Any]]:
    """Raises: UserError when the file can't be read or has no such list."""
    try:
        entries = json.loads(Path(file).read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file} is no file with {key} that can be read", "Name the JSON that selfdet wrote") from None
    return list(entries)
