"""Which images keep their labels when only a fraction may: seeded, and a function of the image ids alone."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selfdet.errors import UserError


@dataclass(frozen=True)
class Subset:
    """Chosen image ids, in ascending order, with what they were chosen by.

    scheme: `nested`, `coco-splits` or `shots`. fraction: of the images, 0…1. hash: SHA-256 (hexadecimal) of the ids in
    ascending order, in decimal, joined by newlines: equal hashes are equal subsets.
    """

    image_ids: list[int]
    scheme: str
    fraction: float
    seed: int
    hash: str


def fraction_subset(image_ids: Sequence[int], fraction: float, seed: int) -> Subset:
    """Choose `fraction` of the images, at least one: for one seed a smaller fraction lies within every larger one.

    Each image has a place in a fixed order, the SHA-256 of seed and id, so neither the order of `image_ids` nor the
    number of processes matters, and an added image moves no other.

    Raises: UserError for a fraction that is not in (0, 1].
    """
    _check(fraction, f"--fraction {fraction:g}")
    order = _order(image_ids, seed)
    count = min(len(order), max(1, images_in(fraction, len(order))))
    return _subset(order[:count], "nested", fraction, seed)


def images_in(fraction: float, images: int) -> int:
    """How many images a `fraction` of them is, to the nearest; 0 where it is less than half of one."""
    # Half up, so that 0.1 of 25 images is 3 everywhere (round() would go to the even number).
    return math.floor(fraction * images + 0.5)


def shots_subset(image_classes: Mapping[int, Collection[int]], shots: int, seed: int) -> Subset:
    """Choose `shots` images of every class, all of a class that has no more: for one seed fewer shots lie within more.

    `image_classes` maps an image's id to the classes of its boxes. Of each class the first images with it are taken, in
    the order that `fraction_subset` has; as images of several classes count for each, a class may get more.

    Raises: UserError for less than one shot, and where no image has a box.
    """
    if shots < 1:
        raise UserError(f"--shots {shots} is not a number of images", "Give at least 1 image of every class")
    have: Counter[int] = Counter()
    chosen = []
    for image_id in _order(image_classes, seed):
        classes = set(image_classes[image_id])
        if any(have[each] < shots for each in classes):
            chosen.append(image_id)
        have.update(classes)
    if not chosen:
        raise UserError("--shots: no image has a box", "Use labels with boxes")
    return _subset(chosen, "shots", len(chosen) / len(image_classes), seed)


def outside_subset(image_ids: Iterable[int], chosen: Collection[int], limit: int, seed: int) -> list[int]:
    """At most `limit` image ids that are not among the `chosen`, in ascending order.

    They are the last ones of `fraction_subset`'s order: the same for all fractions of a seed that leave so many.
    """
    taken = set(chosen)
    left = [image_id for image_id in reversed(_order(image_ids, seed)) if image_id not in taken]
    return sorted(left[:limit])


def coco_split_subset(image_ids: Sequence[int], percent: float, seed: int) -> Subset:
    """The images of the published semi-supervised COCO split `instances_train2017.{seed}@{percent}`.

    `image_ids` in the order of the label file. Images are drawn *with* replacement and counted once, so the split is
    a little smaller than its name says, and splits of one seed are not nested by design.

    Raises: UserError for a percentage that is not in (0, 100] or leaves no image.
    Source: the split scripts of STAC (Sohn et al., arXiv 2005.04757) and its successors: NumPy's legacy generator
        seeded with the fold, one `choice` of int(percent / 100 · images) positions.
    """
    _check(percent / 100, f"{percent:g} percent")
    count = int(percent / 100.0 * len(image_ids))
    if count == 0:
        raise UserError(
            f"{percent:g} percent of {len(image_ids)} images is less than one image", "Use a larger fraction"
        )
    # The published splits exist only in the legacy generator's stream.
    drawn = np.random.RandomState(seed).choice(len(image_ids), size=count)
    return _subset([image_ids[position] for position in set(drawn.tolist())], "coco-splits", percent / 100, seed)


def _order(image_ids: Iterable[int], seed: int) -> list[int]:
    return sorted(set(image_ids), key=lambda image_id: hashlib.sha256(f"{seed}:{image_id}".encode()).digest())


def _check(fraction: float, told: str) -> None:
    if not 0 < fraction <= 1:
        raise UserError(f"{told} is not a share of the images", "Give a number above 0 and up to 1 (0.1 is a tenth)")


def _subset(chosen: list[int], scheme: str, fraction: float, seed: int) -> Subset:
    ids = sorted(chosen)
    digest = hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()
    return Subset(ids, scheme, fraction, seed, digest)
