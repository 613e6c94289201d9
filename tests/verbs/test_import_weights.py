"""`selfdet import-weights`: what it writes is a start, and goes out again as it came in; or nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tests.interchange.foreign_files import FILES, body, moco

from selfdet import export, import_weights
from selfdet.cli import main
from selfdet.errors import UserError
from selfdet.interchange.formats import FORMATS
from selfdet.interchange.starts import load_backbone, resolve_start
from selfdet.interchange.weights import read_weights

PAGE = Path(__file__).parent.parent.parent / "docs" / "how-to-weights.md"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("moco") / "moco.pth.tar"
    torch.save(moco(), file)
    return file


def test_a_checkpoint_becomes_a_start_and_goes_out_again(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "moco.safetensors"
    assert main(["import-weights", "--file", str(checkpoint), "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert (answer["format"], answer["backbone"], answer["kind"]) == ("moco", "resnet18", "backbone")
    assert answer["report"]["parts"]["backbone"]["missing"] == 0
    assert "backbone    100.0%" in printed.err
    assert "left out: encoder_k, fc, queue, queue_ptr" in printed.err
    start = resolve_start(str(out))
    assert start.note["backbone"] == "resnet18"
    assert {name: start.note["imported"][name] for name in ("file", "format", "pixels")} == {
        "file": "moco.pth.tar",
        "format": "moco",
        "pixels": "rgb",
    }
    assert len(start.note["imported"]["sha256"]) == 64
    backbone, report = load_backbone("resnet18", str(out))
    assert report is not None
    assert report.rows["backbone"].share == 1
    assert all(value.equal(backbone.net.state_dict()[name]) for name, value in body().items())
    exported = export(init=str(out), to="torchvision", out=str(tmp_path / "exported"))
    assert exported["check"]["largest_difference"] < 1e-6
    again = import_weights(
        file=str(tmp_path / "exported" / "backbone.safetensors"), out=str(tmp_path / "again.safetensors")
    )
    assert again["format"] == "torchvision"
    state, _ = read_weights(tmp_path / "again.safetensors")
    assert all(value.equal(body()[name]) for name, value in state.items())


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in FORMATS if key != "moco"])
def test_every_format_goes_out_to_its_library(tmp_path: Path, key: str) -> None:
    torch.save(FILES[key][0](), tmp_path / "weights.pth")
    made = import_weights(
        file=str(tmp_path / "weights.pth"),
        out=str(tmp_path / "w.safetensors"),
        format=key,  # type: ignore[arg-type]
        pixels="rgb",
        part="backbone",
    )
    to = "torchvision" if made["backbone"] == "resnet18" else "timm"
    done = export(init=str(tmp_path / "w.safetensors"), to=to, out=str(tmp_path / "exported"))  # type: ignore[arg-type]
    assert done["check"]["largest_difference"] < 1e-6


def test_what_does_not_fit_is_refused_with_the_report_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {name.replace("layer3", "body.layer3"): value for name, value in body().items()}
    torch.save(state, tmp_path / "weights.pth")
    words = ["--file", str(tmp_path / "weights.pth"), "--out", str(tmp_path / "w.safetensors")]
    assert main(["import-weights", *words]) == 2
    error = capsys.readouterr().err
    assert "reused" in error
    assert "missing: layer3.0.conv1.weight" in error
    assert error.splitlines()[-1].startswith(f"selfdet: error: {tmp_path / 'weights.pth'}: only ")
    assert "expected 100%" in error
    assert os.listdir(tmp_path) == ["weights.pth"]


def test_files_that_are_not_there_and_files_that_are_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="No such file"):
        import_weights(file=str(tmp_path / "none.pth"), out=str(out))
    with pytest.raises(UserError, match="there is no folder"):
        import_weights(file=str(checkpoint), out=str(tmp_path / "none" / "w.safetensors"))
    out.touch()
    with pytest.raises(UserError, match=r"w\.safetensors exists"):
        import_weights(file=str(checkpoint), out=str(out))


def test_the_page_says_what_is_taken_of_every_format() -> None:
    text = PAGE.read_text("utf-8")
    for key, known in FORMATS.items():
        assert f"| `{key}` | {known.taken} | {known.left} |" in text
