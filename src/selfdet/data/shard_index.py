"""The index of a folder of shards: which images each tar holds, and where; with it a tar is read like a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from selfdet.data.disk import replacing
from selfdet.data.image_names import MAX_BYTES
from selfdet.data.tars import Contents, Member
from selfdet.data.untrusted import is_integer, parse_json
from selfdet.errors import UserError

INDEX = "index.safetensors"
FORMAT = "selfdet shards 1"
ARRAYS = ("lengths", "firsts", "starts", "sizes", "ends", "names")
COPIED = 2**26  # bytes, about a million images
AGAIN = "Remove it to have the index built anew from the tars"


@dataclass(eq=False)
class ShardIndex:
    """S tars with N images.

    tars: their file names; lengths: (S,) their bytes. firsts: (S + 1,) the number of each one's first image.
    starts, sizes: (N,) where an image's bytes begin in its tar, and how many they are.
    names: uint8, all names in UTF-8, a zero byte after each; ends: (N,) where each ends, zero byte included.
    left_out: tar → reason → members that are not in the index. written: the settings of the `selfdet shard` that wrote
    index and shards, None where they are somebody else's. All arrays int64 but for `names`.
    """

    tars: list[str]
    lengths: np.ndarray
    firsts: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray
    names: np.ndarray
    left_out: dict[str, dict[str, int]]
    written: dict[str, Any] | None

    def __post_init__(self) -> None:
        self._sound = False
        self._numbers = {tar: number for number, tar in enumerate(self.tars)}
        # Copied out for a search; of a tar with a million images that would take a while each time.
        self._names_of = lru_cache(maxsize=8)(self._copied_names)

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, tars: Mapping[str, tuple[int, Contents]], written: Mapping[str, Any] | None = None) -> ShardIndex:
        """The index of tars, each given with its bytes and what is in it; `written`: with which settings, if by us."""
        contents = [content for _, content in tars.values()]
        members = [member for content in contents for member in content.members]
        names = [member.name.encode("utf-8", "surrogateescape") + b"\0" for member in members]
        return cls(
            tars=list(tars),
            lengths=np.array([length for length, _ in tars.values()], np.int64),
            firsts=np.cumsum([0, *(len(content.members) for content in contents)], dtype=np.int64),
            starts=np.array([member.start for member in members], np.int64),
            sizes=np.array([member.size for member in members], np.int64),
            ends=np.cumsum([len(name) for name in names], dtype=np.int64),
            names=np.frombuffer(b"".join(names), np.uint8),
            left_out={tar: dict(content.left_out) for tar, (_, content) in tars.items() if content.left_out},
            written=None if written is None else dict(written),
        )

    def parts(self) -> dict[str, tuple[int, Contents]]:
        """What `of` is given."""
        found = {}
        for number, tar in enumerate(self.tars):
            images = range(*self.firsts[number : number + 2].tolist())
            members = [Member(self.name(image), int(self.starts[image]), int(self.sizes[image])) for image in images]
            found[tar] = int(self.lengths[number]), Contents(members, Counter(self.left_out.get(tar, {})))
        return found

    @property
    def fingerprint(self) -> str:
        """A hash of tars, names and places: 16 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(self.tars).encode())
        for name in ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name)).data)
        return digest.hexdigest()[:16]

    def to_bytes(self) -> bytes:
        """As a file: safetensors, whose note has the names of the tars, counts and the fingerprint."""
        note = {
            **{"format": FORMAT, "images": len(self), "fingerprint": self.fingerprint, "tars": self.tars},
            **{"left_out": self.left_out, "written": self.written},
        }
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
        return save(arrays, {"selfdet": json.dumps(note)})

    def save(self, file: Path) -> None:
        """Write it, at once or not at all. Raises: UserError when the disk is full; OSError."""
        with replacing(file) as out:
            out.write(self.to_bytes())

    def name(self, image: int) -> str:
        """The name of an image in its tar."""
        begin = int(self.ends[image - 1]) if image else 0
        return self.names[begin : int(self.ends[image]) - 1].tobytes().decode("utf-8", "surrogateescape")

    def find(self, tar: str, name: str) -> tuple[int, int] | None:
        """Where the image of this name begins in this tar, and its bytes; None if it isn't there."""
        number = self._numbers.get(tar)
        if number is None:
            return None
        wanted = name.encode("utf-8", "surrogateescape") + b"\0"
        begin, names = self._names_of(number)
        place = 0 if names.startswith(wanted) else names.find(b"\0" + wanted) + 1
        if not place and not names.startswith(wanted):
            return None
        first, stop = self.firsts[number : number + 2].tolist()
        image = first + int(np.searchsorted(self.ends[first:stop], begin + place, side="right"))
        return int(self.starts[image]), int(self.sizes[image])

    def _copied_names(self, tar: int) -> tuple[int, bytes]:
        first, stop = self.firsts[tar : tar + 2].tolist()
        if first == stop:
            return 0, b""
        begin = int(self.ends[first - 1]) if first else 0
        return begin, self.names[begin : int(self.ends[stop - 1])].tobytes()

    def require_sound(self, file: str) -> None:
        """Raises: UserError where an index from a stranger points outside of its tars, or is in other ways no index."""
        self._sound = self._sound or self._is_sound()  # of ten million images a look takes seconds
        if not self._sound:
            raise UserError(f"the index {file} contradicts itself", AGAIN)

    def _is_sound(self) -> bool:
        count, tars = len(self), len(self.tars)
        firsts, ends, starts, sizes = self.firsts, self.ends, self.starts, self.sizes
        if any(array.dtype != np.int64 or array.ndim != 1 for array in (self.lengths, firsts, starts, sizes, ends)):
            return False
        if self.names.dtype != np.uint8 or self.names.ndim != 1 or len(set(self.tars)) != tars:
            return False
        if not len(self.lengths) == tars == len(firsts) - 1 or not len(sizes) == len(ends) == count:
            return False
        if firsts[0] != 0 or firsts[-1] != count or (self.lengths < 0).any():
            return False
        # Before differences are taken, which would wrap around.
        if (firsts < 0).any() or (firsts > count).any() or (ends < 0).any() or (ends > len(self.names)).any():
            return False
        if (np.diff(firsts) < 0).any() or (np.diff(ends, prepend=0) < 2).any():
            return False
        if len(self.names) != (ends[-1] if count else 0):
            return False
        # Exactly the last byte of every name is zero.
        if count and ((self.names[ends - 1] != 0).any() or int((self.names == 0).sum()) != count):
            return False
        lengths = np.repeat(self.lengths, np.diff(firsts))
        if (starts < 0).any() or (sizes < 1).any() or (sizes > MAX_BYTES).any() or (starts > lengths - sizes).any():
            return False
        if not count:
            return True
        if np.isin(self.names[np.concatenate([[0], ends[:-1]])], np.frombuffer(b"/\\", np.uint8)).any():
            return False
        dots = np.flatnonzero((self.names[:-1] == ord(".")) & (self.names[1:] == ord(".")))
        return not any(_leaves(self.name(image)) for image in np.unique(np.searchsorted(ends, dots, side="right")))


