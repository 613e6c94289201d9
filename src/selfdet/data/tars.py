"""The images in a tar: where the bytes of each begin, from the heads of its members; a tar is a stranger's file."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import IO

from selfdet.data.image_names import IMAGE_SUFFIXES, MAX_BYTES
from selfdet.data.untrusted import is_name
from selfdet.errors import UserError

BLOCK = 512
# Bytes of a member's head, long names and all, at most; tarfile reads it whole and takes it apart.
LONGEST_HEAD = 2**16
# Why members are left out, for messages.
NO_IMAGE, NO_FILE, UNSAFE, REPEATED, HUGE = (
    "no image by its name",
    "a link, device or sparse file",
    "an absolute name or one with `..`",
    "a name that stands twice",
    "no bytes, or more than 2 GiB",
)


@dataclass(frozen=True)
class Member:
    """An image in a tar: its name, and where its bytes are."""

    name: str
    start: int
    size: int


@dataclass
class Contents:
    """The images of a tar, in its order, and how many members were left out, by reason (folders are not counted)."""

    members: list[Member] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def read_heads(file: IO[bytes], size: int, tar: str) -> Contents:
    """What is in an uncompressed tar of `size` bytes, by the heads of its members; nothing is unpacked.

    An image is a plain file called `KEY.jpg`, with any ending of images: as in WebDataset what begins at the first dot
    of the last part of a name is its ending, so `KEY.mask.png` is none. Names that are hidden, absolute or contain
    `..`, links and devices are left out.

    Raises: UserError, naming `tar`, when it is damaged, cut off, compressed or no tar.
    """
    found, known = Contents(), set[str]()
    file.seek(0)
    try:
        with tarfile.TarFile(fileobj=_Bounded(file, size), mode="r") as archive:  # type: ignore[arg-type]
            last = -1
            while (entry := archive.next()) is not None:
                if archive.offset <= last or entry.size < 0:
                    raise tarfile.ReadError("heads that point backwards")
                last = archive.offset
                archive.members = []  # type: ignore[attr-defined]  # else it keeps every one
                if entry.isdir():
                    continue
                name, fault = _judged(entry, size)
                fault = fault or (REPEATED if name in known else "")
                if fault:
                    found.left_out[fault] += 1
                    continue
                known.add(name)
                found.members.append(Member(name, entry.offset_data, entry.size))
            # What tarfile takes for the end may be a damaged head.
            file.seek(archive.offset)
            if file.read(BLOCK).strip(b"\0"):
                raise tarfile.ReadError(f"a damaged head at byte {archive.offset}")
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:  # tarfile raises ValueError and others besides its own for heads that lie
        raise UserError(f"the shard {tar} cannot be read: {_words(error)}", _HINT) from None
    return found


_HINT = "Shards are uncompressed tars; fetch or write it again"


def _words(error: Exception) -> str:
    told = str(error) if isinstance(error, tarfile.TarError) else ""
    if told in ("", "empty file", "truncated header", "bad checksum", "invalid header"):
        return f"it is no tar ({told or type(error).__name__})"
    return "it ends early" if told == "unexpected end of data" else told


def _judged(entry: tarfile.TarInfo, size: int) -> tuple[str, str]:
    """The name that a member is known by, and why it is left out, or ""."""
    name = entry.name
    parts = re.split(r"[\\/]", name)
    if name[:1] in ("/", "\\") or re.match("[A-Za-z]:", name) or ".." in parts or not is_name(name):
        return name, UNSAFE
    base = parts[-1]
    if base.startswith(".") or "." + base.partition(".")[2].lower() not in IMAGE_SUFFIXES:
        return name, NO_IMAGE
    if not entry.isreg() or entry.issparse():
        return name, NO_FILE
    if entry.offset_data + entry.size > size:
        raise tarfile.ReadError("unexpected end of data")
    if not 0 < entry.size <= MAX_BYTES:
        return name, HUGE
    return posixpath.normpath(name), ""


class _Bounded:
    """A file as tarfile may read it: heads only, and forwards, so that none can make it take all memory."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, place: int) -> int:
        if not 0 <= place <= self.size:
            raise tarfile.ReadError("unexpected end of data")
        return self.file.seek(place)

    def read(self, count: int) -> bytes:
        if not 0 <= count <= LONGEST_HEAD:
            raise tarfile.ReadError(f"a head of {count} bytes")
        return self.file.read(count)
