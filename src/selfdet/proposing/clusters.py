"""Pseudo classes: boxes that a backbone sees alike share a number, so that a detector can learn to tell them apart.

Source: Li et al., AlignDet, arXiv 2307.11077, has 256 for DETR; how they were made is unpublished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfdet.data.labels import ImageRecord
from selfdet.data.untrusted import is_integer
from selfdet.errors import UserError, shown

if TYPE_CHECKING:
    from sklearn.cluster import MiniBatchKMeans

AGAIN = "Run selfdet proposals with --clusters again, into a new file"
BATCH = 4096  # features a step of k-means
MOST = 65_536  # clusters: a detector has an output for each
NO_CLUSTER = -1  # of a box in an image that could not be read again


@dataclass(frozen=True)
class Clusters:
    """What the clusters in a file depend on: how many, drawn by which seed, of which backbone's features."""

    count: int
    seed: int
    backbone: str
    backbone_hash: str
    image_size: int


def fit_clusters(features: np.ndarray, count: int, seed: int) -> MiniBatchKMeans:
    """Mini-batch k-means of `count` clusters over features (N, D) float32; its `predict` numbers others.

    Raises: UserError when there are fewer features than clusters, and without scikit-learn.
    """
    if len(features) < count:
        raise UserError(f"{len(features)} boxes can't make {count} clusters", "Lower --clusters, or find more boxes")
    try:
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise UserError("clusters need scikit-learn, which is not installed", "pip install 'selfdet[detr]'") from None
    # One thread: the sums of several differ in their last bits from run to run.
    with threadpool_limits(1):
        means = MiniBatchKMeans(count, random_state=seed, batch_size=BATCH, n_init=3)
        fitted: MiniBatchKMeans = means.fit(features)
    return fitted


def read_clusters(file: str | Path, coco: Mapping[str, Any]) -> Clusters | None:
    """What the clusters of a file of proposals, parsed as `coco`, depend on; None where it has none.

    Raises: UserError when that is not what selfdet writes.
    """
    info: Any = coco.get("info")
    about = info.get("clusters") if isinstance(info, dict) else None
    if about is None:
        return None
    numbers, words = ("count", "seed", "image_size"), ("backbone", "backbone_hash")
    if (
        not isinstance(about, dict)
        or about.keys() != {*numbers, *words}
        or not all(is_integer(about[key]) for key in numbers)
        or not all(isinstance(about[key], str) for key in words)
        or not 1 <= about["count"] <= MOST
    ):
        raise UserError(f"{file}: its info says of clusters what selfdet does not write: {shown(about)}", AGAIN)
    return Clusters(**about)


def with_clusters(file: str | Path, records: Sequence[ImageRecord], coco: Mapping[str, Any]) -> list[ImageRecord]:
    """Records of a file of proposals with the cluster of each box, 0 … count−1, as its label; boxes of none left out.

    Raises: UserError for a file without clusters, or with a number that is none of them.
    """
    about = read_clusters(file, coco)
    if about is None:
        raise UserError(f"{file} has no clusters", AGAIN)
    numbers: dict[int, int] = {}
    for row in coco["annotations"]:
        number = row.get("cluster", NO_CLUSTER)
        if not is_integer(number) or not NO_CLUSTER <= number < about.count:
            raise UserError(
                f"{file}: annotation {row['id']} has the cluster {shown(number)}, expected 0 to {about.count - 1}",
                AGAIN,
            )
        numbers[row["id"]] = number
    return [_clustered(record, numbers) for record in records]


def _clustered(record: ImageRecord, numbers: Mapping[int, int]) -> ImageRecord:
    own = np.array([numbers[annotation] for annotation in record.annotation_ids], np.int64)
    known = own != NO_CLUSTER
    ids = [annotation for annotation, is_known in zip(record.annotation_ids, known) if is_known]
    return replace(record, boxes=record.boxes[known], labels=own[known], annotation_ids=ids, segmentations=[])
