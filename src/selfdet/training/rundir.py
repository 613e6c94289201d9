"""The run directory: where a run keeps its settings, figures, checkpoints, weights and pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from selfdet.data.disk import replacing, writing
from selfdet.data.untrusted import parse_json, parse_yaml
from selfdet.errors import UserError

# Settings that may differ between a run and its continuation: they change no number.
FREE_ON_RESUME = frozenset({"workers", "max_time", "save_every", "loggers"})
# Settings that runs of earlier versions don't name, and what they were in them.
UNNAMED = {"optimizer": "sgd"}


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader never sees half of it.

    Raises: UserError when the disk is full; OSError when the folder can't be written.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def check_out_is_new(out: str | Path, resume: bool | None = None) -> None:
    """Refuse an `--out` folder that holds something, before anything long begins; `resume` None: it can't be resumed.

    Raises: UserError, also for a file.
    """
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file, not a folder", "Name a new folder")
    if path.is_dir() and not resume and not _is_empty(path):
        otherwise = ", or add --resume to continue the run in it" if resume is not None else ""
        raise UserError(f"--out {path} is not empty", f"Name a new folder{otherwise}")


class RunDir:
    """The files of one run, by name. Nothing is written where `writes` is off: of several processes only the first
    does.

    A run of several stages has a folder for each, with its settings, figures and checkpoints; what a user looks for,
    the log, the weights and the pictures, stands in `whole`, the folder of the run.
    """

    def __init__(self, path: str | Path, writes: bool = True, whole: str | Path | None = None) -> None:
        self.path = Path(path)
        self.writes = writes
        top = self.path if whole is None else Path(whole)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.timing_file = self.path / "timing.jsonl"
        self.log_file = top / "log.txt"
        self.last = self.path / "last.pt"
        self.previous = self.path / "previous.pt"  # the one before it
        self.best = self.path / "best.pt"
        self.backbone = top / "backbone.safetensors"
        self.detector = top / "detector.safetensors"
        self.segmenter = top / "segmenter.safetensors"
        self.proposals = top / "proposals.json"
        self.pictures = top / "pictures" if whole is None else top / "pictures" / self.path.name
        self.snapshots = top / "snapshots" if whole is None else top / "snapshots" / self.path.name
        self.report = top / "report.html"
        self.followers: list[Callable[[str, Mapping[str, Any]], None]] = []  # get what is appended: see `loggers`

    def product(self, kind: str) -> Path:
        """The weights of a backbone, a detector or a segmenter."""
        return {"backbone": self.backbone, "detector": self.detector, "segmenter": self.segmenter}[kind]

    @classmethod
    def open(
        cls, path: str | Path, config: Mapping[str, Any], *, resume: bool, whole: str | Path | None = None
    ) -> RunDir:
        """Make the folder of a new run, or open that of an interrupted one and compare its settings.

        Raises: UserError when the folder holds something and `resume` is off, when it isn't a run, or when a
        setting differs from the one the run was started with.
        """
        run = cls(path, whole=whole)
        check_out_is_new(path, resume)
        if run.config_file.is_file():
            run._compare(config)
            return run
        if run.path.is_dir() and not _is_empty(run.path):
            raise UserError(f"{run.path} has no config.yaml, so it is not a run to resume", "Name a new folder")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run.write_config(config)
            run.pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {run.path} cannot be written: {error.strerror}", "Name another folder") from None
        return run

    def snapshot(self, epoch: int) -> Path:
        """The file of the weights after so many epochs of this stage; 0: its start."""
        return self.snapshots / f"epoch-{epoch:04d}.safetensors"

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
            config = parse_yaml(self.config_file.read_bytes())
        except ValueError:
            config = None
        if not isinstance(config, dict):
            raise UserError(f"{self.config_file} is not a YAML mapping", "Restore the file or start a new run")
        return config

    def _compare(self, config: Mapping[str, Any]) -> None:
        stored = dict(flat_settings(self.read_config()))
        asked = dict(flat_settings(yaml.safe_load(yaml.safe_dump(_plain(dict(config))))))
        for name in dict.fromkeys([*asked, *stored]):
            if name in FREE_ON_RESUME or stored.get(name, UNNAMED.get(name)) == asked.get(name):
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

    def _append(self, path: Path, row: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        plain = _plain(dict(row))
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain, allow_nan=False) + "\n")
            file.flush()
            # As durable as the checkpoint that counts on it: a machine may go down as well as a process.
            os.fsync(file.fileno())
        for follow in self.followers:
            follow(path.stem, plain)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl; a last line cut off by a kill is left out."""
        return [row for _, row in _rows(self.metrics_file)]

    def read_timing(self) -> list[dict[str, Any]]:
        """All rows of timing.jsonl; a last line cut off by a kill is left out."""
        return [row for _, row in _rows(self.timing_file)]

    def training_seconds(self) -> float:
        """Spent on the run so far, over all sittings: each counts from its own beginning."""
        total = last = 0.0
        for now in (row.get("seconds", 0.0) for row in self.read_timing()):
            total += now - last if now >= last else now
            last = now
        return total

    def truncate_to(self, step: int) -> None:
        """Drop the rows of metrics.jsonl and timing.jsonl after `step`, so that a resumed run writes them again."""
        for path in (self.metrics_file, self.timing_file):
            if self.writes and path.exists():
                write_text(path, "".join(f"{line}\n" for line, row in _rows(path) if row.get("step", 0) <= step))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line of a JSON-lines file, and what it says."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line.encode())
        except ValueError:
            return
        if not isinstance(row, dict):
            return
        yield line, row


def _plain(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings with those inside others named as flags are: `lr_scale.neck`."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing, or no more than a file that a kill left half written.

    Raises: UserError when it can't be listed.
    """
    try:
        return all(child.suffix == ".partial" for child in folder.iterdir())
    except OSError as error:
        raise UserError(f"--out {folder} cannot be listed: {error.strerror}", "Name another folder") from None
