"""Images with class maps as a segmenter learns from them: scaled, cropped, mirrored together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from selfdet.data.class_maps import IGNORED, MaskedImage
from selfdet.data.images import Quarantine, UnreadableImage
from selfdet.data.labelled import KEPT
from selfdet.data.loader import sample_rng
from selfdet.data.mask_labels import MaskLabels, MaskRecord
from selfdet.data.pixels import IMAGENET_MEAN, resize
from selfdet.errors import UserError

# Laid around an image that is smaller than its crop: about nothing once it is normalised.
MARGIN = tuple(round(255 * value) for value in IMAGENET_MEAN)


class MaskedDataset:
    """Augmented images with class maps, all of one size; implements `TrainingDataset`.

    The long side is `image_size` times a factor drawn evenly from `scale_jitter`; of that a square of `crop_size`
    pixels is cut out at random, and half of them are mirrored. What lies outside of the image is ignored. The choices
    depend on (seed, epoch, index) alone. What has been decoded is kept, up to `KEPT` bytes in each process.

    Raises: UserError for a jitter that is none.
    Source: scales 0.5…2, crops and flips as in the benchmark of DenseCL, arXiv 2011.09157, section 4.2.
    """

    def __init__(
        self, labels: MaskLabels, *, image_size: int, crop_size: int, seed: int, scale_jitter: tuple[float, float]
    ) -> None:
        if not 0 < scale_jitter[0] <= scale_jitter[1]:
            raise UserError(f"the scale jitter {scale_jitter} is not two ascending factors above 0", "Try 0.5 2.0")
        # Only what reading takes: the rest of the label file would be copied to every worker for nothing.
        self.labels = MaskLabels(labels.file, labels.classes, [], labels.hash, labels.lookup, order=labels.order)
        self.records = labels.records
        self.image_size, self.crop_size = image_size, crop_size
        self.seed, self.scale_jitter = seed, scale_jitter
        self._kept: dict[int, MaskedImage] = {}
        self._room = KEPT

    def __len__(self) -> int:
        return len(self.records)

    def load(self, index: int, epoch: int) -> MaskedImage:
        """Item `index` as seen in `epoch`. Raises: UnreadableImage; UserError for a mask that does not fit."""
        rng = sample_rng(self.seed, epoch, index)
        factor, side = rng.uniform(*self.scale_jitter), rng.random()
        item = resize_masked(self._read(index), max(1, round(self.image_size * factor)))
        item = crop_masked(item, self.crop_size, (rng.random(), rng.random()))
        return flip_masked(item) if side < 0.5 else item

    def _read(self, index: int) -> MaskedImage:
        if index in self._kept:
            return self._kept[index]
        item = self.labels.read(self.records[index])
        size = item.image.nbytes + item.classes.nbytes
        if size <= self._room:
            self._kept[index] = item
            self._room -= size
        return item


def resize_masked(item: MaskedImage, long_side: int) -> MaskedImage:
    """Resize so that the longer side is exactly `long_side` pixels: the image bilinear and antialiased, classes of the
    nearest pixel centre."""
    height, width = item.size
    scale = long_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if size == (height, width):
        return item
    classes = functional.interpolate(item.classes[None, None], size, mode="nearest-exact")[0, 0]
    return MaskedImage(resize(item.image, *size), classes, item.path, item.image_id)


def crop_masked(item: MaskedImage, side: int, place: tuple[float, float]) -> MaskedImage:
    """A square of `side` pixels, `place` (0…1 down and across) of the way through the image; a smaller image is laid
    into it likewise, on grey, with its surroundings ignored."""
    height, width = item.size
    spare = (height - side, width - side)
    top, left = (int(share * (abs(room) + 1)) for share, room in zip(place, spare))
    inside = [slice(start, start + side) if room > 0 else slice(None) for start, room in zip((top, left), spare)]
    image, classes = item.image[:, inside[0], inside[1]], item.classes[inside[0], inside[1]]
    if min(spare) < 0:
        rows, columns = (
            slice(start, start + extent) if room < 0 else slice(None)
            for start, extent, room in zip((top, left), (height, width), spare)
        )
        whole = torch.tensor(MARGIN, dtype=torch.uint8)[:, None, None].repeat(1, side, side)
        unknown = torch.full((side, side), IGNORED, dtype=torch.uint8)
        whole[:, rows, columns], unknown[rows, columns] = image, classes
        image, classes = whole, unknown
    return MaskedImage(image, classes, item.path, item.image_id)


def flip_masked(item: MaskedImage) -> MaskedImage:
    """Mirror left and right."""
    return MaskedImage(item.image.flip(-1), item.classes.flip(-1), item.path, item.image_id)


@dataclass
class MaskedBatch:
    """`images` (B, 3, S, S) uint8 RGB; `classes` (B, S, S) uint8, 255 ignored."""

    images: Tensor
    classes: Tensor

    def to(self, device: torch.device) -> MaskedBatch:
        """The batch on another device."""
        return MaskedBatch(self.images.to(device, non_blocking=True), self.classes.to(device, non_blocking=True))


def collate_masked(items: Sequence[MaskedImage]) -> MaskedBatch:
    """A batch of images of one size."""
    return MaskedBatch(
        torch.from_numpy(np.stack([item.image.numpy() for item in items])),
        torch.from_numpy(np.stack([item.classes.numpy() for item in items])),
    )


def readable(
    labels: MaskLabels, quarantine: Quarantine, records: Sequence[MaskRecord] | None = None
) -> Iterator[MaskedImage]:
    """The images in order, as they are in their files; unreadable ones are entered in `quarantine` and left out.

    `records`: those of the labels that are read, all if None.

    Raises: UserError when more than the quarantine bears.
    """
    for record in labels.records if records is None else records:
        try:
            yield labels.read(record)
        except UnreadableImage as error:
            quarantine.add(error.path, error.reason)
            quarantine.check()
