"""The demo as `make demo` runs it, at its tiny size: three stages, three starts, one page."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from selfdet.cli import main
from selfdet.drawing.demo_report import STARTS
from selfdet.errors import UserError
from selfdet.training.rundir import RunDir
from selfdet.verbs.demo import demo

MAKEFILE = Path(__file__).parents[2] / "Makefile"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished demo; not to be changed."""
    line = next(line for line in MAKEFILE.read_text().splitlines() if "selfdet demo" in line)
    words = shlex.split(line.split("selfdet ", 1)[1])
    out = tmp_path_factory.mktemp("demo") / "out"
    words[words.index("--out") + 1] = str(out)
    assert main([*words, "--size", "tiny", "--threads", "1"]) == 0
    return out


def settings(folder: Path, name: str) -> dict[str, Any]:
    return RunDir(folder / name).read_config()


def test_the_three_runs_differ_in_their_start_alone(folder: Path) -> None:
    scratch, *others = (settings(folder, name) for name in STARTS)
    for other in others:
        assert {name for name in scratch if scratch[name] != other[name]} == {"init"}
    assert [run["init"] for run in (scratch, *others)] == [
        "scratch",
        str(folder / "pretrain" / "backbone.safetensors"),
        str(folder / "pretrain"),
    ]


def test_nothing_held_out_is_pre_trained_on(folder: Path) -> None:
    boxes = json.loads((folder / "pretrain" / "proposals.json").read_text())
    names = {Path(image["file_name"]).name for image in boxes["images"]}
    assert len(names) == 36
    assert not any(name.startswith("val") for name in names)


def test_the_page_shows_the_scores_of_all_starts_and_every_stage(folder: Path) -> None:
    page = unescape((folder / "report.html").read_text())
    for shown in STARTS.values():
        assert f"AP, {shown}" in page
    for heading in ("Did it help?", "What they find", "Stage 1", "Stage 2", "Stage 3"):
        assert re.search(f"<h2>[^<]*{re.escape(heading)}", page), heading
    assert "reinitialised" in page  # what each start brought along


def test_a_finished_demo_is_left_as_it_is(folder: Path, capfd: Capture) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError, match="not empty"):
        demo(out=str(folder), size="tiny")
    assert demo(out=str(folder), size="tiny", resume=True)["finished"]
    assert str(folder / "report.html") in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
