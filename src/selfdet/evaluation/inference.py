"""Running a detector over a label file's images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from lightning_fabric import Fabric

from selfdet.data.images import Quarantine
from selfdet.data.labelled import evaluation_samples
from selfdet.data.labels import Labels
from selfdet.data.sample import Sample
from selfdet.data.voc import is_voc
from selfdet.detectors.base import Detector
from selfdet.errors import UserError
from selfdet.evaluation.detection import evaluate_detections, to_coco_results
from selfdet.evaluation.missrate import miss_rates
from selfdet.evaluation.sharing import SharedQuarantine, as_in_the_first, of_all, own_chunks
from selfdet.evaluation.voc import voc_scores

BATCH = 8  # images at a time; an image's detections don't depend on the others


def detect(
    detector: Detector,
    samples: Iterable[Sample],
    fabric: Fabric,
    batch_size: int = BATCH,
    seen: Callable[[int], None] | None = None,
) -> Iterator[tuple[Sample, dict[str, Any]]]:
    """Yield each sample and its detections: boxes (N, 4) xyxy in original pixels, scores, labels, and from a detector
    of masks these, a list of N compressed RLE of the original image's size; tensors on the CPU.

    `seen` is told how many images are done.
    """
    stream = iter(samples)
    done = 0
    while chunk := list(islice(stream, batch_size)):
        yield from _detect_together(detector, chunk, fabric)
        done += len(chunk)
        if seen is not None:
            seen(done)


def _detect_together(
    detector: Detector, chunk: Sequence[Sample], fabric: Fabric
) -> Iterator[tuple[Sample, dict[str, Any]]]:
    with fabric.autocast():
        found = detector.find(chunk)
    for sample, detections in zip(chunk, found, strict=True):
        yield sample, {name: value if name == "masks" else value.cpu() for name, value in detections.items()}


def above(detections: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """The detections of an image, as `detect` yields them, whose score is the `threshold` or more."""
    kept = (detections["scores"] >= threshold).nonzero().squeeze(1)
    return {
        name: [values[place] for place in kept.tolist()] if isinstance(values, list) else values[kept]
        for name, values in detections.items()
    }


def score(
    detector: Detector,
    labels: Labels,
    image_size: int,
    fabric: Fabric,
    *,
    category_ids: Sequence[int] | None = None,
    batch_size: int = BATCH,
    seen: Callable[[int], None] | None = None,
    quarantine: Quarantine | None = None,
    miss_rate: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO AP of a detector on labelled images, also of its masks if it gives some, and the COCO results they are of.

    For labels of Pascal VOC its own AP of boxes comes with it, under "voc" (`voc_scores`); where `miss_rate` asks for
    it the log-average miss rate, under "miss_rate" (`miss_rates`).

    `image_size`: long side in pixels at which images are shown; `category_ids`: the label file's ids of the
    detector's classes, in the detector's order (the label file's own order if not given). Classes of the label file
    that the detector does not know are not evaluated (`unknown_classes`). Images that can't be read are entered in
    `quarantine` and left out with their objects. Several processes share the images, and each returns the whole.
    Raises: UserError when more images than the quarantine bears, or all of them, can't be read.
    """
    ids = list(labels.category_ids if category_ids is None else category_ids)
    quarantine = Quarantine(len(labels)) if quarantine is None else quarantine
    shared = SharedQuarantine(quarantine, fabric)
    as_in_the_first(detector, fabric)
    rows: list[tuple[int, int, list[dict[str, Any]]]] = []
    done = 0
    for number, records in own_chunks(labels.records, batch_size, fabric):
        if samples := list(evaluation_samples(records, image_size, shared.own)):
            for sample, detections in _detect_together(detector, samples, fabric):
                rows.append((number, sample.image_id, to_coco_results(sample.image_id, detections, ids)))
        done += len(records)
        if seen is not None:
            seen(min(len(labels), done * fabric.world_size))
    shared.close()
    rows = sorted(of_all(rows, fabric), key=lambda row: row[0])  # within a chunk in its own order
    image_ids = [image for _, image, _ in rows]
    results = [result for _, _, found in rows for result in found]
    if not image_ids:
        raise UserError(f"none of the {len(labels)} images of {labels.file} can be read", "Check the files")
    unknown = unknown_classes(labels, ids)
    classes = [name for name in labels.classes if name not in unknown] if unknown else None
    scores = evaluate_detections(labels.coco, results, image_ids, classes, detector.has_masks)
    if is_voc(labels.file):
        categories = [entry for entry in labels.coco["categories"] if classes is None or entry["name"] in classes]
        scores["voc"] = voc_scores({**labels.coco, "categories": categories}, results, image_ids)
    if miss_rate:
        scores["miss_rate"] = miss_rates(labels.coco, results, image_ids, classes)
    return scores, results


def unknown_classes(labels: Labels, category_ids: Sequence[int]) -> list[str]:
    """The classes of a label file that a detector with classes of these ids does not know."""
    known = set(category_ids)
    return [name for name, number in zip(labels.classes, labels.category_ids) if number not in known]
