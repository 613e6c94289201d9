"""A folder of a million names costs a run little memory, and its loader processes less."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNT = 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read as Linux tells it")
def test_a_million_names_take_less_than_a_hundred_bytes_each(scenes: Path, tmp_path: Path) -> None:
    place = "/dev/shm" if Path("/dev/shm").is_dir() else str(tmp_path)
    command = [sys.executable, str(ROOT / "benchmarks" / "startup.py"), "--images", str(scenes / "images")]
    command += ["--count", str(COUNT), "--place", place, "--size", "64", "--batch", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = json.loads(done.stdout.splitlines()[-1])["results"].values()
    for process in ("main_mib", "loader_mib"):
        # Their bytes, where they end, and the order of an epoch; what the shared libraries take is counted in parts.
        assert (many[process] - few[process]) * 2**20 < 100 * COUNT
