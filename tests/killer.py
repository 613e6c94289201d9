"""Runs that are killed again and again: a process that imports torch once, forks a run and kills it, wherever it is.

    python tests/killer.py KIND SCENES OUT PRECISION KILLS SEED

Prints how many kills there were and where they met the run, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from selfdet.verbs import pretrain_backbone, pretrain_detector
from tiny_runs import tiny_aligndet, tiny_finetune, tiny_pretrain

# By its name `selfdet.verbs.finetune` is the function.
finetune_module, pretrain_module = (sys.modules[f"selfdet.verbs.{verb}"] for verb in ("finetune", "pretrain"))
STEPS = 60  # more than twenty kills let a run do: about half of them come before a checkpoint that would count
AHEAD = 4  # steps that a run may do between two kills, at most
COMMON: dict[str, Any] = {"steps": STEPS, "save_every": 2, "log_every": 1, "batch_size": 2, "image_size": 64}


def run(kind: str, scenes: Path, out: Path, precision: str) -> None:
    """Begin a run, or go on with it."""
    # Charts take most of the time of so small a run.
    for module in (finetune_module, pretrain_backbone, pretrain_detector):
        setattr(module, "plot_training", lambda rows, folder: [])  # noqa: B010
    for module in (finetune_module, pretrain_module):
        setattr(module, "report_at_the_end", lambda *given: None)  # noqa: B010
    settings = {**COMMON, "precision": precision, "resume": True}
    if kind == "backbone":
        tiny_pretrain(scenes, out, **settings)
    elif kind == "detector":
        tiny_aligndet(scenes, out, **settings)
    else:
        tiny_finetune(scenes, out, **settings, val_data=str(scenes / "val.json"), evaluate_every=30)


def rows(out: Path) -> int:
    """How many steps the figures tell of."""
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def half_written(out: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or were when a kill came, each with the time of its last byte."""
    found = set()
    for name in ("last.pt", "best.pt"):
        with contextlib.suppress(FileNotFoundError):
            found.add((name, (out / f"{name}.partial").stat().st_mtime_ns))
    return found


def forked(words: tuple[str, Path, Path, str]) -> int:
    """A process in which the run goes on."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run(*words)
        code = 0
    finally:
        os._exit(code)


def killed(words: tuple[str, Path, Path, str], kills: int, seed: int) -> dict[str, int]:
    """Kill a run `kills` times, at moments drawn from `seed`; then let it end."""
    rng = np.random.default_rng(seed)
    out, met = words[2], {"kills": 0, "in_save": 0, "before_a_step": 0}
    while met["kills"] < kills:
        # While it saves; soon after it was started, often before a step; or after some steps, in the middle of one.
        how = rng.choice(["save", "start", "steps"], p=[0.4, 0.2, 0.4])
        delay, ahead = float(rng.random()), int(rng.integers(1, AHEAD + 1))
        child, begun = forked(words), time.monotonic()
        before, lowest, old = rows(out), rows(out), half_written(out)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                raise RuntimeError(f"the run ended by itself with {status}, after {met['kills']} kills")
            if how == "save" and half_written(out) - old:
                time.sleep(delay * 0.01)
                break
            if how == "start" and time.monotonic() - begun > delay:
                break
            # What the checkpoint does not count is cut off first, and written again.
            lowest = min(lowest, rows(out))
            if how == "steps" and rows(out) >= lowest + ahead and (lowest < before or rows(out) > before):
                time.sleep(delay * 0.1)
                break
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        met["kills"] += 1
        met["in_save"] += bool(half_written(out) - old)
        met["before_a_step"] += rows(out) <= lowest
    child = forked(words)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the run ended with {status}")
    return met


if __name__ == "__main__":
    kind, scenes, out, precision, kills, seed = sys.argv[1:]
    print(json.dumps(killed((kind, Path(scenes), Path(out), precision), int(kills), int(seed))))
