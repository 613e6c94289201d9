"""The part of wandb that selfdet uses, remembering what it is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class FakeWandb(SimpleNamespace):
    """A module in the place of wandb; `starts` and `rows` are what it was told."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.rows: list[dict[str, float]] = []
        self.ends: list[int] = []
        self.refuses = ""
        self.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.Settings = dict

    def init(self, **settings: Any) -> Any:
        if self.refuses:
            raise self.errors.Error(self.refuses)
        self.starts.append(settings)
        return SimpleNamespace(
            define_metric=lambda *given, **more: None,
            log=self.rows.append,
            finish=lambda exit_code: self.ends.append(exit_code),
        )
