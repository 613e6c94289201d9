"""The `Detector` idea: one thin adapter over a library's model, and what `parts()` alone drives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from selfdet.data.masks import encode_masks
from selfdet.data.pixels import normalise
from selfdet.data.sample import Sample
from selfdet.detectors._torchvision_rcnn import paste
from selfdet.detectors.network import Network, Part
from selfdet.models.backbones import Backbone, evaluating
from selfdet.models.composite import ASSISTANT_WEIGHT, Composite, Known

UNPACKED = 2**25  # pixels of masks that are unpacked at a time: a hundred of a large photograph would fill a gigabyte


@dataclass
class Batch:
    """Images as the network takes them.

    `tensor`: (B, 3, H, W) float, normalised, zero-padded at the right and bottom. `sizes`: (h, w) px of each image
    inside it. `targets`: per image "boxes" (N, 4) float32 xyxy px of the image as given, "ids" (N,) int64 and, where
    the samples are labelled, "labels" (N,) int64 in 0…K−1, where they have masks, "masks" (N, h, w) bool; boxes that
    cover nothing of their image are left out. `maps`: the `features` of the batch, where they are known already.
    """

    tensor: Tensor
    sizes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]]
    maps: dict[str, Tensor] | None = None

    def split(self, count: int) -> tuple[Batch, Batch]:
        """The first `count` images and the others, padded as they are."""
        first, rest = slice(count), slice(count, None)
        return (
            Batch(self.tensor[first], self.sizes[first], self.targets[first]),
            Batch(self.tensor[rest], self.sizes[rest], self.targets[rest]),
        )


@dataclass
class Regions:
    """The places of a batch's images that a box-domain objective compares.

    `embeddings`: (R, D), not normalised. `ids`: (R,) int64, the id of the target that the detector's own training
    would assign to the place, −1 for background. `boxes`: (R, 4) xyxy px, without gradient, what the detector predicts
    at the place where losses were asked for, else where it stands (its anchor). `losses`: the detector's own named
    losses, scalars. `weight`: of these regions among those of a detector that has several stages. `figures`: scalars
    without gradient for the health of a run.
    """

    embeddings: Tensor
    ids: Tensor
    boxes: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    weight: float = 1.0
    figures: dict[str, Tensor] = field(default_factory=dict)


class Detector(Network):
    """A library's detector in `.net`, with images going in as `Sample`s and boxes coming out in original pixels."""

    size_divisor: int
    # How many proposals of an image the box domain takes, where the method's authors say; None: all.
    boxes_per_image: ClassVar[int | None] = None
    # Whether it learns a mask of each object, where the samples have masks, and finds one for each box.
    has_masks: bool = False
    # Names of `.net.named_parameters()` that only labels train: `regions` does not reach them.
    labels_only: ClassVar[Part] = Part([])

    def __init__(self, net: nn.Module, backbone: Backbone, num_classes: int) -> None:
        super().__init__(net, backbone, num_classes)
        self.size_divisor = 32

    @abstractmethod
    def body(self, tensor: Tensor, net: nn.Module | None = None) -> dict[str, Tensor]:
        """The backbone's maps (B, C, H/stride, W/stride) of (B, 3, H, W) normalised images that `neck` takes.

        `net` stands in for the backbone's own network, such as a faster copy of it.
        """

    @abstractmethod
    def neck(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps (B, C, H/stride, W/stride) that the head sees, finest first, of the backbone's."""

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Maps (B, C, H/stride, W/stride) that the head sees, finest first."""
        return self.neck(self.body(batch.tensor)) if batch.maps is None else batch.maps

    def supervised(self, batch: Batch) -> list[tuple[float, Batch]]:
        """The batches whose `losses`, each with its weight, train on labels: this one, and over a composite backbone
        the same images as its assistant alone sees them, with a weight of 0.5; neck and head see both."""
        net = self.backbone.net
        if not isinstance(net, Composite):
            return [(1.0, batch)]
        maps = net.both(batch.tensor)
        seen = [self.neck(self.body(batch.tensor, Known(each))) for each in maps]
        return [(w, replace(batch, maps=each)) for w, each in zip((1.0, ASSISTANT_WEIGHT), seen, strict=True)]

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The detector's own named losses (scalars), finite and differentiable with no boxes at all."""

    @abstractmethod
    def detections(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Per image "boxes" (N, 4) xyxy px of the image as given, "scores" (N,) falling, "labels" (N,) 0…K−1.

        Where `has_masks`, also "masks" (N, M, M), probabilities in the frame of the box.
        """

    @abstractmethod
    def projector(self, dim: int) -> nn.Module:
        """A new head that gives places embeddings of size `dim`: what `regions` takes. It is no part of `.net`."""

    def shared(self) -> list[nn.Module]:
        """What the teacher of box-domain pre-training has in common with this detector, beside a frozen backbone."""
        return []

    @abstractmethod
    def regions(
        self,
        maps: Mapping[str, Tensor],
        batch: Batch,
        projector: nn.Module,
        generator: torch.Generator,
        *,
        losses: bool,
        samples: int | None = None,
    ) -> list[Regions]:
        """Places of a batch with their embeddings and the ids of its targets, one `Regions` a stage of the detector.

        `maps`: `features` of the batch. `projector`: made by `projector`. `generator`: on the CPU, draws which places
        are taken where there are more than `samples` (as many as the method's authors took if None). `losses`: also
        run and train the box branch. No labels are read, but for the pseudo classes that DETRs learn.
        """

    def prepare(self, samples: Sequence[Sample]) -> Batch:
        """Samples normalised with the backbone's statistics and padded to a common multiple of `size_divisor`.

        Nothing is resized: boxes stay in the pixels of the image as given.
        """
        weight = next(self.net.parameters())
        sizes = [sample.size for sample in samples]
        height, width = self.padded_size(max(h for h, _ in sizes), max(w for _, w in sizes))
        tensor = torch.zeros(len(samples), 3, height, width, device=weight.device)
        for row, sample, (h, w) in zip(tensor, samples, sizes):
            image = sample.image.as_subclass(Tensor).to(weight.device, non_blocking=True)
            row[:, :h, :w] = normalise(image, self.backbone.mean, self.backbone.std)
        targets = [_target(sample, weight.device) for sample in samples]
        return Batch(tensor.to(weight.dtype), sizes, targets)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) in px of the tensor that holds an image of this size."""
        step = self.size_divisor
        return -(-height // step) * step, -(-width // step) * step

    def predict(self, samples: Sequence[Sample]) -> list[dict[str, Tensor]]:
        """Per sample "boxes" (N, 4) xyxy px of the original image, "scores" (N,) falling, "labels" (N,) 0…K−1; where
        `has_masks` also "masks" (N, H, W) bool, as large as the original image.

        An image's result does not depend on the others: only images of one padded size share a batch, and batch norm
        uses its stored statistics.
        """
        return [self._with_masks(found, paste, sample) for found, sample in zip(self._found(samples), samples)]

    def find(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """As `predict`, with the masks as a list of COCO's compressed RLE, {"size": [H, W], "counts": str}: these fit
        into memory for any number of large images."""
        return [self._with_masks(found, packed, sample) for found, sample in zip(self._found(samples), samples)]

    def _with_masks(self, found: dict[str, Tensor], unpack: Callable[..., Any], sample: Sample) -> dict[str, Any]:
        """What is found, with its masks as `unpack` gives them for the original image."""
        if not self.has_masks:
            return found
        return {**found, "masks": unpack(found["masks"], found["boxes"], sample.original_size or sample.size)}

    @torch.no_grad()
    def _found(self, samples: Sequence[Sample]) -> list[dict[str, Tensor]]:
        """`detections` of each sample, the boxes in pixels of the original image."""
        found: dict[int, dict[str, Tensor]] = {}
        with evaluating(self):
            for rows in _rows_of_one_size(samples, self):
                members = [samples[row] for row in rows]
                for row, sample, detections in zip(rows, members, self.detections(self.prepare(members))):
                    found[row] = _in_original_pixels(detections, sample)
        return [found[row] for row in range(len(samples))]


def _target(sample: Sample, device: torch.device) -> dict[str, Tensor]:
    boxes = sample.boxes.as_subclass(Tensor).float()
    target = {"boxes": boxes, "ids": sample.ids}
    if sample.labels is not None:
        target["labels"] = sample.labels
    if sample.masks is not None:
        target["masks"] = sample.masks.as_subclass(Tensor)
    # One that no anchor overlaps would have all of them as its best; NaN compares as not greater.
    inside = clip_boxes_to_image(boxes, sample.size)
    covering = (inside[:, 2:] > inside[:, :2]).all(1) & boxes.isfinite().all(1)
    if not bool(covering.all()):
        target = {name: value[covering] for name, value in target.items()}
    return {name: value.to(device, non_blocking=True) for name, value in target.items()}


def _rows_of_one_size(samples: Sequence[Sample], detector: Detector) -> list[list[int]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for row, sample in enumerate(samples):
        groups.setdefault(detector.padded_size(*sample.size), []).append(row)
    return list(groups.values())


def _in_original_pixels(detections: dict[str, Tensor], sample: Sample) -> dict[str, Tensor]:
    height, width = sample.size
    original = sample.original_size or sample.size
    ratios = (original[1] / width, original[0] / height)
    boxes = clip_boxes_to_image(detections["boxes"] * detections["boxes"].new_tensor(ratios * 2), original)
    return {**detections, "boxes": boxes}


def packed(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Masks (N, M, M), 0…1, of boxes (N, 4) xyxy px as compressed RLE of an image of `size` (H, W)."""
    together = max(1, UNPACKED // (size[0] * size[1]))
    parts = zip(masks.split(together), boxes.split(together))
    return [entry for some, own in parts for entry in encode_masks(paste(some, own, size).cpu())]
