"""Writing files that are whole or not there, on disks that may be full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from selfdet.errors import UserError

# No space on the disk, none left of a quota, a file larger than it may be.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
HINT = "Free some space and run the command again, with --resume if it was training or searching"


@contextmanager
def replacing(path: Path, needed: int = 0) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well: at any moment there is the old or the new one.

    `needed`: bytes that it will have, where known. Raises: UserError when the disk is full.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path, needed):
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # else a machine that goes down may keep the new name and not the bytes
        except BaseException:
            partial.unlink(missing_ok=True)  # it takes the space that is missing
            raise
        os.replace(partial, path)


@contextmanager
def writing(path: Path, needed: int = 0) -> Iterator[None]:
    """Say in one line that there was no room for `path`, of `needed` bytes where known.

    Raises: UserError when the disk is full; what else goes wrong as it is.
    """
    try:
        yield
    except Exception as error:
        full = full_disk(error, path, needed)
        if full is None:
            raise
        raise full from None


def full_disk(error: BaseException, path: Path | None = None, needed: int = 0) -> UserError | None:
    """What to tell the user of an exception that a full disk is behind; None where it isn't.

    `path`: the file that was written, of `needed` bytes where known.
    """
    cause: BaseException | None = error
    # torch reports a file of Python's that can't be written as an error of its own, while handling the real one.
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in FULL):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, OSError):
        return None
    what = "A file" if path is None else str(path)
    room = "" if path is None else f"; {_megabytes(_free(path))} are free there"
    wanted = f", {_megabytes(needed)} are needed" if needed else ""
    return UserError(f"{what} cannot be written: {cause.strerror}{room}{wanted}", HINT)


def _free(path: Path) -> int:
    folder = path.parent if path.parent.is_dir() else Path()
    return shutil.disk_usage(folder).free


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
