"""The AP of masks is pycocotools' to the sixth digit, and says what it could not judge."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from selfdet.data.labels import load_labels
from selfdet.data.masks import decode_mask, segmentation_rle
from selfdet.errors import UserError
from selfdet.evaluation.detection import detection_table, evaluate_detections, to_coco_results

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def ellipse(size: tuple[int, int], box: np.ndarray) -> np.ndarray:
    """The mask (H, W) of an ellipse that fills the xywh `box`, its lower right quarter cut out."""
    y, x = np.ogrid[: size[0], : size[1]]
    v, u = (y + 0.5 - box[1]) / box[3] * 2 - 1, (x + 0.5 - box[0]) / box[2] * 2 - 1
    mask: np.ndarray = (u * u + v * v < 1) & ~((u > 0) & (v > 0))
    return mask


def packed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate([[False], mask.T.flatten(), [True]])
    ends = np.flatnonzero(np.diff(flat.astype(int)))
    runs = np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": runs}


def polygons(box: np.ndarray) -> list[list[float]]:
    """A diamond in the box and a triangle at its lower left."""
    x, y, w, h = box.tolist()
    diamond = [x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]
    return [diamond, [x, y + h, x, y + 0.7 * h, x + 0.3 * w, y + h]]


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of every kind of segmentation, crowds, three classes, images of three shapes; detections near them."""
    rng = np.random.default_rng(seed)
    sizes = {image_id: [(160, 200), (200, 150), (120, 120)][image_id % 3] for image_id in range(30, 42)}
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in list(sizes)[:-2]:
        height, width = sizes[image_id]
        for _ in range(rng.integers(0, 8)):
            sides = np.exp(rng.uniform(np.log(6), np.log(110), 2))
            box = np.array([*rng.uniform(-5, [width - 6, height - 6]), *sides])
            mask, category = ellipse((height, width), box), int(rng.choice([18, 3]))
            crowd = int(rng.random() < 0.2)
            kind = rng.integers(3) if not crowd else 1
            segmentation = [polygons(box), uncompressed(mask), packed(mask)][kind]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box.tolist(),
                    "area": float(mask.sum()),
                    "iscrowd": crowd,
                    "segmentation": segmentation,
                }
            )
            for _ in range(rng.integers(0, 4)):
                moved = box + rng.normal(0, 0.04, 4) * np.array([*sides, *sides])
                found = ellipse((height, width), moved) if kind else polygon_mask((height, width), moved)
                results.append(result(image_id, category, moved, found, rng))
    for _ in range(25):  # false alarms, also where there is nothing to find, and masks of no pixel
        image_id, category = int(rng.choice(list(sizes))), int(rng.choice([18, 3, 90]))
        box = np.array([*rng.uniform(0, 100, 2), *rng.uniform(0.1, 60, 2)])
        results.append(result(image_id, category, box, ellipse(sizes[image_id], box), rng))
    labels = {
        "images": [{"id": key, "width": w, "height": h, "file_name": f"{key}.jpg"} for key, (h, w) in sizes.items()],
        "annotations": annotations,
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}, {"id": 90, "name": "never seen"}],
    }
    return labels, [results[i] for i in rng.permutation(len(results))]


def polygon_mask(size: tuple[int, int], box: np.ndarray) -> np.ndarray:
    mask: np.ndarray = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons(box), *size))).astype(bool)
    return mask


