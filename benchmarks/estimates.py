"""Estimates made before a run against what it took: peak memory and time of a stage at three sizes.

    python benchmarks/estimates.py --images photos/
    python benchmarks/estimates.py --images photos/ --data labels/train.json

Without labels it is a backbone stage, with labels a detector's fine-tuning. Each run is a process of its own, so that
its peak is its own; loader processes are not counted.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Side of a view, or long side of an image, in px; images a step.
SIZES = {"pretrain": ((96, 32), (128, 64), (224, 64)), "finetune": ((192, 8), (256, 8), (384, 8))}


def figures(stage: list[str], side: int, batch: int, steps: int, out: Path) -> list[str]:
    """Estimated and measured memory and their ratio, expected and measured time, as the run's own log has them."""
    command = [sys.executable, "-m", "selfdet", *stage, "--backbone", "resnet18", "--image-size", str(side)]
    command += ["--batch-size", str(batch), "--steps", str(steps), "--precision", "fp32", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    log = (out / "log.txt").read_text()
    memory = [
        re.search(pattern, log) for pattern in (r"peak memory: about ([\d.]+) GB", r"peak memory was ([\d.]+) GB")
    ]
    time = re.search(r"^took (.+); (.+) was expected$", log, re.MULTILINE)
    assert all(memory), log
    estimated, measured = (float(found[1]) for found in memory if found)
    expected, took = ("–", "–") if time is None else (time[2], time[1])
    return [f"{side}", f"{batch}", f"{estimated}", f"{measured}", f"{estimated / measured:.2f}", expected, took]


def main() -> None:
    """Print a Markdown table, a size a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--data")
    parser.add_argument("--detector", default="fcos")
    parser.add_argument("--steps", type=int, default=8)
    asked = parser.parse_args()
    stage = ["pretrain", "--images", asked.images, "--stages", "backbone"]
    if asked.data is not None:
        stage = ["finetune", "--init", "scratch", "--images", asked.images, "--data", asked.data]
        stage += ["--detector", asked.detector]
    print("| px | batch | memory estimated, GB | measured, GB | ratio | time expected | took |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for side, batch in SIZES[stage[0]]:
            row = figures(stage, side, batch, asked.steps, Path(folder) / f"{side}-{batch}")
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
