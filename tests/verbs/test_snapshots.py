"""`--snapshots`: files for figures over training time, usable wherever weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from selfdet import cli
from selfdet.interchange.starts import load_backbone, load_detector, resolve_start
from selfdet.interchange.weights import read_weights
from selfdet.verbs.evaluate import evaluate
from tiny_runs import BACKBONE, COMMON, PRETRAIN, WIDTHS, flags, tiny_boxes, tiny_finetune, tiny_pretrain

SMALL: dict[str, Any] = {"image_size": 64, "threads": 1, "precision": "fp32"}


@pytest.fixture(autouse=True, scope="module")
def _without_charts() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for verb in ("pretrain_backbone", "pretrain_detector", "finetune"):
            patch.setattr(f"selfdet.verbs.{verb}.plot_training", lambda rows, folder: [])
        for verb in ("pretrain", "finetune"):
            patch.setattr(f"selfdet.verbs.{verb}.report_at_the_end", lambda *given: None)
        yield


@pytest.fixture(scope="module")
def both(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training run of two stages, each of two epochs: fifteen images in batches of four."""
    out = tmp_path_factory.mktemp("runs") / "both"
    tiny_pretrain(
        scenes,
        out,
        stages=["backbone", "detector"],
        boxes=str(tiny_boxes(scenes)),
        steps=6,
        snapshots=[0, 2],
        **WIDTHS,
    )
    return out


@pytest.fixture(scope="module")
def tuned(scenes: Path, both: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning of two epochs on ten images, that starts from the weights before the detector stage."""
    out = tmp_path_factory.mktemp("runs") / "tuned"
    init = both / "snapshots" / "detector" / "epoch-0000.safetensors"
    tiny_finetune(scenes, out, init=str(init), backbone=None, image_size=64, steps=4, snapshots=[0, 1, 2])
    return out


def same(one: Path, other: Path) -> bool:
    first, second = read_weights(one)[0], read_weights(other)[0]
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_each_stage_of_a_pre_training_has_its_own(both: Path) -> None:
    names = sorted(file.relative_to(both / "snapshots").as_posix() for file in (both / "snapshots").rglob("*.*"))
    assert names == [f"{stage}/epoch-000{epoch}.safetensors" for stage in ("backbone", "detector") for epoch in (0, 2)]
    assert same(both / "snapshots" / "backbone" / "epoch-0002.safetensors", both / "backbone.safetensors")
    assert same(both / "snapshots" / "detector" / "epoch-0002.safetensors", both / "detector.safetensors")


def test_they_say_what_they_are(both: Path) -> None:
    start = resolve_start(str(both / "snapshots" / "backbone" / "epoch-0002.safetensors"))
    assert start.kind == "backbone"
    assert (start.note["backbone"], start.note["epoch"], start.note["step"]) == (BACKBONE, 2, 6)


def test_the_first_of_a_backbone_is_the_untrained_network(both: Path) -> None:
    torch.manual_seed(0)
    untrained, _ = load_backbone(BACKBONE, None)
    kept, _ = read_weights(both / "snapshots" / "backbone" / "epoch-0000.safetensors")
    assert kept.keys() == untrained.net.state_dict().keys()  # the library's own names
    assert all(value.equal(kept[name]) for name, value in untrained.net.state_dict().items())


def test_a_backbones_is_a_start_for_pre_training(scenes: Path, both: Path, tmp_path: Path) -> None:
    weights = str(both / "snapshots" / "backbone" / "epoch-0002.safetensors")
    tiny_pretrain(scenes, tmp_path / "on", backbone_weights=weights, steps=2, snapshots=[0])
    # A run of one stage has them at the top.
    assert same(tmp_path / "on" / "snapshots" / "epoch-0000.safetensors", Path(weights))


def test_a_detectors_is_evaluated_like_a_run(scenes: Path, tuned: Path) -> None:
    data = str(scenes / "val.json")
    files = [tuned / "snapshots" / f"epoch-000{epoch}.safetensors" for epoch in (0, 2)]
    assert all(file.is_file() for file in files)
    assert same(files[1], tuned / "detector.safetensors")
    assert not same(*files)
    last = evaluate(init=str(files[1]), data=data, **SMALL)
    assert last == evaluate(init=str(tuned), data=data, **SMALL)
    assert load_detector(str(files[0]))[1]["epoch"] == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0,1,9", "--snapshots 9 is beyond epoch 1, the last that 5 steps of 3 an epoch complete"),
        ("-1", "--snapshots -1 is not an epoch"),
        ("0,half", "--snapshots is '0 half', expected one or more values, each a whole number"),
        ("0.5", "--snapshots is '0.5', expected one or more values, each a whole number"),
    ],
)
def test_a_bad_epoch_is_refused_in_one_line_before_anything_is_written(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str, words: str
) -> None:
    out = tmp_path / "run"
    command = ["pretrain", "--images", str(scenes / "images"), "--out", str(out), *flags(PRETRAIN)]
    assert cli.main([*command, "--snapshots", value]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_later_stage_that_is_too_short_is_refused_at_once(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", "--images", str(scenes / "images"), "--out", str(tmp_path / "run"), *flags(COMMON)]
    lengths = ["--backbone-stage.steps", "60", "--detector-stage.steps", "4", "--snapshots", "20"]
    assert cli.main([*command, *lengths]) == 2
    assert "complete in the detector stage. Leave it out, train longer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
