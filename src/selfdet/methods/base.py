"""What the training loop knows of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Method(nn.Module, ABC):
    """A model together with its objective: named losses of a batch, and what has to happen after an optimiser step."""

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the named scalar losses of a batch; the one to minimise is under "loss"."""

    def after_step(self, step: int, total_steps: int | None = None) -> None:
        """Called once after each optimiser step: `step` of `total_steps`. Nothing to do by default."""
        return

    def health(self) -> dict[str, float]:
        """Figures of the last batch that show whether something is being learned; empty by default."""
        return {}
