"""A checkpoint is whole or not there, holds plain tensors only, and is never executed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdet.errors import UserError
from selfdet.training.checkpoint import load_checkpoint, random_state, restore_random_state, save_checkpoint


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
