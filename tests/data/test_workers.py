"""Worker processes end with their run, ignore signals meant for it, and do not run the user's script again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# The items live in a module of their own, as ours do: the script itself has no `if __name__ == "__main__"`.
ITEMS = """
import os
class Items:
    def __len__(self): return 8
    def load(self, index, epoch): return os.getpid()
def first(items): return items[0]
"""
SCRIPT = """
import sys, time
from items import Items, first
from selfdet.data.loader import training_batches
print("started", flush=True)
for step, _, pid in training_batches(
    Items(), batch_size=1, seed=0, start_step=0, total_steps=int(sys.argv[1]), workers=2, collate=first
):
    print(pid, flush=True)
    time.sleep(0.05)
"""

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fork server and its signals are Linux's"),
    pytest.mark.slow,
]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "items.py").write_text(ITEMS)
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 60
    while any(map(running, pids)):
        assert time.monotonic() < deadline, "workers outlived their run by a minute"
        time.sleep(0.1)


def start(script: Path) -> tuple[subprocess.Popen[str], set[int]]:
    run = subprocess.Popen(
        [sys.executable, script, "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "started\n"
    return run, {int(run.stdout.readline()) for _ in range(6)}


def test_a_script_without_a_main_guard_may_use_workers(script: Path) -> None:
    run = subprocess.run([sys.executable, script, "6"], capture_output=True, text=True, timeout=120, check=True)
    lines = run.stdout.split()
    assert lines.count("started") == 1
    assert len(lines) == 7


def test_workers_of_a_killed_run_end(script: Path) -> None:
    run, workers = start(script)
    run.kill()
    run.communicate()
    wait_until_gone(workers)


def test_a_sigterm_to_a_worker_alone_stops_nothing(script: Path) -> None:
    run, workers = start(script)
    assert run.stdout is not None
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
    assert {int(run.stdout.readline()) for _ in range(40)} == workers
    run.kill()
    run.communicate()
    wait_until_gone(workers)


def test_a_worker_that_dies_stops_the_run_with_advice(script: Path) -> None:
    run, workers = start(script)
    os.kill(min(workers), signal.SIGKILL)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "DeadWorker: a data worker process ended unexpectedly" in errors
    wait_until_gone(workers)
