"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

POWER = 0.9


@dataclass(frozen=True)
class Schedule:
    """Learning rate of an optimiser step, counted from 0: linear warm-up, then a cosine to 0, steps of ÷10, or a
    power of what is left (poly).

    `base` is the peak rate, `total_steps` the length of the whole run. `milestones` are shares of the run
    (0…1) at which a `"step"` schedule divides the rate by 10, `drops` steps to take in their place.

    Source: MoCo v2 and DenseCL (cosine), AlignDet's fine-tuning (÷10 at 9k and 11k of 12k iterations), DeepLab
    (arXiv 1606.00915, section 4.1; poly).
    """

    base: float
    total_steps: int
    warmup_steps: int = 0
    kind: Literal["cosine", "step", "poly", "constant"] = "cosine"
    milestones: Sequence[float] = (0.75, 11 / 12)
    drops: Sequence[int] | None = None

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.base * (step + 1) / (self.warmup_steps + 1)
        if self.kind == "cosine":
            span = max(1, self.total_steps - self.warmup_steps)
            return self.base * 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - self.warmup_steps) / span)))
        if self.kind == "poly":
            return self.base * max(0.0, 1.0 - step / max(1, self.total_steps)) ** POWER
        if self.kind == "step":
            drops = self.drops or [max(1, int(share * self.total_steps)) for share in self.milestones]
            return self.base * 0.1 ** sum(step >= drop for drop in drops)
        return self.base
