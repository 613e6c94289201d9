"""`selfdet probe` stands every backbone beside the untrained one, and says what it can't probe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.ops import box_iou

from selfdet import cli
from selfdet.data.labels import load_labels
from selfdet.data.probe_samples import BACKGROUND, labelled_samples
from selfdet.errors import UserError
from selfdet.verbs.probe import probe
from tiny_runs import BACKBONE

SMALL: dict[str, Any] = {"image_size": 64, "seeds": 2, "neighbours": 3, "min_side": 4.0, "threads": 1}


@pytest.fixture(scope="module")
def told(scenes: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("probe") / "out"
    return probe(init=[str(pretrained)], data=str(scenes / "train.json"), out=str(out), **SMALL)


@pytest.fixture
def folders(scenes: Path, tmp_path: Path) -> Path:
    """Two classes of five images."""
    root = tmp_path / "classes"
    for place, image in enumerate(sorted((scenes / "images").iterdir())[:10]):
        (root / f"class {place % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(image, root / f"class {place % 2}")
    return root


def test_boxes_are_probed_cut_out_and_in_place_beside_the_untrained_network(
    told: dict[str, Any], pretrained: Path
) -> None:
    assert list(told["tasks"]) == ["crops", "boxes"]
    assert [model["name"] for model in told["models"]] == ["untrained", pretrained.name]
    crops, boxes = told["tasks"]["crops"], told["tasks"]["boxes"]
    assert crops["classes"] == boxes["classes"]
    assert crops["classes"][BACKGROUND] > 0
    for model in told["models"]:
        for task in ("crops", "boxes"):
            for kind in ("linear", "knn"):
                score = model["scores"][task][kind]["balanced_accuracy"]
                assert len(score["values"]) == 2
                assert all(0 <= value <= 1 for value in score["values"])
    folder = Path(told["out"])
    assert json.loads((folder / "probe.json").read_text()) == told
    Image.open(folder / "probe.png").verify()


def test_the_same_call_gives_the_same_figures_whatever_the_batch(told: dict[str, Any], scenes: Path) -> None:
    again = probe(init=["scratch"], data=str(scenes / "train.json"), backbone=BACKBONE, **SMALL)
    assert again["tasks"] == told["tasks"]
    assert again["models"] == told["models"][:1]


def test_labels_of_their_own_may_judge(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["probe", "--init", "scratch", "--backbone", BACKBONE, "--data", str(scenes / "train.json"), "--json"]
    words += ["--val-data", str(scenes / "val.json"), "--image-size", "64", "--neighbours", "3", "--min-side", "4"]
    assert cli.main([*words, "--threads", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tasks"]["crops"]["splits"] == 1
    assert answer["models"][0]["scores"]["boxes"]["linear"]["accuracy"]["sd"] is None


def test_a_folder_for_each_class_is_probed_as_whole_images(folders: Path) -> None:
    told = probe(init=["scratch"], backbone=BACKBONE, images=str(folders), **SMALL)
    assert list(told["tasks"]) == ["images"]
    assert told["tasks"]["images"]["classes"] == {"class 0": 5, "class 1": 5}
    assert told["tasks"]["images"]["chance"]["balanced_accuracy"]["mean"] == 0.5


def test_background_lies_where_nothing_is_labelled(scenes: Path) -> None:
    labels = load_labels(scenes / "train.json")
    crops, inside, unreadable = labelled_samples(labels, 96, 1000, min_side=4, background=True, seed=0)
    assert unreadable == []
    assert crops.labels.equal(inside.labels)
    assert crops.pictures.shape[-1] == 48
    assert inside.boxes is not None
    nothing = inside.labels == len(labels.classes)
    assert 0 < int(nothing.sum()) <= int((~nothing).sum())
    for image in inside.image.unique():
        own = inside.image == image
        overlap = box_iou(inside.boxes[own & nothing], inside.boxes[own & ~nothing])
        assert overlap.numel() == 0 or float(overlap.max()) < 0.25
    plain, _, _ = labelled_samples(labels, 96, 5, min_side=4, background=False, seed=0)
    assert plain.classes == labels.classes
    assert 5 <= len(plain) < len(crops)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbours": 1000}, "are fewer than 1000 neighbours"),
        ({"min_side": 500.0}, "has no box"),
        ({"held_out": 1.0}, "--held-out is 1"),
        ({"image_size": 32}, "--image-size 32: boxes are cut out to half of it"),
        ({"image_size": 0}, "--image-size is 0"),
        ({"data": None, "images": "nowhere"}, "probe needs classes"),
        ({"init": ["nowhere"]}, "nowhere does not exist"),
        ({"batch_size": 0}, "--batch-size is 0"),
    ],
)
def test_what_cannot_be_probed_is_said(changes: dict[str, Any], message: str, scenes: Path) -> None:
    given = {"init": ["scratch"], "backbone": BACKBONE, "data": str(scenes / "train.json"), **SMALL}
    with pytest.raises(UserError, match=message):
        probe(**{**given, **changes})


def test_a_class_of_one_image_is_named_and_two_of_them_are_refused(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "class 2").mkdir()
    shutil.move(next((folders / "class 1").iterdir()), folders / "class 2")
    probe(init=["scratch"], backbone=BACKBONE, images=str(folders), **SMALL)
    assert "never both learned and judged, for want of images: class 2" in capsys.readouterr().err
    for image in sorted((folders / "class 1").iterdir())[1:]:
        image.unlink()
    with pytest.raises(UserError, match="each in two images and more, and there are 5 class 0, 1 class 1, 1 class 2"):
        probe(init=["scratch"], backbone=BACKBONE, images=str(folders), **SMALL)


def test_a_single_class_and_a_folder_without_folders_are_refused(folders: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no folders in it"):
        probe(init=["scratch"], backbone=BACKBONE, images=str(folders / "class 0"), **SMALL)
    shutil.rmtree(folders / "class 1")
    with pytest.raises(UserError, match="needs two classes, and there is only class 0"):
        probe(init=["scratch"], backbone=BACKBONE, images=str(folders), **SMALL)
    labels = json.loads((scenes / "train.json").read_text())
    labels["categories"] = labels["categories"][:1]
    for each in labels["annotations"]:
        each["category_id"] = labels["categories"][0]["id"]
    one = tmp_path / "one.json"
    one.write_text(json.dumps(labels))
    given = {"init": ["scratch"], "backbone": BACKBONE, "data": str(one), "images": str(scenes / "images"), **SMALL}
    with pytest.raises(UserError, match="needs two classes"):
        probe(**given, background=False)
