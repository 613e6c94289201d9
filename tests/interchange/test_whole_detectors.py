"""A plain state dict of a whole torchvision detector is a start that hands over neck and head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.interchange.starts import Start, build_detector, resolve_start
from selfdet.interchange.whole_detectors import as_detector
from selfdet.models.backbones import build_backbone
from selfdet.verbs.compare_starts import name_starts

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("fcos", {"fpn_channels": 64, "head_convs": 2}),
    ("retinanet", {"fpn_channels": 64, "head_convs": 1}),
    ("faster_rcnn", {"fpn_channels": 64, "box_head": "2fc"}),
    ("mask_rcnn", {"fpn_channels": 64, "box_head": "4conv1fc"}),
    ("cascade_rcnn", {"fpn_channels": 64, "box_head": "2fc"}),
]


@pytest.mark.parametrize(("key", "options"), KINDS)
def test_the_names_tell_detector_and_widths(key: str, options: dict[str, Any], tmp_path: Path) -> None:
    net = DETECTORS[key](7, build_backbone("resnet18"), **options)
    torch.save(net.net.state_dict(), tmp_path / "coco.pth")
    start = as_detector(resolve_start(str(tmp_path / "coco.pth")), "resnet18")
    assert (start.kind, start.note["detector"], start.note["options"]) == ("detector", key, options)
    built, report = build_detector(start, 2, None, None, {"image_size": 96})
    assert report is not None
    assert all(row.share == 1.0 or row.reinitialised == row.size for row in report.rows.values())
    assert {name for name, row in report.rows.items() if row.reused} >= {"backbone", "neck", "head"}
    name = next(name for name in start.state if "head" in name and name.endswith("weight") and "conv" in name)
    assert torch.equal(built.net.state_dict()[name], start.state[name])


def test_the_second_version_of_an_rcnn_is_refused() -> None:
    net = DETECTORS["faster_rcnn"](7, build_backbone("resnet18"), fpn_channels=64, neck_norm="bn", box_head="4conv1fc")
    with pytest.raises(UserError, match="of torchvision's second version"):
        as_detector(Start("backbone", "v2.pth", dict(net.net.state_dict())), "resnet18")


def test_other_weights_are_what_they_were() -> None:
    backbone = Start("backbone", "x.pth", dict(build_backbone("resnet18").net.state_dict()))
    assert as_detector(backbone, "resnet18") is backbone
    scratch = Start("scratch", "scratch")
    assert as_detector(scratch, "resnet18") is scratch


def test_a_comparison_tells_fine_tuning_what_they_are(tmp_path: Path) -> None:
    net = DETECTORS["fcos"](7, build_backbone("resnet18"), fpn_channels=64, head_convs=1)
    torch.save(net.net.state_dict(), tmp_path / "coco.pth")
    scratch, coco = name_starts(["scratch", str(tmp_path / "coco.pth")], tmp_path / "starts", "resnet18")
    assert scratch.told == "scratch"
    coco.write()
    told = resolve_start(coco.told)
    assert (told.kind, told.note["backbone"], coco.slug) == ("detector", "resnet18", "coco")
    assert [file for file, _ in coco.hashes()] == [str(tmp_path / "coco.pth")]
