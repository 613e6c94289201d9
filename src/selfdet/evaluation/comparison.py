"""The finished cells of a comparison of starts, and the figures that follow from them.

A cell is the dict of its cell.json; AP is in 0…1. Nothing here assumes that all planned cells are there.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdet.evaluation.differences import TAIL, Difference, paired

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SEGMENTATION_KEYS = ("mIoU", "pixel_accuracy")
# Log-average miss rates of boxes, where cells have them: each with its name in a cell's "miss_rate".
MISS_KEYS = {f"MR {name}": name for name in ("all", "reasonable", "small", "heavy_occlusion")}


def judged(scores: Mapping[str, Any]) -> float | None:
    """The score that a network is judged by: AP of a detector, mIoU of a segmenter; None where there is none."""
    value = scores.get("AP")
    return scores.get("mIoU") if value is None else value


@dataclass(frozen=True)
class Comparison:
    """What a comparison has so far.

    `starts`: short name → words, in the order given; the first is what the others are compared with. `cells`: finished
    cells, fine-tuned ones and those that chose a learning rate; `planned`: how many fine-tuned ones there will be.
    `settings`: those that all cells share; `words`: free facts, name → words.
    """

    starts: Mapping[str, str]
    cells: Sequence[Mapping[str, Any]]
    planned: int
    settings: Mapping[str, Any]
    words: Mapping[str, str]

    @property
    def base(self) -> str:
        """The start that the others are compared with."""
        return next(iter(self.starts))

    @property
    def finetuned(self) -> list[Mapping[str, Any]]:
        """The finished cells that were fine-tuned and judged."""
        return [cell for cell in self.cells if cell["kind"] == "finetune"]

    @property
    def score(self) -> str:
        """What the starts are judged by."""
        return "mIoU" if self.settings.get("task") == "segmentation" else "AP"

    @property
    def keys(self) -> tuple[str, ...]:
        """The scores that cells have, the one that they are judged by first."""
        return SEGMENTATION_KEYS if self.score == "mIoU" else KEYS

    @property
    def class_score(self) -> str:
        """The score of a class."""
        return "IoU" if self.score == "mIoU" else "AP"

    def judged_by(self, of: str) -> str:
        """`AP of boxes`; of segmentation `mIoU`."""
        return self.score if self.score == "mIoU" else f"AP of {of}"

    @property
    def kinds(self) -> list[str]:
        """What AP is of: boxes, and masks where a cell has them."""
        return ["boxes", "masks"] if any("mask" in cell for cell in self.finetuned) else ["boxes"]

    @property
    def miss_keys(self) -> list[str]:
        """Those of `MISS_KEYS` that a cell has a figure of."""
        found = [cell["miss_rate"] for cell in self.finetuned if "miss_rate" in cell]
        return [key for key, name in MISS_KEYS.items() if any(rates[name] is not None for rates in found)]

    @property
    def not_missed(self) -> dict[str, str]:
        """Those objects whose miss rate was asked for and can't be measured, and why; the same for all cells."""
        asked = [cell["miss_rate"] for cell in self.finetuned if "miss_rate" in cell]
        return dict(asked[0].get("not_measured", {})) if asked else {}


@dataclass(frozen=True)
class Amount:
    """How much was labelled for some cells.

    `kind` and `value`: a "fraction" of the images, or "shots" of each class; `images`: labelled images, the mean over
    seeds where they differ; `boxes`: their objects, likewise, None where cells don't tell.
    """

    kind: str
    value: float
    images: int
    differs: bool = False
    boxes: int | None = None

    @property
    def words(self) -> str:
        """`20 images`, or `5 of each class (about 14 images)`."""
        count = f"{'about ' if self.differs else ''}{self.images:,} image{'' if self.images == 1 else 's'}"
        return count if self.kind == "fraction" else f"{self.value:g} of each class ({count})"

    @property
    def share(self) -> str:
        """What was asked for: `1 %`, or `5 of each class`."""
        return f"{100 * self.value:g} %" if self.kind == "fraction" else f"{self.value:g} of each class"

    @property
    def slug(self) -> str:
        """For names of files: `0.01`, `5shot`."""
        return f"{self.value:g}" if self.kind == "fraction" else f"{self.value:g}shot"

    def holds(self, cell: Mapping[str, Any]) -> bool:
        """Whether a cell had this amount."""
        return cell.get(self.kind) == self.value


def amounts(comparison: Comparison) -> list[Amount]:
    """The amounts of labels that any finished cell has, fractions before shots, each rising."""
    found: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for cell in comparison.finetuned:
        kind = "fraction" if cell.get("fraction") is not None else "shots"
        found.setdefault((kind, cell[kind]), []).append(cell)
    result = []
    for (kind, value), cells in sorted(found.items(), key=lambda entry: entry[0]):
        images = [int(cell["labels"]) for cell in cells]
        boxes = [int(cell["boxes"]) for cell in cells if cell.get("boxes") is not None]
        differs = len(set(images)) > 1
        mean = round(statistics.fmean(boxes)) if boxes else None
        result.append(Amount(kind, value, round(statistics.fmean(images)), differs, mean))
    return result


