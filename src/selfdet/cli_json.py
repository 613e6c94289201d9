"""What `--json` promises: one JSON object on stdout, and everything else on stderr."""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import PurePath
from typing import Any


def to_json(value: object) -> str:
    """Write a verb's result as one line of strict JSON, in ASCII.

    Paths become text, arrays and tensors (nested) lists, and numbers that JSON has no word for (NaN, infinities) null.

    Raises:
        TypeError: for a value of any other kind.
    """
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: object) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars included
        return _plain(value.tolist())
    raise TypeError(f"a verb returned a {type(value).__name__}, which has no JSON form")


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send all that is written to stdout meanwhile to stderr: prints, C libraries, child processes."""
    stdout = sys.stdout
    stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        stdout.flush()  # by whoever held on to the stream itself, as logging handlers do
        _flush_c_stdio()
        os.dup2(kept, 1)
        os.close(kept)


def _flush_c_stdio() -> None:
    """Flush what C code has printed: into a pipe it is buffered, and would otherwise come out after our object."""
    try:
        ctypes.CDLL(None).fflush(None)
    except (OSError, TypeError, AttributeError):  # Windows has no library of that name
        sys.stderr.flush()
