"""What is found in a tar from anybody, and what is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from tests.data.shard_files import jpeg, write_tar

from selfdet.data.tars import HUGE, NO_FILE, NO_IMAGE, REPEATED, UNSAFE, Contents, read_heads
from selfdet.errors import UserError


def heads(path: Path) -> Contents:
    with path.open("rb") as file:
        return read_heads(file, path.stat().st_size, "a.tar")


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def test_the_bytes_of_an_image_are_where_its_member_says(tmp_path: Path) -> None:
    content = {"a.jpg": jpeg("red"), f"{'long/' * 60}b.png": jpeg("blue"), "ä.JPEG": jpeg("green")}
    tar = write_tar(tmp_path / "a.tar", content)
    whole = tar.read_bytes()
    found = {each.name: whole[each.start : each.start + each.size] for each in heads(tar).members}
    assert found == content


def test_what_is_no_image_or_not_to_be_trusted_is_left_out_and_counted(tmp_path: Path) -> None:
    members: dict[str, bytes | tarfile.TarInfo] = {
        **{"a.jpg": jpeg(), "a.json": b"{}", "a.mask.png": jpeg(), ".hidden.jpg": jpeg(), "b.cls": b"3"},
        **{"/etc/b.jpg": jpeg(), "x/../../c.jpg": jpeg(), "C:\\d.jpg": jpeg(), "empty.jpg": b""},
        **{"e.jpg": link("e.jpg", tarfile.SYMTYPE), "f.jpg": link("f.jpg", tarfile.LNKTYPE)},
        **{"g.jpg": link("g.jpg", tarfile.CHRTYPE), "h.jpg": link("h.jpg", tarfile.FIFOTYPE)},
        **{"./a.jpg": jpeg("blue"), "folder": link("folder", tarfile.DIRTYPE)},
    }
    found = heads(write_tar(tmp_path / "a.tar", members))
    assert [each.name for each in found.members] == ["a.jpg"]
    assert found.left_out == {NO_IMAGE: 4, UNSAFE: 3, NO_FILE: 4, HUGE: 1, REPEATED: 1}


def test_tars_of_other_kinds_are_read(tmp_path: Path) -> None:
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
            entry = tarfile.TarInfo("some/a.jpg")
            entry.size = 5
            archive.addfile(entry, io.BytesIO(b"bytes"))
        (member,) = heads(tmp_path / "a.tar").members
        assert (tmp_path / "a.tar").read_bytes()[member.start :][: member.size] == b"bytes"


@pytest.mark.parametrize("left", [0, 300, 512, 900, 1500, 2000])
def test_a_tar_that_ends_early_is_named(tmp_path: Path, left: int) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(), "b.jpg": jpeg()})
    tar.write_bytes(tar.read_bytes()[:left])
    with pytest.raises(UserError, match=r"the shard a\.tar cannot be read"):
        heads(tar)


def test_a_damaged_head_is_not_taken_for_the_end(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(), "b.jpg": jpeg()})
    content = bytearray(tar.read_bytes())
    second = heads(tar).members[1].start - 512
    content[second : second + 100] = b"\xff" * 100
    tar.write_bytes(content)
    with pytest.raises(UserError, match=f"a damaged head at byte {second}"):
        heads(tar)


def test_a_head_of_a_gigabyte_is_not_read_into_memory(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 2**30
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(UserError, match=r"a head of \d+ bytes"):
        heads(tmp_path / "a.tar")
