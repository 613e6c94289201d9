"""A run that was killed, stopped or out of time ends as if nothing had happened: the same figures, the same weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdet import cli
from selfdet.errors import UserError
from selfdet.methods.aligndet import AlignDet
from selfdet.methods.moco import MoCo
from selfdet.methods.supervised import Supervised
from selfdet.training.checkpoint import load_checkpoint, save_checkpoint
from selfdet.training.stop import Interrupted
from tiny_runs import PRETRAIN, flags, tiny_aligndet, tiny_finetune, tiny_pretrain

Capture = pytest.CaptureFixture[str]
STEPS = 7


class Killed(BaseException):
    """The end of a process, as far as a test in that process can have it."""


def densecl(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return tiny_pretrain(scenes, out, steps=STEPS, negatives="dense", matching="random", dense_warmup=4, **changes)


def rounded(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return tiny_pretrain(scenes, out, steps=STEPS, precision="bf16", **changes)


def moco(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return tiny_pretrain(scenes, out, steps=STEPS, method="moco", accumulate=2, clip=1.0, **changes)


def detector(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    held_out = {"val_data": str(scenes / "val.json"), "evaluate_every": 2}
    return tiny_finetune(scenes, out, steps=STEPS, accumulate=2, **held_out, **changes)


def aligndet(scenes: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return tiny_aligndet(scenes, out, steps=STEPS, accumulate=2, **changes)


RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "densecl": densecl,
    "rounded": rounded,
    "moco": moco,
    "detector": detector,
    "aligndet": aligndet,
}


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an uninterrupted run of each kind, made once."""
    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("whole") / kind
            RUNS[kind](scenes, made[kind])
        return made[kind]

    return run


@pytest.fixture(autouse=True)
def _without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of so small a run, and are looked at elsewhere."""
    for verb in ("pretrain_backbone", "pretrain_detector", "finetune"):
        monkeypatch.setattr(f"selfdet.verbs.{verb}.plot_training", lambda rows, folder: [])
    monkeypatch.setattr("selfdet.verbs.finetune.report_at_the_end", lambda *given: None)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Let something happen in the middle of the optimiser step `number`, counted from 1."""
    for method in (MoCo, Supervised, AlignDet):
        ordinary = method.after_step

        def after_step(self: Any, step: int, total: int | None = None, ordinary: Any = ordinary) -> None:
            if step + 1 == number:
                act()
            ordinary(self, step, total)

        monkeypatch.setattr(method, "after_step", after_step)


def kill() -> None:
    raise Killed


