"""Estimates made before a run against what it took: peak memory and time of a backbone stage at three sizes.

    python benchmarks/estimates.py --images photos/

Each run is a process of its own, so that its peak is its own; loader processes are not counted.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = ((96, 32), (128, 64), (224, 64))  # side of a view in px, images a step


def figures(images: str, side: int, batch: int, steps: int, folder: Path) -> list[str]:
    """Estimated and measured memory and time, as the run's own log has them."""
    out = folder / f"{side}-{batch}"
    command = [sys.executable, "-m", "selfdet", "pretrain", "--images", images, "--stages", "backbone"]
    command += ["--backbone", "resnet18", "--image-size", str(side), "--batch-size", str(batch)]
    command += ["--steps", str(steps), "--precision", "fp32", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    log = (out / "log.txt").read_text()
    memory = [
        re.search(pattern, log) for pattern in (r"peak memory: about ([\d.]+) GB", r"peak memory was ([\d.]+) GB")
    ]
    time = re.search(r"^took (.+); (.+) was expected$", log, re.MULTILINE)
    assert all(memory), log
    expected, took = ("–", "–") if time is None else (time[2], time[1])
    return [f"{side}", f"{batch}", *(found[1] for found in memory if found), expected, took]


def main() -> None:
    """Print a Markdown table, a size a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    print("| px | batch | memory estimated, GB | measured, GB | time expected | took |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for side, batch in SIZES:
            row = figures(asked.images, side, batch, asked.steps, Path(folder))
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
