"""Evaluation says what fine-tuning said of the same detector, in the fixed keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mask_oracle import oracle_like
from selfdet import cli
from selfdet.errors import UserError
from selfdet.evaluation.missrate import miss_rates
from selfdet.training.rundir import RunDir
from selfdet.verbs.evaluate import evaluate

Capture = pytest.CaptureFixture[str]
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "per_class", "images", "detections"]
SAME = {"precision": "fp32", "threads": 1}


def test_the_figures_are_those_of_the_last_evaluation_in_training(scenes: Path, finetuned: Path) -> None:
    last = RunDir(finetuned).read_metrics()[-1]
    step = last.pop("step")
    assert step == 5
    for batch_size in (8, 2):
        assert evaluate(init=str(finetuned), data=str(scenes / "val.json"), batch_size=batch_size, **SAME) == last


def test_json_has_exactly_the_fixed_keys(scenes: Path, finetuned: Path, capfd: Capture) -> None:
    words = ["--init", str(finetuned), "--data", str(scenes / "val.json"), "--precision", "fp32", "--json"]
    assert cli.main(["evaluate", *words]) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert list(answer) == KEYS
    assert answer["images"] == 5
    assert list(answer["per_class"]) == [c["name"] for c in json.loads((scenes / "val.json").read_text())["categories"]]
    assert all(value is None or 0 <= value <= 1 for value in [*answer["per_class"].values(), answer["AP"]])
    assert f"{finetuned} on {scenes / 'val.json'}" in err
    assert "in percent" in err


def test_the_miss_rate_stands_beside_ap_where_it_is_asked_for(
    scenes: Path, finetuned: Path, tmp_path: Path, capfd: Capture
) -> None:
    asked = {"init": str(finetuned), "data": str(scenes / "val.json"), **SAME}
    scores = evaluate(**asked, miss_rate=True, out=str(tmp_path / "results.json"))
    assert list(scores) == [*KEYS, "miss_rate"]
    coco, results = (json.loads(file.read_text()) for file in (scenes / "val.json", tmp_path / "results.json"))
    assert scores["miss_rate"] == miss_rates(coco, results)
    assert 0 < scores["miss_rate"]["all"] <= 1
    err = capfd.readouterr().err
    assert "MR⁻² (log-average miss rate, lower is better)" in err
    assert "not measured, heavy occlusion: " in err


def test_the_detections_are_coco_results_in_a_folder_made_for_them(
    scenes: Path, finetuned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "results.json"
    scores = evaluate(init=str(finetuned), data=str(scenes / "val.json"), out=str(out), **SAME)
    results = json.loads(out.read_text())
    assert len(results) == scores["detections"] > 0
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}
    with pytest.raises(UserError, match="exists already"):
        evaluate(init=str(finetuned), data=str(scenes / "val.json"), out=str(out), **SAME)
    with pytest.raises(UserError, match="cannot be written"):
        evaluate(init=str(finetuned), data=str(scenes / "val.json"), out=str(out / "deeper"), **SAME)


def test_categories_are_matched_by_name_and_unknown_ones_are_left_out(
    scenes: Path, finetuned: Path, tmp_path: Path, capfd: Capture
) -> None:
    expected = evaluate(init=str(finetuned), data=str(scenes / "val.json"), **SAME)
    labels = json.loads((scenes / "val.json").read_text())
    for category in labels["categories"]:
        category["id"] = 100 - category["id"]
    for annotation in labels["annotations"]:
        annotation["category_id"] = 100 - annotation["category_id"]
    labels["categories"].append({"id": 7, "name": "unicorn"})
    (tmp_path / "val.json").write_text(json.dumps(labels))
    found = evaluate(init=str(finetuned), data=str(tmp_path / "val.json"), images=str(scenes / "images"), **SAME)
    assert found == expected | {"per_class": found["per_class"]}
    assert dict(sorted(found["per_class"].items())) == dict(sorted(expected["per_class"].items()))
    assert "not evaluated, as the detector does not know them: unicorn" in capfd.readouterr().err


def test_an_unreadable_image_is_left_out_and_named_and_too_many_stop(
    scenes: Path, finetuned: Path, tmp_path: Path, capfd: Capture
) -> None:
    images = shutil.copytree(scenes / "images", tmp_path / "images")
    (images / "val_00001.jpg").write_bytes(b"")
    asked = {"init": str(finetuned), "data": str(scenes / "val.json"), "images": str(images), **SAME}
    assert evaluate(**asked)["images"] == 4
    assert f"unreadable, left out: {images / 'val_00001.jpg'}" in capfd.readouterr().err
    (images / "val_00002.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="2 of 5 images cannot be read"):
        evaluate(**asked)


def test_other_sizes_are_measured_as_asked(scenes: Path, finetuned: Path) -> None:
    asked = {"init": str(finetuned), "data": str(scenes / "val.json"), **SAME}
    assert evaluate(**asked, image_size=96) == evaluate(**asked)
    with pytest.raises(UserError, match="--image-size 16: below the stride"):
        evaluate(**asked, image_size=16)
    with pytest.raises(UserError, match="--batch-size is 0"):
        evaluate(**asked, batch_size=0)


def test_masks_have_their_own_figures_beside_the_boxes(
    scenes: Path, finetuned: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = oracle_like(finetuned, scenes / "val.json")
    monkeypatch.setattr("selfdet.verbs.evaluate.open_detector", lambda start, init: given)
    asked = {"init": str(finetuned), "data": str(scenes / "val.json"), "image_size": 64, **SAME}
    scores = evaluate(**asked, out=str(tmp_path / "results.json"))
    assert list(scores) == [*KEYS, "mask"]
    assert list(scores["mask"]) == KEYS[:7]
    assert scores["AP"] == scores["mask"]["AP"] == pytest.approx(1)
    err = capfd.readouterr().err
    assert "APᵇ  100.0" in err
    assert "APᵐ  100.0" in err
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(set(result["segmentation"]) == {"size", "counts"} for result in results)
    assert all(result["segmentation"]["size"] == [96, 96] for result in results)

    labels = json.loads((scenes / "val.json").read_text())
    for annotation in labels["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "val.json").write_text(json.dumps(labels))
    boxes = evaluate(**{**asked, "data": str(tmp_path / "val.json")}, images=str(scenes / "images"))
    assert list(boxes) == KEYS
    assert "masks are not evaluated, as no object in the label file has a segmentation" in capfd.readouterr().err
