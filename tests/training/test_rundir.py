"""A run directory is made once, continued only with its own settings, and never half written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from selfdet.errors import UserError
from selfdet.training.rundir import RunDir, check_out_is_new, write_text

CONFIG: dict[str, Any] = {"lr": 0.1, "jitter": (0.8, 1.0), "workers": 2, "scales": {"neck": 1.0, "head": 2.0}}


def test_a_new_run_has_its_settings_and_a_place_for_pictures(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "deep" / "run", CONFIG, resume=False)
    assert run.read_config() == CONFIG | {"jitter": [0.8, 1.0]}
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "pictures"]


@pytest.mark.parametrize("resume", [False, True])
def test_an_empty_folder_is_a_new_run(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "config.yaml.partial").write_text("lr: 0.")  # left by a kill
    assert RunDir.open(tmp_path, CONFIG, resume=resume).config_file.is_file()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(UserError, match="is not empty") as refused:
        RunDir.open(tmp_path, CONFIG, resume=False)
    assert "--resume" in refused.value.hint
    with pytest.raises(UserError, match=r"has no config\.yaml, so it is not a run to resume"):
        RunDir.open(tmp_path, CONFIG, resume=True)
    with pytest.raises(UserError, match="is a file, not a folder"):
        RunDir.open(tmp_path / "thesis.txt", CONFIG, resume=True)
    with pytest.raises(UserError, match="cannot be written"):
        RunDir.open(tmp_path / "thesis.txt" / "run", CONFIG, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_verb_that_cannot_resume_does_not_offer_it(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(UserError) as refused:
        check_out_is_new(tmp_path)
    assert refused.value.hint == "Name a new folder"
    check_out_is_new(tmp_path, resume=True)
    check_out_is_new(tmp_path / "new")


def test_a_run_is_continued_with_its_own_settings_only(tmp_path: Path) -> None:
    RunDir.open(tmp_path / "run", CONFIG, resume=False)
    RunDir.open(tmp_path / "run", CONFIG | {"workers": 7}, resume=True)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"lr": 0.2}, "lr is 0.1 in this run but 0.2 now"),
        ({"scales": {"neck": 1.0, "head": 3.0}}, "scales.head is 2.0 in this run but 3.0 now"),
        ({"clip": 1.0}, "clip is None in this run but 1.0 now"),
        ({"jitter": (0.8, 1.1)}, r"jitter is \[0.8, 1.0\] in this run but \[0.8, 1.1\] now"),
    ]
    for change, message in changes:
        with pytest.raises(UserError, match=message):
            RunDir.open(tmp_path / "run", CONFIG | change, resume=True)


def test_settings_that_are_no_yaml_mapping_are_the_users_to_mend(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "run", CONFIG, resume=False)
    for text in ("[", "just text", "\x00", "a: &b [1]\nc: *b", "[" * 5000, "a: !!python/name:os.system"):
        run.config_file.write_text(text)
        with pytest.raises(UserError, match="is not a YAML mapping"):
            run.read_config()
    with pytest.raises(UserError, match="does not exist"):
        RunDir(tmp_path / "none").read_config()
    with pytest.raises(UserError, match="not a run directory"):
        RunDir(tmp_path).read_config()


def test_rows_that_are_none_end_what_is_read(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for bad in (b"[1]", b"\xff", b"null", b'{"step": 3'):
        run.metrics_file.write_bytes(b'{"step": 1}\n' + bad + b'\n{"step": 2}\n')
        assert run.read_metrics() == [{"step": 1}]


def test_rows_after_a_step_are_dropped_and_the_others_keep_their_bytes(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (0, 5, 10, 10, 15):
        run.append_metrics({"step": step, "loss": 0.1 + step, "bad": math.nan, "deep": {"x": [math.inf, 1.0]}})
        run.append_timing({"step": step, "seconds": 1.5})
    lines = run.metrics_file.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0]) == {"step": 0, "loss": 0.1, "bad": None, "deep": {"x": [None, 1.0]}}
    with run.metrics_file.open("a") as file:
        file.write('{"step": 20, "lo')  # a kill in the middle of a line
    assert len(run.read_metrics()) == 5
    run.truncate_to(10)
    assert run.metrics_file.read_bytes() == b"".join(lines[:4])
    assert len(run.timing_file.read_text().splitlines()) == 4
    run.truncate_to(-1)
    assert run.metrics_file.read_bytes() == b""


def test_all_but_the_first_process_write_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path, writes=False)
    run.append_metrics({"step": 1})
    run.append_timing({"step": 1})
    assert not list(tmp_path.iterdir())
    assert run.read_metrics() == []
    run.metrics_file.write_text('{"step": 9}\n')
    run.truncate_to(1)
    assert run.read_metrics() == [{"step": 9}]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "zwei ✓")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "zwei ✓"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