def result(image_id: int, category: int, box: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    score = float(np.round(rng.random(), 1))  # one digit: many ties
    row = {"image_id": image_id, "category_id": category, "bbox": box.tolist(), "score": score}
    return {**row, "segmentation": packed(mask)}


def reference(
    labels: dict[str, Any], results: list[dict[str, Any]], image_ids: list[int] | None = None
) -> dict[str, Any]:
    """The figures of masks by pycocotools; without the boxes, in whose place it would take areas from them."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(labels)
        truth.createIndex()
        boxless = [{key: value for key, value in each.items() if key != "bbox"} for each in copy.deepcopy(results)]
        evaluation = COCOeval(truth, truth.loadRes(boxless), "segm")
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures: dict[str, Any] = dict(zip(KEYS, evaluation.stats[:6].tolist()))
    names = {category["id"]: category["name"] for category in labels["categories"]}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    figures["per_class"] = {}
    for k, category_id in enumerate(evaluation.params.catIds):
        known = precision[:, :, k][precision[:, :, k] > -1]
        figures["per_class"][names[category_id]] = known.mean() if known.size else -1
    return figures


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert list(ours) == [*KEYS, "per_class"]
    for key in KEYS:
        assert (-1 if ours[key] is None else ours[key]) == pytest.approx(theirs[key], abs=1e-6), key
    assert list(ours["per_class"]) == list(theirs["per_class"])
    for name, value in ours["per_class"].items():
        assert (-1 if value is None else value) == pytest.approx(theirs["per_class"][name], abs=1e-6), name


@pytest.mark.parametrize("seed", range(6))
def test_figures_equal_pycocotools_with_crowds_polygons_and_run_lengths(seed: int) -> None:
    labels, results = random_case(seed)
    before = copy.deepcopy((labels, results))
    ours = evaluate_detections(labels, results)
    assert_equal(ours["mask"], reference(labels, results))
    assert (labels, results) == before
    assert 0 < ours["mask"]["AP"] < 1
    assert ours["mask"]["AP"] != ours["AP"]
    assert json.loads(json.dumps(ours, allow_nan=False)) == ours


def test_figures_equal_pycocotools_on_chosen_images() -> None:
    labels, results = random_case(7)
    chosen = list(range(33, 38))
    assert_equal(evaluate_detections(labels, results, chosen)["mask"], reference(labels, results, chosen))


def test_the_figures_of_boxes_are_the_same_with_and_without_masks() -> None:
    labels, results = random_case(1)
    with_masks = evaluate_detections(labels, results)
    del with_masks["mask"]
    assert with_masks == evaluate_detections(labels, results, masks=False)
    assert with_masks == evaluate_detections(labels, bare(results))


def test_sizes_may_be_missing_in_the_label_file() -> None:
    labels, results = random_case(3)
    expected = evaluate_detections(labels, results)
    for image in labels["images"]:
        del image["width"], image["height"]
    assert evaluate_detections(labels, results) == expected


def bare(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of a detector without masks."""
    return [{key: value for key, value in each.items() if key != "segmentation"} for each in results]


SIZE = (20, 30)
LEFT, RIGHT = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
LEFT[5:15, 2:12] = RIGHT[5:15, 16:26] = True


def two_objects() -> dict[str, Any]:
    """A square of 10 px at the left as polygon, one at the right as run lengths."""
    frame = {"image_id": 1, "category_id": 1, "area": 100, "iscrowd": 0}
    return {
        "images": [{"id": 1, "width": 30, "height": 20}],
        "annotations": [
            {**frame, "id": 1, "bbox": [2, 5, 10, 10], "segmentation": [[2, 5, 12, 5, 12, 15, 2, 15]]},
            {**frame, "id": 2, "bbox": [16, 5, 10, 10], "segmentation": uncompressed(RIGHT)},
        ],
        "categories": [{"id": 1, "name": "square"}],
    }


def found(*masks: np.ndarray, boxes: list[list[float]] | None = None) -> list[dict[str, Any]]:
    """COCO results, made from a prediction, of masks with falling scores; their boxes are the objects'."""
    prediction = {
        "boxes": torch.tensor(boxes or [[2.0, 5, 12, 15], [16, 5, 26, 15]])[: len(masks)],
        "scores": torch.linspace(0.9, 0.5, len(masks)),
        "labels": torch.zeros(len(masks), dtype=torch.int64),
        "masks": torch.from_numpy(np.array(masks, bool).reshape(-1, *SIZE)),
    }
    return to_coco_results(1, prediction, [1])


def test_masks_are_matched_by_their_own_pixels_whatever_the_boxes_say() -> None:
    right = found(LEFT, RIGHT)
    assert evaluate_detections(two_objects(), right)["mask"]["AP"] == pytest.approx(1)
    assert evaluate_detections(two_objects(), right[:1])["mask"]["AP"] == pytest.approx(51 / 101)
    halves = found(LEFT & (np.arange(30) < 7), RIGHT & (np.arange(30) < 21))
    scores = evaluate_detections(two_objects(), halves)
    assert scores["AP"] == pytest.approx(1)
    assert scores["mask"]["AP50"] == pytest.approx(1)  # exactly a half
    assert scores["mask"]["AP75"] == 0
    changed_places = evaluate_detections(two_objects(), found(RIGHT, LEFT))
    assert changed_places["mask"]["AP"] == pytest.approx(1)
    off_the_objects = evaluate_detections(two_objects(), found(~LEFT & ~RIGHT))
    assert off_the_objects["AP"] > 0
    assert off_the_objects["mask"]["AP"] == 0


def test_a_prediction_becomes_json_results_with_run_lengths() -> None:
    results = found(LEFT, RIGHT)
    assert json.loads(json.dumps(results)) == results
    for each, mask in zip(results, (LEFT, RIGHT)):
        assert set(each) == {"image_id", "category_id", "bbox", "score", "segmentation"}
        assert each["segmentation"]["size"] == list(SIZE)
        np.testing.assert_array_equal(coco_mask.decode(each["segmentation"]), mask)
    assert found() == []
    with pytest.raises(ValueError, match="is longer than"):
        found(LEFT, RIGHT, boxes=[[2.0, 5, 12, 15]])


def test_masks_found_inside_a_crowd_are_no_false_alarms() -> None:
    labels = two_objects()
    labels["annotations"][0]["iscrowd"] = 1
    first = found(LEFT & (np.arange(30) < 7), RIGHT)
    assert evaluate_detections(labels, first)["mask"]["AP"] == pytest.approx(1)
    outside = found(~LEFT & ~RIGHT, RIGHT)
    assert evaluate_detections(labels, outside)["mask"]["AP"] == pytest.approx(0.5)


def test_objects_without_a_segmentation_are_ignored_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    labels = two_objects()
    del labels["annotations"][0]["segmentation"]
    with caplog.at_level(logging.WARNING):
        scores = evaluate_detections(labels, found(LEFT, RIGHT))
    assert scores["mask"]["AP"] == pytest.approx(1)
    assert "1 of 2 objects have no segmentation" in caplog.text
    assert evaluate_detections(labels, found(RIGHT))["mask"]["AP"] == pytest.approx(1)


def test_there_are_no_figures_of_masks_where_detections_or_labels_have_none() -> None:
    labels = two_objects()
    assert "mask" not in evaluate_detections(labels, bare(found(LEFT)))
    assert evaluate_detections(labels, [], masks=True)["mask"]["AP"] == 0
    for annotation in labels["annotations"]:
        annotation["segmentation"] = []
    scores = evaluate_detections(labels, found(LEFT))
    assert "mask" not in scores
    assert scores["AP"] > 0


def test_masks_that_cannot_be_read_or_are_missing_or_of_another_size_are_refused() -> None:
    labels, results = two_objects(), found(LEFT, RIGHT)
    turned = [{**results[0], "segmentation": packed(LEFT.T)}]
    with pytest.raises(UserError, match=r"a detection in image 1 cannot be read: its size is \[30, 20\]"):
        evaluate_detections(labels, turned)
    with pytest.raises(UserError, match="a detection in image 1 has no segmentation where others have one"):
        evaluate_detections(labels, results[:1] + bare(results[1:]))
    labels["annotations"][1]["segmentation"] = "there"
    with pytest.raises(UserError, match="annotation 2 of image 1 cannot be read: it is neither polygons nor RLE"):
        evaluate_detections(labels, results)


def test_the_printed_table_sets_masks_below_boxes() -> None:
    figures = {"AP": 0.1234, "AP50": 0.5, "AP75": 0.0, "APs": None, "APm": 1.0, "APl": 0.2}
    mask = {**figures, "AP": 0.1, "per_class": {"dog": 0.2, "cat": None}}
    metrics = {**figures, "per_class": {"dog": 0.1, "cat": None}, "images": 3, "detections": 9, "mask": mask}
    lines = detection_table(metrics).splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert lines[1].split() == ["APᵇ", "12.3", "50.0", "0.0", "–", "100.0", "20.0"]
    assert lines[2].split() == ["APᵐ", "10.0", "50.0", "0.0", "–", "100.0", "20.0"]
    assert lines[4] == "APᵇ and APᵐ by class"
    assert [line.split() for line in lines[5:7]] == [["dog", "10.0", "20.0"], ["cat", "–", "–"]]
    names = {f"class {i}": i / 80 for i in range(80)}
    wide = {**metrics, "per_class": names, "mask": {**mask, "per_class": names}}
    lines = detection_table(wide).splitlines()
    assert len(lines) == 3 + 2 + 40 + 1
    assert max(map(len, lines)) <= 110


@pytest.mark.data
@pytest.mark.skipif("SELFDET_DATA" not in os.environ, reason="needs SELFDET_DATA")
@pytest.mark.parametrize("split", ["train", "val"])
def test_figures_equal_pycocotools_on_published_labels_with_crowds(split: str) -> None:
    """Every object and crowd, moved by a few pixels, is detected, some twice."""
    root = Path(os.environ["SELFDET_DATA"]) / "coco-tiny"
    labels = load_labels(root / "annotations" / f"instances_{split}2017.json", root / f"{split}2017").coco
    sizes = {image["id"]: (image["height"], image["width"]) for image in labels["images"]}
    rng = np.random.default_rng(0)
    results = []
    for annotation in labels["annotations"]:
        mask = decode_mask(segmentation_rle(annotation["segmentation"], sizes[annotation["image_id"]]))
        for _ in range(rng.integers(0, 3)):
            moved = np.roll(mask, rng.integers(-4, 5, 2), axis=(0, 1))
            box = np.array(annotation["bbox"])
            results.append(result(annotation["image_id"], annotation["category_id"], box, moved, rng))
    assert any(annotation["iscrowd"] for annotation in labels["annotations"])
    ours = evaluate_detections(labels, results)
    assert_equal(ours["mask"], reference(labels, results))
    assert 0 < ours["mask"]["AP"] < ours["AP"]
