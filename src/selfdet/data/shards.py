"""WebDataset shards as images: tars whose index makes every image a place to read, in any order and from any process.

An image in a shard has the path `FOLDER/shards-000012.tar/KEY.jpg`, and every function that reads images takes it.
FOLDER is where the tars lie, or one of our own that stands for a URL.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np

from selfdet.data.shard_index import INDEX, ShardIndex, load_index
from selfdet.data.shard_places import is_url, place_of, read_range, read_ranges

MOST_AHEAD = 2**28  # bytes that a process fetches before they are needed
_ahead: dict[str, bytes] = {}


class ShardedImages(Sequence[Path]):
    """The images of some shards of a folder, by shard and in the order of each; as small as its index.

    tars: the numbers of the shards in the index, ascending.
    """

    def __init__(self, folder: str, tars: Sequence[int]) -> None:
        self.folder = folder
        self.tars = list(tars)
        self.known = index_of(folder)
        counts = np.diff(self.known.firsts)[self.tars]
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __reduce__(self) -> tuple[type[ShardedImages], tuple[str, list[int]]]:
        return ShardedImages, (self.folder, self.tars)  # the index is read where it arrives

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, place: int) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> list[Path]: ...
    def __getitem__(self, place: int | slice) -> Path | list[Path]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        return Path(self.folder, self.name(place))

    def name(self, place: int) -> str:
        """The name of an image below the folder: `shards-000012.tar/KEY.jpg`."""
        place = range(len(self))[place]
        row = int(np.searchsorted(self._ends, place, side="right"))
        tar = self.tars[row]
        image = int(self.known.firsts[tar + 1]) - (int(self._ends[row]) - place)
        return f"{self.known.tars[tar]}/{self.known.name(image)}"

    def names(self) -> Iterator[str]:
        """The name of each image."""
        return map(self.name, range(len(self)))

    def words(self) -> str:
        """What a run says of its shards: how many, and what was left out of them."""
        each = (self.known.left_out.get(self.known.tars[tar], {}) for tar in self.tars)
        left_out = sum(map(Counter, each), Counter[str]())
        rest = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        shards = "1 shard" if len(self.tars) == 1 else f"{len(self.tars)} shards"
        return f"images from {shards}" + (f"; members left out: {rest}" if rest else "")


def split_member(path: str | Path) -> tuple[str, str, str] | None:
    """The folder, tar and name of an image in a shard; None where `path` is of a plain file."""
    text = os.fspath(path).replace(os.sep, "/")
    place = text.find(".tar/")
    while place >= 0:
        tar = text[: place + 4]
        if not os.path.isdir(tar):
            folder, name = os.path.split(tar)
            return folder or ".", name, text[place + 5 :]
        place = text.find(".tar/", place + 1)
    return None


def member_exists(path: str | Path) -> bool:
    """Whether this is an image in a shard whose index has it."""
    parts = split_member(path)
    if parts is None or not is_indexed(parts[0]):
        return False
    return index_of(parts[0]).find(parts[1], parts[2]) is not None


def read_member(path: str | Path) -> bytes | None:
    """The bytes of an image in a shard; None where `path` is of a plain file, FileNotFoundError where it isn't there.

    Raises: UserError when the shard can't be read, which is not the image's fault.
    """
    parts = split_member(path)
    if parts is None:
        return None
    if (content := _ahead.pop(os.fspath(path), None)) is not None:
        return content
    folder, tar, name = parts
    found = index_of(folder).find(tar, name) if is_indexed(folder) else None
    if found is None:
        raise FileNotFoundError(os.fspath(path))
    return read_range(place_of(folder), tar, *found)


def fetch_ahead(paths: Iterable[str]) -> None:
    """Ask for images in shards at URLs all at once, so that the next `read_member` of each finds it here.

    In place of waiting for one after the other. What can't be had so is left for `read_member`, and what nobody came
    for since the last call is forgotten.
    """
    _ahead.clear()
    wanted: dict[str, list[tuple[str, tuple[str, int, int]]]] = defaultdict(list)
    left = MOST_AHEAD
    for path in paths:
        parts = split_member(path)
        if parts is None or not is_url(place := place_of(parts[0])) or not is_indexed(parts[0]):
            continue
        found = index_of(parts[0]).find(parts[1], parts[2])
        if found is not None and found[1] <= left:
            left -= found[1]
            wanted[place].append((path, (parts[1], *found)))
    for place, each in wanted.items():
        for (path, _), content in zip(each, read_ranges(place, [ranges for _, ranges in each])):
            if content is not None:
                _ahead[path] = content


def is_indexed(folder: str) -> bool:
    """Whether the folder has an index of shards."""
    return os.path.isfile(os.path.join(folder, INDEX))


def index_of(folder: str) -> ShardIndex:
    """The index of a folder, read once in each process and again when it was written again. Raises: UserError."""
    about = os.stat(os.path.join(folder, INDEX))
    return _kept_index(folder, about.st_mtime_ns, about.st_size, about.st_ino)


@lru_cache(maxsize=8)
def _kept_index(folder: str, date: int, size: int, number: int) -> ShardIndex:
    return load_index(Path(folder, INDEX))
