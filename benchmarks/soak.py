"""Thousands of steps of a stage on tiny images, with a loader process: memory and file handles must not grow.

    python benchmarks/soak.py --append docs/results/soak.jsonl

Runs `selfdet pretrain`, samples resident memory and open files of it and its workers as it goes (Linux), and compares
the tenth of the run after the warm-up, its first fifth, with the last tenth. Exit code 1 when more than --limit has
been added, or more files are open.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from selfdet.data.synthetic import make_scenes
from selfdet.verbs.proposals import proposals

WIDTHS = ["--fpn-channels", "64", "--head-convs", "1"]
STAGES = {
    "backbone": ["--stages", "backbone", "--image-size", "64", "--queue-length", "256"],
    "detector": ["--stages", "detector", "--image-size", "64", "--detector-stage.samples", "64", *WIDTHS],
}
SHARED = ["--backbone", "test_resnet", "--batch-size", "2", "--precision", "fp32", "--threads", "1"]
SAMPLES = 400  # of a run, about


def tree(process: int) -> list[int]:
    """A process and all that it has started (Linux)."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(pid for child in map(int, children) for pid in tree(child))]


def sample(process: int) -> dict[str, float]:
    """MiB resident in all processes of a run, and those of them that no file stands behind; open files."""
    found = {"resident_mib": 0.0, "own_mib": 0.0, "files": 0.0}
    for pid in tree(process):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            found["files"] += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:  # it has just ended
            continue
        kib = {name: int(value) for name, value in re.findall(r"(VmRSS|RssAnon|RssShmem):\s+(\d+)", status)}
        found["resident_mib"] += kib.get("VmRSS", 0) / 1024
        found["own_mib"] += (kib.get("RssAnon", 0) + kib.get("RssShmem", 0)) / 1024
    return found


def steps_done(metrics: Path) -> int:
    """Of the run so far."""
    try:
        *_, last = (json.loads(line) for line in metrics.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(last["step"])


def soak(stage: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a stage and watch it."""
    command = [sys.executable, "-m", "selfdet", "pretrain", "--images", str(folder / "images"), *SHARED, *STAGES[stage]]
    if stage == "detector":
        proposals(images=str(folder / "images"), out=str(folder / "boxes.json"), workers=1, side=96)
        command += ["--boxes", str(folder / "boxes.json")]
    command += ["--steps", str(options.steps), "--workers", str(options.workers), "--log-every", "20"]
    command += ["--save-every", str(max(1, options.steps // 20)), "--out", str(folder / stage)]
    begun = time.monotonic()
    rows: list[dict[str, float]] = []
    with (folder / f"{stage}.log").open("w") as log:
        run = subprocess.Popen(command, stderr=log)
        every = 0.2
        while run.poll() is None:
            done = steps_done(folder / stage / "metrics.jsonl")
            if 0 < done < options.steps:  # what comes after the last step is no training
                rows.append({"step": done, **sample(run.pid)})
            if done >= options.steps // 20:
                every = (time.monotonic() - begun) * options.steps / done / SAMPLES
            time.sleep(every)
    if run.returncode:
        raise SystemExit((folder / f"{stage}.log").read_text()[-2000:])
    return {"stage": stage, "seconds": time.monotonic() - begun, **compared(rows, options.steps)}


def compared(rows: list[dict[str, float]], steps: int) -> dict[str, Any]:
    """Medians after the warm-up and at the end, and by how much the end is more."""
    parts = {"after_warm_up": (0.2, 0.3), "at_the_end": (0.9, 1.0)}
    answer: dict[str, Any] = {"samples": len(rows)}
    for name, (first, last) in parts.items():
        inside = [row for row in rows if first * steps <= row["step"] < last * steps]
        if not inside:
            raise SystemExit(f"no sample {name.replace('_', ' ')}: take more --steps")
        answer[name] = {key: statistics.median(row[key] for row in inside) for key in inside[0] if key != "step"}
    begin, end = answer["after_warm_up"], answer["at_the_end"]
    for name in ("resident", "own"):
        answer[f"{name}_growth_percent"] = 100 * (end[f"{name}_mib"] / begin[f"{name}_mib"] - 1)
    answer["files_more"] = end["files"] - begin["files"]
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and file handles over thousands of steps.")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--limit", type=float, default=2.0, help="growth that is borne, percent")
    parser.add_argument("--append", help="JSON lines that the results are added to")
    options = parser.parse_args()
    held = True
    for stage in options.stages:
        with tempfile.TemporaryDirectory() as folder:
            make_scenes(Path(folder), count=16, size=96)
            result = soak(stage, Path(folder), options)
        result |= {"steps": options.steps, "workers": options.workers, "torch": torch.__version__}
        growth = max(result["resident_growth_percent"], result["own_growth_percent"])
        held = held and growth <= options.limit and result["files_more"] <= 0
        print(json.dumps(result), flush=True)
        if options.append:
            with Path(options.append).open("a") as file:
                file.write(json.dumps(result) + "\n")
    sys.exit(not held)


if __name__ == "__main__":
    main()
