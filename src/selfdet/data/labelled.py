"""Labelled images as a detector learns from them: resized, flipped, their boxes and masks following exactly."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from selfdet.data.images import Quarantine, UnreadableImage
from selfdet.data.labels import ImageRecord, read_sample
from selfdet.data.loader import sample_rng
from selfdet.data.masks import has_segmentation
from selfdet.data.sample import Sample, boxes_xyxy
from selfdet.errors import UserError

# A smaller box covers no pixel to learn from.
MINIMUM_SIDE = 1.0
# Bytes of decoded images that a process keeps: few labels are seen again and again, and decoding is most of the work.
KEPT = 2**29


class LabelledDataset:
    """Labelled images as augmented `Sample`s; implements `TrainingDataset`.

    In training the long side is `image_size` times a factor drawn evenly from `scale_jitter`, and half of the images
    are mirrored; otherwise the long side is `image_size`. The choices depend on (seed, epoch, index) alone. Boxes
    with a side under 1 px after that are dropped; an image may be left without any. Ids are positions in the record.
    With masks, `unmasked` is the number of objects without a segmentation, whose masks are empty. What has been
    decoded is kept, up to `KEPT` bytes in each process.

    Raises: UserError for a jitter that is none, and when masks are wanted and no object has one.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        *,
        image_size: int,
        seed: int,
        flip: bool = True,
        scale_jitter: tuple[float, float] = (0.8, 1.0),
        with_masks: bool = False,
        train: bool = True,
    ) -> None:
        if not 0 < scale_jitter[0] <= scale_jitter[1]:
            raise UserError(f"the scale jitter {scale_jitter} is not two ascending factors above 0", "Try 0.8 1.0")
        self.unmasked = sum(not has_segmentation(each) for record in records for each in record.segmentations)
        if with_masks and self.unmasked and self.unmasked == sum(len(record.boxes) for record in records):
            raise UserError(
                f"none of the {self.unmasked} objects to learn has a segmentation, so there are no masks to learn from",
                "Train a detector without masks, such as --detector faster_rcnn, or label polygons or RLE",
            )
        # Polygons would be copied to every worker for nothing.
        self.records = list(records) if with_masks else [replace(record, segmentations=[]) for record in records]
        self.image_size = image_size
        self.seed = seed
        self.flip = flip
        self.scale_jitter = scale_jitter
        self.with_masks = with_masks
        self.train = train
        self._kept: dict[int, Sample] = {}
        self._room = KEPT

    def __len__(self) -> int:
        return len(self.records)

    def load(self, index: int, epoch: int) -> Sample:
        """Item `index` as seen in `epoch`. Raises: UnreadableImage."""
        sample = self._read(index)
        if not self.train:
            return resize_sample(sample, self.image_size)
        rng = sample_rng(self.seed, epoch, index)
        # Both are drawn whatever is switched on, so that a switch changes only what it names.
        factor, side = rng.uniform(*self.scale_jitter), rng.random()
        sample = resize_sample(sample, max(1, round(self.image_size * factor)))
        return flip_sample(sample) if self.flip and side < 0.5 else sample

    def _read(self, index: int) -> Sample:
        """The sample as it is in its file. What is made of it is made anew: nothing changes it."""
        if index in self._kept:
            return self._kept[index]
        sample = read_sample(self.records[index], self.with_masks)
        size = sample.image.nbytes + (0 if sample.masks is None else sample.masks.nbytes)
        if size <= self._room:
            self._kept[index] = sample
            self._room -= size
        return sample


def resize_sample(sample: Sample, long_side: int) -> Sample:
    """Resize so that the longer side is exactly `long_side` pixels, boxes and masks with it.

    The image is resized as bytes, bilinear and antialiased. Both sides are whole numbers, so the two scales differ a
    little; boxes follow each its own. Those that get a side under 1 px are dropped. `original_size` is kept.
    """
    height, width = sample.size
    scale = long_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if size == (height, width):
        return _visible(sample)
    # Scaled in double: the product is exact to float32, whatever the order of operations.
    ratios = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float64)
    boxes = sample.boxes.as_subclass(Tensor).double() * ratios
    masks = sample.masks
    if masks is not None:
        # Nearest by pixel centres; plain "nearest" would shift masks by up to half a pixel against their boxes.
        resized = F.resize_image(
            masks.as_subclass(Tensor).view(torch.uint8), list(size), InterpolationMode.NEAREST_EXACT, antialias=False
        )
        masks = tv_tensors.Mask(resized.bool())
    image = F.resize_image(sample.image.as_subclass(Tensor), list(size), InterpolationMode.BILINEAR, antialias=True)
    return _visible(replace(sample, image=tv_tensors.Image(image), boxes=boxes_xyxy(boxes, size), masks=masks))


def flip_sample(sample: Sample) -> Sample:
    """Mirror left and right: pixel column x becomes W - 1 - x, the box edge x becomes W - x."""
    return replace(
        sample,
        image=F.horizontal_flip(sample.image),
        boxes=F.horizontal_flip(sample.boxes),
        masks=None if sample.masks is None else F.horizontal_flip(sample.masks),
    )


def evaluation_samples(
    records: Sequence[ImageRecord], image_size: int, quarantine: Quarantine | None = None
) -> Iterator[Sample]:
    """The records in order, each resized to a long side of `image_size` pixels, not augmented.

    An unreadable image is left out and entered in `quarantine`; without one it raises.

    Raises: UnreadableImage; UserError when the quarantine's limit is passed.
    """
    for record in records:
        try:
            sample = read_sample(record)
        except UnreadableImage as error:
            if quarantine is None:
                raise
            quarantine.add(error.path, error.reason)
            quarantine.check()
            continue
        yield resize_sample(sample, image_size)


class SampleBatch(list[Sample]):
    """A list of samples that leaves its worker in one piece.

    Tensors cross processes as one open file each: a few hundred samples waiting in a queue would exceed the usual
    limit of 1,024 open files.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (torch.frombuffer(bytearray(pickle.dumps(list(self), protocol=5)), dtype=torch.uint8),)


def collate_samples(samples: list[Sample]) -> SampleBatch:
    """A batch of labelled samples is the list of them: their sizes differ, and padding is the detector's matter."""
    return SampleBatch(samples)


def _unpack(data: Tensor) -> SampleBatch:
    return SampleBatch(pickle.loads(data.numpy().data))


def _visible(sample: Sample) -> Sample:
    boxes = sample.boxes.as_subclass(Tensor)
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= MINIMUM_SIDE).all(dim=1)
    return sample if bool(keep.all()) else sample.select(keep)
