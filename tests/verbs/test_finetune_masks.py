"""Mask R-CNN learns masks from labels that have some, and says what becomes of objects and files that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from selfdet import cli
from selfdet.data.masks import decode_mask
from selfdet.errors import UserError
from selfdet.training.rundir import RunDir
from selfdet.verbs.evaluate import evaluate
from selfdet.verbs.export import export
from tiny_runs import tiny_aligndet, tiny_finetune

Capture = pytest.CaptureFixture[str]
RCNN: dict[str, Any] = {"detector": "mask_rcnn", "head_convs": None, "steps": 2}
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "per_class"]


@pytest.fixture(scope="module")
def masked(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mask R-CNN after some steps on scenes with exact masks."""
    out = tmp_path_factory.mktemp("masks") / "run"
    held_out = {"val_data": str(scenes / "val.json"), "evaluate_every": 3}
    tiny_finetune(scenes, out, **{**RCNN, "steps": 3}, **held_out)
    return out


@pytest.fixture
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts and page take most of the time of so small a run."""
    monkeypatch.setattr("selfdet.verbs.finetune.plot_training", lambda rows, folder: [])
    monkeypatch.setattr("selfdet.verbs.finetune.report_at_the_end", lambda *given: None)


def log(out: Path) -> str:
    return (out / "log.txt").read_text()


def without(scenes: Path, file: Path, *numbers: int, split: str = "train") -> dict[str, str]:
    """The labels of a split, in which the annotations in these places (all if none) have no segmentation."""
    labels = json.loads((scenes / f"{split}.json").read_text())
    for place, annotation in enumerate(labels["annotations"]):
        if not numbers or place in numbers:
            del annotation["segmentation"]
    file.write_text(json.dumps(labels))
    return {"data": str(file), "images": str(scenes / "images")}


def test_training_has_a_loss_of_masks_and_evaluations_have_their_ap(masked: Path) -> None:
    rows = RunDir(masked).read_metrics()
    assert [row["step"] for row in rows if "mask" in row] == [0, 3]
    assert list(rows[-1]["mask"]) == KEYS
    assert all(row["loss_mask"] > 0 for row in rows if "loss" in row)
    (line,) = [line for line in log(masked).splitlines() if line.startswith("step 3: AP ")]
    assert line.partition("; masks: ")[2].startswith("AP ")
    assert "no segmentation" not in log(masked)


def test_evaluation_from_the_command_line_says_the_same_of_masks(scenes: Path, masked: Path, capfd: Capture) -> None:
    words = ["--init", str(masked), "--data", str(scenes / "val.json"), "--precision", "fp32", "--threads", "1"]
    assert cli.main(["evaluate", *words, "--json"]) == 0
    out, err = capfd.readouterr()
    last = RunDir(masked).read_metrics()[-1]
    assert json.loads(out) == {name: value for name, value in last.items() if name != "step"}
    assert "APᵐ" in err


def test_detections_of_the_run_have_masks_inside_their_boxes(scenes: Path, masked: Path, tmp_path: Path) -> None:
    Image.effect_noise((2000, 40), 60).convert("RGB").save(tmp_path / "long.jpg")
    words = ["--init", str(masked), "--images", str(tmp_path / "long.jpg"), "--out", str(tmp_path / "found")]
    assert cli.main(["predict", *words, "--threshold", "0"]) == 0
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    assert results
    for result in results:
        mask = decode_mask(result["segmentation"])
        assert mask.shape == (40, 2000)
        left, _, width, _ = result["bbox"]
        reach = width / 28 + 2  # half a cell and a pixel
        mask[:, max(0, int(left - reach)) : int(left + width + reach) + 1] = False
        assert not mask.any()
    assert len(list((tmp_path / "found" / "pictures").iterdir())) == 1


def test_the_run_ends_with_a_page_that_shows_its_masks(masked: Path) -> None:
    html = (masked / "report.html").read_text("utf-8")
    for said in ("AP of masks", "masks</td>", "with detected boxes", "Mask R-CNN on test_resnet"):
        assert said in html


@pytest.mark.usefixtures("_without_pages")
def test_objects_and_images_without_masks_are_counted_and_train_their_boxes(scenes: Path, tmp_path: Path) -> None:
    given = without(scenes, tmp_path / "some.json", 0, 1, 2)
    labels = json.loads((tmp_path / "some.json").read_text())
    Image.effect_noise((2000, 40), 60).convert("RGB").save(tmp_path / "long.jpg")
    for file in (scenes / "images").iterdir():
        (tmp_path / file.name).symlink_to(file)
    labels["images"].append({"id": 999, "file_name": "long.jpg", "width": 2000, "height": 40})
    box = {"image_id": 999, "category_id": labels["categories"][0]["id"], "bbox": [100, 2, 900, 36]}
    labels["annotations"].append({"id": 99_999, **box})
    (tmp_path / "some.json").write_text(json.dumps(labels))
    images = {entry["image_id"] for entry in labels["annotations"] if "segmentation" not in entry}
    many = {"images": str(tmp_path), "batch_size": 11, "image_size": 64, "steps": 1}
    tiny_finetune(scenes, tmp_path / "run", **{**RCNN, **given, **many})
    said = f"4 of {len(labels['annotations'])} objects, in {len(images)} images, have no segmentation"
    assert f"{said}: boxes train, masks don't" in log(tmp_path / "run")
    assert RunDir(tmp_path / "run").read_metrics()[-1]["loss_mask"] > 0


@pytest.mark.usefixtures("_without_pages")
def test_labels_without_any_mask_are_refused_for_masks_alone(scenes: Path, tmp_path: Path) -> None:
    given = without(scenes, tmp_path / "none.json")
    with pytest.raises(UserError, match="no masks to learn from") as refused:
        tiny_finetune(scenes, tmp_path / "run", **{**RCNN, **given})
    assert "--detector faster_rcnn" in refused.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("_without_pages")
def test_held_out_labels_without_masks_measure_boxes_and_say_so(scenes: Path, tmp_path: Path, masked: Path) -> None:
    held_out = without(scenes, tmp_path / "val.json", split="val")
    settings = {"init": str(masked), "fpn_channels": None, "images": held_out["images"], "val_data": held_out["data"]}
    tiny_finetune(scenes, tmp_path / "run", **{**RCNN, **settings, "steps": 1})
    said = f"the AP of masks is not measured, as no object in {tmp_path / 'val.json'} has a segmentation"
    assert said in log(tmp_path / "run")
    last = RunDir(tmp_path / "run").read_metrics()[-1]
    assert "AP" in last
    assert "mask" not in last
    # The start has learned masks, so its branch is reused; what gives them depends on the classes.
    assert "\nmask        100.0%" in log(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("_without_pages")
def test_a_faster_rcnn_without_labels_is_a_start_for_masks(scenes: Path, tmp_path: Path) -> None:
    tiny_aligndet(scenes, tmp_path / "pre", detector="faster_rcnn", head_convs=None, steps=1)
    settings = {"init": str(tmp_path / "pre"), "fpn_channels": None, "image_size": 64}
    tiny_finetune(scenes, tmp_path / "run", **{**RCNN, **settings, "steps": 1})
    for part in ("backbone", "neck", "rpn", "head"):
        assert f"\n{part:<10}  100.0%" in log(tmp_path / "run")
    assert "\nmask          0.0%              0" in log(tmp_path / "run")
    scores = evaluate(init=str(tmp_path / "run"), data=str(scenes / "val.json"), precision="fp32", threads=1)
    assert list(scores["mask"]) == KEYS


@pytest.mark.slow
@pytest.mark.usefixtures("_without_pages")
def test_a_cascade_learns_masks_when_asked_also_from_a_start_without(scenes: Path, tmp_path: Path) -> None:
    plain, out = tmp_path / "plain", tmp_path / "masks"
    tiny_finetune(scenes, plain, detector="cascade_rcnn", head_convs=None, steps=1)
    shape = {"detector": None, "backbone": None, "fpn_channels": None, "head_convs": None}
    tiny_finetune(scenes, out, **shape, init=str(plain), masks=True, steps=2)
    assert all(row["loss_mask"] > 0 for row in RunDir(out).read_metrics() if "loss" in row)
    assert RunDir(out).read_config()["options"]["masks"]
    scores = evaluate(init=str(out), data=str(scenes / "val.json"), images=str(scenes / "images"))
    assert list(scores["mask"]) == KEYS
    figures = export(init=str(out), to="torchvision", out=str(tmp_path / "exported"))["check"]
    assert figures["mask_difference"] <= 0.05
    with pytest.raises(UserError, match="--masks is no setting of fcos"):
        tiny_finetune(scenes, tmp_path / "fcos", detector="fcos", masks=True)