def _leaves(name: str) -> bool:
    return ".." in name.replace("\\", "/").split("/")


def load_index(file: Path, shown: str = "") -> ShardIndex:
    """Read an index; the arrays of a large one stay in the file, where all processes of a machine share them.

    `shown`: what to call it in a message. Raises: UserError for a file that is no index of shards.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            note = parse_json((tensors.metadata() or {}).get("selfdet", "").encode("utf-8", "surrogatepass"))
            arrays = {name: tensors.get_tensor(name).numpy() for name in ARRAYS}
        if os.path.getsize(file) <= COPIED:  # so that nothing happens to a run when somebody writes over the file
            arrays = {name: array.copy() for name, array in arrays.items()}
        if not _is_note(note):
            raise ValueError("its note is not that of one")
        return ShardIndex(note["tars"], **arrays, left_out=note["left_out"], written=note.get("written"))
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{shown or file} is no index of shards: {error}", AGAIN) from None


def _is_note(note: Any) -> bool:
    """Whether a file says of itself what an index does, with names of tars that stay in their folder."""
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        return False
    tars, left_out, written = note.get("tars"), note.get("left_out"), note.get("written")
    return (
        isinstance(tars, list)
        and all(isinstance(tar, str) and tar.endswith(".tar") and not set(tar) & set("/\\\0") for tar in tars)
        and isinstance(left_out, dict)
        and all(isinstance(counts, dict) and all(map(is_integer, counts.values())) for counts in left_out.values())
        and (written is None or (isinstance(written, dict) and isinstance(written.get("settings"), dict)))
        and (written is None or is_integer(written.get("left_out")))
    )
