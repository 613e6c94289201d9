"""What goes out of selfdet: a network with what its file says of it, and what came of writing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

Kind = Literal["detector", "segmenter", "backbone"]


@dataclass(frozen=True)
class Outgoing:
    """A network on its way out: a `Detector`, `Segmenter` or `Backbone` by its `kind`, the `note` of its file and, for
    messages, what the user called it (`source`)."""

    kind: Kind
    network: Any
    note: dict[str, Any]
    source: str


class Written(NamedTuple):
    """What came of writing and checking: figures by name, and a line that says them."""

    figures: dict[str, Any]
    line: str


# Writes a network into an empty folder, and checks there that it does the same; raises ExportMismatchError if not.
Writer = Callable[[Path, Outgoing], Written]
