"""Boxes that a detector finds, for `selfdet proposals --init`: a second round, by what learned from the first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from selfdet.data.images import UnreadableImage, read_image
from selfdet.data.labelled import resize_sample
from selfdet.data.listing import ListedImage
from selfdet.data.sample import Sample, plain_sample
from selfdet.evaluation.inference import BATCH, detect
from selfdet.interchange.starts import load_detector
from selfdet.proposing.filters import Filters
from selfdet.proposing.finding import Found, GivenBoxes, Task, find_boxes
from selfdet.training.runtime import start_runtime


class DetectorBoxes:
    """A run's detector as a source of boxes of no class; `settings` is what they depend on.

    Images are detected in batches of neighbours in the list. An image's boxes may differ in their last bits with those
    that share its batch, so a run that is resumed repeats whole batches and ends as if it had not been stopped.
    """

    def __init__(self, init: str, image_size: int | None, precision: str, threads: int) -> None:
        """Load the detector of a run directory or file.

        Raises: UserError when there is none, or for sizes and devices that do not fit.
        """
        detector, note = load_detector(init)
        self.image_size = int(note["image_size"] if image_size is None else image_size)
        detector.backbone.check_image_size(self.image_size, any_shape=True)
        self.runtime = start_runtime(devices=1, precision=precision, threads=threads)
        self.settings: dict[str, Any] = {
            "source": "detector",
            "init": init,
            "source_hash": hash_weights(detector.net.state_dict()),
            "image_size": self.image_size,
            "precision": self.runtime.precision,
        }
        self.detector = self.runtime.place(detector)

    def whole_batches(self, listed: Sequence[ListedImage], done: set[int]) -> set[int]:
        """The ids of those batches of `listed` of which every image is among `done`."""
        ids = [image.image_id for image in listed]
        batches = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
        return {number for batch in batches if done.issuperset(batch) for number in batch}

    def find(self, images: Sequence[ListedImage], filters: Filters, stopped: Callable[[], bool]) -> Iterator[Found]:
        """The answer for each image, until `stopped` says so; classes play no part, the best scored boxes come first.

        images: whole batches of the list.
        """
        for start in range(0, len(images), BATCH):
            if stopped():
                return
            batch = {image.image_id: image for image in images[start : start + BATCH]}
            samples = []
            for image in batch.values():
                sample = self._read(image)
                if isinstance(sample, Found):
                    yield sample
                else:
                    samples.append(sample)
            for sample, found in detect(self.detector, samples, self.runtime.fabric, BATCH):
                order = torch.argsort(found["scores"], descending=True, stable=True)
                given = GivenBoxes(found["boxes"][order].float().numpy(), found["scores"][order].float().numpy())
                yield find_boxes(Task(batch[sample.image_id], filters, given=given))

    def _read(self, image: ListedImage) -> Sample | Found:
        """The image as the detector sees it, or what is wrong with it."""
        try:
            sample = plain_sample(read_image(image.path, image.size), str(image.path))
            return resize_sample(replace(sample, image_id=image.image_id), self.image_size)
        except UnreadableImage as error:
            return Found(image.image_id, fault="unreadable", reason=error.reason)
        except Exception as error:  # of MemoryError the other images should not know
            return Found(image.image_id, fault="failed", reason=f"{type(error).__name__}: {error}")


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """A hash of weights, whatever file they are in: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
