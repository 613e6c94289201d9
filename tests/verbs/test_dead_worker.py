"""A loader process that is killed, as by a machine without memory, ends the run in one line and saved."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfdet.training.checkpoint import load_checkpoint
from selfdet.training.rundir import RunDir
from tiny_runs import PRETRAIN, flags, tiny_pretrain

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found as Linux tells them"),
    pytest.mark.slow,
]


def descendants(process: int) -> list[int]:
    """The processes that this one has started, and theirs."""
    children = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return [pid for child in children for pid in [*descendants(child), child]]


def loaders(process: int) -> list[int]:
    """The loader processes of a run: those that a server has started, which is its own child."""
    server = [pid for pid in descendants(process) if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [pid for pid in server if descendants(pid) == []]


def test_a_killed_loader_process_ends_the_run_saved_and_it_goes_on_with_another_number_of_them(
    scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    settings = {**PRETRAIN, "steps": 60, "log_every": 1, "images": str(scenes / "images")}
    # No checkpoint is due before the end: the one that is there was saved for the dead worker.
    words = flags({**settings, "workers": 2, "save_every": 1000, "out": out})
    run = subprocess.Popen([sys.executable, "-m", "selfdet", "pretrain", *words], stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists() or len(RunDir(out).read_metrics()) < 8:
        assert run.poll() is None
        time.sleep(0.01)
    os.kill(loaders(run.pid)[0], signal.SIGKILL)
    _, errors = run.communicate(timeout=200)
    assert run.returncode == 2, errors
    step = load_checkpoint(out / "last.pt")["progress"]["step"]
    last = errors.splitlines()[-1]
    assert last.startswith("selfdet: error: a data worker process ended unexpectedly")
    assert last.endswith(f"Step {step} is saved: the same command with --resume continues it")
    assert "Traceback" not in errors
    assert re.search(f"Step {step} is saved", (out / "log.txt").read_text())
    assert 0 < step < 60
    tiny_pretrain(scenes, out, **settings | {"workers": 1}, resume=True)
    tiny_pretrain(scenes, tmp_path / "whole", **settings)
    for name in ("backbone.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
