"""Predictions are COCO results in the pixels of the files, with pictures to look at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_oracle import oracle_like
from selfdet import cli
from selfdet.errors import UserError
from selfdet.evaluation.detection import evaluate_detections
from selfdet.verbs.evaluate import evaluate
from selfdet.verbs.predict import predict

Capture = pytest.CaptureFixture[str]
SAME = {"precision": "fp32", "threads": 1}


@pytest.fixture
def photos(scenes: Path, tmp_path: Path) -> Path:
    """Three pictures of other sizes than in training, one turned by its EXIF, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(scenes / "images" / "val_00000.jpg") as picture:
        picture.resize((300, 200)).save(folder / "a wide one.jpg")
        picture.resize((30, 50)).save(folder / "b.png")
        turned = Image.Exif()
        turned[0x0112] = 6
        picture.resize((200, 100)).save(folder / "c.jpg", exif=turned)
    (folder / "d.jpg").write_bytes(b"no image")
    return folder


def test_results_images_and_pictures_are_written(finetuned: Path, photos: Path, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "found"
    answer = predict(init=str(finetuned), images=str(photos), out=str(out), threshold=0.0, **SAME)
    results, listed = (json.loads((out / f"{name}.json").read_text()) for name in ("results", "images"))
    assert answer == {
        "out": str(out),
        "images": 3,
        "detections": len(results),
        "unreadable": [str(photos / "d.jpg")],
    }
    sizes = {Path(image["file_name"]).name: (image["width"], image["height"]) for image in listed["images"]}
    assert sizes == {"a wide one.jpg": (300, 200), "b.png": (30, 50), "c.jpg": (100, 200)}
    by_id = {image["id"]: image for image in listed["images"]}
    assert {result["category_id"] for result in results} <= {category["id"] for category in listed["categories"]}
    reach: dict[str, float] = {}
    for result in results:
        image = by_id[result["image_id"]]
        x, y, width, height = result["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + width <= image["width"] + 1e-3
        assert y + height <= image["height"] + 1e-3
        reach[image["file_name"]] = max(reach.get(image["file_name"], 0), x + width)
        assert 0 <= result["score"] <= 1
    assert max(reach.values()) > 150  # the network saw 96 px
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [
        *("00001_a wide one.jpg", "00002_b.jpg", "00003_c.jpg"),
    ]
    with Image.open(out / "pictures" / "00002_b.jpg") as picture:
        assert picture.size == (384, 640)  # enlarged, so that tags can be read
    err = capfd.readouterr().err
    assert f"unreadable, left out: {photos / 'd.jpg'}" in err
    assert f"{len(results)} detections in 3 images: {out / 'results.json'}" in err


def test_the_results_of_a_label_file_fit_its_labels(scenes: Path, finetuned: Path, tmp_path: Path) -> None:
    labels = json.loads((scenes / "val.json").read_text())
    for image in labels["images"]:
        image["id"] += 1000
    for annotation in labels["annotations"]:
        annotation["image_id"] += 1000
    file = scenes / "renumbered.json"
    file.write_text(json.dumps(labels))
    try:
        out = tmp_path / "found"
        predict(init=str(finetuned), images=str(file), out=str(out), pictures=0, **SAME)
    finally:
        file.unlink()
    scores = evaluate_detections(labels, json.loads((out / "results.json").read_text()))
    assert scores == evaluate(init=str(finetuned), data=str(scenes / "val.json"), **SAME)
    assert not list((out / "pictures").iterdir())


def test_masks_are_written_as_run_lengths_of_the_file_and_drawn(
    scenes: Path, finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, note = oracle_like(finetuned, scenes / "val.json")
    monkeypatch.setattr("selfdet.verbs.predict.open_detector", lambda start, init: (oracle, note))
    out = tmp_path / "found"
    asked = {"init": str(finetuned), "images": str(scenes / "val.json"), "image_size": 64, **SAME}
    predict(**asked, out=str(out), threshold=0.0)
    results = json.loads((out / "results.json").read_text())
    scores = evaluate_detections(json.loads((scenes / "val.json").read_text()), results)
    assert scores["mask"]["AP"] == pytest.approx(1)

    # Drawn on copies of the images: what is covered by a mask has changed, what lies outside of all boxes has not.
    for image in json.loads((out / "images.json").read_text())["images"]:
        known = oracle.known[Path(image["file_name"]).name]
        picture = Image.open(out / "pictures" / f"{image['id']:05d}_{Path(image['file_name']).stem}.jpg")
        original = Image.open(image["file_name"]).resize(picture.size, Image.Resampling.LANCZOS)
        changed = np.abs(np.asarray(picture, int) - np.asarray(original, int)).sum(-1) > 40
        outside = np.ones((96, 96), bool)
        for x1, y1, x2, y2 in known.boxes.int().tolist():
            outside[max(y1 - 12, 0) : y2 + 12, max(x1 - 2, 0) : x2 + 50] = False  # with room for the tag
        covered = known.masks.any(0).numpy()
        for place, share in ((covered, 0.8), (outside, 0.0)):
            where = np.asarray(Image.fromarray(place).resize(picture.size, Image.Resampling.NEAREST))
            if where.any():
                assert changed[where].mean() == pytest.approx(share, abs=0.2 if share else 0.02)


def test_pictures_are_only_as_many_as_asked_for(scenes: Path, finetuned: Path, tmp_path: Path) -> None:
    predict(init=str(finetuned), images=str(scenes / "images"), out=str(tmp_path / "found"), pictures=2, **SAME)
    assert len(list((tmp_path / "found" / "pictures").iterdir())) == 2


def test_mistakes_leave_nothing_behind(scenes: Path, finetuned: Path, pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    asked = {"init": str(finetuned), "images": str(scenes / "images"), "out": str(out), **SAME}
    for change, message in (
        ({"images": str(tmp_path / "none")}, "does not exist"),
        ({"init": str(pretrained)}, "holds no detector"),
        ({"image_size": 8}, "below the stride"),
        ({"batch_size": 0}, "--batch-size is 0"),
    ):
        with pytest.raises(UserError, match=message):
            predict(**{**asked, **change})
        assert not out.exists()
    shutil.copytree(scenes / "images", out)
    with pytest.raises(UserError, match="is not empty") as refused:
        predict(**asked)
    assert "--resume" not in refused.value.hint


def test_the_command_line_answers_with_one_json_object(
    scenes: Path, finetuned: Path, tmp_path: Path, capfd: Capture
) -> None:
    words = ["--init", str(finetuned), "--images", str(scenes / "images"), "--out", str(tmp_path / "found")]
    assert cli.main(["predict", *words, "--pictures", "0", "--precision", "fp32", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["images"] == 15
