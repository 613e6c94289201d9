"""A checkpoint is whole or not there, holds plain tensors only, and is never executed."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdet.errors import UserError
from selfdet.training.checkpoint import (
    load_checkpoint,
    newest_whole,
    random_state,
    restore_random_state,
    save_checkpoint,
)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": torch.arange(3), "b": {"c": [1, 2.5, "d", None, True]}, "random": random_state()}
    save_checkpoint(tmp_path / "last.pt", content)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded["a"].equal(content["a"])
    assert loaded["b"] == content["b"]
    assert loaded["random"]["cpu"].equal(content["random"]["cpu"])
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_kill_while_saving_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})

    def half(content: Any, file: Any) -> None:
        file.write(b"PK half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1
    save_checkpoint(path, {"step": 3})
    assert load_checkpoint(path)["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_is_kept_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    if not links:
        monkeypatch.setattr(os, "link", refuse)

    def save(step: int) -> None:
        save_checkpoint(last, {"progress": {"step": step}}, previous)

    for step in (1, 2, 3):
        save(step)
    ordinary = os.replace
    for calls in range(3):  # of renaming, after which the process is killed
        left = calls

        def replace(source: Path, target: Path) -> None:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            ordinary(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with contextlib.suppress(KeyboardInterrupt):
                save(4)
        assert newest_whole(last, previous)[0]["progress"]["step"] in (3, 4)
    save(5)
    assert [load_checkpoint(file)["progress"]["step"] for file in (last, previous)] == [5, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def refuse(*_: Any) -> None:
    raise OSError("no links here")


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "gone"])
def test_a_damaged_one_makes_way_for_the_one_before_which_is_said(tmp_path: Path, damage: str) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in (3, 6):
        save_checkpoint(last, {"weights": torch.arange(1000), "progress": {"step": step}}, previous)
    assert newest_whole(last, previous)[1] == ""
    whole = last.read_bytes()
    # One bit of the weights: torch would read it without a word.
    flipped = whole.replace(torch.arange(500).numpy().tobytes(), torch.arange(500).bitwise_xor(1).numpy().tobytes())
    changed = {"cut": whole[:-300], "empty": b"", "changed": flipped}
    last.unlink() if damage == "gone" else last.write_bytes(changed[damage])
    content, said = newest_whole(last, previous)
    assert content["progress"]["step"] == 3
    what = "is gone" if damage == "gone" else "is damaged"
    assert said == f"{last} {what}: going on from the checkpoint before it, previous.pt, of step 3"
    previous.write_bytes(previous.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"last\.pt (does not exist|is not a checkpoint)"):
        newest_whole(last, previous)


def test_a_checkpoint_of_another_version_is_not_taken_for_damaged(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "previous.pt", {"progress": {"step": 3}})
    torch.save({"format": 99}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="checkpoint format 99"):
        newest_whole(tmp_path / "last.pt", tmp_path / "previous.pt")


class Malicious:
    """Would create a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_code_in_a_file_is_refused_and_not_executed(tmp_path: Path) -> None:
    torch.save({"format": 1, "method": Malicious(tmp_path / "done")}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "done")))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(UserError, match="not a checkpoint of plain tensors"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_a_damaged_file_is_the_users_to_mend(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-500] if damage is None else damage)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path)


def test_a_missing_file_or_another_format_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(tmp_path / "last.pt")
    for content, found in (({"format": 99}, "99"), ({}, "None"), (torch.zeros(1), "None")):
        torch.save(content, tmp_path / "last.pt")
        with pytest.raises(UserError, match=f"checkpoint format {found}, expected 1"):
            load_checkpoint(tmp_path / "last.pt")


def test_random_numbers_go_on_where_they_stopped() -> None:
    state = random_state()
    expected = torch.rand(4)
    torch.manual_seed(1)
    restore_random_state(state)
    assert torch.rand(4).equal(expected)
