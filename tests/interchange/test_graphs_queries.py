"""DETRs as functions of bytes: what they find alone, in a batch, and in other programs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.detectors.detr_scenes import KEYS, small
from tests.interchange.rebuilding import note_of

from selfdet.errors import UserError
from selfdet.interchange.graph_export import check_detections, graph_of
from selfdet.interchange.outgoing import Outgoing
from selfdet.interchange.suppression import suppressed
from selfdet.interchange.targets import TARGETS

pytestmark = pytest.mark.parametrize("key", KEYS)


def outgoing(key: str, layers: int = 1, **options) -> Outgoing:
    detector = small(key, layers=layers, image_size=64).eval()
    return Outgoing("detector", detector, note_of(detector), "runs/x", options)


def test_the_graph_finds_what_the_detector_finds(key: str) -> None:
    given = outgoing(key)
    graph = graph_of(given, suppressed)

    def answer(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return dict(zip(graph.outputs, graph(*inputs.values())))

    figures = check_detections(graph, given.network, 64, answer)
    assert figures["detections"] > 100
    assert figures["box_difference"] < 0.001


def test_there_is_no_suppression_to_leave_out(key: str) -> None:
    with pytest.raises(UserError, match=r"--nms out: DETRs suppress nothing\. Leave --nms out"):
        graph_of(outgoing(key, nms="out"), suppressed)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_other_programs_find_the_same(key: str, to: str, tmp_path: Path) -> None:
    written = TARGETS[to].writers["detector"](tmp_path, outgoing(key, layers=2))
    assert written.figures["box_difference"] <= 0.01
    assert written.figures["score_difference"] <= 1e-4
