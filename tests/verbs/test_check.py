"""`check` reports every fault of images and labels, changes nothing, and foretells what training does."""

from __future__ import annotations

import json
import math
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from tests.data.odd_images import pattern, write_odd

from deadly import DeadlyPath
from selfdet.cli import main
from selfdet.data.box_faults import BOX_FAULTS
from selfdet.data.findings import Checked
from selfdet.data.inspection import IMAGE_FAULTS, Inspection
from selfdet.errors import UserError
from selfdet.proposing.processes import find_all
from selfdet.verbs.check import check
from tiny_runs import tiny_finetune, tiny_pretrain

Capture = pytest.CaptureFixture[str]

BOXES: dict[str, dict[str, Any]] = {
    "sound": {"bbox": [4, 5, 20, 20]},
    "duplicate_box": {"bbox": [4, 5, 20, 20]},
    "degenerate": {"bbox": [4, 5, 0, 20]},
    "out_of_image": {"bbox": [50, 5, 40, 20]},
    "not_finite": {"bbox": [4, math.nan, 10, 20]},
    "unknown_class": {"bbox": [30, 5, 10, 20], "category_id": 7},
}


def write_labels(file: Path, names: list[str], entries: list[dict[str, Any]], size: bool = True) -> Path:
    sides = {"width": 64, "height": 48} if size else {}
    coco = {
        "images": [{"id": number, "file_name": name, **sides} for number, name in enumerate(names, start=1)],
        "annotations": [{"id": 100 + n, "image_id": 1, "category_id": 1, **entry} for n, entry in enumerate(entries)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    file.write_text(json.dumps(coco))
    return file


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/` with one of every fault, labels with one of every fault of boxes; not to be changed."""
    root = tmp_path_factory.mktemp("check")
    write_odd(root / "images")
    write_labels(root / "train.json", ["sound.jpg", "missing.jpg", "cmyk.jpg"], list(BOXES.values()))
    pattern(2).save(root / "images" / "val.png")  # the picture of cmyk.jpg
    write_labels(root / "val.json", ["val.png"], [{"bbox": [1, 1, 9, 9]}])
    return root


def flags(root: Path) -> dict[str, str]:
    return {"images": str(root / "images"), "data": str(root / "train.json"), "val_data": str(root / "val.json")}


@pytest.fixture(scope="module")
def found(odd: Path) -> dict[str, Any]:
    return check(**flags(odd), workers=1, out=str(odd / "page"))


def test_a_folder_with_one_of_every_fault_is_reported_completely(odd: Path, found: dict[str, Any]) -> None:
    images = {fault: [Path(file).name for file in files] for fault, files in found["images"].items()}
    # CMYK without a profile is not the same colours, but the picture is known again.
    expected = {fault: [name] for fault, name in write_odd(odd / "images").items()}
    expected |= {"missing": ["missing.jpg"], "duplicate": ["zz_duplicate.jpg", "val.png"]}
    assert {fault: sorted(names) for fault, names in images.items()} == {
        fault: sorted(names) for fault, names in expected.items()
    }
    assert {fault: [each["annotation"] for each in faulty] for fault, faulty in found["boxes"].items()} == {
        fault: [100 + list(BOXES).index(fault)] for fault in BOX_FAULTS
    }
    counts = found["counts"]
    assert counts["left_out"] == 4  # missing, empty, unreadable, truncated
    assert counts["train_val_duplicates"] == 1
    assert counts["classes"] == {"cat": 5, "dog": 0}
    assert counts["images_without_boxes"] == 2
    assert counts["labels_refused"] is not None


def test_every_kind_found_is_explained_in_words(
    odd: Path, found: dict[str, Any], tmp_path: Path, capfd: Capture
) -> None:
    words = [word for name, value in flags(odd).items() for word in (f"--{name.replace('_', '-')}", value)]
    assert main(["check", *words, "--workers", "1", "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    assert json.loads(stdout) == json.loads(json.dumps(found))
    for meaning in (*IMAGE_FAULTS.values(), *BOX_FAULTS.values()):
        assert meaning in stderr
    page = unescape((odd / "page" / "report.html").read_text())
    for fault, files in found["images"].items():
        assert IMAGE_FAULTS[fault][1:] in page
        assert all(Path(file).name in page for file in files)


def test_the_json_has_the_keys_that_are_promised(scenes: Path) -> None:
    found = check(data=str(scenes / "train.json"), workers=1)
    assert set(found) == {"images", "boxes", "counts"}
    names = "unreadable truncated empty missing cmyk sixteen_bit palette alpha rotated huge duplicate"
    assert set(found["images"]) == set(names.split())
    assert set(found["boxes"]) == {"degenerate", "out_of_image", "unknown_class", "duplicate_box", "not_finite"}
    assert not any(found["images"].values())
    assert found["counts"]["images"] == found["counts"]["labelled_images"] == 10
    assert found["counts"]["labels_refused"] is None
    levels = found["counts"]["levels"]
    assert levels["image_size"] == 128  # as finetune takes it for images of 96 px
    assert sum(level["boxes"] for level in levels["levels"]) == levels["boxes"] == found["counts"]["boxes"]


def test_training_does_what_check_foretells(scenes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    faults = write_odd(folder)
    for number in range(10, 40):
        pattern(number).save(folder / f"{number}.jpg")
    (folder / faults["empty"]).unlink()
    (folder / faults["unreadable"]).unlink()
    counts = check(images=str(folder), workers=1)["counts"]
    assert counts["left_out"] == 1
    tiny_pretrain(scenes, tmp_path / "run", images=str(folder), steps=10)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"1 unreadable image of 40 replaced by others: {folder / 'truncated.jpg'}" in log
    for number in range(3):
        (folder / f"empty{number}.jpg").write_bytes(b"")
    assert check(images=str(folder), workers=1)["counts"]["left_out"] == 4
    with pytest.raises(UserError, match="3 of 43 images cannot be read, more than 5%"):
        tiny_pretrain(scenes, tmp_path / "again", images=str(folder), steps=40)


def test_faulty_boxes_are_left_out_of_training_as_told(odd: Path, scenes: Path, tmp_path: Path) -> None:
    entries = [entry for fault, entry in BOXES.items() if fault not in ("unknown_class", "sound")]
    for number in range(4):
        pattern(number).save(tmp_path / f"{number}.png")
    labels = write_labels(tmp_path / "train.json", [f"{number}.png" for number in range(4)], entries)
    assert check(data=str(labels), workers=1)["counts"]["labels_refused"] is None
    tiny_finetune(scenes, tmp_path / "run", data=str(labels), steps=2)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "1 box (degenerate)" in log
    assert "1 box (not finite)" in log


def test_faults_of_yolo_and_voc_are_reported_with_their_place(tmp_path: Path) -> None:
    for folder in ("images", "labels", "voc/Annotations", "voc/JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    pattern(1).save(tmp_path / "images" / "a.png")
    (tmp_path / "list.txt").write_text("images/a.png\nimages/gone.png\n")
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .1 .1\n7 .2 .2 .1 .1\n0 .5 .5 x .1\n0 .9 .5 .6 .1\n\nnone\n")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    found = check(data=str(tmp_path / "data.yaml"), workers=1)
    assert found["images"]["missing"] == [str(tmp_path / "images/gone.png")]
    assert [each["detail"].rpartition("line ")[2] for each in found["boxes"]["not_finite"]] == ["3)", "6)"]
    assert [each["detail"].rpartition("line ")[2] for each in found["boxes"]["unknown_class"]] == ["2)", "6)"]
    assert len(found["boxes"]["out_of_image"]) == 1
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
    thing = "<object><name>{}</name>" + box + "</object>"
    pattern(2).save(tmp_path / "voc/JPEGImages/b.jpg")
    (tmp_path / "voc/Annotations/b.xml").write_text(
        f"<annotation>{thing.format('cat', 9)}{thing.format('', 20)}{thing.format('cat', 'x')}</annotation>"
    )
    (tmp_path / "voc/Annotations/c.xml").write_text("<annotation><object>")
    found = check(data=str(tmp_path / "voc"), workers=1)
    assert [each["annotation"] for each in found["boxes"]["unknown_class"]] == [2]
    assert [each["annotation"] for each in found["boxes"]["not_finite"]] == [3]
    assert [Path(file).name for file in found["images"]["missing"]] == ["c.jpg"]
    assert "c.xml is not XML" in found["counts"]["labels_refused"] or "b.xml" in found["counts"]["labels_refused"]


def test_one_image_in_both_splits_is_a_duplicate(scenes: Path) -> None:
    train = str(scenes / "train.json")
    found = check(data=train, val_data=train, workers=1)
    assert len(found["images"]["duplicate"]) == found["counts"]["train_val_duplicates"] == 10


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_converted_labels_are_checked_again_without_findings(
    scenes: Path, tmp_path: Path, form: str, capfd: Capture
) -> None:
    settings: dict[str, Any] = {"data": str(scenes / "train.json"), "val_data": str(scenes / "val.json"), "workers": 1}
    before = check(**settings, convert=form, out=str(tmp_path / "out"))["counts"]
    said = capfd.readouterr().err
    use = {"coco": "train.json", "voc": "ImageSets/Main/train.txt", "yolo": "data.yaml:train"}[form]
    assert f"--data {tmp_path / 'out' / use}" in said
    assert "not copied" in said
    images = str(scenes / "images") if form == "coco" else None
    after = check(data=str(tmp_path / "out" / use), images=images, workers=1)
    assert not any(after["boxes"].values())
    assert {kind: count for kind, count in after["counts"]["classes"].items() if count} == {
        kind: count for kind, count in before["classes"].items() if count
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": None}, "check needs --images or --data"),
        ({"convert": "voc"}, "--convert needs --data and --out"),
        ({"workers": 0}, "--workers is 0"),
        ({"image_size": 8}, "--image-size is 8"),
        ({"out": "FULL"}, "is not empty"),
        ({"data": "/nowhere.json"}, "does not exist"),
        ({"images": "/nowhere"}, "not in /nowhere|does not exist"),
    ],
)
def test_mistakes_are_named(scenes: Path, change: dict[str, Any], words: str) -> None:
    change = {name: str(scenes) if value == "FULL" else value for name, value in change.items()}
    with pytest.raises(UserError, match=words):
        check(**{"data": str(scenes / "train.json"), **change})


def test_labels_that_are_refused_are_not_converted(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        check(**flags(odd), convert="voc", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_image_that_ends_its_process_is_reported_and_the_others_go_on(odd: Path) -> None:
    tasks = Checked.gather(str(odd / "images"), None, None).inspections()
    deadly = Inspection(99, DeadlyPath())  # type: ignore[arg-type]
    looks = {look.image_id: look for look in find_all([*tasks[:3], deadly, *tasks[3:]], 2, lambda: False)}
    assert looks.pop(99).faults == {"unreadable": "its process ended without an answer"}
    alone = {task.image_id: task.run().faults for task in tasks}
    assert {number: look.faults for number, look in looks.items()} == alone
