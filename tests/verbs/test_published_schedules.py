"""The optimisers and schedules that published settings need."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.training.toys import RECIPE

from selfdet.errors import UserError
from selfdet.training.checkpoint import load_checkpoint
from selfdet.training.recipe import Recipe
from selfdet.training.rundir import RunDir
from selfdet.verbs.pretrain_detector import DetectorStageSettings
from tiny_runs import tiny_aligndet, tiny_finetune


@pytest.fixture(autouse=True)
def _without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of so small a run, and are looked at elsewhere."""
    for verb in ("pretrain_detector", "finetune"):
        monkeypatch.setattr(f"selfdet.verbs.{verb}.plot_training", lambda rows, folder: [])
    monkeypatch.setattr("selfdet.verbs.finetune.report_at_the_end", lambda *given: None)
    monkeypatch.setattr("selfdet.verbs.pretrain.report_at_the_end", lambda *given: None)


def rates(run: Path) -> list[float]:
    return [row["lr"] for row in RunDir(run).read_metrics()]


def test_fine_tuning_divides_its_rate_at_the_steps_that_are_named_and_takes_adamw(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {"steps": 4, "log_every": 1, "warmup_steps": 0, "lr_steps": [2, 3], "norm_decay": 0.0}
    tiny_finetune(scenes, out, optimizer="adamw", weight_decay=0.05, **settings)
    assert rates(out) == pytest.approx([2.5e-5, 2.5e-5, 2.5e-6, 2.5e-7])  # 0.0001 at batch 16, a batch is 4
    state = load_checkpoint(RunDir(out).last)["optimizer"]
    assert {"exp_avg", "exp_avg_sq"} <= set(next(iter(state["state"].values())))
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.05, 0.0}
    config = RunDir(out).read_config()
    assert (config["optimizer"], config["lr_steps"], config["norm_decay"]) == ("adamw", [2, 3], 0.0)


def test_the_detector_stage_divides_its_rate_after_the_epochs_that_are_named(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # 15 images, 4 a step: 3 steps an epoch.
    asked = DetectorStageSettings(lr=0.01, lr_epochs=[1, 2], warmup_steps=2, optimizer="adamw", norm_decay=0.0)
    tiny_aligndet(scenes, out, steps=7, log_every=1, detector_stage=asked, weight_decay=0.05)
    expected = [0.01 / 3, 0.02 / 3, 0.01, 0.001, 0.001, 0.001, 0.0001]
    assert rates(out) == pytest.approx(expected)
    assert {group["weight_decay"] for group in load_checkpoint(RunDir(out).last)["optimizer"]["param_groups"]} == {
        0.05,
        0.0,
    }


@pytest.mark.parametrize("steps", [[3, 2], [2, 2], [0, 2], []])
def test_steps_that_do_not_ascend_are_refused(scenes: Path, tmp_path: Path, steps: list[int]) -> None:
    with pytest.raises(UserError, match=r"--lr-steps .*: expected ascending steps above 0"):
        tiny_finetune(scenes, tmp_path / "run", lr_steps=steps)


def test_steps_of_a_schedule_without_steps_are_refused() -> None:
    with pytest.raises(UserError, match="--lr-steps: the learning rate is of the schedule cosine here"):
        Recipe(**{**RECIPE, "schedule": "cosine", "lr_steps": (2, 3)})


def test_a_run_from_before_there_was_a_choice_of_optimisers_goes_on(tmp_path: Path) -> None:
    RunDir.open(tmp_path / "run", {"lr": 0.1}, resume=False)
    RunDir.open(tmp_path / "run", {"lr": 0.1, "optimizer": "sgd", "lr_steps": None}, resume=True)
    with pytest.raises(UserError, match="optimizer is"):
        RunDir.open(tmp_path / "run", {"lr": 0.1, "optimizer": "adamw"}, resume=True)
