"""What a start saves: labels for the same AP, and steps for the same AP. Nothing is extrapolated."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from selfdet.evaluation.comparison import Amount, Comparison, amounts, cells_of, difference, scores
from selfdet.evaluation.differences import Difference, labels_for, steps_to_reach

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Equivalent:
    """With how many labelled images the first start has the AP that `start` has with `amount`.

    `low` and `high` are the same for the bounds of the paired difference. math.inf stands for more than the most
    that was measured, 0 for fewer than the fewest. `most`, `fewest`: these.
    """

    start: str
    amount: Amount
    difference: Difference
    labels: float
    low: float
    high: float
    fewest: int
    most: int

    @property
    def inside(self) -> bool:
        """Whether `labels` is a number between those that were measured."""
        return 0 < self.labels < math.inf

    def words(self, labels: float) -> str:
        """`about 160`, or on which side of what was measured."""
        if labels == math.inf:
            return f"more than {self.most:,}"
        return f"about {_rounded(labels):,}" if labels else f"fewer than {self.fewest:,}"


def equivalents(comparison: Comparison, of: str = "boxes") -> list[Equivalent]:
    """The labels that every other start is worth at every amount, where the first start has two amounts to read off.

    Between two amounts the first start's AP is taken to be straight in the logarithm of the number of images.
    """
    result = []
    for kind in ("fraction", "shots"):
        own = [amount for amount in amounts(comparison) if amount.kind == kind]
        curve = labels_curve(comparison, comparison.base, own, of)
        if len(curve) < 2:
            continue
        fewest, most = round(curve[0][0]), round(curve[-1][0])
        for amount in own:
            places = [place for place, (images, _) in enumerate(curve) if images == amount.images]
            for start in list(comparison.starts)[1:]:
                found = difference(comparison, start, amount, of)
                if found is None or not places:
                    continue
                labels, low, high = (_read(curve, places[0], by) for by in (found.mean, found.low, found.high))
                result.append(Equivalent(start, amount, found, labels, low, high, fewest, most))
    return result


def labels_curve(comparison: Comparison, start: str, own: Sequence[Amount], of: str = "boxes") -> Curve:
    """(labelled images, mean AP) of one start, images rising."""
    found = {amount.images: scores(comparison, start, amount, of=of) for amount in own}
    return [(float(images), statistics.fmean(each.values())) for images, each in sorted(found.items()) if each]


def _read(curve: Curve, place: int, by: float) -> float:
    """The labels at which the curve is `by` above or below its point at `place`, the nearest on that side."""
    value = curve[place][1] + by
    if by >= 0:
        found = labels_for(curve[place:], value)
        return math.inf if found is None else found
    for first in range(place - 1, -1, -1):
        found = labels_for(curve[first : place + 1], value)
        if found is not None:
            return found
    return 0.0


def _rounded(labels: float) -> int:
    """Two figures: more would not be known."""
    digits = max(0, math.floor(math.log10(labels)) - 1)
    return int(round(labels, -digits))


@dataclass(frozen=True)
class Reach:
    """After how many steps `start` has the AP at which the first start ends, by the means of the seeds both have.

    `target`: this AP on images of the curve; `base_steps`: when the first start itself is there first; `last`: its last
    measured step. `steps`: None if not reached. `by_seed`: steps of every seed, to its own target.
    """

    start: str
    amount: Amount
    target: float
    base_steps: float
    last: float
    steps: float | None
    by_seed: Sequence[float | None]


def reaches(comparison: Comparison) -> list[Reach]:
    """The faster-convergence figures of every other start and amount whose cells have curves."""
    result = []
    for amount in amounts(comparison):
        base = curves(comparison, comparison.base, amount)
        for start in list(comparison.starts)[1:]:
            other = curves(comparison, start, amount)
            seeds = sorted(base.keys() & other.keys())
            first, second = (mean_curve([each[seed] for seed in seeds]) for each in (base, other))
            if not first or not second or first[-1][1] <= 0:
                continue
            target = first[-1][1]
            itself = steps_to_reach(first, target)
            by_seed = [steps_to_reach(other[seed], base[seed][-1][1]) for seed in seeds]
            result.append(
                Reach(
                    start,
                    amount,
                    target,
                    first[-1][0] if itself is None else itself,
                    first[-1][0],
                    steps_to_reach(second, target),
                    by_seed,
                )
            )
    return result


def curves(comparison: Comparison, start: str, amount: Amount) -> dict[int, Curve]:
    """Seed → (step, AP) as training went on; seeds without a curve are left out."""
    found = {}
    for seed, cell in sorted(cells_of(comparison, start, amount).items()):
        points = sorted((float(step), float(ap)) for step, ap in cell.get("curve") or () if ap is not None)
        if points:
            found[seed] = points
    return found


def mean_curve(several: Sequence[Curve]) -> Curve:
    """The mean of curves at the steps that all of them have."""
    if not several:
        return []
    tables = [dict(curve) for curve in several]
    steps = sorted(set.intersection(*(set(each) for each in tables)))
    return [(step, statistics.fmean(each[step] for each in tables)) for step in steps]
