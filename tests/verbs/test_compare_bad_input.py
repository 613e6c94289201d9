"""What can't be compared is refused before anything is trained or written, and what can't be learned is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdet import cli
from selfdet.data.labels import load_labels
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone
from selfdet.verbs.compare import compare
from selfdet.verbs.compare_folder import read_result
from selfdet.verbs.compare_labels import Amount, gaps, label_set
from selfdet.verbs.compare_starts import agree, check_designs, name_starts
from tiny_runs import BACKBONE, COMPARE, WIDTHS

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def given(scenes: Path, pretrained: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        **COMPARE,
        "init": ["scratch", str(pretrained)],
        "data": str(scenes / "train.json"),
        "val_data": str(scenes / "val.json"),
        "out": str(tmp_path / "out"),
    }


def refused(given: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        compare(**{**given, **changes})
    assert not Path(given["out"]).exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edited(file: str, to: Path, edit: Edit) -> str:
    """A copy of a label file beside its images, changed."""
    shutil.copytree(Path(file).parent, to)
    coco = json.loads(Path(file).read_text())
    edit(coco)
    (to / Path(file).name).write_text(json.dumps(coco))
    return str(to / Path(file).name)


def test_a_fraction_that_leaves_no_image_is_refused_with_those_that_do(given: dict[str, Any]) -> None:
    message = refused(given, fractions=[0.01, 0.5, 1.0])
    assert "--fractions 0.01 of 10 labelled images leaves no image" in message
    assert "Use --fractions 0.5 1, or --shots" in message
    assert "--fractions 1.5 is not a share" in refused(given, fractions=[1.5])
    assert "--shots 0" in refused(given, fractions=None, shots=[0])


def test_a_miss_rate_of_segmentation_is_refused(given: dict[str, Any]) -> None:
    assert "--miss-rate is of boxes" in refused(given, task="segmentation", miss_rate=True)


def test_labels_without_a_box_are_refused_with_the_classes_they_lack(given: dict[str, Any], tmp_path: Path) -> None:
    def bare(coco: dict[str, Any]) -> None:
        coco["annotations"] = []

    message = refused(given, data=edited(given["data"], tmp_path / "bare", bare))
    assert "0.4 with seed 0 leaves 4 images and no box of striped disc, dotted star" in message
    assert "val.json has no box" in refused(given, val_data=edited(given["val_data"], tmp_path / "blind", bare))


def test_classes_that_a_fraction_or_all_labels_lack_are_named(given: dict[str, Any], tmp_path: Path) -> None:
    def rare(coco: dict[str, Any]) -> None:
        stars = [entry for entry in coco["annotations"] if entry["category_id"] == 2][1:]
        coco["annotations"] = [each for each in coco["annotations"] if each not in stars and each["category_id"] != 4]

    labels = load_labels(edited(given["data"], tmp_path / "rare", rare))
    sets = [label_set(labels, Amount(fraction=0.3), seed, 4) for seed in range(4)]
    lines = list(gaps(labels, sets))
    assert "train.json has no box of spoked ring: no start can learn it" in lines[0]
    assert any("dotted star" in line and line.startswith("0.3-s") for line in lines[1:])
    assert not any("spoked ring" in line for line in lines[1:])


def test_a_class_of_the_training_labels_that_val_data_lacks_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    def fewer(coco: dict[str, Any]) -> None:
        coco["categories"] = coco["categories"][:3]
        coco["annotations"] = [entry for entry in coco["annotations"] if entry["category_id"] < 4]

    assert "no category 'spoked ring'" in refused(given, val_data=edited(given["val_data"], tmp_path / "few", fewer))


def test_classes_that_only_val_data_has_are_named(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def more(coco: dict[str, Any]) -> None:
        coco["categories"].append({"id": 9, "name": "walrus"})

    val_data = edited(given["val_data"], tmp_path / "more", more)
    compare(**given | {"val_data": val_data, "seeds": 1, "lr": 0.01}, max_time=1e-6)
    assert "not evaluated, as" in (said := capsys.readouterr().err)
    assert "lacks them: walrus" in said


def test_images_that_are_learned_from_are_not_evaluated_on(given: dict[str, Any]) -> None:
    assert "10 images of" in refused(given, val_data=given["data"])


def test_a_comparison_has_two_starts_that_differ(given: dict[str, Any]) -> None:
    assert "at least two starts" in refused(given, init=["scratch"])
    assert "scratch is given twice" in refused(given, init=["scratch", "scratch"])
    assert "--init nowhere does not exist" in refused(given, init=["scratch", "nowhere"])
    assert "--seeds is 0" in refused(given, seeds=0)
    assert "--tune-fraction 1 leaves no images" in refused(given, tune_fraction=1.0)
    assert "--lr-grid 0: expected multiples above 0" in refused(given, lr_grid=[0.0])


def test_a_start_of_another_detector_is_refused_with_the_transfer_report(
    given: dict[str, Any], finetuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(given, init=["scratch", str(finetuned)], detector="retinanet")
    assert "is a fcos, not a retinanet" in message
    report = capsys.readouterr().err
    assert "finetuned as retinanet" in report
    assert [line.split()[0] for line in report.splitlines() if "%" in line] == ["backbone", "neck", "head", "last"]


def test_weights_of_another_backbone_are_refused_with_the_transfer_report(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(build_backbone("resnet18").net.state_dict(), tmp_path / "resnet18.pth")
    message = refused(given, init=["scratch", str(tmp_path / "resnet18.pth")])
    assert "of the backbone fits, expected 90%" in message
    assert "missing: backbone.body." in capsys.readouterr().err


def test_starts_of_different_detectors_are_refused(given: dict[str, Any], finetuned: Path, tmp_path: Path) -> None:
    net = DETECTORS["retinanet"](3, build_backbone("resnet18"), fpn_channels=64, head_convs=1)
    torch.save(net.net.state_dict(), tmp_path / "supervised.pth")
    message = refused(given, init=[str(finetuned), str(tmp_path / "supervised.pth")], backbone=None)
    assert "only the backbone would fit" in message or "different detectors" in message


def test_starts_that_would_be_built_differently_are_refused(finetuned: Path, tmp_path: Path) -> None:
    starts = name_starts(["scratch", str(finetuned)], tmp_path, None)
    shared: dict[str, Any] = {"image_size": 96, "batch_norm": "auto", "images": 1, "keep_box_outputs": False}
    design = agree(starts, None, None, {}, **shared)
    assert (design.detector, design.backbone, dict(design.widths)) == ("fcos", BACKBONE, WIDTHS)
    assert design.batch_norm == "train"  # a frozen one is no start from scratch
    assert len(list(check_designs(starts, 4, design))) == 2
    starts[1].start.note["options"]["neck_norm"] = "gn"
    with pytest.raises(UserError, match=r"scratch and finetuned would differ in more .*neck_norm is None and gn"):
        list(check_designs(starts, 4, design))


def test_a_folder_of_something_else_is_no_comparison(given: dict[str, Any], finetuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a run of finetune, not of compare"):
        compare(**given | {"out": str(finetuned)}, resume=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(UserError, match="no comparison to resume"):
        compare(**given | {"out": str(tmp_path / "notes")}, resume=True)


def test_the_command_line_answers_with_one_line(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["compare", "--init", "scratch", "--data", given["data"], "--val-data", "x.json", "--out", "o"]) == 2
    )
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"AP": '])
def test_a_result_that_was_damaged_is_named_with_the_way_on(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "cell.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"cell.json is damaged: .*Remove the folder"):
        read_result(file, "Remove the folder")
