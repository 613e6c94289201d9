"""Weights files: plain tensors only, nothing executed, written whole or not at all."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfdet.errors import UserError
from selfdet.interchange.weights import DTYPES, differing, read_weights, write_safetensors


def tensors():
    return {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "bn.num_batches_tracked": torch.tensor(3)}


def same(left, right):
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def test_what_is_written_is_read_with_its_metadata(tmp_path):
    file = tmp_path / "backbone.safetensors"
    write_safetensors(file, tensors(), {"selfdet": "{}"})
    state, metadata = read_weights(file)
    assert same(state, tensors())
    assert metadata == {"selfdet": "{}"}
    assert same(load_file(file), tensors())


def test_shared_and_strided_tensors_are_written_in_full(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tied = {"a": base, "b": base, "row": base[1], "turned": base.t(), "grad": torch.nn.Parameter(base)}
    tied["last"] = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    write_safetensors(tmp_path / "w.safetensors", tied, {})
    assert same(read_weights(tmp_path / "w.safetensors")[0], tied)


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    file = tmp_path / "w.safetensors"
    write_safetensors(file, tensors(), {})
    before = file.read_bytes()

    def full(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_safetensors(file, {"other": torch.zeros(1)}, {})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_torch_files_are_read_flat_or_from_their_usual_container(tmp_path, container):
    content = tensors() if container is None else {container: tensors(), "epoch": 7, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "w.pth")
    state, metadata = read_weights(str(tmp_path / "w.pth"))
    assert same(state, tensors())
    assert metadata == {}


def test_parameters_are_read_as_plain_tensors(tmp_path):
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "w.pt")
    state, _ = read_weights(tmp_path / "w.pt")
    assert type(state["w"]) is torch.Tensor
    assert not state["w"].requires_grad


def test_the_content_decides_and_not_the_suffix(tmp_path):
    write_safetensors(tmp_path / "w.pth", tensors(), {"a": "b"})
    torch.save(tensors(), tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.pth")[1] == {"a": "b"}
    assert same(read_weights(tmp_path / "w.safetensors")[0], tensors())


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("write", ["torch", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_not_executed(tmp_path, write):
    victim, file = tmp_path / "victim", tmp_path / "w.pth"
    content = {"state_dict": {"w": torch.ones(1)}, "extra": Malicious(victim)}
    if write == "pickle":
        file.write_bytes(pickle.dumps(Malicious(victim)))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(UserError, match=r"w\.pth holds more than plain tensors and was not executed") as refused:
        read_weights(file)
    assert not victim.exists()
    assert "\n" not in str(refused.value)


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(UserError, match="more than plain tensors"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"w": torch.ones(1), "epoch": 3}, "'epoch' is a int"),
        ({"weights": {"w": torch.ones(1)}}, "'weights' is a dict"),
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({}, "holds no tensors"),
    ],
    ids=["number", "unknown container", "list", "tensor", "empty"],
)
def test_anything_but_tensors_by_name_is_refused_by_name(tmp_path, content, named):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=named):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b"\x89PNG\r\n\x1a\n" + bytes(50), b"PK\x03\x04" + bytes(60)])
def test_a_file_that_holds_no_weights_is_refused_in_one_line(tmp_path, content):
    file = tmp_path / "w.pth"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth") as refused:
        read_weights(file)
    assert "\n" not in str(refused.value)


def test_a_truncated_file_is_refused(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", tensors(), {})
    torch.save(tensors(), tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
        with pytest.raises(UserError, match=name):
            read_weights(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(UserError, match="directory"):
        read_weights(tmp_path)


def test_weights_files_are_as_readable_as_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_safetensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)}, {})
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_every_kind_of_number_is_written_as_the_library_writes_it(tmp_path):
    kinds = {str(kind): torch.arange(3).to(kind) for kind in DTYPES} | {
        "none": torch.zeros(0, 4),
        "one": torch.tensor(7),
    }
    write_safetensors(tmp_path / "w.safetensors", kinds, {"selfdet": "Größe"})
    assert same(load_file(tmp_path / "w.safetensors"), kinds)
    assert read_weights(tmp_path / "w.safetensors")[1] == {"selfdet": "Größe"}


def test_what_a_file_has_otherwise_is_named(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(3), "h": torch.ones(2, dtype=torch.float16)}
    write_safetensors(tmp_path / "w.safetensors", tensors, {"about": "x"})
    assert differing(tmp_path / "w.safetensors", tensors) == []
    assert differing(tmp_path / "w.safetensors", {**tensors, "a": tensors["a"] + 1}) == ["a"]
    assert differing(tmp_path / "w.safetensors", {**tensors, "a": tensors["a"].view(3, 2)}) == ["a"]
    assert differing(tmp_path / "w.safetensors", {**tensors, "n": torch.tensor(3.0)}) == ["n"]
    assert sorted(differing(tmp_path / "w.safetensors", {"a": tensors["a"], "b": tensors["a"]})) == ["b", "h", "n"]
