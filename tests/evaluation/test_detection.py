"""Average precision is pycocotools' to the sixth digit, silent, and honest about what could not be measured."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from typing import Any

import numpy as np
import pytest
import torch

from selfdet.errors import UserError
from selfdet.evaluation.detection import detection_line, detection_table, evaluate_detections, to_coco_results

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "per_class", "images", "detections"]


def random_case(seed: int, images: int = 12, crowd: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Labels of several classes and sizes with crowds and empty images; detections near them, with tied scores."""
    rng = np.random.default_rng(seed)
    categories = [{"id": i, "name": n} for i, n in ((18, "dog"), (3, "car"), (44, "bottle"), (90, "never seen"))]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    image_ids = [int(i) for i in rng.permutation(1000)[:images] + 5]
    for image_id in image_ids[:-2]:
        for _ in range(rng.integers(0, 9)):
            size = np.exp(rng.uniform(np.log(8), np.log(300), 2))
            corner = rng.uniform(0, 600 - size)
            box = [float(v) for v in (*corner, *size)]
            category = int(rng.choice([18, 3, 44]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3] * float(rng.uniform(0.4, 1.0)),
                    "iscrowd": int(crowd and rng.random() < 0.15),
                }
            )
            for _ in range(rng.integers(0, 4)):
                moved = (np.array(box) + rng.normal(0, 0.06, 4) * np.array([*size, *size])).clip(1e-3)
                score = float(np.round(rng.random(), 1))  # one digit: many ties
                results.append({"image_id": image_id, "category_id": category, "bbox": moved.tolist(), "score": score})
    for _ in range(60):  # false alarms, also of the class without objects and on the images without objects
        box = rng.uniform(1, 300, 4).tolist()
        category = int(rng.choice([18, 3, 44, 90]))
        image_id = int(rng.choice(image_ids))
        results.append(
            {"image_id": image_id, "category_id": category, "bbox": box, "score": float(np.round(rng.random(), 1))}
        )
    order = rng.permutation(len(results))
    labels = {
        "images": [{"id": i, "width": 640, "height": 640, "file_name": f"{i}.jpg"} for i in image_ids],
        "annotations": annotations,
        "categories": categories,
    }
    return labels, [results[i] for i in order]


def reference(
    labels: dict[str, Any], results: list[dict[str, Any]], image_ids: list[int] | None = None
) -> dict[str, Any]:
    """The same figures by pycocotools."""
    coco_module = pytest.importorskip("pycocotools.coco")
    eval_module = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_module.COCO()
        truth.dataset = copy.deepcopy(labels)
        truth.createIndex()
        evaluation = eval_module.COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
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
    for key in KEYS[:6]:
        assert (-1 if ours[key] is None else ours[key]) == pytest.approx(theirs[key], abs=1e-6), key
    assert list(ours["per_class"]) == list(theirs["per_class"])
    for name, value in ours["per_class"].items():
        assert (-1 if value is None else value) == pytest.approx(theirs["per_class"][name], abs=1e-6), name


@pytest.mark.parametrize("seed", range(6))
def test_figures_equal_pycocotools_with_crowds_sizes_classes_and_ties(seed: int) -> None:
    labels, results = random_case(seed)
    ours = evaluate_detections(labels, results)
    assert_equal(ours, reference(labels, results))
    assert ours["images"] == 12
    assert ours["detections"] == len(results)
    assert 0 < ours["AP"] < 1  # the case is neither empty nor trivial


def test_figures_equal_pycocotools_on_chosen_images() -> None:
    labels, results = random_case(7)
    chosen = [image["id"] for image in labels["images"]][3:8]
    ours = evaluate_detections(labels, results, chosen)
    assert_equal(ours, reference(labels, results, chosen))
    assert ours["images"] == 5
    assert ours["detections"] == sum(result["image_id"] in chosen for result in results)


