"""A piece of work is held by one process at a time, and by another when that one is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfdet.training.leases import Leases

HOLDER = """
import sys, time
from pathlib import Path
from selfdet.training.leases import Leases
lease = Leases(Path(sys.argv[1])).claim("cell")
print("held" if lease else "free", flush=True)
time.sleep(60)
"""
RACER = """
import sys, time
from pathlib import Path
from selfdet.training.leases import Leases
leases = Leases(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
lease = leases.claim("cell")
print("won" if lease else "lost", flush=True)
sys.stdin.readline()
"""


def started(script: str, folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def elsewhere(folder: Path, number: int = 1) -> Path:
    """A claim of another machine, on which no number of a process can be looked up."""
    folder.mkdir(exist_ok=True)
    file = folder / f"cell.{number}.json"
    file.write_text(json.dumps({"host": "another", "space": 1, "pid": 1}))
    return file


def test_what_is_held_is_nobody_elses_until_it_is_given_back(tmp_path: Path) -> None:
    first, second = Leases(tmp_path), Leases(tmp_path)
    lease = first.claim("cell")
    assert lease is not None
    assert second.claim("cell") is None
    with second.claim("cell-2") as other:  # type: ignore[union-attr]
        assert not other.lost
    with lease:
        assert second.claim("cell") is None
    assert second.claim("cell") is not None


def test_a_claim_is_given_back_when_the_work_under_it_fails(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    with pytest.raises(RuntimeError), leases.claim("cell"):  # type: ignore[union-attr]
        raise RuntimeError
    assert leases.claim("cell") is not None


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    holder = started(HOLDER, tmp_path)
    assert line(holder) == "held"
    leases = Leases(tmp_path)
    assert leases.claim("cell") is None
    kill(holder)
    assert leases.claim("cell") is not None


def test_of_many_who_see_a_claim_given_up_one_gets_it(tmp_path: Path) -> None:
    holder = started(HOLDER, tmp_path)
    assert line(holder) == "held"
    kill(holder)
    racers = [started(RACER, tmp_path) for _ in range(4)]
    assert [line(racer) for racer in racers] == ["ready"] * 4
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert sorted(line(racer) for racer in racers) == ["lost", "lost", "lost", "won"]
    for racer in racers:
        kill(racer)


def test_a_claim_of_another_machine_is_free_when_it_is_renewed_no_more(tmp_path: Path) -> None:
    file = elsewhere(tmp_path)
    leases = Leases(tmp_path, stale_after=0.05)
    assert leases.claim("cell") is None  # however old the file is: clocks of machines differ
    time.sleep(0.06)
    os.utime(file)
    assert leases.claim("cell") is None
    time.sleep(0.06)
    assert leases.claim("cell") is not None


def test_a_held_claim_is_renewed(tmp_path: Path) -> None:
    lease = Leases(tmp_path, stale_after=0.06).claim("cell")
    assert lease is not None
    (file,) = tmp_path.iterdir()
    os.utime(file, (0, 0))
    deadline = time.monotonic() + 10
    while not file.stat().st_mtime:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    lease.release()


def test_a_process_learns_that_its_claim_was_taken_over(tmp_path: Path) -> None:
    lease = Leases(tmp_path).claim("cell")
    assert lease is not None
    assert not lease.lost
    elsewhere(tmp_path, number=2)
    assert lease.lost
    lease.release()
    assert Leases(tmp_path).claim("cell") is None  # the other's claim stands


def test_a_claim_cut_off_before_it_says_whose_it_is_is_a_claim(tmp_path: Path) -> None:
    (tmp_path / "cell.1.json").touch()
    leases = Leases(tmp_path, stale_after=0.02)
    assert leases.claim("cell") is None
    time.sleep(0.03)
    assert leases.claim("cell") is not None
