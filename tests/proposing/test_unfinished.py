"""What a killed run has found is kept, to the last whole line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfdet.errors import UserError
from selfdet.proposing.finding import Found
from selfdet.proposing.unfinished import Unfinished

HEAD = {"settings": {"top_k": 50, "scales": (50.0,)}, "listing": "abc"}
FIRST = Found(5, 8, 6, np.array([[0.123, 0, 3, 4]], np.float32), np.array([0.5], np.float32), "aspect", 2)
SECOND = Found(6, fault="unreadable", reason="truncated")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    run = Unfinished(tmp_path / "new" / "boxes.json", HEAD, resume=False)
    for found in (FIRST, SECOND):
        run.append(found)
    run.close(remove=False)
    return tmp_path / "new" / "boxes.json"


def test_answers_survive_and_a_line_cut_off_by_a_kill_is_dropped(out: Path) -> None:
    path = out.with_name("boxes.json.unfinished.jsonl")
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole) + 1, 7):
        path.write_bytes(whole[:cut])
        run = Unfinished(out, HEAD, resume=True)
        assert len(run.found) == whole[:cut].count(b"\n") - 1
        for found in (FIRST, SECOND)[len(run.found) :]:
            run.append(found)
        run.close(remove=False)
        assert path.read_bytes() == whole
    run = Unfinished(out, HEAD, resume=True)
    again = run.found[5]
    np.testing.assert_allclose(again.boxes, FIRST.boxes, atol=0.006)
    assert again.to_dict() == FIRST.to_dict()
    assert run.found[6].to_dict() == SECOND.to_dict()
    run.close(remove=True)
    assert not path.exists()


def test_an_answer_is_the_same_whether_it_was_kept_or_read_again(tmp_path: Path) -> None:
    boxes = np.random.default_rng(0).uniform(0, 640, (200, 4)).astype(np.float32)
    kept = Unfinished(tmp_path / "boxes.json", HEAD, resume=False)
    kept.append(Found(1, 640, 640, boxes))
    kept.close(remove=False)
    read = Unfinished(tmp_path / "boxes.json", HEAD, resume=True)
    read.close(remove=True)
    assert kept.found[1].boxes.tolist() == read.found[1].boxes.tolist()
    np.testing.assert_allclose(kept.found[1].boxes, boxes, atol=0.006)


def test_a_run_killed_before_its_first_line_begins_anew(out: Path) -> None:
    out.with_name("boxes.json.unfinished.jsonl").write_bytes(b'{"sett')
    run = Unfinished(out, HEAD, resume=True)
    assert run.found == {}
    run.close(remove=False)
    Unfinished(out, HEAD, resume=True).close(remove=True)


def test_an_unfinished_run_is_neither_overwritten_nor_continued_with_other_settings(out: Path) -> None:
    with pytest.raises(UserError, match=r"holds an unfinished run\. Add --resume"):
        Unfinished(out, HEAD, resume=False)
    with pytest.raises(UserError, match="top_k is 50 in this run but 20 now"):
        Unfinished(out, {**HEAD, "settings": {"top_k": 20, "scales": (50.0,)}}, resume=True)
    with pytest.raises(UserError, match="listing is 'abc' in this run but 'abd' now"):
        Unfinished(out, {**HEAD, "listing": "abd"}, resume=True)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Unfinished(tmp_path / "file" / "boxes.json", HEAD, resume=False)
