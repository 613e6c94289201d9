"""Memory and open files of a long run stay what they are; docs/reliability.md has eight times as many steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent.parent / "benchmarks" / "soak.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory and files are read as Linux tells them")
@pytest.mark.parametrize("stage", ["backbone", "detector"])
def test_hundreds_of_steps_add_no_memory_and_no_open_file(stage: str) -> None:
    done = subprocess.run([sys.executable, SOAK, "--steps", "600", "--stages", stage], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
