"""A file is written whole or not at all, and a full disk is told in a line: the file, what is free, what is needed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdet import cli
from selfdet.data import disk
from selfdet.data.disk import full_disk, replacing, writing
from selfdet.errors import UserError


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_replaced_only_when_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with replacing(path) as file:
        file.write(b"old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"new", "no bytes"])  # type: ignore[list-item]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_is_told_with_file_room_and_the_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1_250_000}))
    with pytest.raises(UserError) as told, replacing(tmp_path / "a.bin", needed=3_000_000) as file:
        no_space(file.write(b"half"))
    assert told.value.message == (
        f"{tmp_path / 'a.bin'} cannot be written: No space left on device; 1.2 MB are free there, 3.0 MB are needed"
    )
    assert "--resume" in told.value.hint
    assert not list(tmp_path.iterdir())  # what was written of it does not take the last of the room


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_is_known_by_its_number_also_behind_another_error(number: int) -> None:
    try:
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  as torch does
    except RuntimeError as error:
        told = full_disk(error)
    assert told is not None
    assert told.message == f"A file cannot be written: {os.strerror(number)}"


def test_other_faults_are_told_as_they_are(tmp_path: Path) -> None:
    assert full_disk(ValueError()) is None
    with pytest.raises(PermissionError), writing(tmp_path):
        raise PermissionError(errno.EACCES, "denied")


class Full:
    """A file on a disk with room for some bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        self.room -= len(bytes(data))
        if self.room < 0:
            no_space()
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_torch_s_own_words_for_a_full_disk_are_understood(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left on device"), replacing(tmp_path / "a.pt") as file:
        torch.save({"weights": torch.zeros(10_000)}, Full(file, 20_000))


def test_the_command_line_answers_with_2_whatever_could_not_be_written(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["full"], verbs={"full": "Writes."}, load=lambda verb: lambda: no_space()) == 2
    told = capfd.readouterr().err
    assert told == f"selfdet: error: A file cannot be written: No space left on device. {disk.HINT}\n"
