"""What goes out of selfdet: a network with what its file says of it, and what came of writing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

Kind = Literal["detector", "segmenter", "backbone"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Outgoing:
    """A network on its way out: a `Detector`, `Segmenter` or `Backbone` by its `kind`, the `note` of its file, what the
    user called it (`source`) and the `options` of its target."""

    kind: Kind
    network: Any
    note: dict[str, Any]
    source: str
    options: dict[str, Any] = field(default_factory=dict)


class Written(NamedTuple):
    """What came of writing and checking: figures by name, a line that says them and, of a graph, what it takes and
    gives."""

    figures: dict[str, Any]
    line: str
    graph: dict[str, Any] | None = None


# Writes a network into an empty folder, and checks there that it does the same; raises ExportMismatchError if not.
Writer = Callable[[Path, Outgoing], Written]
