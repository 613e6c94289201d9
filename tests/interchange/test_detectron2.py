"""detectron2's pickles: arrays by name and nothing else, whatever the file asks for."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.interchange.foreign_files import as_detectron2, body, resnet18

from selfdet.errors import UserError
from selfdet.interchange.detectron2 import read_pickle
from selfdet.interchange.detectron2_names import as_mmdet
from selfdet.interchange.imports import import_backbone, read_content


def put(folder: Path, content: bytes) -> Path:
    (folder / "weights.pkl").write_bytes(content)
    return folder / "weights.pkl"


ARRAYS = {
    "floats": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "halves": np.arange(3, dtype=np.float16),
    "none": np.zeros((0, 4), np.float32),
    "scalar": np.array(7, np.int64),
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_every_kind_are_read(tmp_path: Path, protocol: int) -> None:
    content = {"model": OrderedDict(ARRAYS), "__author__": "MOCO", "matching_heuristics": True, "raw": b"\x00\xff"}
    read = read_pickle(put(tmp_path, pickle.dumps(content, protocol)))
    assert read["matching_heuristics"] is True
    for name, value in content["model"].items():  # type: ignore[attr-defined]
        assert torch.equal(read["model"][name], torch.from_numpy(np.array(value)))


def python_2(arrays: dict[str, np.ndarray]) -> bytes:
    """As Python 2 pickled arrays: their bytes as its own kind of text."""
    made = [pickle.PROTO + b"\x02", pickle.EMPTY_DICT, pickle.MARK]

    def text(value: bytes) -> bytes:
        return pickle.BINSTRING + struct.pack("<i", len(value)) + value

    for name, value in arrays.items():
        made += [text(name.encode()), b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n"]
        made += [b"(K\x00t", text(b"b"), pickle.TUPLE3, pickle.REDUCE, pickle.MARK, b"K\x01", pickle.MARK]
        made += [b"J" + struct.pack("<i", side) for side in value.shape]
        made += [b"t", b"cnumpy\ndtype\n", text(b"f4"), b"K\x00K\x01", pickle.TUPLE3, pickle.REDUCE]
        made += [pickle.MARK, b"K\x03", text(b"<"), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", pickle.BUILD]
        made += [pickle.NEWFALSE, text(value.tobytes()), b"t", pickle.BUILD]
    return b"".join([*made, pickle.SETITEMS, pickle.STOP])


def test_what_python_2_wrote_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    read = read_pickle(put(tmp_path, python_2({"conv1_w": values})))
    assert torch.equal(read["conv1_w"], torch.from_numpy(values))


class Runs:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


class Kept:
    def __init__(self) -> None:
        self.value = 1


HOSTILE = {
    "a program": lambda file: Runs(os.system, f"touch {file}"),
    "another program": lambda file: Runs(subprocess.run, ["touch", str(file)]),
    "code": lambda file: Runs(eval, f"open({str(file)!r}, 'w')"),
    "a file": lambda file: Runs(open, str(file), "w"),
    "a module": lambda file: Runs(__import__, "os"),
    "an object": lambda file: Kept(),
    "a way to attributes": lambda file: Runs(getattr, OrderedDict, "update"),
    "objects in an array": lambda file: np.array([{}], dtype=object),
    "texts in an array": lambda file: np.array(["abc"]),
    "other bytes first": lambda file: np.arange(3, dtype=">f4"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_else_is_made_or_executed(tmp_path: Path, name: str, protocol: int) -> None:
    trace = tmp_path / "trace"
    content = pickle.dumps({"model": {"a": HOSTILE[name](trace)}}, protocol)
    with pytest.raises(UserError, match=r"was not executed|no pickle of arrays"):
        read_pickle(put(tmp_path, content))
    assert not trace.exists()


BOMBS = {
    # Ten bytes for which the implementation in C takes 64 GB.
    "a far place in memory": b"\x80\x02Nr\xff\xff\xff\xff.",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b".",
    "room before there are bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "a number of many digits": b"I" + b"9" * 60_000 + b"\n.",
    "a large array of nothing": pickle.dumps({"a": np.zeros(4, np.float32)}, 2).replace(
        b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"
    ),
    # One text of a megabyte, made into bytes a thousand times.
    "bytes again and again": (
        b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<i", 2**20) + b"a" * 2**20
        + b"q\x01X\x06\x00\x00\x00latin1q\x02" + b"00" + b"]" + b"h\x00h\x01h\x02\x86Ra" * 1000 + b"."
    ),
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "nothing": b"\x80\x02.",
    "a list": b"\x80\x02].",
    "a stored object": b"\x80\x02Pabc\n.",
    "a numbered class": b"\x80\x02\x82\x01.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_take_all_memory_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"was not executed|no pickle of arrays"):
        read_pickle(put(tmp_path, BOMBS[name]))


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    content = pickle.dumps({"model": {"a": np.arange(5, dtype=np.float32)}}, 2)
    for end in range(2, len(content)):
        with pytest.raises(UserError):
            read_pickle(put(tmp_path, content[:end]))


def test_no_stand_in_can_be_changed_by_a_file(tmp_path: Path) -> None:
    # BUILD on what stands in for a function would change it for every file that follows.
    for named in (b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n", b"cnumpy.core.multiarray\n_reconstruct\n"):
        content = b"\x80\x02" + named + b"N}X\x01\x00\x00\x00aK\x01s\x86b."
        pickletools.dis(content, io.StringIO())  # it is a sound pickle
        with pytest.raises(UserError, match="state for"):
            read_pickle(put(tmp_path, content))


def test_a_converted_resnet_is_the_one_it_was(tmp_path: Path) -> None:
    content = {"model": as_detectron2(resnet18()), "__author__": "MOCO", "matching_heuristics": True}
    file = put(tmp_path, pickle.dumps(content, 2))
    with pytest.raises(UserError, match="don't say which pixels"):
        import_backbone(file, read_content(file), "auto", None)
    taken = import_backbone(file, read_content(file), "auto", None, "rgb")
    assert (taken.format, taken.backbone.name) == ("detectron2", "resnet18")
    assert all(value.equal(taken.state[n]) for n, value in body().items() if not n.endswith("num_batches_tracked"))


def test_old_checkpoints_have_settings_beside_their_weights(tmp_path: Path) -> None:
    state = {f"backbone.bottom_up.{name}": value for name, value in as_detectron2(resnet18()).items()}
    extra = {"pixel_std": np.ones((3, 1, 1), np.float32), "proposal_generator.anchor_generator.cell_anchors.0": 0}
    content = {"model": {name: torch.as_tensor(value) for name, value in {**state, **extra}.items()}}
    assert not any("cell_anchors" in name or "pixel" in name for name in as_mmdet(content)["state_dict"])
    file = put(tmp_path, pickle.dumps({"model": state}, 2))
    import_backbone(file, content, "detectron2", None, "caffe")
    with pytest.raises(UserError, match=r"pixel_std is \[1.0, 1.0, 1.0\], with which --pixels rgb doesn't go"):
        import_backbone(file, content, "detectron2", None, "rgb")


def caffe2(bottlenecks: bool) -> dict[str, np.ndarray]:
    """Caffe2's names, the norms as a scale and a shift."""
    made = {"conv1_w": "conv1.weight", "res_conv1_bn_s": "bn1.weight", "res_conv1_bn_b": "bn1.bias"}
    for stage in (2, 3, 4, 5):
        for block in (0, 1):
            for layer, letter in (("1", "a"), ("2", "b")):
                own, theirs = f"layer{stage - 1}.{block}", f"res{stage}_{block}_branch2{letter}"
                made |= {f"{theirs}_w": f"{own}.conv{layer}.weight", f"{theirs}_bn_s": f"{own}.bn{layer}.weight"}
                made |= {f"{theirs}_bn_b": f"{own}.bn{layer}.bias"}
        if stage > 2:
            own, theirs = f"layer{stage - 1}.0.downsample", f"res{stage}_0_branch1"
            made |= {
                f"{theirs}_w": f"{own}.0.weight",
                f"{theirs}_bn_s": f"{own}.1.weight",
                f"{theirs}_bn_b": f"{own}.1.bias",
            }
    arrays = {name: resnet18()[own].numpy() for name, own in made.items()}
    if bottlenecks:
        arrays["res2_0_branch2c_w"] = np.zeros((256, 64, 1, 1), np.float32)
    return {**arrays, "conv1_b": np.zeros(64, np.float32), "conv1_w_momentum": np.zeros(1, np.float32)}


def test_norms_that_only_scale_and_add_are_that_here_as_well(tmp_path: Path) -> None:
    file = put(tmp_path, pickle.dumps({"blobs": caffe2(bottlenecks=False)}, 2))
    taken = import_backbone(file, read_content(file), "auto", None, "rgb")
    norm = torch.nn.BatchNorm2d(64).eval()
    norm.load_state_dict({name: taken.state[f"layer1.1.bn2.{name}"] for name in norm.state_dict()})
    maps = torch.randn(1, 64, 4, 4)
    scale, shift = (resnet18()[f"layer1.1.bn2.{name}"].view(1, 64, 1, 1) for name in ("weight", "bias"))
    torch.testing.assert_close(norm(maps), maps * scale + shift, atol=1e-6, rtol=1e-6)


def test_msras_bottlenecks_are_refused_by_name(tmp_path: Path) -> None:
    file = put(tmp_path, pickle.dumps(caffe2(bottlenecks=True), 2))
    with pytest.raises(UserError, match=r"MSRA's.*strides in the 1×1 convolutions"):
        import_backbone(file, read_content(file), "auto", None, "caffe")
