"""Millions of paths in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np


class PathList(Sequence[Path]):
    """Paths as the bytes of their names one behind the other: a tenth of what a list of `Path`s holds.

    What is asked for is made a `Path` at that moment. Equal to any sequence of the same paths.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # from the end where negative; an IndexError outside
        first = int(self._ends[place - 1]) if place else 0
        return Path(os.fsdecode(self._bytes[first : int(self._ends[place])]))

    def __iter__(self) -> Iterator[Path]:
        first = 0
        for end in self._ends:
            yield Path(os.fsdecode(self._bytes[first:end]))
            first = end

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PathList({len(self):,} paths)"
