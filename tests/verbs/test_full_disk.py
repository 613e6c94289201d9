"""A run whose disk is full says so in one line, and goes on to the same end when there is room again."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfdet.errors import UserError
from tiny_runs import PRETRAIN, flags, tiny_aligndet, tiny_finetune, tiny_pretrain

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts and limits of Linux"),
    pytest.mark.slow,
]
TOLD = r"cannot be written: (No space left on device|File too large); [\d.,]+ MB are free there"
ROOM = 48 * 2**20
# Left of it for a run, a little more each time: it ends while it opens, draws, logs or saves one file or another.
FREE = (20_000, 100_000, 1_000_000, 4_000_000, 6_000_000, 9_000_000, 12_000_000, 18_000_000, 48_000_000)
RUNS = {"backbone": tiny_pretrain, "detector": tiny_aligndet, "finetune": tiny_finetune}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of `ROOM` bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("kind", list(RUNS))
def test_a_run_on_a_disk_that_fills_goes_on_when_there_is_room_again(
    scenes: Path, tmp_path: Path, small_disk: Path, kind: str
) -> None:
    settings = {"steps": 8, "save_every": 1, "log_every": 1}
    RUNS[kind](scenes, tmp_path / "whole", **settings)
    out, ballast = small_disk / "run", small_disk / "ballast"
    ended = 0
    for free in FREE:
        ballast.unlink(missing_ok=True)
        with ballast.open("wb") as file, contextlib.suppress(OSError):
            file.write(bytes(max(0, shutil.disk_usage(small_disk).free - free)))
        said = ""
        try:
            RUNS[kind](scenes, out, resume=True, **settings)
        except UserError as error:
            said = error.message
        if not said:
            break
        assert re.search(TOLD, said)
        ended += 1
    assert ended > 3
    product = "backbone.safetensors" if kind == "backbone" else "detector.safetensors"
    for name in ("metrics.jsonl", product):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_file_that_may_not_grow_is_the_same_to_the_command_line(scenes: Path, tmp_path: Path) -> None:
    words = flags({**PRETRAIN, "images": scenes / "images", "out": tmp_path / "run"})
    script = (
        "import resource, sys; from selfdet import cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)); sys.exit(cli.main(sys.argv[1:]))"
    )
    run = subprocess.run([sys.executable, "-c", script, "pretrain", *words], capture_output=True, text=True)
    assert run.returncode == 2
    last = run.stderr.splitlines()[-1]
    assert re.search(rf"^selfdet: error: .*last\.pt {TOLD}, [\d.]+ MB are needed\. Free some space", last)
    assert "Traceback" not in run.stderr
    tiny_pretrain(scenes, tmp_path / "run", resume=True)
    tiny_pretrain(scenes, tmp_path / "whole")
    product = "backbone.safetensors"
    assert (tmp_path / "run" / product).read_bytes() == (tmp_path / "whole" / product).read_bytes()
