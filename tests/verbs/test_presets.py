"""`--preset` under flags and YAML, in what a run resolves."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from selfdet import cli
from tiny_runs import FINETUNE, PRETRAIN, WIDTHS, flags


@pytest.fixture(autouse=True)
def _without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("pretrain_backbone", "finetune"):
        monkeypatch.setattr(f"selfdet.verbs.{verb}.plot_training", lambda rows, folder: [])
    for verb in ("pretrain", "finetune"):
        monkeypatch.setattr(f"selfdet.verbs.{verb}.report_at_the_end", lambda *given: None)


def test_flags_stand_over_yaml_over_the_preset_over_the_data(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: laptop\nbatch-size: 3\nlr: 0.001\n")
    left = {name: value for name, value in FINETUNE.items() if name not in ("batch_size", "image_size")}
    command = ["finetune", "--data", str(scenes / "train.json"), *flags(left | {"steps": 1}), "--config", str(file)]
    assert cli.main([*command, "--lr", "0.002", "--out", str(tmp_path / "run")]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["lr"], config["batch_size"], config["preset"]) == (0.002, 3, "laptop")
    assert config["options"]["image_size"] == 128  # the data's own, which is under the preset's bound
    file.write_text("preset: laptop\n")
    assert cli.main([*command, "--out", str(tmp_path / "other")]) == 0
    said = capsys.readouterr().err
    assert "batch size: 4 (preset laptop: half the memory of 8)\n" in said
    assert "\npeak memory: about " in said


def test_pre_training_takes_what_is_not_asked_for_from_the_preset(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = {name: value for name, value in PRETRAIN.items() if name != "image_size"}
    command = ["pretrain", "--images", str(scenes / "images"), *flags(left | {"steps": 1}), "--preset", "laptop"]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["backbone"], config["batch_size"], config["image_size"]) == (PRETRAIN["backbone"], 4, 128)
    assert "image size: 128 (preset laptop: a third of the pixels of 224)\n" in capsys.readouterr().err


def test_an_unknown_preset_is_refused_with_the_nearest(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", "--images", str(scenes / "images"), "--out", str(tmp_path / "run"), *flags(WIDTHS)]
    assert cli.main([*command, "--preset", "one-gpus"]) == 2
    assert capsys.readouterr().err.endswith("Did you mean one-gpu?\n")
