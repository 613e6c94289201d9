"""Figures of a run to TensorBoard and to Weights & Biases, row by row as metrics.jsonl and timing.jsonl get them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

from lightning_fabric.loggers import Logger, TensorBoardLogger

from selfdet.errors import UserError
from selfdet.training.rundir import RunDir, write_text

LoggerName = Literal["tensorboard", "wandb"]


def check_loggers(names: Sequence[LoggerName] | None) -> None:
    """Refuse a logger whose package is not there, before anything long begins. Raises: UserError."""
    for name in names or ():
        try:
            import_module(name)
        except ImportError:
            hint = f"Install it: pip install 'selfdet[{name}]'"
            raise UserError(f"--loggers {name}: the package {name} is not installed", hint) from None


@contextmanager
def followed(run: RunDir, names: Sequence[LoggerName]) -> Iterator[None]:
    """Have these loggers get each row that is appended to `run`, those of earlier sittings that they lack first.

    Raises: UserError when a logger can't start.
    """
    followers: list[Follower] = []
    status = "failed"
    try:
        for name in names if run.writes else ():
            followers.append(Follower(run, name))
            run.followers.append(followers[-1].take)
        yield
        status = "success"
    finally:
        run.followers.clear()
        for follower in followers:
            follower.logger.finalize(status)


class Follower:
    """A logger of a run.

    How many rows of each file it was given stands in `sent.json` of its folder. The rows of a run that was killed are
    written again by its continuation, the same ones in the same order: those that count as given are left out.
    """

    def __init__(self, run: RunDir, name: LoggerName) -> None:
        folder = run.path / name
        folder.mkdir(exist_ok=True)
        self.file = folder / "sent.json"
        before = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        self.id: str = before.get("id") or uuid.uuid4().hex[:8]
        self.sent: dict[str, int] = before.get("rows", {})
        self.seen: dict[str, int] = {}
        self.logger: Logger = (
            TensorBoardLogger(folder, name="", version="") if name == "tensorboard" else WandbLogger(run, self.id)
        )
        self._count()  # a second start is the same run to W&B, whatever happens before its first row
        for file, rows in (("metrics", run.read_metrics()), ("timing", run.read_timing())):
            for row in rows:
                self.take(file, row)

    def take(self, file: str, row: Mapping[str, Any]) -> None:
        """The next row of `metrics` or `timing`."""
        place = self.seen.get(file, 0)
        self.seen[file] = place + 1
        if place < self.sent.get(file, 0):
            return
        figures = dict(_numbers(row))
        self.logger.log_metrics(figures, int(figures.pop("step")))
        self.logger.save()
        self.sent[file] = place + 1
        self._count()

    def _count(self) -> None:
        write_text(self.file, json.dumps({"id": self.id, "rows": self.sent}))


class WandbLogger(Logger):
    """Weights & Biases behind fabric's interface, which has no such logger itself.

    It obeys W&B's own settings, such as WANDB_MODE=offline; the project is selfdet unless WANDB_PROJECT names another.
    Raises: UserError when W&B does not start.
    """

    def __init__(self, run: RunDir, id: str) -> None:
        wandb: Any = import_module("wandb")
        path = run.path.resolve()
        stage = path.parent.name == "stages"  # a run of several stages is a group, as each counts its own steps
        whole = path.parent.parent.name if stage else path.name
        try:
            self.experiment = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "selfdet",
                id=id,
                resume="allow",
                name=f"{whole}-{path.name}" if stage else whole,
                group=whole if stage else None,
                dir=str(run.path),
                config=run.read_config(),
                settings=wandb.Settings(console="off"),  # streams are the command line's
            )
        except wandb.errors.Error as error:
            words = str(error).strip().splitlines() or [type(error).__name__]
            hint = "Run wandb login, or set WANDB_MODE=offline"
            raise UserError(f"--loggers wandb: W&B does not start: {words[0]}", hint) from None
        # Its own counter of rows is no step: a step has a row of losses, one of rates, perhaps one of AP.
        self.experiment.define_metric("step")
        self.experiment.define_metric("*", step_metric="step")

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.experiment.name)

    @property
    def version(self) -> str:
        """The run's id."""
        return str(self.experiment.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send a row."""
        self.experiment.log({**metrics, "step": step})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add to the run's settings."""
        self.experiment.config.update(params)

    def finalize(self, status: str) -> None:
        """Wait until all rows are sent, and end the run."""
        self.experiment.finish(exit_code=0 if status == "success" else 1)


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The figures of a row, those inside others as `mask.AP`; what does not exist is left out."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
