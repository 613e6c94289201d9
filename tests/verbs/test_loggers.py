"""`--loggers` on the command line: to each training stage, and refused before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fake_wandb import FakeWandb
from selfdet import cli
from selfdet.training.rundir import RunDir
from tiny_runs import FINETUNE, PRETRAIN, flags, tiny_finetune, tiny_pretrain


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_package_that_is_not_there_is_asked_for_before_anything_is_written(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    of = {
        "pretrain": {"images": scenes / "images", **PRETRAIN},
        "finetune": {"data": scenes / "train.json", **FINETUNE},
    }
    assert cli.main([verb, "--out", str(tmp_path / "run"), *flags(of[verb]), "--loggers", "wandb"]) == 2
    said = "selfdet: error: --loggers wandb: the package wandb is not installed. Install it: pip install"
    assert capsys.readouterr().err == f"{said} 'selfdet[wandb]'\n"
    assert not (tmp_path / "run").exists()


def test_both_verbs_hand_their_figures_on(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("pretrain_backbone", "finetune"):
        monkeypatch.setattr(f"selfdet.verbs.{verb}.plot_training", lambda rows, folder: [])
    for verb in ("pretrain", "finetune"):
        monkeypatch.setattr(f"selfdet.verbs.{verb}.report_at_the_end", lambda *given: None)
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    tiny_pretrain(scenes, tmp_path / "pre", steps=2, loggers=["wandb"])
    tiny_finetune(scenes, tmp_path / "ft", steps=2, loggers=["wandb"])
    assert [start["name"] for start in fake.starts] == ["pre", "ft"]
    runs = [RunDir(tmp_path / name) for name in ("pre", "ft")]
    assert len(fake.rows) == sum(len(run.read_metrics()) + len(run.read_timing()) for run in runs)