def assert_same_run(one: Path, other: Path) -> None:
    """Figures and final weights to the byte; the best checkpoint to the bit."""
    for name in ("metrics.jsonl", "backbone.safetensors", "detector.safetensors"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("best.pt", "last.pt"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            states = [load_checkpoint(folder / name)["method"] for folder in (one, other)]
            assert all(states[0][key].equal(states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("densecl", 1),
        ("densecl", 6),
        ("moco", 7),
        ("detector", 3),
        ("detector", 6),
        ("detector", 7),
        ("rounded", 5),
        ("aligndet", 5),
    ],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(
    scenes: Path, tmp_path: Path, whole: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: str, step: int
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, step, kill)
        with pytest.raises(Killed):
            RUNS[kind](scenes, out)
    torch.rand(3)  # a new process would not have the random state of the old one
    assert RUNS[kind](scenes, out, resume=True)["finished"]
    assert_same_run(out, whole(kind))


@pytest.mark.parametrize(("kind", "number"), [("densecl", signal.SIGTERM), ("detector", signal.SIGINT)])
def test_a_signal_saves_the_step_it_came_in_and_the_run_goes_on_from_there(
    scenes: Path,
    tmp_path: Path,
    whole: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    number: signal.Signals,
) -> None:
    out = tmp_path / "run"
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match=f"stopped by {number.name} at step 4"):
            RUNS[kind](scenes, out)
    assert signal.getsignal(number) == handler
    assert load_checkpoint(out / "last.pt")["progress"]["step"] == 4
    assert f"stopped by {number.name} at step 4" in (out / "log.txt").read_text()
    RUNS[kind](scenes, out, resume=True, save_every=100)
    assert_same_run(out, whole(kind))


def test_a_stopped_run_answers_with_the_signal_and_the_way_on(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    words = ["--images", str(scenes / "images"), "--out", str(tmp_path / "run"), *flags(PRETRAIN), "--json"]
    assert cli.main(["pretrain", *words]) == 143
    out, err = capfd.readouterr()
    assert json.loads(out)["error"]["message"] == "stopped by SIGTERM at step 2"
    assert err.splitlines()[-1] == f"selfdet: stopped by SIGTERM at step 2. {cli.RESUME}"


@pytest.mark.parametrize("kind", ["moco", "detector"])
def test_a_run_whose_time_is_up_says_so_exits_with_0_and_goes_on(
    scenes: Path, tmp_path: Path, whole: Callable[[str], Path], kind: str, capfd: Capture
) -> None:
    out = tmp_path / "run"
    for step in (1, 2):
        answer = RUNS[kind](scenes, out, max_time=1e-9, resume=step > 1)
        assert answer == {"out": str(out), "finished": False, "step": step}
        line = f"stopped by --max-time at step {step} of {STEPS}, saved; the same command with --resume continues it"
        assert line in capfd.readouterr().err.splitlines()
        assert line in (out / "log.txt").read_text().splitlines()
    RUNS[kind](scenes, out, resume=True)
    assert_same_run(out, whole(kind))


@pytest.mark.parametrize("kind", ["densecl", "detector"])
def test_the_same_command_gives_the_same_figures(
    scenes: Path, tmp_path: Path, whole: Callable[[str], Path], kind: str
) -> None:
    torch.rand(5)
    RUNS[kind](scenes, tmp_path / "again")
    assert_same_run(tmp_path / "again", whole(kind))


def test_images_that_cannot_be_read_are_counted_across_an_interruption(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    images = shutil.copytree(scenes / "images", tmp_path / "images")
    bad = sorted(images.iterdir())[3]
    bad.write_bytes(b"no image")
    with monkeypatch.context() as patch:
        at_step(patch, 6, kill)
        with pytest.raises(Killed):
            tiny_pretrain(scenes, tmp_path / "run", images=str(images), steps=STEPS)
    assert list(load_checkpoint(tmp_path / "run" / "last.pt")["quarantine"]) == [str(bad)]
    bad.write_bytes(sorted(images.iterdir())[0].read_bytes())  # mended meanwhile: it was missed all the same
    tiny_pretrain(scenes, tmp_path / "run", images=str(images), steps=STEPS, resume=True)
    line = f"1 unreadable image of 15 replaced by others: {bad}"
    assert line in capfd.readouterr().err.splitlines()
    assert line in (tmp_path / "run" / "log.txt").read_text().splitlines()


def test_resuming_a_finished_run_changes_no_byte_and_no_time(
    scenes: Path, whole: Callable[[str], Path], capfd: Capture
) -> None:
    for kind in ("moco", "detector"):
        out = whole(kind)
        before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in tree(out)}
        answer = RUNS[kind](scenes, out, resume=True, threads=2)
        assert answer["finished"]
        assert answer["step"] == STEPS
        assert {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in tree(out)} == before
        assert f"{out} is finished ({STEPS} steps): nothing to do" in capfd.readouterr().err


def tree(folder: Path) -> list[Path]:
    return [folder, *sorted(folder.rglob("*"))]


def test_other_settings_are_refused_by_name(scenes: Path, tmp_path: Path, whole: Callable[[str], Path]) -> None:
    shutil.copytree(scenes / "images", tmp_path / "images")
    shutil.copy(scenes / "images" / "val_00000.jpg", tmp_path / "images" / "another.jpg")
    (tmp_path / "images" / "val_00000.jpg").unlink()
    changes: list[tuple[str, dict[str, Any]]] = [
        ("lr", {"lr": 0.123}),
        ("method_options.temperature", {"temperature": 0.3}),
        ("accumulate", {"accumulate": 1}),
        ("log_every", {"log_every": 3}),
        ("images", {"images": str(tmp_path / "images")}),
    ]
    for name, change in changes:
        with pytest.raises(UserError, match=f"config.yaml: {name} is ") as refused:
            tiny_pretrain(
                scenes,
                whole("moco"),
                **{"steps": STEPS, "method": "moco", "accumulate": 2, "clip": 1.0} | change,
                resume=True,
            )
        assert "start a new run" in refused.value.hint


def test_another_number_of_threads_is_refused(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 4, kill)
        with pytest.raises(Killed):
            tiny_pretrain(scenes, tmp_path / "run")
    before = torch.get_num_threads()
    try:
        with pytest.raises(UserError, match="made with --threads 1, this process has 2") as refused:
            tiny_pretrain(scenes, tmp_path / "run", threads=2, resume=True)
    finally:
        torch.set_num_threads(before)
    assert refused.value.hint == "Add --threads 1"


@pytest.mark.parametrize("kind", ["densecl", "detector"])
def test_a_cut_checkpoint_makes_way_for_the_one_before_and_the_end_is_the_same(
    scenes: Path,
    tmp_path: Path,
    whole: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
    kind: str,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 7, kill)
        with pytest.raises(Killed):
            RUNS[kind](scenes, out)
    last = out / "last.pt"  # of step 6, after rows that the one before does not count
    last.write_bytes(last.read_bytes()[:-2000])
    line = f"{last} is damaged: going on from the checkpoint before it, previous.pt, of step 3"
    with monkeypatch.context() as patch:  # and killed again, before another is saved
        at_step(patch, 5, kill)
        with pytest.raises(Killed):
            RUNS[kind](scenes, out, resume=True)
    assert line in capfd.readouterr().err.splitlines()
    assert line in (out / "log.txt").read_text().splitlines()
    assert load_checkpoint(last)["progress"]["step"] == 3
    RUNS[kind](scenes, out, resume=True)
    assert line not in capfd.readouterr().err.splitlines()
    assert_same_run(out, whole(kind))


def test_another_device_is_said_and_nothing_else_changes(
    scenes: Path, tmp_path: Path, whole: Callable[[str], Path], capfd: Capture
) -> None:
    out = tmp_path / "run"
    moco(scenes, out, max_time=1e-9)
    state = load_checkpoint(out / "last.pt")
    assert state["device"] == "cpu"
    save_checkpoint(out / "last.pt", state | {"device": "cuda"})
    moco(scenes, out, resume=True)
    line = "so far on cuda, from here on cpu: the same batches, but sums that differ in their last bits"
    assert line in capfd.readouterr().err.splitlines()
    assert_same_run(out, whole("moco"))


def test_a_damaged_checkpoint_is_an_error_of_one_line_and_stays_as_it_is(scenes: Path, tmp_path: Path) -> None:
    tiny_pretrain(scenes, tmp_path / "run", max_time=1e-9)
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    figures = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"last\.pt is not a checkpoint of plain tensors, or is damaged"):
        tiny_pretrain(scenes, tmp_path / "run", resume=True)
    assert len(last.read_bytes()) == 1000
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == figures


def test_a_killed_process_goes_on_to_the_same_end(scenes: Path, tmp_path: Path) -> None:
    settings = {**PRETRAIN, "steps": 40, "save_every": 7, "workers": 1, "images": scenes / "images"}
    command = [sys.executable, "-m", "selfdet", "pretrain", *flags(settings), "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 9):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "backbone.safetensors").exists()
    settings |= {"workers": 0, "images": str(scenes / "images")}
    tiny_pretrain(scenes, tmp_path / "killed", **settings, resume=True)
    tiny_pretrain(scenes, tmp_path / "whole", **settings)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
