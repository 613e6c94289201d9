"""What a probe looks at: pictures of one size with a class each, and boxes in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from selfdet.data.images import UnreadableImage, list_images, read_image
from selfdet.data.labels import ImageRecord, Labels, read_sample
from selfdet.data.loader import sample_rng
from selfdet.data.pixels import resize
from selfdet.data.untrusted import expanded
from selfdet.errors import UserError

BACKGROUND = "background"
MARGIN = 0.1  # around the box of a crop, of its sides
APART = 0.2  # IoU below which a place counts as background
TRIES = 20


@dataclass(frozen=True)
class ProbeSamples:
    """Samples with a class each.

    `pictures`: (P, 3, S, S) uint8, each scaled to S × S whatever its shape. `labels`: (N,) int64, places in `classes`.
    `picture`: (N,) int64, the picture that a sample is in. `image`: (N,) int64, the image file it is of, so that none
    is on both sides of a split. `boxes`: (N, 4) xyxy in pixels of the pictures; None where the sample is all of its
    picture.
    """

    classes: list[str]
    pictures: Tensor
    labels: Tensor
    picture: Tensor
    image: Tensor
    boxes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def count(self) -> dict[str, int]:
        """How many samples each class has."""
        return dict(zip(self.classes, torch.bincount(self.labels, minlength=len(self.classes)).tolist()))


def folder_samples(images: str | Path, size: int, limit: int, seed: int) -> tuple[ProbeSamples, list[str]]:
    """The images of a folder with a folder for each class, at most `limit` drawn by `seed`, and unreadable ones' paths.

    Raises: UserError for another layout.
    """
    root = expanded(images)
    classes = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not classes:
        raise UserError(
            f"--images {images} has no folders in it, so no image has a class",
            "Give a folder for each class, or labels with --data",
        )
    paths = [path for path in list_images(root) if path.relative_to(root).parts[0] in classes]
    order = np.random.default_rng(seed).permutation(len(paths))[:limit]
    pictures, labels, unreadable = [], [], []
    for place in sorted(order.tolist()):
        try:
            image = read_image(paths[place])
        except UnreadableImage:
            unreadable.append(str(paths[place]))
            continue
        pictures.append(resize(image.as_subclass(Tensor), size, size))
        labels.append(classes.index(paths[place].relative_to(root).parts[0]))
    return _whole(classes, pictures, labels, list(range(len(pictures))), size), unreadable


def labelled_samples(
    labels: Labels, size: int, limit: int, *, min_side: float, background: bool, seed: int
) -> tuple[ProbeSamples, ProbeSamples, list[str]]:
    """The labelled boxes twice, cut out as pictures half as wide and as boxes in their images; and unreadable paths.

    Images are drawn by `seed` until there are `limit` boxes. `min_side`: boxes with a shorter side, pixels of the file,
    are left out. `background`: as many boxes of the same sizes where nothing is labelled, as a class of their own.
    Raises: UserError when no box is left.
    """
    classes = [*labels.classes, BACKGROUND] if background else list(labels.classes)
    order = np.random.default_rng(seed).permutation(len(labels.records)).tolist()
    crops: list[Tensor] = []
    pictures: list[Tensor] = []
    boxes: list[Tensor] = []
    kinds: list[int] = []
    images: list[int] = []
    unreadable: list[str] = []
    for place in order:
        if len(kinds) >= limit:
            break
        record = labels.records[place]
        chosen, own = _boxes(record, min_side, len(labels.classes) if background else None, seed, place)
        if not len(own):
            continue
        try:
            image = read_sample(record).image.as_subclass(Tensor)
        except UnreadableImage:
            unreadable.append(str(record.path))
            continue
        height, width = image.shape[-2:]
        crops += [resize(_cut(image, box), size // 2, size // 2) for box in chosen]
        boxes.append(chosen * torch.tensor([size / width, size / height] * 2))
        kinds += own.tolist()
        images += [len(pictures)] * len(own)
        pictures.append(resize(image, size, size))
    if not kinds:
        raise UserError(
            f"{labels.file} has no box with sides of {min_side:g} px and more that can be read",
            "A probe needs labelled boxes: check the file, or lower --min-side",
        )
    where = torch.tensor(images)
    inside = ProbeSamples(classes, torch.stack(pictures), torch.tensor(kinds), where, where, torch.cat(boxes))
    return _whole(classes, crops, kinds, images, size // 2), inside, unreadable


def _whole(
    classes: list[str], pictures: Sequence[Tensor], labels: Sequence[int], images: Sequence[int], size: int
) -> ProbeSamples:
    stacked = torch.stack(list(pictures)) if pictures else torch.empty(0, 3, size, size, dtype=torch.uint8)
    own = torch.arange(len(stacked))
    return ProbeSamples(classes, stacked, torch.tensor(labels, dtype=torch.int64), own, torch.tensor(images))


def _boxes(
    record: ImageRecord, min_side: float, background: int | None, seed: int, place: int
) -> tuple[Tensor, Tensor]:
    """An image's boxes (n, 4) and classes, with as many of the class `background` where that is a number."""
    every, labels = torch.from_numpy(record.boxes), torch.from_numpy(record.labels)
    large = ((every[:, 2:] - every[:, :2]) >= min_side).all(dim=1)
    boxes, kinds = every[large], labels[large]
    if background is None or not len(boxes):
        return boxes, kinds
    rng, empty = sample_rng(seed, 0, place), []
    for box in boxes:
        width, height = (box[2:] - box[:2]).tolist()
        for _ in range(TRIES):
            left, top = rng.uniform(0, max(0.0, record.width - width)), rng.uniform(0, max(0.0, record.height - height))
            drawn = torch.tensor([[left, top, left + width, top + height]], dtype=boxes.dtype)
            if float(box_iou(drawn, every).max()) < APART:
                empty.append(drawn)
                break
    more = torch.cat(empty) if empty else boxes[:0]
    return torch.cat([boxes, more]), torch.cat([kinds, kinds.new_full((len(more),), background)])


def _cut(image: Tensor, box: Tensor) -> Tensor:
    """The pixels in a box and a margin around it, at least one."""
    height, width = image.shape[-2:]
    x1, y1, x2, y2 = box.tolist()
    more_x, more_y = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
    left, top = min(max(0, round(x1 - more_x)), width - 1), min(max(0, round(y1 - more_y)), height - 1)
    right, bottom = max(left + 1, round(x2 + more_x)), max(top + 1, round(y2 + more_y))
    return image[:, top:bottom, left:right]
