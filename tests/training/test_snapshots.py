"""Weights kept while training: after which steps, and through which ends of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.training.toys import Line, Numbers, stage, train

from selfdet.errors import UserError
from selfdet.training.snapshots import Snapshots, snapshot_epochs

PER_EPOCH = 5  # 40 rows in batches of 8; ten steps are two epochs


class Killed(BaseException):
    """The end of the process."""


class Mortal(Line):
    """A method whose process ends within the step `dies_in`, counted from 1."""

    def __init__(self, dies_in: int = 0) -> None:
        super().__init__()
        self.dies_in = dies_in

    def after_step(self, step: int, total_steps: int | None = None) -> None:
        if step + 1 == self.dies_in:
            raise Killed


class Kept:
    """A run's snapshots, whose files are the weights in words; `written` counts them by epoch."""

    def __init__(self, epochs: Sequence[int] = (0, 1, 2)) -> None:
        self.epochs = epochs
        self.written: list[dict[str, Any]] = []

    def of(self, method: Line) -> Snapshots:
        def write(file: Path, note: dict[str, Any]) -> None:
            self.written.append(note)
            file.write_text(repr(method.linear.weight.tolist()))

        return Snapshots(self.epochs, PER_EPOCH, write)


def run(out: Path, kept: Kept, dies_in: int = 0, **changes: Any) -> Line:
    method = Mortal(dies_in)
    train(stage(out, resume=out.exists(), **changes), method, Numbers(), snapshots=kept.of(method))
    return method


def files(out: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted((out / "snapshots").iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a run that nothing befell."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, Kept())
    return files(out)


def test_weights_are_kept_of_the_start_and_after_each_epoch_asked_for(tmp_path: Path) -> None:
    kept = Kept((0, 2))
    start = Line().linear.weight.tolist()
    method = run(tmp_path / "run", kept)
    assert files(tmp_path / "run") == {
        "epoch-0000.safetensors": repr(start),
        "epoch-0002.safetensors": repr(method.linear.weight.tolist()),
    }
    assert kept.written == [{"epoch": 0, "step": 0}, {"epoch": 2, "step": 10}]


@pytest.mark.parametrize("step", [1, 4, 5, 6, 8, 10])
def test_a_killed_run_keeps_the_same_weights_and_writes_none_twice(
    tmp_path: Path, whole: dict[str, str], step: int
) -> None:
    kept = Kept()
    with pytest.raises(Killed):
        run(tmp_path / "run", kept, dies_in=step)
    run(tmp_path / "run", kept)
    assert files(tmp_path / "run") == whole
    assert [note["epoch"] for note in kept.written] == [0, 1, 2]


def test_weights_are_there_before_the_checkpoint_that_counts_their_step(
    tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> None:
        raise Killed

    kept = Kept()
    with monkeypatch.context() as patch:
        patch.setattr("selfdet.training.loop.save_checkpoint", dies)
        with pytest.raises(Killed):
            run(tmp_path / "run", kept, save_every=5)
    assert list(files(tmp_path / "run").items()) == list(whole.items())[:2]
    run(tmp_path / "run", kept, save_every=5)
    assert files(tmp_path / "run") == whole
    assert len(kept.written) == 3


def test_epochs_are_sorted_and_none_counts_twice() -> None:
    assert snapshot_epochs([5, 0, 5, 1], steps=50, per_epoch=10) == [0, 1, 5]
    assert snapshot_epochs(None, steps=50, per_epoch=10) == []


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ([0, 6], r"--snapshots 6 is beyond epoch 5, the last that 59 steps of 10 an epoch complete\."),
        ([-1], r"--snapshots -1 is not an epoch"),
    ],
)
def test_epochs_that_do_not_come_are_refused(epochs: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        snapshot_epochs(epochs, steps=59, per_epoch=10)