def cells_of(comparison: Comparison, start: str, amount: Amount) -> dict[int, Mapping[str, Any]]:
    """Seed → finished cell of one start with one amount of labels."""
    return {cell["seed"]: cell for cell in comparison.finetuned if cell["start"] == start and amount.holds(cell)}


def scores(
    comparison: Comparison,
    start: str,
    amount: Amount,
    key: str | None = None,
    of: str = "boxes",
    name: str | None = None,
) -> dict[int, float]:
    """Seed → score in 0…1 of one start with one amount of labels; seeds without this score are left out.

    `key`: one of `comparison.keys` or `MISS_KEYS`, what the starts are judged by if None; `of`: boxes or masks;
    `name`: a class, whose AP, or IoU, it then is.
    """
    found = {}
    for seed, cell in sorted(cells_of(comparison, start, amount).items()):
        own = cell.get("mask", {}) if of == "masks" else cell
        if key in MISS_KEYS:
            own = {key: own.get("miss_rate", {}).get(MISS_KEYS[key])}
        value = own.get(key or comparison.score) if name is None else own.get("per_class", {}).get(name)
        if value is not None:
            found[seed] = float(value)
    return found


@dataclass(frozen=True)
class Row:
    """The scores of one start with one amount of labels: `values` maps a key to (mean, sample standard deviation).

    The deviation is None of one seed, the pair where there is no score; `n`: seeds with an AP.
    """

    start: str
    amount: Amount
    of: str
    n: int
    values: Mapping[str, tuple[float, float | None] | None]


def table(comparison: Comparison) -> list[Row]:
    """A row for every amount, start and kind that has a finished cell."""
    rows = []
    for amount in amounts(comparison):
        for start in comparison.starts:
            if not cells_of(comparison, start, amount):
                continue
            for of in comparison.kinds:
                keys = [*comparison.keys, *comparison.miss_keys]
                found = {key: list(scores(comparison, start, amount, key, of).values()) for key in keys}
                values = {key: _spread(each) for key, each in found.items()}
                rows.append(Row(start, amount, of, len(found[comparison.score]), values))
    return rows


def _spread(values: Sequence[float]) -> tuple[float, float | None] | None:
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def difference(
    comparison: Comparison,
    start: str,
    amount: Amount,
    of: str = "boxes",
    *,
    base: str | None = None,
    name: str | None = None,
    key: str | None = None,
    tail: float = TAIL,
) -> Difference | None:
    """AP of `start` minus that of `base` (the first start if None) over the seeds that both have.

    `name`: a class, whose AP it then is; `key`: another score, see `scores`; `tail`: see `paired`.
    """
    first = scores(comparison, comparison.base if base is None else base, amount, key, of, name)
    return paired(first, scores(comparison, start, amount, key, of, name), tail)


def classes(comparison: Comparison) -> list[str]:
    """The classes that any finished cell has an AP of, in order of the first cell that names them."""
    found = (name for cell in comparison.finetuned for name in cell.get("per_class", {}))
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Rate:
    """The learning rate of one start.

    `used`: those of its finished cells with each amount of labels, which follow the batch size. `tried`: (rate,
    multiple of the usual rate or None, AP or None) of the cells that chose it, rising; empty where it was given.
    """

    start: str
    used: Sequence[tuple[Amount, Sequence[float]]]
    tried: Sequence[tuple[float, float | None, float | None]]

    @property
    def best(self) -> float | None:
        """The tried rate with the highest AP, of equal ones the lowest; None where nothing was tried or found."""
        known = [(ap, -rate) for rate, _, ap in self.tried if ap is not None]
        return -max(known)[1] if known else None

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or highest of several tried: others outside may be better."""
        return len(self.tried) > 1 and self.best in (self.tried[0][0], self.tried[-1][0])


def rates(comparison: Comparison) -> list[Rate]:
    """The learning rate of every start that has a finished cell."""
    result = []
    own = amounts(comparison)
    for start in comparison.starts:
        cells_with = {amount: cells_of(comparison, start, amount).values() for amount in own}
        used = [(amount, sorted({float(cell["lr"]) for cell in each})) for amount, each in cells_with.items() if each]
        cells = [cell for cell in comparison.cells if cell["start"] == start and cell["kind"] == "rate"]
        tried = [(float(cell["lr"]), cell.get("multiple"), judged(cell)) for cell in cells]
        if used or tried:
            result.append(Rate(start, used, sorted(tried, key=lambda each: each[0])))
    return result
