"""Running a detector over images changes neither with the batch nor with what cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from selfdet.data.images import Quarantine
from selfdet.data.labelled import evaluation_samples
from selfdet.data.labels import load_labels, read_sample
from selfdet.data.masks import encode_masks
from selfdet.detectors.base import Detector
from selfdet.errors import UserError
from selfdet.evaluation.inference import above, detect, score, unknown_classes
from selfdet.interchange.starts import load_detector
from selfdet.training.runtime import start_runtime


@pytest.fixture(scope="module")
def detector(finetuned: Path) -> Detector:
    return load_detector(str(finetuned))[0]


def test_each_image_comes_once_in_order_on_the_cpu_and_the_count_is_told(scenes: Path, detector: Detector) -> None:
    labels = load_labels(scenes / "val.json")
    fabric = start_runtime(precision="fp32", threads=1).fabric
    told: list[int] = []
    samples = evaluation_samples(labels.records, 96)
    found = list(detect(detector, samples, fabric, batch_size=2, seen=told.append))
    assert [sample.image_id for sample, _ in found] == [record.image_id for record in labels.records]
    assert told == [2, 4, 5]
    single = list(detect(detector, evaluation_samples(labels.records, 96), fabric, batch_size=1))
    for (_, one), (_, other) in zip(found, single, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-3, rtol=1e-4)
    assert list(detect(detector, [], fabric)) == []


def test_a_detector_that_knows_the_truth_scores_1(scenes: Path, detector: Detector) -> None:
    labels = load_labels(scenes / "val.json")
    truth = {record.image_id: read_sample(record, with_masks=True).masks for record in labels.records}

    class Oracle(Detector):
        """Finds what is labelled, in original pixels."""

        has_masks = True
        body = neck = features = losses = detections = None  # type: ignore[assignment]
        projector = regions = parts = config = None  # type: ignore[assignment]

        def find(self, samples):  # type: ignore[no-untyped-def]
            scale = [sample.original_size[0] / sample.size[0] for sample in samples]
            return [
                {
                    "boxes": sample.boxes.as_subclass(torch.Tensor) * factor,
                    "labels": sample.labels,
                    "scores": torch.ones(len(sample.boxes)),
                    "masks": encode_masks(truth[sample.image_id]),
                }
                for sample, factor in zip(samples, scale)
            ]

    oracle = Oracle(detector.net, detector.backbone, len(labels.classes))
    fabric = start_runtime(precision="fp32", threads=1).fabric
    scores, results = score(oracle, labels, 48, fabric)
    assert scores["AP"] == pytest.approx(1.0)
    assert scores["mask"]["AP"] == pytest.approx(1.0)
    assert scores["images"] == 5
    assert {*results[0]["segmentation"]["size"]} == {96}  # of the file, not of the 48 px shown
    assert len(results) == sum(len(record.boxes) for record in labels.records)


def test_masks_are_filtered_with_their_boxes() -> None:
    found = {"boxes": torch.eye(4)[:3], "scores": torch.tensor([0.9, 0.5, 0.2]), "masks": [{"n": 0}, {"n": 1}, {}]}
    kept = above(found, 0.5)
    assert kept["masks"] == [{"n": 0}, {"n": 1}]
    assert kept["boxes"].equal(found["boxes"][:2])
    assert above(found, 0.95)["masks"] == []


def test_a_detector_of_masks_that_finds_nothing_scores_zero_in_them_too(scenes: Path, detector: Detector) -> None:
    labels = load_labels(scenes / "val.json")

    class Blind(type(detector)):  # type: ignore[misc]
        has_masks = True

        def find(self, samples):  # type: ignore[no-untyped-def]
            none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
            return [{**none, "masks": []} for _ in samples]

    blind = Blind(detector.net, detector.backbone, len(labels.classes), detector.options)
    scores, _ = score(blind, labels, 48, start_runtime(precision="fp32", threads=1).fabric)
    assert scores["mask"]["AP"] == scores["AP"] == 0


def test_unreadable_images_are_left_out_up_to_what_the_quarantine_bears(
    scenes: Path, detector: Detector, tmp_path: Path
) -> None:
    images = shutil.copytree(scenes / "images", tmp_path / "images")
    fabric = start_runtime(precision="fp32", threads=1).fabric
    (images / "val_00003.jpg").write_bytes(b"")
    labels = load_labels(scenes / "val.json", images)
    quarantine = Quarantine(len(labels))
    scores, results = score(detector, labels, 96, fabric, quarantine=quarantine)
    assert quarantine.paths == [str(images / "val_00003.jpg")]
    assert scores["images"] == 4
    assert {result["image_id"] for result in results} <= {1, 2, 3, 5}
    for number in range(5):
        (images / f"val_{number:05d}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="images cannot be read, more than 5%"):
        score(detector, labels, 96, fabric)
    with pytest.raises(UserError, match="none of the 5 images"):
        score(detector, labels, 96, fabric, quarantine=Quarantine(5, limit=1.0))


def test_classes_the_detector_does_not_know_are_named(scenes: Path) -> None:
    labels = load_labels(scenes / "val.json")
    assert unknown_classes(labels, labels.category_ids) == []
    assert unknown_classes(labels, labels.category_ids[1:]) == [labels.classes[0]]
