"""Exports on eight photographs of several shapes: the other library's own code finds what the detector finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from tests.detectors.detr_scenes import KEYS
from tests.detectors.rcnn_scenes import small_cascade, small_faster, small_mask
from tests.detectors.scenes import small_fcos, small_retinanet
from tests.interchange.rebuilding import note_of, own, rebuilt, seen
from tests.interchange.test_export_transformers import trained

from selfdet import export
from selfdet.data.images import read_image
from selfdet.detectors.base import Detector
from selfdet.interchange.companions import detect, run_onnx
from selfdet.interchange.export_check import compare_detections
from selfdet.interchange.export_transformers import write_transformers
from selfdet.interchange.starts import save_backbone, save_detector
from selfdet.interchange.weights import read_weights
from selfdet.models.backbones import build_backbone, evaluating

pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif("SELFDET_DATA" not in os.environ, reason="needs SELFDET_DATA"),
]
TORCHVISION = {
    "fcos": small_fcos,
    "retinanet": small_retinanet,
    "faster_rcnn": small_faster,
    "mask_rcnn": small_mask,
    "cascade_rcnn": small_cascade,
}
SIZE = 160


def photographs() -> list[Path]:
    return sorted((Path(os.environ["SELFDET_DATA"]) / "coco-tiny").rglob("*.jpg"))[:8]


def assert_equal(detector: Detector, found: list[dict[str, torch.Tensor]]) -> None:
    """Boxes within 0.01 px of the photograph, scores within 1e-4, of at least 98 %."""
    expected = [own(detector, read_image(file), SIZE) for file in photographs()]
    figures = compare_detections(expected, found)
    assert figures["detections"] > 80
    assert figures["box_difference"] <= 0.01
    assert figures["score_difference"] <= 1e-4


@pytest.mark.parametrize("key", TORCHVISION)
def test_torchvision(key: str, tmp_path: Path) -> None:
    detector = seen(TORCHVISION[key](image_size=SIZE))
    net = rebuilt(detector, tmp_path)
    with torch.no_grad():
        found = [net([read_image(file).float() / 255])[0] for file in photographs()]
    assert_equal(detector, [{**each, "masks": each["masks"][:, 0]} if "masks" in each else each for each in found])


@pytest.mark.parametrize("key", KEYS)
def test_transformers(key: str, tmp_path: Path) -> None:
    detector = trained(key, image_size=SIZE)
    write_transformers(tmp_path, detector, note_of(detector))
    loaded = detect.load(tmp_path)
    assert_equal(detector, [detect.find(read_image(file), *loaded, threshold=0.0) for file in photographs()])


@pytest.mark.parametrize("key", ["fcos", "retinanet", "faster_rcnn"])
def test_onnxruntime(key: str, tmp_path: Path) -> None:
    detector = seen(TORCHVISION[key](image_size=SIZE))
    save_detector(tmp_path / "d.safetensors", detector, note_of(detector))
    export(init=str(tmp_path / "d.safetensors"), to="onnx", out=str(tmp_path / "out"))
    finder = run_onnx.Detector(tmp_path / "out" / "detector.onnx")
    found = [finder(Image.open(file), None) for file in photographs()]
    names = ("boxes", "scores", "labels")
    assert_equal(detector, [{name: torch.as_tensor(value) for name, value in zip(names, each)} for each in found])


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet18"])
def test_timm(name: str, tmp_path: Path) -> None:
    backbone = build_backbone(name)
    save_backbone(tmp_path / "b.safetensors", backbone, {})
    export(init=str(tmp_path / "b.safetensors"), to="timm", out=str(tmp_path / "out"))
    net = timm.create_model(name, num_classes=0).eval()
    net.load_state_dict(read_weights(tmp_path / "out" / "backbone.safetensors")[0], strict=False)
    for file in photographs():
        image = read_image(file)[None, :, :192, :192].float() / 255
        with torch.no_grad(), evaluating(backbone):
            expected = list(backbone(image).values())[-1]
            found = net.forward_intermediates(image, indices=1, intermediates_only=True)[-1]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
