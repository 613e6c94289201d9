"""An exported segmenter gives the same scores without selfdet, under the names of torchvision's FCN."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from selfdet.detectors.segmenter import fcn
from selfdet.interchange.export_check import ExportMismatchError
from selfdet.interchange.export_segmenter import check_segmenter, ordinary_backbone, write_segmenter
from selfdet.interchange.segmenters import load_segmenter, save_segmenter, segmenter_note
from selfdet.interchange.starts import resolve_start
from selfdet.models.atrous import build_atrous_backbone
from selfdet.verbs.export import export

CLASSES = ["background", "sky", "hill"]


def trained(folder: Path, backbone: str, head_convs: int = 2) -> Path:
    """A segmenter's file with statistics as training leaves them."""
    torch.manual_seed(0)
    net = fcn(len(CLASSES), build_atrous_backbone(backbone), head_convs=head_convs).train()
    for _ in range(3):
        net(torch.randn(2, 3, 64, 64))
    save_segmenter(folder / "segmenter.safetensors", net, segmenter_note(net, CLASSES, 64, 48))
    return folder / "segmenter.safetensors"


@pytest.mark.parametrize("backbone", [pytest.param("resnet18", marks=pytest.mark.slow), "test_resnet"])
def test_the_exported_folder_gives_the_same_scores_without_selfdet(tmp_path: Path, backbone: str) -> None:
    answer = export(init=str(trained(tmp_path, backbone)), to="torchvision", out=str(tmp_path / "out"))
    assert answer["kind"] == "segmenter"
    assert answer["files"] == ["README.md", "rebuild.py", "segmenter.json", "segmenter.safetensors"]
    assert answer["check"]["score_maps"] == 4
    assert answer["check"]["largest_difference"] < 1e-4
    assert json.loads((tmp_path / "out" / "segmenter.json").read_text())["classes"] == CLASSES


@pytest.mark.slow
def test_what_was_written_wrong_is_not_called_done(tmp_path: Path) -> None:
    net, note = load_segmenter(resolve_start(str(trained(tmp_path, "test_resnet"))))
    write_segmenter(tmp_path, net, note)
    about = json.loads((tmp_path / "segmenter.json").read_text())
    (tmp_path / "segmenter.json").write_text(json.dumps({**about, "mean": [0.1, 0.1, 0.1]}))
    with pytest.raises(ExportMismatchError, match="scores differ"):
        check_segmenter(tmp_path, net, note)


def test_other_libraries_get_the_backbone_with_its_strides_back(tmp_path: Path) -> None:
    net, _ = load_segmenter(resolve_start(str(trained(tmp_path, "test_resnet"))))
    plain = ordinary_backbone(net)
    with torch.no_grad():
        maps = plain.eval()(torch.zeros(1, 3, 64, 64))
    assert list(maps.values())[-1].shape[-1] == 64 // plain.strides[-1] == 2
    assert all(
        torch.equal(value, plain.net.state_dict()[name]) for name, value in net.backbone.net.state_dict().items()
    )
