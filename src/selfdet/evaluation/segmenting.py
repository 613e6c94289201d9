"""Running a segmenter over images, as a whole or through a window that slides over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from selfdet.data.class_maps import MaskedImage
from selfdet.data.images import Quarantine
from selfdet.data.mask_labels import MaskLabels
from selfdet.data.masked import readable
from selfdet.data.pixels import resize
from selfdet.detectors.segmenter import STRIDE, Segmenter, enlarge
from selfdet.errors import UserError
from selfdet.evaluation.segmentation import Confusion
from selfdet.evaluation.sharing import SharedQuarantine, as_in_the_first, of_all, own_chunks
from selfdet.models.backbones import evaluating

BATCH = 8
# A window begins two thirds of its side after the last one: each place is seen well inside of one.
STEP = 2 / 3
SMALLEST = 4 * STRIDE  # px: sides below are too few cells to look at
TOGETHER = 8  # classes whose scores are enlarged at a time: those of all would not fit for a large photograph


@dataclass(frozen=True)
class Sight:
    """How images are looked at: resized to a long side of `image_size` px, then as a whole, or `sliding` through square
    windows of `crop_size` px; `batch_size` windows or images at a time, which changes speed only."""

    image_size: int
    crop_size: int
    sliding: bool = False
    batch_size: int = BATCH


def segment(
    segmenter: Segmenter,
    items: Iterable[MaskedImage],
    sight: Sight,
    fabric: Fabric,
    seen: Callable[[int], None] | None = None,
) -> Iterator[tuple[MaskedImage, Tensor]]:
    """Yield each image and the class found for each of its pixels, (H, W) uint8 on the CPU.

    `seen` is told how many images are done.
    """
    stream, done = iter(items), 0
    while chunk := list(islice(stream, sight.batch_size)):
        yield from zip(chunk, _classes(segmenter, chunk, sight, fabric))
        done += len(chunk)
        if seen is not None:
            seen(done)


def _classes(segmenter: Segmenter, chunk: Sequence[MaskedImage], sight: Sight, fabric: Fabric) -> list[Tensor]:
    with fabric.autocast(), evaluating(segmenter), torch.no_grad():
        scores = _seen_scores(segmenter, [item.image for item in chunk], sight)
        return [best_classes(own, item.size).cpu() for own, item in zip(scores, chunk)]


def score_segmentation(
    segmenter: Segmenter,
    labels: MaskLabels,
    sight: Sight,
    fabric: Fabric,
    *,
    seen: Callable[[int], None] | None = None,
    quarantine: Quarantine | None = None,
) -> dict[str, Any]:
    """`Confusion.scores` of a segmenter on labels in its own order of classes, at the images' own sizes.

    Images that can't be read are entered in `quarantine` and left out. Several processes share the images, and each
    returns the whole.
    Raises: UserError when more than the quarantine bears, or all, can't be read.
    """
    quarantine = Quarantine(len(labels)) if quarantine is None else quarantine
    shared = SharedQuarantine(quarantine, fabric)
    as_in_the_first(segmenter, fabric)
    confusion, done = Confusion(len(labels.classes)), 0
    for _, records in own_chunks(labels.records, sight.batch_size, fabric):
        if chunk := list(readable(labels, shared.own, records)):
            for item, found in zip(chunk, _classes(segmenter, chunk, sight, fabric)):
                confusion.add(item.classes, found)
        done += len(records)
        if seen is not None:
            seen(min(len(labels), done * fabric.world_size))
    shared.close()
    parts = of_all([[confusion.images, confusion.counts.tolist()]], fabric)
    confusion.images = sum(images for images, _ in parts)
    confusion.counts = torch.tensor([counts for _, counts in parts]).sum(0)
    if not confusion.images:
        raise UserError(f"none of the {len(labels)} images of {labels.file} can be read", "Check the files")
    return confusion.scores(labels.classes)


def image_scores(segmenter: Segmenter, images: Sequence[Tensor], sight: Sight) -> Iterator[Tensor]:
    """Yield the scores (K, H, W) of every pixel of each image (3, H, W) uint8, at its own size."""
    for image, own in zip(images, _seen_scores(segmenter, images, sight)):
        yield enlarge(own[None], (image.shape[-2], image.shape[-1]))[0]


def best_classes(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The class (H, W) uint8 with the highest of the scores (K, h, w) at each of `size` (H, W) pixels."""
    highest = scores.new_full(size, -torch.inf)
    found = torch.zeros(size, dtype=torch.uint8, device=scores.device)
    for first in range(0, len(scores), TOGETHER):
        values, places = enlarge(scores[None, first : first + TOGETHER], size)[0].max(0)
        better = values > highest
        highest[better] = values[better]
        found[better] = (places[better] + first).to(torch.uint8)
    return found


def _seen_scores(segmenter: Segmenter, images: Sequence[Tensor], sight: Sight) -> Iterable[Tensor]:
    """The scores (K, h, w) of every pixel of each image, at the size that it is looked at."""
    seen = [_resized(image, sight.image_size) for image in images]
    if sight.sliding:
        return (sliding_scores(segmenter, image, sight.crop_size, sight.batch_size) for image in seen)
    return whole_scores(segmenter, seen)


def _resized(image: Tensor, long_side: int) -> Tensor:
    height, width = image.shape[-2:]
    scale = long_side / max(height, width)
    return resize(image, max(1, round(height * scale)), max(1, round(width * scale)))


def whole_scores(segmenter: Segmenter, images: Sequence[Tensor]) -> list[Tensor]:
    """Scores (K, H, W) of every pixel of images (3, H, W) uint8; only images of one size share a batch."""
    rows: dict[tuple[int, int], list[int]] = {}
    for row, image in enumerate(images):
        rows.setdefault((image.shape[-2], image.shape[-1]), []).append(row)
    found: dict[int, Tensor] = {}
    for (height, width), members in rows.items():
        scores = segmenter(segmenter.prepare([images[row] for row in members]))
        found |= {row: own[:, :height, :width] for row, own in zip(members, scores)}
    return [found[row] for row in range(len(images))]


def sliding_scores(segmenter: Segmenter, image: Tensor, side: int, batch_size: int = BATCH) -> Tensor:
    """Scores (K, H, W) of every pixel of an image (3, H, W) uint8: the mean over the windows of `side` px that see it.

    The last window of a row or column ends with the image. An image that fits into one window is seen as a whole.
    """
    height, width = image.shape[-2:]
    places = [(top, left) for top in window_starts(height, side) for left in window_starts(width, side)]
    total: Tensor | None = None
    counts = torch.zeros(height, width)
    for first in range(0, len(places), batch_size):
        some = places[first : first + batch_size]
        windows = whole_scores(segmenter, [image[:, top : top + side, left : left + side] for top, left in some])
        for (top, left), scores in zip(some, windows):
            if total is None:
                total = scores.new_zeros(len(scores), height, width)
            total[:, top : top + side, left : left + side] += scores
            counts[top : top + side, left : left + side] += 1
    assert total is not None
    return total / counts.to(total.device)


def window_starts(extent: int, side: int) -> list[int]:
    """Where windows of `side` px begin so that they cover `extent` px and overlap by a third."""
    if extent <= side:
        return [0]
    step = max(1, int(side * STEP))
    return [*range(0, extent - side, step), extent - side]
