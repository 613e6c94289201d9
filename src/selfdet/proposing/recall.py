"""How many labelled objects boxes without labels find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from selfdet.proposing.filters import overlaps

BUDGETS = (10, 50, 100, None)
THRESHOLDS = np.arange(0.5, 0.96, 0.05)
# COCO's bounds of small, medium and large objects, in square pixels of the original image; here of the box.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}


def found_overlaps(objects: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The IoU at which each object is found, when a box counts for one object only.

    objects: (G, 4), boxes: (N, 4), xyxy in pixels of one image. The pair that overlaps most is taken first. Returns
    (G,) in 0…1.
    """
    best = np.zeros(len(objects))
    if not len(boxes):
        return best
    shared = overlaps(objects, boxes)
    for _ in range(min(shared.shape)):
        row, column = np.unravel_index(int(shared.argmax()), shared.shape)
        if shared[row, column] <= 0:
            break
        best[row] = shared[row, column]
        shared[row], shared[:, column] = -1, -1
    return best


def recall(images: Iterable[tuple[np.ndarray, np.ndarray]], budgets: Sequence[int | None] = BUDGETS) -> dict[str, Any]:
    """Recall at IoU 0.5 and average recall (IoU 0.5, 0.55, … 0.95) of the first boxes of each image.

    images: for each its objects (G, 4) and its boxes (N, 4) in their order, xyxy in pixels of the original.
    budgets: boxes an image that count; None for all.
    Returns for each budget, as text, `recall`, `AR`, `ARs`, `ARm`, `ARl` in 0…1 (None without such objects) and the
    mean number of `boxes` an image; and under "objects" how many there are.
    """
    pairs = list(images)
    objects = np.concatenate([np.zeros((0, 4)), *(own for own, _ in pairs)])
    areas = (objects[:, 2] - objects[:, 0]) * (objects[:, 3] - objects[:, 1])
    answer: dict[str, Any] = {"objects": {"all": len(objects)}}
    for name, (low, high) in SIZES.items():
        answer["objects"][name] = int(((areas >= low) & (areas < high)).sum())
    for budget in budgets:
        found = np.concatenate([np.zeros(0), *(found_overlaps(own, boxes[:budget]) for own, boxes in pairs)])
        # The smallest thresholds are met by rounding errors as well.
        hits = found[:, None] >= THRESHOLDS[None] - 1e-9
        row = {"recall": _mean(hits[:, 0]), "AR": _mean(hits)}
        for name, (low, high) in SIZES.items():
            row[f"AR{name[0]}"] = _mean(hits[(areas >= low) & (areas < high)])
        kept = [len(boxes[:budget]) for _, boxes in pairs]
        row["boxes"] = float(np.mean(kept)) if kept else 0.0
        answer["all" if budget is None else str(budget)] = row
    return answer


def recall_table(figures: dict[str, Any], title: str = "") -> str:
    """The figures of `recall` as lines to print, in percent; a dash where there is nothing to measure."""
    lines = [title] if title else []
    columns = ("recall", "AR", "ARs", "ARm", "ARl")
    lines.append("   boxes" + "".join(f"{name:>8}" for name in ("R@0.5", *columns[1:])) + "   boxes an image")
    for budget, row in figures.items():
        if budget != "objects":
            shown = ("–" if row[name] is None else f"{100 * row[name]:.1f}" for name in columns)
            lines.append(f"{budget:>8}" + "".join(f"{value:>8}" for value in shown) + f"{row['boxes']:>17.1f}")
    objects = figures["objects"]
    by_size = ", ".join(f"{objects[name]} {name}" for name in SIZES)
    lines.append(f"{objects['all']} objects ({by_size}), in percent")
    return "\n".join(lines)


def _mean(hits: np.ndarray) -> float | None:
    return float(hits.mean()) if hits.size else None