def test_figures_equal_pycocotools_with_more_than_a_hundred_detections_in_an_image() -> None:
    labels, results = random_case(8, images=3, crowd=False)
    crowded = [{**r, "bbox": [v + 0.01 * n for v in r["bbox"]]} for r in results for n in range(12)]
    assert_equal(evaluate_detections(labels, crowded), reference(labels, crowded))


def test_the_keys_are_the_documented_ones_and_json_can_hold_them() -> None:
    metrics = evaluate_detections(*random_case(0))
    assert list(metrics) == KEYS
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_a_perfect_detector_scores_one_and_empty_strata_are_none() -> None:
    labels = one_object_labels()
    metrics = evaluate_detections(labels, [{"image_id": 0, "category_id": 0, "bbox": [10, 10, 50, 50], "score": 0.9}])
    assert metrics["AP"] == metrics["AP50"] == metrics["AP75"] == metrics["APm"] == pytest.approx(1)
    assert metrics["APs"] is None
    assert metrics["APl"] is None
    assert metrics["per_class"] == {"cat": pytest.approx(1), "dog": None}


def one_object_labels() -> dict[str, Any]:
    """Ids from 0, which the evaluation's own code would take for 'not matched'; no area, no iscrowd."""
    return {
        "images": [{"id": 0}, {"id": 1}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [10, 10, 50, 50]}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}],
    }


def test_a_detector_that_finds_nothing_scores_zero() -> None:
    metrics = evaluate_detections(one_object_labels(), [])
    assert metrics["AP"] == 0
    assert metrics["images"] == 2
    assert metrics["detections"] == 0


def test_without_any_object_there_is_no_ap() -> None:
    labels = {**one_object_labels(), "annotations": []}
    results = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 1.0}]
    metrics = evaluate_detections(labels, results)
    assert metrics["AP"] is None
    assert metrics["detections"] == 1


def test_objects_on_images_without_detections_count_as_missed() -> None:
    labels = one_object_labels()
    labels["annotations"].append({"id": 1, "image_id": 1, "category_id": 0, "bbox": [10, 10, 50, 50]})
    results = [{"image_id": 0, "category_id": 0, "bbox": [10, 10, 50, 50], "score": 0.9}]
    assert evaluate_detections(labels, results)["AP"] == pytest.approx(51 / 101)  # recall stops at one half
    assert evaluate_detections(labels, results, [0])["AP"] == pytest.approx(1)


def test_only_the_classes_asked_for_are_evaluated() -> None:
    labels, results = random_case(2)
    metrics = evaluate_detections(labels, results, classes=["car"])
    assert list(metrics["per_class"]) == ["car"]
    assert metrics["AP"] == metrics["per_class"]["car"]
    assert metrics["AP"] == pytest.approx(evaluate_detections(labels, results)["per_class"]["car"])
    assert metrics["detections"] == sum(result["category_id"] == 3 for result in results)


def test_classes_of_one_name_are_told_apart_by_id() -> None:
    labels = one_object_labels()
    labels["categories"][0]["name"] = "cat"
    metrics = evaluate_detections(labels, [], classes=["cat", "cat"])
    assert metrics["per_class"] == {"cat (id 0)": 0, "cat (id 1)": None}


def test_neither_labels_nor_results_are_changed() -> None:
    labels, results = random_case(1)
    before = copy.deepcopy((labels, results))
    evaluate_detections(labels, results)
    assert (labels, results) == before


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    evaluate_detections(*random_case(1))
    evaluate_detections(one_object_labels(), [])
    assert capfd.readouterr() == ("", "")


