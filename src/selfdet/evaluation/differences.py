"""Whether one start is better than another: differences between runs of one seed, and what may be said of them.

AP is in 0…1 here and in points (percent) in words.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

ENOUGH = 5  # seeds from which an interval is given; of fewer only what was seen
TAIL = 0.025  # of the chance left on each side of an interval, which makes it one of 95 %


@dataclass(frozen=True)
class Difference:
    """The mean of `n` paired differences with its bounds.

    From five pairs on `low`…`high` is the 95 % interval of the mean, below that the range of the differences seen.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def is_interval(self) -> bool:
        """Whether the bounds are an interval, not a range."""
        return self.n >= ENOUGH

    @property
    def found(self) -> bool:
        """Whether all of `low`…`high` lies on one side of 0, and there is more than one pair."""
        return self.n > 1 and (self.low > 0 or self.high < 0)


def paired(base: Mapping[int, float], other: Mapping[int, float], tail: float = TAIL) -> Difference | None:
    """`other` − `base` over the seeds that both have, None where they share none.

    Both map a seed to its score. The interval is Student's, of the mean over seeds: it holds for new seeds on the same
    evaluation images and says nothing about other images. Differences of equal size give an interval without width.
    `tail`: the chance left on each side of the interval.
    """
    differences = [other[seed] - base[seed] for seed in sorted(base.keys() & other.keys())]
    if not differences:
        return None
    mean, n = statistics.fmean(differences), len(differences)
    if n < ENOUGH:
        return Difference(mean, min(differences), max(differences), n)
    half = float(student.ppf(1 - tail, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def verdict(difference: Difference | None, labels: str, score: str = "AP") -> str:
    """What may be said of a difference of a score in words; `labels` says with how many labels, such as "10 images"."""
    if difference is None:
        return f"not measured with {labels}"
    mean, low, high = (points(value) for value in (difference.mean, difference.low, difference.high))
    if difference.n == 1:
        return f"{mean} {score} with {labels}, one seed: too few to tell from chance"
    kind = "95 %" if difference.is_interval else "range"
    bounds = f"{kind} {low}…{high}, n = {difference.n}"
    if difference.found:
        return f"{mean} {score} with {labels}, {bounds}"
    return f"no difference found with {labels} ({mean} {score}, {bounds})"


def points(value: float) -> str:
    """A difference of AP in points with its sign: +3.1, −0.4, 0.0."""
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def steps_to_reach(curve: Sequence[tuple[float, float]], value: float) -> float | None:
    """The step at which a curve of (step, AP), steps rising, first is at `value`; None if never.

    Between two measured steps it is taken to be straight.
    """
    return _crossing(curve, value)


def labels_for(curve: Sequence[tuple[float, float]], value: float) -> float | None:
    """How many labels give an AP of `value`, of a curve of (labels, AP), labels above 0 and rising.

    AP is taken to be straight in the logarithm of the number of labels between two measured numbers; None outside of
    what was measured: nothing is extrapolated.
    """
    if not curve or value < curve[0][1]:
        return None
    found = _crossing([(math.log(labels), ap) for labels, ap in curve], value)
    return None if found is None else math.exp(found)


def _crossing(curve: Sequence[tuple[float, float]], value: float) -> float | None:
    """The first place at which straight lines through the points are at `value` or above."""
    last: tuple[float, float] | None = None
    for x, y in curve:
        if y >= value:
            if last is None:
                return x
            x0, y0 = last
            return x0 + (x - x0) * (value - y0) / (y - y0)
        last = x, y
    return None
