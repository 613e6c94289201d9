"""The boxes of one image: searched or given, filtered; whatever goes wrong with the image is part of the answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfdet.data.images import UnreadableImage, read_image, read_size
from selfdet.data.labels import clip
from selfdet.data.listing import ListedImage
from selfdet.proposing.filters import Filters, filter_or_relax
from selfdet.proposing.selective_search import Search, TimeLimit, selective_search

# What can keep an image from getting boxes: its file, the time limit, an error, or the end of the process on it.
FAULTS = ("unreadable", "timed_out", "failed", "crashed")
DECIMALS = 2  # of coordinates in files, which are pixels


@dataclass(frozen=True)
class GivenBoxes:
    """Boxes that somebody gave for an image: (N, 4) float32 xyxy in its pixels, best first; scores (N,) or None."""

    boxes: np.ndarray
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class Task:
    """One image to find boxes in, by `search`, or to filter those `given` for; at most `timeout` seconds (0: any)."""

    image: ListedImage
    filters: Filters
    search: Search | None = None
    given: GivenBoxes | None = None
    timeout: float = 0.0

    @property
    def image_id(self) -> int:
        """The image's."""
        return self.image.image_id

    def run(self) -> Found:
        """`find_boxes`."""
        return find_boxes(self)

    def crashed(self, reason: str) -> Found:
        """The answer if the process ended without one."""
        return Found(self.image_id, fault="crashed", reason=reason)


@dataclass(frozen=True)
class Found:
    """The answer for one image.

    width, height: of the image in pixels, 0 with a fault; boxes: (N, 4) float32 xyxy, in order of priority;
    scores: (N,) float32 where the boxes came with them; fallback: one of FALLBACKS or "";
    dropped: given boxes that were empty, not finite or outside the image; fault: one of FAULTS or "", with a `reason`.
    """

    image_id: int
    width: int = 0
    height: int = 0
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    scores: np.ndarray | None = None
    fallback: str = ""
    dropped: int = 0
    fault: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, coordinates rounded; what is empty is left out."""
        values = {name: value for name, value in vars(self).items() if name not in ("boxes", "scores") and value}
        values["boxes"] = rounded(self.boxes)
        return values if self.scores is None else {**values, "scores": self.scores.astype(float).tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Found:
        """The inverse of `to_dict`."""
        scores = values.get("scores")
        given: dict[str, Any] = {**values, "boxes": np.array(values["boxes"], np.float32).reshape(-1, 4)}
        return cls(**{**given, "scores": None if scores is None else np.array(scores, np.float32)})


def rounded(boxes: np.ndarray) -> list[list[float]]:
    """(N, 4) pixel coordinates as numbers for a file."""
    return np.round(boxes.astype(np.float64), DECIMALS).tolist()


def find_boxes(task: Task) -> Found:
    """The boxes of one image; never raises for the image's sake."""
    number, path = task.image.image_id, task.image.path
    deadline = time.monotonic() + task.timeout if task.timeout else float("inf")
    try:
        if task.given is not None:
            return _filter_given(task, task.given)
        image = read_image(path, task.image.size)
        height, width = image.shape[-2:]
        boxes = selective_search(image, task.search, deadline)
        positions, step = filter_or_relax(boxes, width, height, task.filters)
        return Found(number, width, height, boxes[positions], fallback=step)
    except UnreadableImage as error:
        return Found(number, fault="unreadable", reason=error.reason)
    except TimeLimit:
        return Found(number, fault="timed_out", reason=f"more than {task.timeout:g} s")
    except Exception as error:  # of MemoryError and our own faults too, the other images should not know
        return Found(number, fault="failed", reason=f"{type(error).__name__}: {error}")


def _filter_given(task: Task, given: GivenBoxes) -> Found:
    width, height = read_size(task.image.path, task.image.size)
    finite = np.isfinite(given.boxes).all(1)
    boxes = clip(np.where(finite[:, None], given.boxes, 0), width, height)
    good = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    positions, step = filter_or_relax(boxes[good], width, height, task.filters)
    kept = good[positions]
    return Found(
        task.image.image_id,
        width,
        height,
        boxes[kept],
        None if given.scores is None else given.scores[kept],
        fallback=step if len(kept) else "",
        dropped=len(boxes) - len(good),
    )
