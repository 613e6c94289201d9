"""The answers of an unfinished run, one line each, so that a kill at any point costs the images under way only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from selfdet.data.disk import writing
from selfdet.data.untrusted import is_integer, parse_json
from selfdet.errors import UserError, shown
from selfdet.proposing.filters import FALLBACKS
from selfdet.proposing.finding import FAULTS, Found


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
        """Take up the whole lines; return their length in bytes. Raises: UserError where they are not ours."""
        whole, newline, _ = self.path.read_bytes().rpartition(b"\n")
        if not newline:
            return 0
        first, *rest = whole.split(b"\n")
        stored = self._value(first, 1)
        require_same(self.path, stored, head)
        for number, line in enumerate(rest, start=2):
            found = self._found(self._value(line, number), number)
            self.found[found.image_id] = found
        return len(whole) + 1

    def _value(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = parse_json(line)
        except ValueError as error:
            raise self._refusal(number, str(error)) from None
        if not isinstance(value, dict):
            raise self._refusal(number, f"it is {shown(value)}")
        return value

    def _found(self, values: dict[str, Any], number: int) -> Found:
        try:
            found = Found.from_dict(values)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._refusal(number, str(error)) from None
        whole = (found.image_id, found.width, found.height, found.dropped)
        if not all(map(is_integer, whole)) or not {found.fallback} <= {"", *FALLBACKS}:
            raise self._refusal(number, "it has other values")
        if not {found.fault} <= {"", *FAULTS} or (found.scores is not None and len(found.scores) != len(found.boxes)):
            raise self._refusal(number, "it has other values")
        return found

    def _refusal(self, number: int, why: str) -> UserError:
        return UserError(
            f"{self.path}, line {number} is not as selfdet proposals writes it: {why}",
            "Remove the file to begin anew",
        )

    def append(self, found: Found) -> None:
        """Keep an answer, as it will be read after a kill: with its coordinates rounded."""
        values = found.to_dict()
        self.found[found.image_id] = Found.from_dict(values)
        self._write(values)

    def _write(self, line: dict[str, Any]) -> None:
        with writing(self.path):
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
            f"{file}: {name} is {shown(stored.get(name))} in this run but {shown(asked.get(name))} now",
            "Resume with the run's own settings and images, or name another --out",
        )
