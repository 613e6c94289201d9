"""Several processes share a comparison, and one that is killed costs nothing but what it was at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from selfdet.verbs import compare_work
from selfdet.verbs.compare import compare
from tiny_runs import COMPARE, flags

CELLS = ("scratch-0.4-s0", "pre-0.4-s0")


def held(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Who has held each cell, in order."""
    return {
        # One that is being written is empty for a moment.
        name: [json.loads(text) for file in sorted(out.glob(f"leases/{name}.*.json")) if (text := file.read_text())]
        for name in CELLS
    }


def test_of_two_processes_one_is_killed_and_the_other_finishes(
    scenes: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("report_at_the_end", "plot_training"):
        monkeypatch.setattr(sys.modules["selfdet.verbs.finetune"], name, lambda *_: None)
    (tmp_path / "pre.safetensors").write_bytes((pretrained / "backbone.safetensors").read_bytes())
    out = tmp_path / "out"
    given = {
        **COMPARE,
        "init": ["scratch", str(tmp_path / "pre.safetensors")],
        "data": str(scenes / "train.json"),
        "val_data": str(scenes / "val.json"),
        "out": str(out),
        "seeds": 1,
        "lr": 0.01,
    }
    words = {name: list(map(str, value)) if isinstance(value, list) else value for name, value in given.items()}
    other = subprocess.Popen([sys.executable, "-m", "selfdet", "compare", *flags(words)], stderr=subprocess.DEVNULL)
    try:
        while not held(out)[CELLS[0]]:
            assert other.poll() is None
            time.sleep(0.01)
        other.send_signal(signal.SIGSTOP)  # alive, and surely in the middle of its cell

        def kill_it(seconds: float) -> None:
            """What this process does while it waits for the other."""
            assert (out / "cells" / CELLS[1] / "cell.json").is_file()  # it has done what was free
            assert not (out / "cells" / CELLS[0] / "cell.json").exists()  # and kept its hands off what was not
            other.kill()
            other.wait()

        monkeypatch.setattr(compare_work.time, "sleep", kill_it)
        assert compare(**given, resume=True)["finished"] is True
    finally:
        other.kill()
        other.wait()
    assert all((out / "cells" / name / "cell.json").is_file() for name in CELLS)
    first, second = held(out)[CELLS[0]]
    assert first["pid"] == other.pid
    assert "released" not in first
    assert "released" in second
    assert len(held(out)[CELLS[1]]) == 1
