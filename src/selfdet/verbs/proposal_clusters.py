"""The cluster step of proposals: each box's pseudo class, by what a frozen backbone sees in it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdet.data.coco import read_coco
from selfdet.data.images import UnreadableImage, read_image
from selfdet.data.labels import ImageRecord
from selfdet.data.pixels import resize
from selfdet.data.probe_samples import ProbeSamples
from selfdet.errors import UserError
from selfdet.evaluation.probe import features
from selfdet.interchange.starts import load_backbone, resolve_start
from selfdet.models.backbones import Backbone
from selfdet.proposing.clusters import MOST, NO_CLUSTER, Clusters, fit_clusters, read_clusters, with_clusters
from selfdet.proposing.store import read_proposals, write_clusters
from selfdet.training.defaults import TRANSFORMERS, pseudo_classes
from selfdet.training.log import Reporter, plural
from selfdet.training.rundir import RunDir
from selfdet.training.runtime import Runtime
from selfdet.verbs.detector_boxes import hash_weights

SIDE = 224  # pixels, of the squares that images are scaled to
IMAGES = 16  # that the backbone sees at once
# Boxes that the clusters are fitted to, of images drawn by the seed; the others are only numbered. 80 a cluster.
FITTED = 20_480


def backbone_of_clusters(count: int, name: str | None, weights: str | None) -> Backbone | None:
    """The backbone that tells boxes apart: `name`, else the one that the weights say they are of, else a ResNet-50.

    None where no clusters are asked for. Raises: UserError for what does not fit, and as `load_backbone`.
    """
    if not count:
        if name is not None or weights is not None:
            raise UserError("--backbone and --backbone-weights are for --clusters", "Add --clusters 256")
        return None
    if count < 2:
        raise UserError(f"--clusters is {count}, expected 2 or more", "256 is usual")
    if weights is None:
        raise UserError("--clusters needs a trained backbone", "Add --backbone-weights library, or a file")
    if name is None and weights not in ("random", "scratch", "library"):
        name = resolve_start(weights, "--backbone-weights").note.get("backbone")
    return load_backbone(name or "resnet50", weights)[0]


def add_clusters(file: Path, images: str, backbone: Backbone, *, count: int, seed: int, reporter: Reporter) -> None:
    """Give the boxes in a file of proposals their clusters, where it has none yet.

    Raises: UserError when it has others, and as `cluster_boxes`.
    """
    known = read_clusters(file, read_coco(file))
    if known is None:
        cluster_boxes(file, images, file, backbone, count=count, seed=seed, reporter=reporter)
        return
    wanted = _clusters_of(backbone, count, seed)
    for name, value in asdict(wanted).items():
        if getattr(known, name) != value:
            raise UserError(
                f"{file} has clusters already, of {name} {getattr(known, name)}, not {value}",
                f"Write others to a new file: --boxes {file} --out …",
            )
    reporter.line(f"{file} has its {plural(count, 'cluster')} already")


def _clusters_of(backbone: Backbone, count: int, seed: int) -> Clusters:
    return Clusters(count, seed, backbone.name, hash_weights(backbone.net.state_dict()), SIDE)


def cluster_boxes(
    file: Path,
    images: str,
    out: Path,
    backbone: Backbone,
    *,
    count: int,
    seed: int,
    reporter: Reporter,
    side: int = SIDE,
) -> None:
    """Write the proposals of `file` to `out` with a cluster for each box, of `count` that are drawn by `seed`.

    A box's features are the means within it of the frozen backbone's three coarsest maps, each of unit length; images
    are scaled to squares of 224 pixels. Boxes of an image that can't be read have none.
    Raises: UserError when there are fewer boxes than clusters, and as `read_proposals`.
    """
    records = read_proposals(file, images)
    about = _clusters_of(backbone, count, seed)
    order = [int(place) for place in np.random.default_rng(seed).permutation(len(records))]
    numbers: dict[int, int] = {}
    kept: list[tuple[list[int], np.ndarray]] = []
    means: Any = None
    waiting = min(FITTED, sum(len(record.boxes) for record in records))
    with reporter.counting(len(records), "images") as seen:
        done = 0
        for ids, found, looked_at in _features(backbone, [records[place] for place in order]):
            kept.append((ids, found))
            done += looked_at
            seen(done)
            waiting -= len(ids)
            if means is None and (waiting <= 0 or done == len(records)):
                means = fit_clusters(np.concatenate([each for _, each in kept]), count, seed)
            if means is not None:
                for own, each in kept:
                    numbers |= dict(zip(own, means.predict(each).tolist())) if own else {}
                kept = []
    write_clusters(out, read_coco(file), numbers, about)
    used = len(set(numbers.values()) - {NO_CLUSTER})
    reporter.line(f"{plural(len(numbers), 'box', 'boxes')} in {plural(used, 'cluster')} by {backbone.name}: {out}")


def _features(backbone: Backbone, records: Sequence[ImageRecord]) -> Iterator[tuple[list[int], np.ndarray, int]]:
    """Annotation ids and features (n, D) float32 of the boxes of some images at a time, and how many images."""
    for start in range(0, len(records), IMAGES):
        some = records[start : start + IMAGES]
        ids: list[int] = []
        pictures: list[Tensor] = []
        boxes: list[Tensor] = []
        places: list[int] = []
        for record in some:
            if not len(record.boxes):
                continue
            try:
                image = read_image(record.path, (record.width, record.height)).as_subclass(Tensor)
            except UnreadableImage:
                continue
            ratios = torch.tensor([SIDE / record.width, SIDE / record.height] * 2)
            boxes.append(torch.from_numpy(record.boxes) * ratios)
            places += [len(pictures)] * len(record.boxes)
            pictures.append(resize(image, SIDE, SIDE))
            ids += record.annotation_ids
        where = torch.tensor(places, dtype=torch.int64)
        found = np.zeros((0, sum(backbone.channels[-3:])), np.float32)
        if ids:
            samples = ProbeSamples([], torch.stack(pictures), torch.zeros_like(where), where, where, torch.cat(boxes))
            found = features(backbone, samples, IMAGES).float().numpy()
        yield ids, found, len(some)


def known_clusters(out: str, file: Path, count: int | None) -> tuple[Path, dict[str, Any], Clusters] | None:
    """The file with clusters, `count` of them if that is asked for, that a run in `out` has made or was given as
    `file`: its place, what is in it, and what its clusters depend on. Raises: UserError for a faulty one."""
    for place in dict.fromkeys((RunDir(out, writes=False).proposals, file)):
        coco = read_coco(place) if place.is_file() else {}
        about = read_clusters(place, coco)
        if about is not None and count in (None, about.count):
            return place, coco, about
    return None


def check_clusters(detector: str, asked: int | None, boxes: int = MOST) -> None:
    """Refuse pseudo classes that the detector of this key can't learn from so many boxes. Raises: UserError."""
    if asked is None:
        return
    if detector not in TRANSFORMERS and asked != 1:
        raise UserError(f"--detector-stage.clusters {asked}: {pseudo_classes(detector, boxes).reason}", "Leave it out")
    if not 1 <= asked <= max(1, boxes):
        most = f"{boxes}, the proposals" if boxes < MOST else f"{MOST}, and no more than proposals"
        raise UserError(f"--detector-stage.clusters is {asked}, expected 1 to {most}", "Leave it out")


