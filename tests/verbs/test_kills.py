"""A run that is killed twenty times, wherever it is, ends with the bits of one that was let alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from selfdet.training.checkpoint import load_checkpoint
from tiny_runs import tiny_boxes

KILLS = int(os.environ.get("SELFDET_KILLS", "20"))
KINDS = ("backbone", "detector", "finetune")
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has threads"),
    pytest.mark.slow,
]


def killer(*words: object) -> dict[str, int]:
    """Let another process run and kill; what it says."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(ROOT / "tests" / "killer.py"), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(
    scenes: Path, tmp_path: Path, kind: str, precision: str
) -> None:
    tiny_boxes(scenes)
    seed = 2 * KINDS.index(kind) + (precision == "bf16")
    met = killer(kind, scenes, tmp_path / "killed", precision, KILLS, seed)
    assert met["kills"] == KILLS
    killer(kind, scenes, tmp_path / "whole", precision, 0, seed)
    product = "backbone.safetensors" if kind == "backbone" else "detector.safetensors"
    for name in (product, "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    states = [load_checkpoint(tmp_path / run / "last.pt") for run in ("killed", "whole")]
    for part in ("method", "random"):
        assert all(torch.equal(states[0][part][key], states[1][part][key]) for key in states[1][part])
    print(f"{kind} in {precision}: {met}")
