"""`selfdet correspond` draws and counts, beside the untrained network, and refuses what can't correspond."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from selfdet import cli
from selfdet.errors import UserError
from selfdet.interchange.named_backbones import name_backbones, snapshots
from selfdet.interchange.weights import read_weights
from selfdet.verbs.correspond import correspond
from tiny_runs import BACKBONE

SMALL: dict[str, Any] = {"backbone": BACKBONE, "image_size": 64, "pairs": 2, "shown": 1, "threads": 1}


@pytest.fixture(scope="module")
def shown(scenes: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answer of one call with everything on; its "out" is the folder."""
    out = tmp_path_factory.mktemp("correspond") / "out"
    size = {**SMALL, "image_size": 96}
    return correspond(init=[str(pretrained)], images=str(scenes / "images"), out=str(out), point=(48, 48), **size)


@pytest.fixture
def run_with_snapshots(pretrained: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "snapshots").mkdir(parents=True)
    shutil.copy(pretrained / "config.yaml", run)
    for epoch in (5, 0, 20):
        shutil.copy(pretrained / "backbone.safetensors", run / "snapshots" / f"epoch-{epoch:04d}.safetensors")
    return run


def test_the_untrained_network_comes_first_and_everything_is_there(shown: dict[str, Any], pretrained: Path) -> None:
    folder = Path(shown["out"])
    assert sorted(file.name for file in folder.iterdir()) == [
        "correspondence.html",
        "figures.json",
        "matches-0.5.png",
        "matches-0.9.png",
        "similarity.png",
    ]
    assert json.loads((folder / "figures.json").read_text()) == json.loads(json.dumps(shown))
    assert [model["name"] for model in shown["models"]] == ["untrained", pretrained.name]
    assert [[count["threshold"] for count in model["counts"]] for model in shown["models"]] == [[0.9, 0.5]] * 2
    assert all(model["grid"] == 3 for model in shown["models"])
    assert shown["pairs"] == 2
    for name in ("matches-0.9.png", "similarity.png"):
        Image.open(folder / name).verify()


def test_the_same_call_gives_the_same_figures(shown: dict[str, Any], scenes: Path, tmp_path: Path) -> None:
    size = {**SMALL, "image_size": 96}
    again = correspond(init=["scratch"], images=str(scenes / "images"), out=str(tmp_path / "o"), **size)
    assert again["models"] == shown["models"][:1]


def test_two_given_images_are_matched_without_a_truth(scenes: Path, pretrained: Path, tmp_path: Path) -> None:
    files = sorted((scenes / "images").iterdir())[:2]
    out = tmp_path / "out"
    words = ["correspond", "--init", str(pretrained), "--pair", *map(str, files), "--image-size", "64"]
    assert cli.main([*words, "--thresholds", "-1", "--threads", "1", "--out", str(out)]) == 0
    told = json.loads((out / "figures.json").read_text())
    assert told["shown"] == [f"{files[0].name} and {files[1].name}"]
    for model in told["models"]:
        assert model["counts"][0]["matches"] > 0
        assert model["counts"][0]["hits"] is None


def test_snapshots_are_shown_in_the_order_of_time(run_with_snapshots: Path, pretrained: Path) -> None:
    named = name_backbones([str(run_with_snapshots)], over_time=True)
    assert [each.name for each in named] == ["untrained", "epoch 0", "epoch 5", "epoch 20"]
    assert {each.architecture for each in named} == {BACKBONE}
    given = read_weights(pretrained / "backbone.safetensors")[0]
    built = named[1].build(0).net.state_dict()
    assert all(built[name].equal(value) for name, value in given.items())
    with pytest.raises(UserError, match="has no snapshots"):
        snapshots(str(pretrained))
    with pytest.raises(UserError, match="needs a run"):
        name_backbones(["scratch"], over_time=True)


def test_names_are_short_and_no_two_are_alike(pretrained: Path, tmp_path: Path) -> None:
    other = tmp_path / pretrained.name
    other.mkdir()
    shutil.copy(pretrained / "config.yaml", other)
    shutil.copy(pretrained / "backbone.safetensors", other)
    inits = [str(pretrained), str(other), str(other / "backbone.safetensors"), "random"]
    name = pretrained.name
    assert [each.name for each in name_backbones(inits)] == ["untrained", name, f"{name} (2)", f"{name} (3)"]
    several = name_backbones(["library:resnet18", str(pretrained)])
    assert [each.name for each in several] == ["untrained resnet18", f"untrained {BACKBONE}", "library:resnet18", name]
    assert [each.name for each in name_backbones(["scratch"], "resnet18")] == ["untrained"]
    with pytest.raises(UserError, match=f"--backbone resnet18 and --init .* disagree: that is a {BACKBONE}"):
        name_backbones([str(pretrained)], "resnet18")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": [1.5]}, "--thresholds 1.5 is no cosine"),
        ({"thresholds": []}, "--thresholds is empty"),
        ({"image_size": 16}, "--image-size 16"),
        ({"image_size": 0}, "--image-size is 0"),
        ({"image_size": 32}, "leaves a single cell"),
        ({"point": (5000, 3)}, "--point 5000,3 is not in the first view"),
        ({"shown": 0}, "--shown is 0"),
        ({"images": None}, "needs images or a pair"),
        ({"init": ["nowhere"]}, "nowhere does not exist"),
        ({"init": ["scratch", "scratch"]}, "given twice"),
        ({"init": ["scratch", "./scratch"]}, "given twice"),
    ],
)
def test_what_cannot_be_meant_is_said(changes: dict[str, Any], message: str, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = {"init": ["scratch"], "images": str(scenes / "images"), "out": str(out), **SMALL}
    with pytest.raises(UserError, match=message):
        correspond(**{**given, **changes})
    assert not out.exists()


def test_unreadable_images_are_left_out_and_none_readable_is_refused(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of 1 image can be read"):
        correspond(init=["scratch"], images=str(folder), out=str(tmp_path / "a"), **SMALL)
    with pytest.raises(UserError, match=r"--pair .*broken.jpg is no image"):
        correspond(init=["scratch"], pair=(str(folder / "broken.jpg"),) * 2, out=str(tmp_path / "b"), **SMALL)
    shutil.copy(next((scenes / "images").iterdir()), folder / "good.jpg")
    answer = correspond(init=["scratch"], images=str(folder), out=str(tmp_path / "c"), **SMALL)
    assert (answer["pairs"], answer["unreadable"]) == (1, [str(folder / "broken.jpg")])
    assert "unreadable, left out" in capsys.readouterr().err
