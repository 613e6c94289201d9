"""Of a start that differs in a branch, everything else is reused, and the report says what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfdet.errors import UserError
from selfdet.interchange.starts import Start, build_detector, detector_note, fill_backbone
from selfdet.models.backbones import build_backbone
from selfdet.training.transfer import TransferReport
from tiny_runs import BACKBONE

OPTIONS = {"fpn_channels": 64, "image_size": 96}
SCRATCH = Start("scratch", "scratch")


def start_of(key: str, method: str | None = None, backbone: str = BACKBONE, **options: Any) -> Start:
    """A detector as a start: fine-tuned, or pre-trained by a method."""
    torch.manual_seed(1)
    detector, _ = build_detector(SCRATCH, 3, key, backbone, {**({} if options else OPTIONS), **options})
    note = detector_note(detector, ["a", "b", "c"], [1, 2, 3], 96) | ({"method": method} if method else {})
    return Start("detector", f"some {key}", dict(detector.net.state_dict()), note)


def taken_over(start: Start, key: str | None = None, **options: Any) -> tuple[dict[str, torch.Tensor], TransferReport]:
    torch.manual_seed(2)
    detector, report = build_detector(start, 3, key, None, options)
    assert report is not None
    return detector.net.state_dict(), report


def shares(report: TransferReport) -> dict[str, float]:
    return {part: row.share for part, row in report.rows.items()}


@pytest.mark.parametrize(
    ("given", "method"), [("faster_rcnn", "aligndet"), ("faster_rcnn", None), ("mask_rcnn", "aligndet")]
)
def test_a_mask_branch_that_has_learned_nothing_starts_afresh_and_all_else_is_reused(
    given: str, method: str | None
) -> None:
    start = start_of(given, method)
    state, report = taken_over(start, "mask_rcnn")
    assert shares(report) == {"backbone": 1, "neck": 1, "rpn": 1, "head": 1, "mask": 0, "last": 0}
    row = report.rows["mask"]
    assert row.reinitialised == row.size > 0
    assert not report.missing
    for name, value in state.items():
        if name.startswith("rpn."):
            assert value.equal(start.state[name])
        elif "mask_head" in name and name.endswith("weight") and name in start.state:
            assert not value.equal(start.state[name])


def test_a_mask_branch_that_has_seen_labels_is_reused_but_for_its_outputs() -> None:
    start = start_of("mask_rcnn")
    state, report = taken_over(start)
    assert shares(report) == {"backbone": 1, "neck": 1, "rpn": 1, "head": 1, "mask": 1, "last": 0}
    masks = [name for name in state if "mask_head" in name]
    assert all(state[name].equal(start.state[name]) for name in masks)
    outputs = "roi_heads.mask_predictor.mask_fcn_logits.weight"
    assert not state[outputs].equal(start.state[outputs])


@pytest.mark.parametrize("method", ["aligndet", None])
def test_without_a_mask_branch_that_of_the_start_is_said_to_be_left_over(method: str | None) -> None:
    start = start_of("mask_rcnn", method)
    _, report = taken_over(start, "faster_rcnn")
    assert shares(report) == {"backbone": 1, "neck": 1, "rpn": 1, "head": 1, "last": 0, "other": 0}
    over = {name: value for name, value in start.state.items() if name.startswith("roi_heads.mask_")}
    assert report.unexpected == list(over)
    assert report.rows["other"].unexpected == sum(value.numel() for value in over.values())
    assert "unexpected: roi_heads.mask_head" in report.table()


@pytest.mark.parametrize("keep", [True, False])
def test_box_outputs_are_kept_for_masks_too_where_asked(keep: bool) -> None:
    start = start_of("faster_rcnn", "aligndet")
    detector, _ = build_detector(start, 3, "mask_rcnn", None, {}, keep_box_outputs=keep)
    name = "roi_heads.box_predictor.bbox_pred.weight"
    assert detector.net.state_dict()[name].equal(start.state[name]) == keep


@pytest.mark.parametrize(
    ("given", "options", "asked", "message", "hint"),
    [
        ("fcos", {}, "mask_rcnn", "is a fcos, not a mask_rcnn", "pre-train a mask_rcnn"),
        ("mask_rcnn", {}, "retinanet", "is a mask_rcnn, not a retinanet", "pre-train a retinanet"),
        ("faster_rcnn", {"neck": "c4"}, "mask_rcnn", "with the neck c4, and a mask_rcnn has a pyramid", "the neck fpn"),
    ],
)
def test_other_changes_of_the_detector_are_refused(
    given: str, options: dict[str, Any], asked: str, message: str, hint: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        taken_over(start_of(given, backbone="resnet18", **options, image_size=96), asked)
    assert hint in refused.value.hint


@pytest.mark.parametrize(("own", "asked"), [("fpn", "c4"), ("c4", "fpn")])
def test_another_neck_is_refused(own: str, asked: str) -> None:
    start = start_of("faster_rcnn", backbone="resnet18", neck=own, image_size=96)
    with pytest.raises(UserError, match=f"has the neck {own}, not {asked}") as refused:
        taken_over(start, neck=asked)
    assert refused.value.hint.startswith("Leave --neck out")


def test_a_neck_is_refused_where_a_detector_has_no_choice_of_it() -> None:
    for key in ("fcos", "mask_rcnn"):
        with pytest.raises(UserError, match=f"--neck is no setting of {key}"):
            build_detector(SCRATCH, 3, key, BACKBONE, {"neck": "fpn"})


def test_a_backbone_fills_both_halves_of_a_c4_detector() -> None:
    torch.manual_seed(3)
    given = build_backbone("resnet18").net.state_dict()
    start = Start("backbone", "some.safetensors", dict(given))
    detector, report = build_detector(start, 3, "faster_rcnn", "resnet18", {"neck": "c4", "image_size": 96})
    assert report is not None
    assert shares(report) == {"backbone": 1, "rpn": 0, "last": 0}
    net, part = detector.net.state_dict(), detector.parts()["backbone"]
    counted = sum(value.numel() for name, value in net.items() if part.holds(name) and value.is_floating_point())
    assert report.rows["backbone"].reused == counted
    for name, value in given.items():
        half = "roi_heads.box_head." if name.startswith("layer4.") else "backbone.body."
        assert net[half + name].equal(value)


def test_a_library_fills_both_halves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def build(name: str, weights: str | None = None) -> Any:
        asked.append(weights)
        torch.manual_seed(3)
        return build_backbone(name)

    monkeypatch.setattr("selfdet.interchange.starts.build_backbone", build)
    start = Start("library", "library:resnet18", note={"backbone": "resnet18"})
    detector, _ = build_detector(start, 3, "faster_rcnn", None, {"neck": "c4", "image_size": 96})
    given, net = build("resnet18").net.state_dict(), detector.net.state_dict()
    assert asked[0] == "library"
    assert net["roi_heads.box_head.layer4.1.conv2.weight"].equal(given["layer4.1.conv2.weight"])
    assert net["backbone.body.conv1.weight"].equal(given["conv1.weight"])


def test_a_c4_detector_is_a_start_for_itself_and_for_a_backbone() -> None:
    start = start_of("faster_rcnn", backbone="resnet18", neck="c4", image_size=96)
    _, report = taken_over(start)
    assert shares(report) == {"backbone": 1, "rpn": 1, "last": 0}
    backbone = build_backbone("resnet18")
    row = fill_backbone(backbone, start).rows["backbone"]
    assert (row.share, row.missing, row.unexpected) == (1.0, 0, 0)
    name = "layer4.1.conv2.weight"
    assert backbone.net.state_dict()[name].equal(start.state[f"roi_heads.box_head.{name}"])