def cluster_count(out: str, file: Path, detector: str, asked: int | None, boxes: int) -> int:
    """The number of pseudo classes for the detector of this key; 1 for none: what was asked, else that of `file`, or of
    the run in `out`, else the usual one. Raises: UserError for a detector that learns none, and out of range."""
    check_clusters(detector, asked, min(boxes, MOST))
    if asked is not None or detector not in TRANSFORMERS:
        return asked or 1
    known = known_clusters(out, file, None)
    return int(pseudo_classes(detector, boxes).value) if known is None else known[2].count


def clustered_records(
    runtime: Runtime, out: str, file: Path, images: str, backbone: Backbone, *, count: int, seed: int
) -> list[ImageRecord]:
    """The proposals of a run with clusters as labels: those of `file`, where it has `count` clusters, else they are
    found now, into the run's own file. Raises: UserError."""
    run = RunDir(out, writes=False)
    known = known_clusters(out, file, count)
    if runtime.first and known is None:
        before = next(backbone.parameters()).device
        reporter = Reporter(run.log_file)
        reporter.line(f"pseudo classes: {count} clusters of what the backbone sees in the proposals")
        backbone.to(runtime.fabric.device)
        cluster_boxes(file, images, run.proposals, backbone, count=count, seed=seed, reporter=reporter)
        backbone.to(before)
        known = known_clusters(out, file, count)
    while known is None:  # not a barrier: the first process may take longer than the others may wait at one
        time.sleep(5.0)
        known = known_clusters(out, file, count)
    place, coco, _ = known
    return with_clusters(place, read_proposals(place, images), coco)
