"""Whatever a file holds, a command ends with one line or counts it: nothing is executed, and no traceback comes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hostile import CASES, Case
from selfdet import cli

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.reader}: {case.what}")
def test_a_hostile_file_is_refused_in_one_line_or_counted(
    case: Case, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [os.fspath(word) if isinstance(word, Path) else str(word) for word in case.make(tmp_path, scenes)]
    code = cli.main([str(tmp_path / word) if word.startswith("OUT") else word for word in words])
    stdout, stderr = capfd.readouterr()
    assert "Traceback" not in stderr
    assert case.said in stdout + stderr
    assert all(letter.isprintable() or letter in "\n\xa0" for letter in stderr)
    if case.outcome == "refused":
        assert code == 2
        assert stderr.startswith("selfdet: error: ")
        assert stderr.count("\n") == 1
        assert len(stderr) < 4000
        assert not (tmp_path / "OUT").exists()
    else:
        assert code == 0
    assert not (tmp_path / "done").exists()
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_the_table_of_hostile_inputs_in_the_documents_is_the_tested_one() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index("| reader | input |") :].split("\n\n")[0]
    assert table.splitlines()[2:] == [case.row for case in CASES]
