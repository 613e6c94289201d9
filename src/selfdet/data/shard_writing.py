"""Images into tars, in shuffled order: what each is called, which goes where, and the tars themselves."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selfdet.data.disk import replacing
from selfdet.data.image_names import is_image
from selfdet.data.images import UnreadableImage, read_bytes, require_image
from selfdet.data.tars import BLOCK, Contents, Member
from selfdet.errors import UserError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1, "": 1}


def parse_size(text: str) -> int:
    """The bytes that a size such as 512MB or 1GiB stands for. Raises: UserError."""
    parts = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", text)
    if parts is None or parts[2].upper() not in UNITS or float(parts[1]) * UNITS[parts[2].upper()] < 1:
        raise UserError(f"--shard-size is {text}, expected a size", "Write it as 512MB, or 1GiB")
    return int(float(parts[1]) * UNITS[parts[2].upper()])


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shards-{number:06d}.tar"


def shuffled(count: int, seed: int) -> np.ndarray:
    """The order in which `count` images go into shards, so that each shard is a fair sample of all."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed % 2**64))).permutation(count)


def member_names(names: Sequence[str]) -> list[str]:
    """What images are called in tars: as below their folder, each with a key that is its own.

    A key ends at the first dot of the last part, so other dots become `_`, as does what is no letter. Of images whose
    keys would be the same (`a.jpg` and `a.png`) those after the first get `~` and their number in the list.
    """
    keys: set[str] = set()
    found = []
    for number, name in enumerate(names):
        folder, _, base = name.rpartition("/")
        stem, suffix = os.path.splitext(base) if is_image(base) else (base, ".jpg")  # decoded by content anyway
        key = f"{folder}/" * bool(folder) + stem.replace(".", "_")
        key = "".join(letter if letter.isprintable() and letter != "\\" else "_" for letter in key).lstrip("/")
        if key in keys:
            key = f"{key}~{number}"
            while key in keys:
                key += "~"
        keys.add(key)
        found.append(key + suffix.lower())
    return found


@dataclass
class Shard:
    """A shard as it is written: it has the images `start` … `stop - 1` of the order.

    bytes: of its images; length: of its file. left_out: (position in the list of images, reason) of those that are no
    image.
    """

    start: int
    stop: int = -1
    bytes: int = 0
    length: int = 0
    contents: Contents = field(default_factory=Contents)
    left_out: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stop = max(self.stop, self.start)


class Stopped(Exception):
    """Writing was stopped in the middle of a shard, which is not there."""


@dataclass(frozen=True)
class ShardWriter:
    """Writes the images `paths`, called `names`, in `order` to shards of at most `most_bytes`, or `most_images`.

    An image whose head can't be read is left out; damage behind the head is found by training, as in a folder.
    """

    paths: Sequence[Path]
    names: Sequence[str]
    order: np.ndarray
    most_bytes: int
    most_images: int

    def write(
        self, folder: Path, number: int, start: int, readers: int, stopped: Callable[[], bool]
    ) -> Iterator[Shard]:
        """Write the shards from image `start` of the order on, the first as number `number`, each whole or not at all.

        The last may have left out all its images: its length is 0, and there is no file. `readers` files are read at
        once, and some ahead. Raises: Stopped when `stopped` says so; UserError when the disk is full.
        """
        with ThreadPoolExecutor(readers) as pool:
            ahead = self._read_ahead(pool, start, 4 * readers)
            waiting = next(ahead, None)
            while waiting is not None:
                shard, file = Shard(start), folder / shard_name(number)
                with replacing(file) as out:
                    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
                        while waiting is not None and self._add(archive, shard, *waiting):
                            if stopped():
                                raise Stopped
                            waiting = next(ahead, None)
                    shard.length = out.tell()
                start = shard.stop
                number += 1
                if not shard.contents.members:
                    file.unlink()
                    shard.length = 0
                yield shard

    def _add(self, archive: tarfile.TarFile, shard: Shard, image: int, content: bytes | str) -> bool:
        """Add an image, or the reason that there is none, to a shard; False when it is full."""
        members = shard.contents.members
        if isinstance(content, str):
            shard.left_out.append((image, content))
        else:
            if members and (len(members) >= self.most_images or shard.bytes + len(content) > self.most_bytes):
                return False
            members.append(_add(archive, self.names[image], content))
            shard.bytes += len(content)
        shard.stop += 1
        return True

    def _read_ahead(self, pool: ThreadPoolExecutor, start: int, count: int) -> Iterator[tuple[int, bytes | str]]:
        """Position in the list and bytes of each image in order, or why there are none, some read beforehand."""
        reading: deque[tuple[int, Future[bytes | str]]] = deque()
        for place in range(start, len(self.order)):
            image = int(self.order[place])
            reading.append((image, pool.submit(_read, self.paths[image])))
            if len(reading) > count:
                image, answer = reading.popleft()
                yield image, answer.result()
        for image, answer in reading:
            yield image, answer.result()


def _read(path: Path) -> bytes | str:
    try:
        content = read_bytes(path)
        require_image(path, content)
    except UnreadableImage as error:
        return error.reason
    except OSError as error:
        return error.strerror or type(error).__name__
    return content


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> Member:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644  # no dates and owners: the same images give the same bytes
    archive.addfile(entry, io.BytesIO(content))
    blocks = -(-len(content) // BLOCK)
    return Member(name, int(archive.offset) - blocks * BLOCK, len(content))
