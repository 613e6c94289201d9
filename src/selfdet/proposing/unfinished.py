"""The answers of an unfinished run, one line each, so that a kill at any point costs the images under way only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from selfdet.errors import UserError
from selfdet.proposing.finding import Found


class Unfinished:
    """The file beside `out` that answers are appended to until all are there.

    Its first line says what the answers depend on; `found` has the answers so far, by image id.
    """

    def __init__(self, out: Path, head: dict[str, Any], *, resume: bool) -> None:
        """Begin the file, or with `resume` take it up; a line that was cut off by a kill is dropped.

        Raises: UserError when there is one and `resume` is off, when it has other settings, and when it can't be
        written.
        """
        self.path = _path(out)
        self.found: dict[int, Found] = {}
        if self.path.exists() and not resume:
            raise UserError(
                f"{self.path} holds an unfinished run", "Add --resume to continue it, or remove the file to begin anew"
            )
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            kept = self._read(head) if self.path.exists() else 0
            self.file: IO[bytes] = self.path.open("ab")
            self.file.truncate(kept)
        except OSError as error:
            raise UserError(f"--out {out} cannot be written: {error.strerror}", "Name another file") from None
        if not kept:
            self._write(head)

    def _read(self, head: dict[str, Any]) -> int:
        """Take up the whole lines; return their length in bytes."""
        whole, newline, _ = self.path.read_bytes().rpartition(b"\n")
        if not newline:
            return 0
        first, *rest = whole.split(b"\n")
        require_same(self.path, json.loads(first), head)
        for line in rest:
            found = Found.from_dict(json.loads(line))
            self.found[found.image_id] = found
        return len(whole) + 1

    def append(self, found: Found) -> None:
        """Keep an answer, as it will be read after a kill: with its coordinates rounded."""
        values = found.to_dict()
        self.found[found.image_id] = Found.from_dict(values)
        self._write(values)

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()

    def close(self, *, remove: bool) -> None:
        """Close the file; `remove` it when its answers are elsewhere."""
        self.file.close()
        if remove:
            self.path.unlink()

    @staticmethod
    def discard(out: Path) -> None:
        """Remove what a run left that was killed between writing `out` and cleaning up."""
        _path(out).unlink(missing_ok=True)


def _path(out: Path) -> Path:
    return out.with_name(f"{out.name}.unfinished.jsonl")


def require_same(file: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises: UserError naming the first setting that differs between a file's run and this one."""
    asked = json.loads(json.dumps(asked))  # a tuple is a list in a file
    for name in dict.fromkeys([*asked, *stored]):
        if stored.get(name) == asked.get(name):
            continue
        if isinstance(asked.get(name), dict) and isinstance(stored.get(name), dict):
            require_same(file, stored[name], asked[name])
        raise UserError(
            f"{file}: {name} is {stored.get(name)!r} in this run but {asked.get(name)!r} now",
            "Resume with the run's own settings and images, or name another --out",
        )
