"""Two views of one image for the box domain: resized, mirrored, recoloured, and every box with its id in both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from selfdet.data.labelled import SampleBatch, collate_samples, flip_sample, resize_sample
from selfdet.data.labels import ImageRecord, read_sample
from selfdet.data.loader import sample_rng
from selfdet.data.sample import Sample
from selfdet.errors import UserError

# Magnitudes are whole numbers from 1 to one less than this.
LEVELS = 10


def _factor(magnitude: int) -> float:
    return 0.1 + 0.18 * magnitude


# What one photometric operation does to a (3, H, W) uint8 image at a magnitude; the first three have none.
PHOTOMETRIC: dict[str, Callable[[Tensor, int], Tensor]] = {
    "identity": lambda image, _: image,
    "auto-contrast": lambda image, _: F.autocontrast(image),
    "equalise": lambda image, _: F.equalize(image),
    "solarise": lambda image, magnitude: F.solarize(image, 25.6 * magnitude),
    "colour": lambda image, magnitude: F.adjust_saturation(image, _factor(magnitude)),
    "contrast": lambda image, magnitude: F.adjust_contrast(image, _factor(magnitude)),
    "brightness": lambda image, magnitude: F.adjust_brightness(image, _factor(magnitude)),
    "sharpness": lambda image, magnitude: F.adjust_sharpness(image, _factor(magnitude)),
    "posterise": lambda image, magnitude: F.posterize(image, 4 - int(0.4 * magnitude)),
}


class BoxViewSizes(NamedTuple):
    """Sides of a view in pixels: the short one is drawn from `short_sides`, the long one ends at `long_side`."""

    short_sides: tuple[int, ...]
    long_side: int


def box_view_preset(long_side: int) -> BoxViewSizes:
    """The sides of views for a detector that works on images of up to `long_side` pixels.

    Six short sides, evenly from 60 % to 75 % of the long one, with which a 4 : 3 photograph gets a long side of 80 % to
    100 % of `long_side`; a wider one ends there. From 1,067 px on the short sides are those published, whose long side
    is 1,333:

        256:          154, 161, 169, 177, 184, 192
        320:          192, 202, 211, 221, 230, 240
        640:          384, 403, 422, 442, 461, 480
        1,067 and on: 640, 672, 704, 736, 768, 800

    256 and 320 are for CPUs and for small images, which gain nothing from being enlarged.

    Raises: UserError for a side under 1 px.
    Source: Li et al., AlignDet, arXiv 2307.11077, for the published sides.
    """
    if long_side < 1:
        raise UserError(f"a long side of {long_side} px holds no image", "Try 320, or 1333 as published")
    base = min(long_side, 1067)
    return BoxViewSizes(tuple(max(1, round(base * percent / 100)) for percent in range(60, 76, 3)), long_side)


@dataclass(frozen=True)
class BoxViews:
    """Draw two independent views of an image whose boxes are known.

    Each view: resized to a short side drawn from `short_sides`, or less where the long side would pass `long_side`
    (pixels); mirrored with probability 0.5 where `flip` allows it; one operation of `PHOTOMETRIC`, each as likely, at a
    magnitude of 1 to 9. Boxes follow resize and mirroring exactly. Equal ids in the two views are one object; a box
    with a side under 1 px is dropped with its id, in that view only.

    Raises: UserError for sides under 1 px, or none.
    Source: Li et al., AlignDet, arXiv 2307.11077, and its published settings.
    """

    short_sides: tuple[int, ...]
    long_side: int
    seed: int
    flip: bool = True

    def __post_init__(self) -> None:
        if not self.short_sides or min(*self.short_sides, self.long_side) < 1:
            raise UserError(
                f"views with short sides {self.short_sides} and long side {self.long_side} px hold no image",
                "Give at least one short side, all in whole pixels",
            )

    def __call__(self, sample: Sample, epoch: int, index: int) -> tuple[Sample, Sample]:
        """Make both views of `sample`: a pure function of the sample and (seed, epoch, index)."""
        rng = sample_rng(self.seed, epoch, index)
        return self._view(sample, rng), self._view(sample, rng)

    def _view(self, sample: Sample, rng: np.random.Generator) -> Sample:
        short_side = self.short_sides[int(rng.integers(len(self.short_sides)))]
        # All are drawn whatever is switched on, so that a switch changes only what it names.
        mirrored = rng.random() < 0.5
        operation = list(PHOTOMETRIC)[int(rng.integers(len(PHOTOMETRIC)))]
        magnitude = int(rng.integers(1, LEVELS))
        short, long = min(sample.size), max(sample.size)
        # The rounded long side brings the short one to exactly `short_side` where that is what limits it.
        view = resize_sample(sample, max(1, round(long * min(short_side / short, self.long_side / long))))
        if self.flip and mirrored:
            view = flip_sample(view)
        return replace(view, image=recolour(view.image, operation, magnitude))


def recolour(image: Tensor, operation: str, magnitude: int) -> tv_tensors.Image:
    """Apply the operation of this name in `PHOTOMETRIC` to `image` (3, H, W) uint8 at a magnitude of 1 to 9.

    Colour, contrast, brightness and sharpness have the factor 0.1 + 0.18 · magnitude, solarise the threshold
    25.6 · magnitude, posterise 4 - int(0.4 · magnitude) bits; all as torchvision computes them on bytes.
    """
    with _one_thread():
        return tv_tensors.Image(PHOTOMETRIC[operation](image.as_subclass(Tensor), magnitude))


@contextmanager
def _one_thread() -> Iterator[None]:
    # The mean grey of a large image is rounded differently when threads share the sum, and with it a pixel now and
    # then; data workers have one thread, and the main process must come to the same bytes.
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass  # not frozen: lightning-fabric refuses to pass frozen ones to a module
class BoxViewBatch:
    """A batch of view pairs: row i of both lists shows the same image; sizes differ, padding is the detector's matter.

    online: what the detector in training sees. teacher: what its momentum average sees.
    """

    online: list[Sample]
    teacher: list[Sample]

    def __len__(self) -> int:
        return len(self.online)

    @property
    def paths(self) -> list[str]:
        """The images' files, row by row."""
        return [sample.path for sample in self.online]


class BoxViewDataset:
    """Images with proposal boxes as pairs of views; implements `TrainingDataset`.

    The ids of an image's objects are positions in its record. Its labels are left out, as nothing here may learn
    classes, unless they are `pseudo_classes`.
    """

    def __init__(self, records: Sequence[ImageRecord], views: BoxViews, *, pseudo_classes: bool = False) -> None:
        # Polygons would be copied to every worker for nothing.
        self.records = [replace(record, segmentations=[]) for record in records]
        self.views = views
        self.pseudo_classes = pseudo_classes

    def __len__(self) -> int:
        return len(self.records)

    def path_of(self, index: int) -> str:
        """The file of image `index`."""
        return str(self.records[index].path)

    def load(self, index: int, epoch: int) -> tuple[Sample, Sample]:
        """Decode image `index` once and make both views of it for `epoch`. Raises: UnreadableImage."""
        sample = read_sample(self.records[index])
        return self.views(sample if self.pseudo_classes else replace(sample, labels=None), epoch, index)


def collate_box_views(pairs: Sequence[tuple[Sample, Sample]]) -> BoxViewBatch:
    """Part pairs of views into a batch of online and teacher views."""
    batches: list[SampleBatch] = [collate_samples([pair[side] for pair in pairs]) for side in (0, 1)]
    return BoxViewBatch(*batches)
