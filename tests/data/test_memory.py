"""Labels that would not fit into memory are refused before they are read, and what they take is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from selfdet.data import memory
from selfdet.data.memory import OF_LABELS, free_memory, read_labels
from selfdet.errors import UserError


def test_a_file_that_fits_is_read(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_bytes(b"{}")
    assert read_labels(tmp_path / "labels.json") == b"{}"


@pytest.mark.parametrize("known", [True, False])
def test_one_that_would_not_is_refused_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(memory, "free_memory" if known else "_all_memory", lambda: 2**29)
    if not known:
        monkeypatch.setattr(memory, "free_memory", lambda: None)
    file = tmp_path / "labels.json"
    file.write_bytes(b" " * (2**29 // OF_LABELS + 1))
    with pytest.raises(UserError, match=r"labels.json is 0.1 GiB.* takes about 1 GiB.* there are 0.5 GiB. Split it"):
        read_labels(file)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not tell")
def test_free_memory_is_some_of_what_there_is() -> None:
    free, everything = free_memory(), memory._all_memory()
    assert free is not None
    assert everything is not None
    assert 2**20 < free <= everything


LOAD = """
import resource, sys
from selfdet.data.labels import load_labels
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = load_labels(sys.argv[1], sys.argv[2])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(len(record.boxes) for record in labels.records), (after - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
def test_a_million_boxes_are_read_within_what_is_said_of_memory(tmp_path: Path) -> None:
    count, images = 1_000_000, 10_000
    (tmp_path / "images").mkdir()
    for number in range(images):
        (tmp_path / "images" / f"{number}.jpg").touch()
    file = tmp_path / "labels.json"
    with file.open("w") as out:
        listed = ",".join(f'{{"id":{i},"file_name":"{i}.jpg","width":640,"height":480}}' for i in range(images))
        out.write(f'{{"images":[{listed}],"categories":[{{"id":1,"name":"a"}}],"annotations":[')
        for i in range(count):
            box = f"[{i % 600}.5,{i % 400}.25,30.5,40.75]"
            rest = f'"image_id":{i % images},"category_id":1,"bbox":{box},"area":1242.9,"iscrowd":0'
            out.write(f'{"," if i else ""}{{"id":{i},{rest}}}')
        out.write("]}")
    command = [sys.executable, "-c", LOAD, str(file), str(tmp_path / "images")]
    read, taken = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert read == count
    assert taken < OF_LABELS * file.stat().st_size
