"""A method, a data set and a stage small enough to follow by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfdet.data.images import UnreadableImage
from selfdet.data.loader import sample_rng
from selfdet.methods.base import Method
from selfdet.training.recipe import Recipe
from selfdet.training.runtime import start_runtime
from selfdet.training.stage import Stage, Weights, open_stage


@dataclass
class Numbers:
    """Rows of three numbers and their target; `bad` ones can't be read, `poison` replaces the numbers of a row."""

    length: int = 40
    bad: set[int] = field(default_factory=set)
    poison: dict[int, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.length

    def load(self, index: int, epoch: int) -> tuple[str, np.ndarray]:
        """The row `index`, which is another one each epoch."""
        if index in self.bad:
            raise UnreadableImage(f"{index}.jpg", "no image")
        row = sample_rng(0, epoch, index).normal(size=3).astype(np.float32)
        return f"{index}.jpg", np.full_like(row, self.poison[index]) if index in self.poison else row


@dataclass
class Rows:
    """A batch of them."""

    values: Tensor
    paths: list[str]

    def to(self, device: torch.device | str) -> Rows:
        """The batch on another device."""
        return Rows(self.values.to(device), self.paths)


def collate(items: list[tuple[str, np.ndarray]]) -> Rows:
    """Stack rows."""
    return Rows(torch.from_numpy(np.stack([row for _, row in items])), [path for path, _ in items])


class Line(Method):
    """Fits the sum of a row: a linear layer, perhaps behind dropout; counts what it is told."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(3, 1)
        self.batches: list[list[str]] = []
        self.ends: list[tuple[int, int | None]] = []

    def forward(self, batch: Rows) -> dict[str, Tensor]:
        """The squared and the absolute error."""
        self.batches.append(batch.paths)
        error = self.linear(self.dropout(batch.values)).squeeze(1) - batch.values.sum(1)
        return {"loss": error.square().mean(), "absolute": error.abs().mean()}

    def after_step(self, step: int, total_steps: int | None = None) -> None:
        """Remember the call."""
        self.ends.append((step, total_steps))


RECIPE: dict[str, Any] = {
    "steps": 10,
    "batch_size": 8,
    "lr": 0.05,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "warmup_steps": 2,
    "seed": 0,
    "workers": 0,
    "log_every": 3,
    "save_every": 4,
}


def stage(out: Path, resume: bool = False, **changes: Any) -> Stage:
    """A stage opened in `out`."""
    runtime = start_runtime(precision="fp32", threads=1)
    recipe = Recipe(**{**RECIPE, **changes})
    return open_stage(str(out), {"lr": recipe.lr}, recipe, runtime, "backbone", resume=resume)


def train(opened: Stage, method: Method, dataset: Numbers | None = None, **options: Any) -> int:
    """Train in it; returns the steps done."""
    groups = [{"params": list(method.parameters())}]
    return opened.train(method, groups, dataset or Numbers(), collate, Weights("linear.", {}), **options)
