"""A network as a function of bytes gives what the network itself gives, for images of several sizes at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.detectors.rcnn_scenes import TWO_STAGE, small_c4, small_cascade
from tests.detectors.scenes import SMALL
from torchvision.ops import nms

from selfdet.detectors.segmenter import fcn
from selfdet.errors import UserError
from selfdet.evaluation.segmenting import Sight, image_scores
from selfdet.interchange.cards import card
from selfdet.interchange.graph_export import check_detections, check_maps, graph_of, inputs_of, trial_images
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.interchange.suppression import suppressed
from selfdet.models.atrous import build_atrous_backbone
from selfdet.models.backbones import build_backbone, evaluating

NEW_ENOUGH = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)
NETWORKS: dict[str, Any] = {
    "fcos": SMALL["fcos"],
    "retinanet": SMALL["retinanet"],
    "retinanet of mmdet": lambda **given: SMALL["retinanet"](mmdet={}, **given),
    "fcos of mmdet": lambda **given: SMALL["fcos"](mmdet={}, **given),
    "faster_rcnn": TWO_STAGE["faster_rcnn"],
    "faster_rcnn c4": small_c4,
    "faster_rcnn exact": lambda **given: TWO_STAGE["faster_rcnn"](regions="exact", **given),
    "mask_rcnn": TWO_STAGE["mask_rcnn"],
    "cascade_rcnn": small_cascade,
}


def outgoing(key: str, **options: str) -> Outgoing:
    detector = NETWORKS[key](num_classes=2, image_size=64)
    return Outgoing("detector", detector, {"detector": detector.config()["detector"]}, "runs/ft", options)


def answer_of(graph: Any) -> Any:
    def answer(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return dict(zip(graph.outputs, graph(*inputs.values())))

    return answer


@pytest.mark.parametrize(
    "key", [pytest.param(key, marks=() if key in ("fcos", "faster_rcnn") else pytest.mark.slow) for key in NETWORKS]
)
def test_what_it_finds_is_what_the_detector_finds(key: str) -> None:
    given = outgoing(key)
    graph = graph_of(given, suppressed)
    figures = check_detections(graph, given.network, 64, answer_of(graph))
    assert figures["detections"] >= 100
    assert figures["box_difference"] < 0.01
    assert figures["score_difference"] < 1e-4


@pytest.mark.skipif(not NEW_ENOUGH, reason="graphs of any size need torch 2.9")
def test_a_program_finds_one_box_or_none_as_well_as_many() -> None:
    class Suppress(torch.nn.Module):
        def forward(self, boxes: torch.Tensor, scores: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
            return suppressed(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), threshold, 50, 0.5)

    generator = torch.Generator().manual_seed(0)
    corners = 100 * torch.rand(2, 40, 2, generator=generator)
    boxes = torch.cat([corners, corners + 30], 2)
    scores = torch.rand(2, 40, generator=generator)
    program = torch.export.export(Suppress(), (boxes, scores, torch.tensor([0.1])), strict=False).module()
    best = float(scores.max())
    for threshold, expected in ((0.0, None), (best - 1e-4, 1), (best, 0)):
        found = program(boxes, scores, torch.tensor([threshold]))
        assert torch.equal(found, Suppress()(boxes, scores, torch.tensor([threshold])))
        if expected is not None:
            assert len(found) == expected
        for image in (0, 1):
            above = torch.where(scores[image] > threshold)[0]
            kept = above[nms(boxes[image, above], scores[image, above], 0.5)]
            assert torch.equal(found[found[:, 0] == image, 1], kept)


def test_an_fcos_of_mmdets_suppresses_by_itself() -> None:
    with pytest.raises(UserError, match="other scores than it gives"):
        graph_of(outgoing("fcos of mmdet", nms="out"), suppressed)


@pytest.mark.parametrize("key", ["fcos", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_without_the_last_suppression_whoever_suppresses_finds_the_same(key: str) -> None:
    given = outgoing(key, nms="out")
    graph: Any = graph_of(given, suppressed)
    assert "labels" not in graph.outputs
    assert check_detections(graph, given.network, 64, answer_of(graph))["box_difference"] < 0.01


def test_a_backbone_gives_its_maps_of_bytes() -> None:
    backbone = build_backbone("resnet18")
    graph: Any = graph_of(Outgoing("backbone", backbone, {}, "runs/pre"), suppressed)
    assert check_maps(graph, 64, answer_of(graph)) == {"maps": 16, "largest_difference": 0}
    with torch.no_grad(), evaluating(backbone):
        images = inputs_of(graph, trial_images(64)[:1])["images"]
        assert [each.shape[1] for each in graph(images)] == [64, 128, 256, 512]


def test_a_segmenter_gives_its_scores_of_bytes() -> None:
    segmenter = fcn(3, build_atrous_backbone("resnet18"))
    graph: Any = graph_of(Outgoing("segmenter", segmenter, {}, "runs/seg"), suppressed)
    image = trial_images(64)[0]
    with torch.no_grad(), evaluating(segmenter):
        (found,) = graph(inputs_of(graph, [image])["images"])
        (expected,) = image_scores(segmenter, [image], Sight(64, 64))
    torch.testing.assert_close(found[0, :, : image.shape[1], : image.shape[2]], expected, atol=1e-5, rtol=1e-4)


def test_the_card_of_a_segmenters_graph_says_what_its_scores_are_and_that_padding_is_seen() -> None:
    segmenter = fcn(3, build_atrous_backbone("resnet18"))
    given = Outgoing("segmenter", segmenter, {"segmenter": "fcn", "image_size": 64}, "runs/seg")
    about = {"step": 8, "inputs": ["images"], "outputs": ["scores"]}
    text = card(given, "onnx", Written({}, "checked", about), None)
    assert "`scores` (B, 3, H, W) float32, before the softmax" in text
    assert "with the mean colour (124, 116, 104)" in text


def test_the_padding_may_hold_anything() -> None:
    given = outgoing("fcos")
    graph: Any = graph_of(given, suppressed)
    inputs = inputs_of(graph, trial_images(64)[6:7], 0.01)
    height, width = inputs["sizes"][0].tolist()
    other = inputs["images"].clone()
    other[:, :, height:] = 200
    other[:, :, :, width:] = 200
    with torch.no_grad():
        one, two = graph(*inputs.values()), graph(other, *list(inputs.values())[1:])
    assert all(torch.equal(*each) for each in zip(one, two))


def test_masks_need_the_last_suppression() -> None:
    with pytest.raises(UserError, match="masks are found for the boxes that are left"):
        graph_of(outgoing("mask_rcnn", nms="out"), suppressed)


def test_boxes_of_other_images_and_groups_are_left_alone() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [1, 0, 11, 10]]]).repeat(2, 1, 1)
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.3, 0.2, 0.05]])
    groups = torch.tensor([[0, 1, 0], [0, 0, 0]])
    left = suppressed(boxes, scores, groups, torch.tensor([0.1]), 100, 0.5)
    assert left.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert suppressed(boxes, scores, groups, torch.tensor([0.1]), 1, 0.5).tolist() == [[0, 0], [1, 0]]
