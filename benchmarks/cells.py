"""Finished cells of an experiment, a line each in a committed file: never run again, whatever happens to the runs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "docs" / "results"
SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class Cells:
    """The finished cells of one experiment, in docs/results/EXPERIMENT.jsonl."""

    def __init__(self, experiment: str) -> None:
        self.experiment = experiment
        self.file = RESULTS / f"{experiment}.jsonl"

    def found(self, **names: Any) -> list[dict[str, Any]]:
        """Those with these entries, in the order they were finished."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        cells = (json.loads(line) for line in lines)
        return [cell for cell in cells if all(cell.get(name) == value for name, value in names.items())]

    def finish(self, cell: dict[str, Any]) -> None:
        """Append one, with the commit of the sources."""
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps({"experiment": self.experiment, **cell, "commit": commit}) + "\n")


def selfdet(words: str) -> dict[str, Any]:
    """Run one command line and return the JSON object it prints."""
    command = [sys.executable, "-m", "selfdet", *words.split(), "--json"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        raise SystemExit(f"selfdet {words} ended with exit code {answer.returncode}")
    return json.loads(answer.stdout)


def until_finished(words: str, minutes: int) -> dict[str, Any]:
    """Run a training in sittings of so many minutes until it is done."""
    answer: dict[str, Any] = {"finished": False}
    while not answer["finished"]:
        answer = selfdet(f"{words} --max-time {minutes} --resume")
    return answer


def photographs(data: Path, runs: Path) -> Path:
    """A text list of the train and unlabelled photographs of coco-person-mini: everything but the held-out ones."""
    names = [image["file_name"] for part in ("train", "unlabeled") for image in coco(data, part)["images"]]
    runs.mkdir(parents=True, exist_ok=True)
    listed = runs / "photographs.txt"
    listed.write_text("".join(f"{(data / 'images' / name).resolve()}\n" for name in names))
    return listed


def coco(data: Path, part: str) -> dict[str, Any]:
    """The labels of a part of the data."""
    return json.loads((data / f"{part}.json").read_text())


def minutes(run: Path) -> float:
    """The time of a run over all its sittings: "seconds" starts again at each."""
    rows = [json.loads(line)["seconds"] for line in (run / "timing.jsonl").read_text().splitlines()]
    ends = [seconds for seconds, after in zip(rows, [*rows[1:], 0.0]) if after < seconds]
    return round(sum(ends) / 60, 1)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; of one value, that value."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"
