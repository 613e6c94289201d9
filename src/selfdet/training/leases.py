"""Claims on pieces of work by several processes, on one or several machines that share a folder."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from selfdet.data.untrusted import parse_json

BEATS = 6  # heartbeats within the time after which a claim counts as given up


class Lease:
    """A claim that is held; given back at the end of a `with` block.

    `lost` says that another process took it for given up and has claimed it: what was done under it counts no more.
    """

    def __init__(self, file: Path, after: Path, beat: float) -> None:
        self._file, self._after, self._beat = file, after, beat
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether somebody else holds it now."""
        return self._after.exists()

    def release(self) -> None:
        """Give it back."""
        self._ended.set()
        self._thread.join()
        if not self.lost:
            _write(self._file, {**_read(self._file), "released": time.time()})

    def _keep(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                os.utime(self._file)
            except OSError:  # the folder is away for a moment; or for good, which the work itself will meet
                continue

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Leases:
    """The claims in one folder: `NAME.1.json`, `NAME.2.json`, … say who held NAME, the last of them who holds it.

    A number is never used twice, and making a file that must not exist yet succeeds for one process only: of any that
    see a claim given up, one gets the next number. A claim is given up when it was released, when its process on this
    machine is gone, or when it has not been renewed for `stale_after` seconds; these are counted by the observer's own
    clock, as those of several machines need not agree.
    """

    def __init__(self, folder: Path, stale_after: float = 120.0) -> None:
        self.folder, self.stale_after = folder, stale_after
        self._seen: dict[Path, tuple[int, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def claim(self, name: str) -> Lease | None:
        """Hold `name`, or None where another process does."""
        number = self._last(name)
        if number and not self._given_up(self._file(name, number)):
            return None
        file = self._file(name, number + 1)
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(json.dumps({**_here(), "token": uuid.uuid4().hex, "started": time.time()}))
        return Lease(file, self._file(name, number + 2), self.stale_after / BEATS)

    def _file(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}.json"

    def _last(self, name: str) -> int:
        pattern = re.compile(re.escape(name) + r"\.(\d+)\.json")
        found = (pattern.fullmatch(entry) for entry in os.listdir(self.folder))
        return max((int(match[1]) for match in found if match), default=0)

    def _given_up(self, file: Path) -> bool:
        about = _read(file)
        if "released" in about or _is_dead(about):
            return True
        beat, now = file.stat().st_mtime_ns, time.monotonic()
        last, since = self._seen.get(file, (0, now))
        if beat != last:
            self._seen[file] = beat, now
            return False
        return now - since >= self.stale_after


def _here() -> dict[str, Any]:
    """This process, and where its number means anything: containers share a host's name and count for themselves."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return {"host": socket.gethostname(), "space": space, "pid": os.getpid()}


def _is_dead(about: dict[str, Any]) -> bool:
    here = _here()
    if about.get("host") != here["host"] or about.get("space") != here["space"] or os.name != "posix":
        return False
    try:
        os.kill(int(about["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, so it lives
        return False
    except (KeyError, TypeError, ValueError, OverflowError):  # not written by us: it goes stale like any other
        return False
    return False


def _read(file: Path) -> dict[str, Any]:
    """What a claim says; nothing where its process has not come to write it."""
    try:
        about = parse_json(file.read_bytes())
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _write(file: Path, about: dict[str, Any]) -> None:
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    partial.write_text(json.dumps(about), encoding="utf-8")
    os.replace(partial, file)
