"""Running a detector over a label file's images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from lightning_fabric import Fabric

from selfdet.data.labelled import evaluation_samples
from selfdet.data.labels import Labels
from selfdet.data.sample import Sample
from selfdet.detectors.base import Detector
from selfdet.evaluation.detection import evaluate_detections, to_coco_results


def detect(
    detector: Detector,
    samples: Iterable[Sample],
    fabric: Fabric,
    batch_size: int = 8,
    seen: Callable[[int], None] | None = None,
) -> Iterable[tuple[Sample, dict[str, torch.Tensor]]]:
    """Yield each sample and its detections: boxes (N, 4) xyxy in original pixels, scores, labels; on the CPU.

    `seen` is told how many images are done.
    """
    stream = iter(samples)
    done = 0
    while chunk := list(islice(stream, batch_size)):
        with fabric.autocast():
            found = detector.predict(chunk)
        for sample, detections in zip(chunk, found, strict=True):
            yield sample, {name: value.cpu() for name, value in detections.items()}
        done += len(chunk)
        if seen is not None:
            seen(done)


def score(
    detector: Detector,
    labels: Labels,
    image_size: int,
    fabric: Fabric,
    *,
    category_ids: Sequence[int] | None = None,
    batch_size: int = 8,
    seen: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO AP of a detector on labelled images, and the COCO results it was computed from.

    `image_size`: long side in pixels at which images are shown; `category_ids`: the label file's ids of the
    detector's classes, in the detector's order (the label file's own order if not given).
    """
    ids = list(labels.category_ids if category_ids is None else category_ids)
    results: list[dict[str, Any]] = []
    for sample, detections in detect(
        detector, evaluation_samples(labels.records, image_size), fabric, batch_size, seen
    ):
        results += to_coco_results(sample.image_id, detections, ids)
    image_ids = [record.image_id for record in labels.records]
    return evaluate_detections(labels.coco, results, image_ids), results