def test_detections_that_are_not_finite_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    good = {"image_id": 0, "category_id": 0, "bbox": [10, 10, 50, 50], "score": 0.9}
    results = [good, {**good, "score": float("nan")}, {**good, "bbox": [10, float("inf"), 50, 50]}]
    with caplog.at_level(logging.WARNING):
        metrics = evaluate_detections(one_object_labels(), results)
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["detections"] == 1
    assert "2 of 3 detections" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 7}, "image id 7"),
        ({"category_id": 9}, "category id 9"),
        ({"bbox": [1, 2, 3]}, "not a COCO result"),
        ({"score": None}, "not a COCO result"),
        ({"score": "high"}, "not a COCO result"),
    ],
)
def test_results_of_other_labels_are_refused(change: dict[str, Any], words: str) -> None:
    result = {"image_id": 0, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}
    with pytest.raises(UserError, match=words):
        evaluate_detections(one_object_labels(), [result, {**result, **change}])


def test_unknown_images_and_classes_and_missing_boxes_are_refused() -> None:
    labels = one_object_labels()
    with pytest.raises(UserError, match="1 images to evaluate are not in the label file, first id 5"):
        evaluate_detections(labels, [], [0, 5])
    with pytest.raises(UserError, match="no image to evaluate"):
        evaluate_detections(labels, [], [])
    with pytest.raises(UserError, match=r"no class 'cta'\. .*cat"):
        evaluate_detections(labels, [], classes=["cta"])
    del labels["annotations"][0]["bbox"]
    with pytest.raises(UserError, match="Annotation 0 of image 0 has no bbox"):
        evaluate_detections(labels, [])


def test_a_prediction_becomes_coco_results_in_the_files_own_ids() -> None:
    prediction = {
        "boxes": torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 1.5, 2.5]]),
        "scores": torch.tensor([0.5, 0.25]),
        "labels": torch.tensor([1, 0]),
    }
    assert to_coco_results(42, prediction, [3, 18]) == [
        {"image_id": 42, "category_id": 18, "bbox": [10.0, 20.0, 20.0, 40.0], "score": 0.5},
        {"image_id": 42, "category_id": 3, "bbox": [0.0, 0.0, 1.5, 2.5], "score": 0.25},
    ]
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    assert to_coco_results(42, empty, [3, 18]) == []
    for wrong in (2, -1):
        with pytest.raises(ValueError, match="outside 0…1"):
            to_coco_results(42, {**prediction, "labels": torch.tensor([wrong, 0])}, [3, 18])


def test_the_printed_table_is_in_percent_with_dashes_for_nothing() -> None:
    metrics = {"AP": 0.1234, "AP50": 0.5, "AP75": 0.0, "APs": None, "APm": 1.0, "APl": 0.2}
    table = detection_table({**metrics, "per_class": {"dog": 0.1, "cat": None}, "images": 3, "detections": 9}, "val")
    lines = table.splitlines()
    assert lines[0] == "val"
    assert lines[1].split() == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert lines[2].split() == ["12.3", "50.0", "0.0", "–", "100.0", "20.0"]
    assert [line.split() for line in lines[5:7]] == [["dog", "10.0"], ["cat", "–"]]
    assert lines[7] == "3 images, 9 detections, in percent"


def test_one_line_has_the_three_main_figures_and_those_of_masks_behind_them() -> None:
    metrics = {"AP": 0.1234, "AP50": 0.5, "AP75": None}
    assert detection_line(metrics) == "AP 12.3 %  AP50 50.0 %  AP75 – %"
    assert detection_line({**metrics, "mask": {**metrics, "AP": 0.1}}).endswith(
        " – %; masks: AP 10.0 %  AP50 50.0 %  AP75 – %"
    )


def test_eighty_classes_print_in_three_columns_that_fit_a_terminal() -> None:
    metrics = dict.fromkeys(KEYS[:6], 0.5)
    names = {f"class {i}": i / 80 for i in range(80)}
    lines = detection_table({**metrics, "per_class": names, "images": 1, "detections": 1}).splitlines()
    assert len(lines) == 2 + 2 + 27 + 1
    assert max(map(len, lines)) <= 110
    assert all(f"class {i} " in "\n".join(lines) for i in range(80))
