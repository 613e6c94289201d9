"""Where shards lie: a folder of this machine, or a URL that fsspec reads; and the notes kept of those elsewhere."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from selfdet.errors import UserError

PLACE = "place.txt"
# Seconds before a request that failed is made again: networks hiccup, and a run of days should not end of it.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
OPEN_TARS = 64  # kept open in each process
Answer = TypeVar("Answer")


def is_url(place: str) -> bool:
    """Whether this is for fsspec to read."""
    return "://" in place


def notes_root() -> Path:
    """The folder of what is known of shards that nothing can be written beside."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "selfdet" / "shards"


def notes_of(place: str) -> Path:
    """The folder that stands for the shards at `place`, a URL or a folder that can't be written to; made if need be.

    Paths of their images are below it, though no tar is. Raises: UserError when it can't be made.
    """
    words = re.sub(r"[^A-Za-z0-9.]+", "-", place.split("://")[-1]).strip("-.")[-60:]
    folder = notes_root() / f"{words}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / PLACE).is_file():
            (folder / PLACE).write_text(place, encoding="utf-8")
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{folder}, for the index of the shards at {place}, cannot be written: {error.strerror}",
            "Set XDG_CACHE_HOME to a folder that can",
        ) from None
    return folder


def place_of(folder: str) -> str:
    """Where the tars of a folder lie: in it, or elsewhere if it is one of our own that stand for a place."""
    # Not of any other folder: with shards from a stranger might come such a file too.
    if os.path.dirname(folder) != str(notes_root()):
        return folder
    try:
        return Path(folder, PLACE).read_text(encoding="utf-8")
    except OSError:
        return folder


def read_range(place: str, tar: str, start: int, size: int) -> bytes:
    """Bytes of a tar. Raises: UserError, naming it, when it can't be read or ends before."""
    if is_url(place):
        content = _asked(f"{place}/{tar}", lambda: _files(place).cat_file(f"{_path(place)}/{tar}", start, start + size))
        if len(content) > size:
            raise UserError(
                f"the server of {place} sends whole files when asked for a part",
                "Serve the shards with HTTP ranges, as object stores and nginx do, or copy them to a disk",
            )
    else:
        try:
            content = _opened(os.path.join(place, tar)).read(start, size)
        except OSError as error:
            raise UserError(f"the shard {place}/{tar} cannot be read: {error.strerror}", "Is the disk there?") from None
    if len(content) < size:
        raise UserError(f"the shard {place}/{tar} ends before byte {start + size}", "Fetch or write it again")
    return bytes(content)


def read_ranges(place: str, wanted: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
    """Bytes of tars (tar, start, size) at a URL, all asked for at once; None where that failed."""
    root = _path(place)
    paths = [f"{root}/{tar}" for tar, _, _ in wanted]
    starts = [start for _, start, _ in wanted]
    ends = [start + size for _, start, size in wanted]
    try:
        found = _files(place).cat_ranges(paths, starts, ends, on_error="return")
    except Exception:  # of any of fsspec's libraries; whoever reads one by one says what is wrong
        return [None] * len(wanted)
    right = (isinstance(content, bytes) and len(content) == size for content, (_, _, size) in zip(found, wanted))
    return [content if good else None for content, good in zip(found, right)]


def read_url(url: str) -> bytes | None:
    """The file at a URL; None where there is none. Raises: UserError when it can't be read."""
    place, name = url.rsplit("/", 1)

    def fetch() -> bytes | None:
        try:
            content: bytes = _files(place).cat_file(f"{_path(place)}/{name}")
        except (FileNotFoundError, PermissionError):  # object stores say the second of what is not there, too
            return None
        return content

    return _asked(url, fetch)


def tag_of(url: str) -> str | None:
    """What changes when the file at a URL does, where its server says something of the kind."""
    place, name = url.rsplit("/", 1)
    try:
        about = _files(place).info(f"{_path(place)}/{name}")
    except (OSError, ValueError):
        return None
    tags = [f"{key} {about[key]}" for key in ("ETag", "etag", "LastModified", "mtime", "generation") if about.get(key)]
    return f"{about.get('size')} {' '.join(tags)}" if tags else None


def open_url(place: str, tar: str) -> tuple[Any, int]:
    """A tar to read from its beginning on, and its bytes. Raises: UserError."""
    path = f"{_path(place)}/{tar}"
    file = _asked(f"{place}/{tar}", lambda: _files(place).open(path, "rb", cache_type="readahead", block_size=2**20))
    if not file.size:
        file.close()
        raise UserError(f"the server of {place} does not say how large {tar} is", "Copy the shards to a disk")
    return file, int(file.size)


def listed_tars(place: str) -> list[str]:
    """The names of the tars at a URL, where its server lists them."""
    try:
        names = _files(place).ls(_path(place), detail=False)
    except (OSError, ValueError, NotImplementedError):
        return []
    return sorted({str(name).rsplit("/", 1)[-1] for name in names if str(name).endswith(".tar")})


def _asked(what: str, ask: Callable[[], Answer]) -> Answer:
    """The answer of a server, asked again when it fails. Raises: UserError with its last words."""
    for pause in (*PAUSES, None):
        try:
            return ask()
        except (UserError, MemoryError):
            raise
        except FileNotFoundError:
            raise UserError(f"{what} does not exist", "Check the URL, and that it may be read") from None
        except Exception as error:  # of any of fsspec's libraries
            forbidden = isinstance(error, PermissionError) or getattr(error, "status", 0) in (401, 403)
            if pause is None or forbidden or isinstance(error, NotImplementedError):
                words = str(error) or type(error).__name__
                raise UserError(f"{what} cannot be read: {words}", "Is it there, and may it be read?") from error
            time.sleep(pause)
    raise AssertionError


def _files(place: str) -> Any:
    """fsspec's file system of a URL, one a process. Raises: UserError when a library for it is missing."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(place)[0]
    except ImportError as error:
        raise UserError(f"{place} cannot be read: {error}", "Install what it names beside selfdet") from None
    except ValueError as error:
        raise UserError(f"{place} cannot be read: {error}", "Give https://, s3:// or what else fsspec reads") from None


@lru_cache(maxsize=16)
def _path(place: str) -> str:
    from fsspec.core import url_to_fs

    return str(url_to_fs(place)[1]).rstrip("/")


class _Tar:
    """An open tar, closed when nobody holds it any more: a reader may while others close it."""

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))

    def read(self, start: int, size: int) -> bytes:
        parts = []
        while size > 0 and (part := os.pread(self.number, size, start)):
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return b"".join(parts)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _opened(path: str) -> _Tar:
    # By its date too: a tar that was written again is another one.
    return _kept_open(path, os.stat(path).st_mtime_ns)


@lru_cache(maxsize=OPEN_TARS)
def _kept_open(path: str, date: int) -> _Tar:
    return _Tar(path)
