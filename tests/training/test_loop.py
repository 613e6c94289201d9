"""The loop: steps, micro-batches, what is written when, and how a run that goes wrong ends."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.toys import Line, Numbers, Rows, stage, train
from torch import Tensor

from selfdet.data.loader import training_batches
from selfdet.data.workers import DeadWorker
from selfdet.errors import UserError
from selfdet.training.checkpoint import load_checkpoint
from selfdet.training.loop import Progress
from selfdet.training.schedule import Schedule


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_batch_in_micro_batches_is_the_same_step(tmp_path: Path) -> None:
    whole, parts = Line(), Line()
    train(stage(tmp_path / "whole"), whole, Numbers(20))
    train(stage(tmp_path / "parts", accumulate=2), parts, Numbers(20))
    torch.testing.assert_close(parts.linear.weight, whole.linear.weight)
    # The same images too, over the ends of epochs.
    assert [path for batch in parts.batches for path in batch] == [path for batch in whole.batches for path in batch]
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(other)


def test_the_method_is_told_once_of_each_optimiser_step(tmp_path: Path) -> None:
    method = Line()
    train(stage(tmp_path / "run", accumulate=4), method)
    assert method.ends == [(step, 10) for step in range(10)]
    assert len(method.batches) == 40


def test_figures_are_means_since_the_last_row_and_the_rate_is_the_schedule(tmp_path: Path) -> None:
    method = Line()
    losses: list[float] = []
    ordinary = method.forward

    def forward(batch: Rows) -> dict[str, Tensor]:
        figures = ordinary(batch)
        losses.append(figures["loss"].item())
        return figures

    method.forward = forward  # type: ignore[method-assign]
    train(stage(tmp_path / "run"), method)
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [3, 6, 9, 10]
    means = [sum(losses[a:b]) / (b - a) for a, b in ((0, 3), (3, 6), (6, 9), (9, 10))]
    assert [row["loss"] for row in found] == pytest.approx(means)
    schedule = Schedule(0.05, 10, 2)
    assert [row["lr"] for row in found] == [schedule(step - 1) for step in (3, 6, 9, 10)]
    assert [row["epoch"] for row in found] == [0, 1, 1, 1]


def test_nothing_that_varies_between_runs_is_in_the_metrics(tmp_path: Path) -> None:
    for name in ("one", "other"):
        train(stage(tmp_path / name), Line())
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes() == (tmp_path / "other" / "metrics.jsonl").read_bytes()
    timing = [json.loads(line) for line in (tmp_path / "one" / "timing.jsonl").read_text().splitlines()]
    assert [set(row) for row in timing] == [{"step", "images_per_second", "data_wait", "seconds"}] * 4


@pytest.mark.parametrize("killed_at", [5, 8, 10])
def test_what_a_method_draws_itself_goes_on_exactly_after_a_kill(tmp_path: Path, killed_at: int) -> None:
    whole, killed, resumed = Line(dropout=0.5), Line(dropout=0.5), Line(dropout=0.5)
    torch.manual_seed(7)
    train(stage(tmp_path / "whole"), whole)

    def after_step(step: int, total_steps: int | None = None) -> None:
        if step + 1 == killed_at:
            raise KeyboardInterrupt

    killed.after_step = after_step  # type: ignore[method-assign]
    torch.manual_seed(7)
    with pytest.raises(KeyboardInterrupt):
        train(stage(tmp_path / "killed"), killed)
    torch.manual_seed(99)
    train(stage(tmp_path / "killed", resume=True), resumed)
    assert resumed.linear.weight.equal(whole.linear.weight)
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_evaluation_comes_first_at_its_interval_and_last_and_the_best_is_kept(tmp_path: Path) -> None:
    scores = {0: 0.1, 4: 0.5, 8: 0.5, 10: 0.3}
    method = Line()
    seen: list[Tensor] = []

    def evaluate(step: int) -> dict[str, float | None]:
        seen.append(method.linear.weight.detach().clone())
        return {"AP": scores[step]}

    train(stage(tmp_path / "run", evaluate_every=4), method, evaluate=evaluate)
    assert [(row["step"], row["AP"]) for row in rows(tmp_path / "run") if "AP" in row] == list(scores.items())
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    assert best["progress"]["best"] == 0.5
    assert best["method"]["linear.weight"].equal(seen[1])


def test_an_evaluation_without_an_ap_keeps_no_best(tmp_path: Path) -> None:
    train(stage(tmp_path / "run", evaluate_every=5), Line(), evaluate=lambda step: {"AP": None})
    assert not (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_stops_with_step_images_and_advice(tmp_path: Path, accumulate: int) -> None:
    sound = Line()
    train(stage(tmp_path / "sound", accumulate=accumulate), sound)
    # The micro-batch in which row 11 is first seen, and the step that it belongs to.
    number, batch = next((i, batch) for i, batch in enumerate(sound.batches) if "11.jpg" in batch)
    method = Line()
    with pytest.raises(UserError) as stopped:
        train(stage(tmp_path / "run", accumulate=accumulate), method, Numbers(poison={11: math.inf}))
    step = number // accumulate + 1
    assert stopped.value.message == (
        f"the loss (loss, absolute) is not finite at step {step}; the images of the batch begin with "
        f"{', '.join(batch[:3])}"
    )
    assert "Lower --lr" in stopped.value.hint
    assert str(stopped.value) in (tmp_path / "run" / "log.txt").read_text()
    assert all(value.isfinite().all() for value in method.state_dict().values())


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path: Path, clip: float) -> None:
    method = Line()

    def forward(batch: Rows) -> dict[str, Tensor]:
        # Its value is finite, its derivative at 0 is not.
        weak = method.linear.weight.sum() * 0
        return {"loss": weak.abs().sqrt() if len(method.ends) == 6 else method.linear.weight.square().sum()}

    method.forward = forward  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the gradient is not finite at step 7"):
        train(stage(tmp_path / "run", clip=clip, save_every=2), method)
    assert method.linear.weight.isfinite().all()
    kept = load_checkpoint(tmp_path / "run" / "last.pt")
    assert kept["progress"]["step"] == 6
    assert kept["method"]["linear.weight"].isfinite().all()


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    method = Line()
    start = method.linear.weight.detach().clone()
    train(stage(tmp_path / "run", steps=1, warmup_steps=0, lr=1.0, clip=1e-3), method)
    assert (method.linear.weight - start).norm() <= 1e-3 * 1.01


def test_a_few_unreadable_images_are_replaced_counted_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(stage(tmp_path / "run"), Line(), Numbers(40, bad={3, 17}))
    assert "2 unreadable images of 40 replaced by others: " in capfd.readouterr().err
    assert "3.jpg" in (tmp_path / "run" / "log.txt").read_text()


def test_too_many_unreadable_images_stop_the_run_and_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 of 40 images cannot be read, more than 5%: .*\.jpg"):
        train(stage(tmp_path / "run", save_every=1), Line(), Numbers(40, bad={3, 17, 20}))
    assert "cannot be read" in (tmp_path / "run" / "log.txt").read_text()


def test_a_dead_worker_ends_the_run_saved_and_it_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Line(dropout=0.5)
    train(stage(tmp_path / "whole"), whole)

    def dying(*given: Any, **options: Any) -> Iterator[Any]:
        yield from itertools.islice(training_batches(*given, **options), 6)
        raise DeadWorker

    with monkeypatch.context() as patch:
        patch.setattr("selfdet.training.stage.training_batches", dying)
        with pytest.raises(UserError, match="a data worker process ended unexpectedly") as told:
            train(stage(tmp_path / "run"), Line(dropout=0.5))
    assert told.value.hint.startswith("Use fewer --workers")
    assert told.value.hint.endswith("Step 6 is saved: the same command with --resume continues it")
    assert str(told.value) in (tmp_path / "run" / "log.txt").read_text()
    resumed = Line(dropout=0.5)
    train(stage(tmp_path / "run", resume=True), resumed)
    assert resumed.linear.weight.equal(whole.linear.weight)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.parametrize("what", ["checkpoint", "row"])
def test_a_full_disk_stops_with_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    whole = Line(dropout=0.5)
    train(stage(tmp_path / "whole", save_every=2), whole)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    broken: dict[str, tuple[Any, str]] = {"checkpoint": (torch, "save"), "row": (os, "fsync")}
    ordinary = Line.after_step

    def after_step(self: Line, step: int, total_steps: int | None = None) -> None:
        ordinary(self, step, total_steps)
        if step == 5:  # the next row is that of step 6, the next checkpoint as well
            patch.setattr(*broken[what], full)

    with monkeypatch.context() as patch:
        patch.setattr(Line, "after_step", after_step)
        with pytest.raises(UserError, match=r"cannot be written: No space left on device; .* MB are free there"):
            train(stage(tmp_path / "run", save_every=2), Line(dropout=0.5))
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert not any(name.endswith(".partial") for name in files)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"] == 4
    assert load_checkpoint(tmp_path / "run" / "previous.pt")["progress"]["step"] == 2
    resumed = Line(dropout=0.5)
    train(stage(tmp_path / "run", resume=True, save_every=2), resumed)
    assert resumed.linear.weight.equal(whole.linear.weight)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_progress_forgets_what_it_has_told() -> None:
    progress = Progress()
    for value in (1.0, 3.0):
        progress.add({"loss": value})
    assert progress.take_means() == {"loss": 2.0}
    assert progress.take_means() == {}
    progress.add({"loss": 5.0})
    assert (progress.take_means(), progress.step) == ({"loss": 5.0}, 3)
