"""Recipes: found by name, each number of them traced to its source, and each a command that runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfdet import cli
from selfdet.cli_recipes import FOLDER, config_file, recipes
from selfdet.models.backbones import torchvision_resnets
from selfdet.models.composite import plain_name
from tiny_runs import tiny_boxes

ROOT = Path(__file__).parent.parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
Capture = pytest.CaptureFixture[str]


def content(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def settings(found: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting as in the table: its name with the stage before it, its values as words."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield from settings(value, f"{prefix}{name}.")
        elif name != "verb":
            yield prefix + name, " ".join(map(written, value if isinstance(value, list) else [value]))


def written(value: Any) -> str:
    """A number as it is written in the recipe."""
    return f"{value:.12f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    with (ROOT / "docs" / "paper_settings.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_setting_of_every_recipe_is_that_of_the_one_line_of_the_table_about_it(
    table: list[dict[str, str]],
) -> None:
    used = set()
    for name in NAMES:
        own = [row for row in table if fnmatchcase(name, row["recipe"])]
        said = dict(settings(content(name)))
        assert {row["setting"] for row in own if not row["setting"].startswith("(")} <= said.keys(), name
        for setting, value in said.items():
            lines = [row for row in own if row["setting"] == setting]
            assert [row["value"] for row in lines] == [value], f"{setting} of {name}"
            used.add(id(lines[0]))
    about = [row for row in table if row["setting"].startswith("(")]  # what a recipe can't say
    assert used | {id(row) for row in about} == {id(row) for row in table}
    assert all(any(fnmatchcase(name, row["recipe"]) for name in NAMES) for row in about)


def test_every_line_of_the_table_has_a_source_and_every_deviation_its_reason(table: list[dict[str, str]]) -> None:
    for row in table:
        assert row["source"], row
        assert bool(row["published"]) == bool(row["deviation"]), row
        assert row["value"] or row["deviation"], row


def test_the_papers_rows_are_all_there() -> None:
    wanted = {f"{method}-coco-{epochs}-resnet50" for method in ("moco", "densecl") for epochs in (800, 1600)}
    wanted |= {f"{method}-imagenet-200-resnet{depth}" for method in ("moco", "densecl") for depth in (50, 101)}
    detectors = ("fcos", "retinanet", "faster-rcnn", "mask-rcnn")
    wanted |= {f"aligndet-{detector}-resnet50" for detector in detectors}
    wanted |= {f"aligndet-mask-rcnn-{net}" for net in ("mobilenetv2", "resnet18", "swin-s", "swin-b")}
    wanted |= {
        f"coco-{detector}-resnet50-{length}-{percent}percent"
        for detector in detectors
        for length in ("12k", "90k")
        for percent in (1, 5, 10, 20, 100)
    }
    wanted |= {f"coco-mask-rcnn-{net}-90k-100percent" for net in ("mobilenetv2", "resnet18", "swin-s", "swin-b")}
    wanted |= {"voc-faster-rcnn-resnet50-12k", "voc-c4-resnet50-24k", "voc-fcn-resnet50-20k"}
    wanted |= {"cityscapes-fcn-resnet50-40k"}
    wanted |= {"aligndet-detr-resnet50", "coco-detr-resnet50-50epochs"}
    wanted |= {"aligndet-cascade-rcnn-cb-swin-l", "coco-cascade-rcnn-cb-swin-l-1x"}
    assert wanted <= set(NAMES)


def test_the_backbones_of_all_recipes_are_known_to_their_libraries() -> None:
    import timm

    for name in {content(each)["backbone"] for each in NAMES if "backbone" in content(each)}:
        assert name in torchvision_resnets() or timm.is_model(plain_name(name))


def test_a_recipe_is_found_by_its_name_and_a_file_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file("pretrain", "aligndet-fcos-resnet50") == FOLDER / "aligndet-fcos-resnet50.yaml"
    (tmp_path / "aligndet-fcos-resnet50").write_text("steps: 2")
    assert config_file("pretrain", "aligndet-fcos-resnet50") == Path("aligndet-fcos-resnet50")
    assert config_file("pretrain", "own.yaml") == Path("own.yaml")
    assert set(recipes("pretrain")) | set(recipes("finetune")) == set(NAMES)


def test_an_unknown_name_is_answered_with_the_nearest_of_the_verb(capfd: Capture) -> None:
    words = ["--images", "x", "--out", "y", "--json"]
    for asked, says in (
        ("align-det-fcos-resnet50", "Did you mean aligndet-fcos-resnet50"),
        ("nothing", "The recipes of pretrain are aligndet-cascade-rcnn-cb-swin-l, "),
    ):
        assert cli.main(["pretrain", "--config", asked, *words]) == 2
        error = json.loads(capfd.readouterr().out)["error"]
        assert error["message"] == f"--config {asked} is no file and no recipe of pretrain"
        assert says in error["hint"]
    assert cli.main(["pretrain", "--config", "pedestrians.yaml", *words]) == 2
    assert "--config pedestrians" in json.loads(capfd.readouterr().out)["error"]["hint"]
    assert cli.main(["pretrain", "--config", "voc-c4-resnet50-24k", *words]) == 2
    assert "is for selfdet finetune, not pretrain" in json.loads(capfd.readouterr().out)["error"]["message"]


def small(name: str, scenes: Path, out: Path) -> list[str]:
    """The recipe as a command of two steps; only sizes differ, and what a real backbone would cost."""
    recipe = content(name)
    words = [recipe["verb"], "--config", name, "--out", str(out), "--workers", "0", "--threads", "1"]
    words += ["--precision", "fp32", "--devices", "1", "--backbone", "resnet18" if "c4" in name else "test_resnet"]
    sizes = {"--steps": "2", "--image-size": "64"}
    if recipe["verb"] == "finetune":
        words += ["--init", "scratch", "--data", str(scenes / "train.json")]
        # One image is 512 regions for an R-CNN's box head.
        sizes["--fraction"] = "0.1" if "c4" in name else "0.2" if "rcnn" in name else "0.4"
        sizes |= {"--crop-size": "64"} if "crop-size" in recipe else {}
    else:
        words += ["--images", str(scenes / "images")]
        if recipe.get("stages") == ["backbone"]:
            sizes |= {"--batch-size": "4", "--queue-length": "64"}
        else:
            stage = "--detector-stage."
            sizes = {stage + "steps": "2", stage + "image-size": "64", stage + "batch-size": "4"}
            words += ["--boxes", str(tiny_boxes(scenes)), "--stages", "detector"]
    if "fpn-channels" in recipe:
        sizes["--fpn-channels"] = "64"
    return [*words, *(word for pair in sizes.items() for word in pair)]


SOME = ("densecl-coco-800-resnet50", "aligndet-fcos-resnet50", "voc-fcos-resnet50-12k")


@pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_recipe_runs_two_steps(name: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("pretrain_backbone", "pretrain_detector", "finetune"):
        monkeypatch.setattr(f"selfdet.verbs.{verb}.plot_training", lambda rows, folder: [])
    for verb in ("pretrain", "finetune"):
        monkeypatch.setattr(f"selfdet.verbs.{verb}.report_at_the_end", lambda *given: None)
    assert cli.main(small(name, scenes, tmp_path / "run")) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    recipe = content(name)
    stage = recipe.get("detector-stage", {})
    assert config["weight_decay"] == recipe.get("weight-decay", 1e-4)
    assert config["steps"] == 2
    assert config["optimizer"] == (recipe | stage).get("optimizer", "sgd")
    if "lr" in recipe | stage:
        assert config["lr"] == (recipe | stage)["lr"]
