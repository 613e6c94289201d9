"""What TensorBoard and Weights & Biases are told of a run, also of one that was killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.training.toys import RECIPE, Line, Numbers, collate

from fake_wandb import FakeWandb
from selfdet.errors import UserError
from selfdet.training.loggers import LoggerName, check_loggers
from selfdet.training.recipe import Recipe
from selfdet.training.runtime import start_runtime
from selfdet.training.stage import Weights, open_stage


class Killed(BaseException):
    """The end of the process."""


class Mortal(Line):
    """A method whose process ends within the step `dies_in`, counted from 1."""

    def __init__(self, dies_in: int) -> None:
        super().__init__()
        self.dies_in = dies_in

    def after_step(self, step: int, total_steps: int | None = None) -> None:
        if step + 1 == self.dies_in:
            raise Killed


def run(out: Path, loggers: list[LoggerName] | None, dies_in: int = 0) -> None:
    recipe = Recipe(**{**RECIPE, "evaluate_every": 5})
    runtime = start_runtime(precision="fp32", threads=1)
    stage = open_stage(str(out), {"lr": 0.05}, recipe, runtime, "backbone", resume=out.exists(), loggers=loggers)
    method = Mortal(dies_in)
    groups = [{"params": list(method.parameters())}]
    scores = {"AP": 0.5, "mask": {"AP": 0.25}, "absent": None}
    stage.train(method, groups, Numbers(), collate, Weights("linear.", {}), evaluate=lambda step: scores)


def flat(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """A row with the figures of groups as `mask.AP`, without what does not exist."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = value
    return found


def recorded(out: Path, *names: str) -> list[dict[str, float]]:
    """The rows of a run's own files."""
    lines = [line for name in names for line in (out / f"{name}.jsonl").read_text().splitlines()]
    return [flat(json.loads(line)) for line in lines]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_every_row_under_the_names_of_the_runs_own_files(tmp_path: Path, wandb: FakeWandb) -> None:
    run(tmp_path / "run", ["wandb"])
    (start,) = wandb.starts
    assert (start["project"], start["name"], start["dir"]) == ("selfdet", "run", str(tmp_path / "run"))
    assert "mode" not in start  # which WANDB_MODE=offline sets
    assert start["config"]["lr"] == 0.05
    own = recorded(tmp_path / "run", "metrics", "timing")
    assert {tuple(sorted(row.items())) for row in wandb.rows} == {tuple(sorted(row.items())) for row in own}
    assert len(wandb.rows) == len(own)
    assert {"loss", "lr", "AP", "mask.AP", "images_per_second"} <= {name for row in wandb.rows for name in row}
    assert wandb.ends == [0]


@pytest.mark.parametrize("step", [2, 5, 7, 10])
def test_wandb_gets_no_row_twice_from_a_run_that_was_killed(tmp_path: Path, wandb: FakeWandb, step: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(out, ["wandb"], dies_in=step)
    run(out, ["wandb"])
    first, second = wandb.starts
    assert (second["id"], second["resume"]) == (first["id"], "allow")
    assert wandb.ends == [1, 0]
    metrics = [row for row in wandb.rows if "images_per_second" not in row]
    assert metrics == recorded(out, "metrics")
    assert [row["step"] for row in wandb.rows if "images_per_second" in row] == [3, 6, 9, 10]


def test_a_logger_that_comes_late_gets_what_was_before(tmp_path: Path, wandb: FakeWandb) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(out, None, dies_in=7)
    run(out, ["wandb"])
    assert [row for row in wandb.rows if "images_per_second" not in row] == recorded(out, "metrics")


def test_tensorboard_has_each_figure_of_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install selfdet[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(out, ["tensorboard"], dies_in=7)
    run(out, ["tensorboard"])
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    rows = recorded(out, "metrics")
    for name in ("loss", "absolute", "lr", "epoch", "AP", "mask.AP"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(row["step"], row[name]) for row in rows if name in row]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_not_there_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as error:
        check_loggers([name])  # type: ignore[list-item]
    assert str(error.value).startswith(f"--loggers {name}: the package {name} is not installed")
    assert f"pip install 'selfdet[{name}]'" in error.value.hint
    check_loggers(None)


def test_a_wandb_that_does_not_start_is_the_users_to_mend(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.refuses = "api_key not configured (no-tty). call wandb.login()\nmore"
    with pytest.raises(UserError, match=r"W&B does not start: api_key not configured \(no-tty\)"):
        run(tmp_path / "run", ["wandb"])


def test_the_stages_of_a_run_are_a_group(tmp_path: Path, wandb: FakeWandb) -> None:
    run(tmp_path / "pre" / "stages" / "backbone", ["wandb"])
    assert (wandb.starts[0]["name"], wandb.starts[0]["group"]) == ("pre-backbone", "pre")


@pytest.mark.slow
def test_the_real_wandb_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install selfdet[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(out, ["wandb"], dies_in=7)
    run(out, ["wandb"])
    files = sorted(out.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # one run in two sittings
