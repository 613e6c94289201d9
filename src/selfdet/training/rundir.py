"""The run directory: where a run keeps its settings, figures, checkpoints, weights and pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from selfdet.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader never sees half of it.

    Raises: OSError when the folder can't be written.
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _plain(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


# Settings that may differ between a run and its continuation: they change no number.
FREE_ON_RESUME = frozenset({"workers", "max_time", "resume", "save_every"})


class RunDir:
    """The files of one run (or of one stage of a run), by name."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.timing_file = self.path / "timing.jsonl"
        self.log_file = self.path / "log.txt"
        self.last = self.path / "last.pt"
        self.best = self.path / "best.pt"
        self.backbone = self.path / "backbone.safetensors"
        self.detector = self.path / "detector.safetensors"
        self.pictures = self.path / "pictures"
        self.report = self.path / "report.html"

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Any], *, resume: bool) -> RunDir:
        """Make the folder of a new run, or open that of an interrupted one and compare its settings.

        Raises: UserError when the folder holds something and `resume` is off, when it isn't a run, or when a
        setting differs from the one the run was started with.
        """
        run = cls(path)
        if run.path.is_file():
            raise UserError(f"--out {run.path} is a file, not a folder", "Name a new folder")
        occupied = run.path.is_dir() and any(run.path.iterdir())
        if occupied and not resume:
            raise UserError(
                f"--out {run.path} is not empty", "Name a new folder, or add --resume to continue the run in it"
            )
        if occupied and run.config_file.is_file():
            run._compare(config)
        elif occupied:
            raise UserError(f"{run.path} has no config.yaml, so it is not a run to resume", "Name a new folder")
        else:
            try:
                run.pictures.mkdir(parents=True, exist_ok=True)
                run.write_config(config)
            except OSError as error:
                raise UserError(
                    f"--out {run.path} cannot be written: {error.strerror}", "Name another folder"
                ) from None
        return run

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved settings."""
        write_text(self.config_file, yaml.safe_dump(_plain(dict(config)), sort_keys=False, allow_unicode=True))

    def read_config(self) -> dict[str, Any]:
        """The resolved settings of the run.

        Raises: UserError when the folder is no run or its config.yaml is not YAML.
        """
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist", "Name a run directory or a weights file")
        if not self.config_file.is_file():
            raise UserError(f"{self.path} has no config.yaml, so it is not a run directory", "Name a run's folder")
        try:
            config = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            config = None
        if not isinstance(config, dict):
            raise UserError(f"{self.config_file} is not a YAML mapping", "Restore the file or start a new run")
        return config

    def _compare(self, config: Mapping[str, Any]) -> None:
        stored = self.read_config()
        asked = yaml.safe_load(yaml.safe_dump(_plain(dict(config))))
        for name in sorted(set(stored) | set(asked)):
            if name in FREE_ON_RESUME or stored.get(name) == asked.get(name):
                continue
            raise UserError(
                f"{self.config_file}: {name} is {stored.get(name)!r} in this run but {asked.get(name)!r} now",
                "Resume with the run's own settings, or start a new run in another folder",
            )

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append figures that are the same in every run with these settings."""
        self._append(self.metrics_file, row)

    def append_timing(self, row: Mapping[str, Any]) -> None:
        """Append figures that vary from run to run: rates, waits, seconds."""
        self._append(self.timing_file, row)

    @staticmethod
    def _append(path: Path, row: Mapping[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(dict(row)), allow_nan=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl; a last line cut off by a kill is left out."""
        return _rows(self.metrics_file)

    def truncate_to(self, step: int) -> None:
        """Drop the rows of metrics.jsonl and timing.jsonl after `step`, so that a resumed run writes them again."""
        for path in (self.metrics_file, self.timing_file):
            rows = _rows(path)
            kept = [row for row in rows if row.get("step", 0) <= step]
            if path.exists():
                write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept))


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
