"""How well classes of pixels are found: IoU of each class, its mean, and the share of pixels that are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from selfdet.data.class_maps import IGNORED
from selfdet.training.log import plural


class Confusion:
    """How often pixels of each class were found as each; `counts` (K, K) int64: rows are true, columns found."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        self.images = 0

    def add(self, truth: Tensor, found: Tensor) -> None:
        """Count one image: `truth` (H, W) uint8 with 255 ignored, `found` (H, W) uint8, 0…K−1."""
        known = truth != IGNORED
        classes = len(self.counts)
        pairs = truth[known].long() * classes + found[known].long()
        self.counts += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        self.images += 1

    def scores(self, names: Sequence[str]) -> dict[str, Any]:
        """`mIoU`, `pixel_accuracy`, `per_class` IoU by name, all 0…1, and the number of `images`.

        The IoU of a class is what was found right over what was found or true. One without a true pixel has None and
        does not count for the mean, so that the mean of two networks is over the same classes. None where nothing is
        labelled.
        Source: the measure of Pascal VOC (Everingham et al., 2015) and of Cityscapes (arXiv 1604.01685).
        """
        right, true, found = self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)
        values = (right.double() / (true + found - right).clamp_min(1)).tolist()
        there = [bool(count) for count in true]
        measured = [value for value, known in zip(values, there) if known]
        labelled = int(true.sum())
        return {
            "mIoU": sum(measured) / len(measured) if measured else None,
            "pixel_accuracy": int(right.sum()) / labelled if labelled else None,
            "per_class": {name: value if known else None for name, value, known in zip(names, values, there)},
            "images": self.images,
        }


def segmentation_line(scores: dict[str, Any]) -> str:
    """The two totals in a line, in percent."""
    return f"mIoU {_percent(scores['mIoU'])} %, pixel accuracy {_percent(scores['pixel_accuracy'])} %"


def segmentation_table(scores: dict[str, Any], title: str) -> str:
    """Scores as text, in percent: the totals, then each class."""
    table = Table("class", "IoU")
    table.columns[1].justify = "right"
    for name, value in scores["per_class"].items():
        table.add_row(name, _percent(value))
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return f"{title}: {segmentation_line(scores)}, {plural(scores['images'], 'image')}\n{captured.get().rstrip()}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
