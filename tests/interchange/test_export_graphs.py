"""ONNX and torch.export: what goes out finds the same in onnxruntime, and in a process without selfdet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.detectors.rcnn_scenes import small_c4, small_cascade, small_faster, small_mask
from tests.detectors.scenes import small_fcos, small_retinanet
from torchvision.transforms.v2 import functional as F

from selfdet import export
from selfdet.data.images import read_image
from selfdet.data.labelled import resize_sample
from selfdet.data.sample import plain_sample
from selfdet.errors import UserError
from selfdet.interchange.export_onnx import keep_constants
from selfdet.interchange.fixed_padding import fixed_padding
from selfdet.interchange.graph_export import graph_of, taken_down, trial_images
from selfdet.interchange.outgoing import Outgoing
from selfdet.interchange.starts import detector_note, save_backbone, save_detector
from selfdet.models.backbones import build_backbone

NEW_ENOUGH = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)
pytestmark = pytest.mark.skipif(not NEW_ENOUGH, reason="graphs of any size need torch 2.9")
NATIVE = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # elsewhere torch resizes bytes as floats
SLOW = pytest.mark.slow
DETECTORS: dict[str, Any] = {
    "fcos": lambda: small_fcos(num_classes=2, image_size=64),
    "retinanet": lambda: small_retinanet(num_classes=2, image_size=64),
    # Large enough for more than one cell of the coarsest map, whose sizes go by those of the image rounded up.
    "fcos of mmdet": lambda: small_fcos(num_classes=2, image_size=160, mmdet={}),
    "retinanet of mmdet": lambda: small_retinanet(num_classes=2, image_size=160, mmdet={}),
    "faster_rcnn": lambda: small_faster(num_classes=2, image_size=64),
    "c4": lambda: small_c4(num_classes=2, image_size=64),
    "mask_rcnn": lambda: small_mask(num_classes=2, image_size=64, detections=30),
    "cascade_rcnn": lambda: small_cascade(num_classes=2, image_size=64),
}


def saved(folder: Path, key: str) -> str:
    detector = DETECTORS[key]()
    size = detector.config()["options"]["image_size"]
    save_detector(folder / "d.safetensors", detector, detector_note(detector, ["cat", "dog"], [17, 18], size))
    return str(folder / "d.safetensors")


def backbone(folder: Path, name: str = "resnet18") -> str:
    save_backbone(folder / "b.safetensors", build_backbone(name), {})
    return str(folder / "b.safetensors")


def test_layers_that_pad_by_the_size_of_their_input_go_out_with_numbers() -> None:
    """With a maximum of open sizes in each of its layers an EfficientNet-Lite0 would be simplified for hours."""
    network = build_backbone("tf_efficientnet_lite0").eval()
    images = torch.randint(0, 256, (2, 3, 96, 160), dtype=torch.uint8)
    graph = graph_of(Outgoing("backbone", network, {}, "a network"), lambda *_: torch.empty(0))
    with torch.no_grad():
        ours = graph(images)
        with fixed_padding(network):
            fixed = graph(images)
        taken = taken_down(graph, "a network").module()(images)
        after = graph(images)
    for own, *others in zip(ours, fixed, taken, after):
        assert all(torch.allclose(own, other, atol=1e-5) for other in others)


def test_two_clamps_of_one_value_keep_their_bounds(tmp_path: Path) -> None:
    class Clamps(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x.sigmoid()
            return y.clamp(min=0.1).clamp(max=0.8), y.clamp(min=0.2).clamp(max=0.7)

    x = torch.linspace(-4, 4, 9)
    program: Any = torch.onnx.export(Clamps(), (x,), dynamo=True, opset_version=20, verbose=False)
    keep_constants(program.model.graph)
    program.save(str(tmp_path / "clamps.onnx"))
    session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "clamps.onnx"))
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for one, other in zip(found, Clamps()(x)):
        torch.testing.assert_close(torch.from_numpy(one), other)


@SLOW
@pytest.mark.parametrize("to", ["onnx", "torch-export"])
@pytest.mark.parametrize("key", DETECTORS)
def test_an_exported_graph_finds_the_same_in_eight_images(tmp_path: Path, key: str, to: Any) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    answer = export(init=saved(tmp_path, key), to=to, out=str(tmp_path / "out"))
    figures = answer["check"]
    print(key, to, figures)
    assert figures["detections"] >= 300
    assert figures["box_difference"] <= 0.01
    assert figures["score_difference"] <= 1e-4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`sizes` (B, 2) int64" in card
    assert '0. "cat"' in card


@SLOW
@pytest.mark.parametrize("options", [{"nms": "out"}, {"opset": 20}])
def test_onnx_leaves_suppression_to_others_and_takes_other_opsets(tmp_path: Path, options: Any) -> None:
    onnx = pytest.importorskip("onnx")
    answer = export(init=saved(tmp_path, "fcos"), to="onnx", out=str(tmp_path / "out"), **options)
    assert answer["check"]["box_difference"] <= 0.01
    model = onnx.load(tmp_path / "out" / "detector.onnx")
    assert ("NonMaxSuppression" in {node.op_type for node in model.graph.node}) == ("nms" not in options)
    assert model.opset_import[0].version == options.get("opset", 18)
    assert ("run.py" in answer["files"]) == ("nms" not in options)


def test_the_program_beside_an_onnx_file_resizes_as_the_detector_was_trained() -> None:
    pytest.importorskip("onnxruntime")
    from selfdet.interchange.companions.run_onnx import resized

    image = trial_images(150)[0]
    for height, width in ((57, 90), (1, 3), (150, 31), (301, 77)):
        expected = F.resize_image(image, [height, width], antialias=True)
        found = torch.from_numpy(resized(image.permute(1, 2, 0).numpy(), height, width)).permute(2, 0, 1)
        assert int((found.int() - expected.int()).abs().max()) <= int(not NATIVE)


@SLOW
def test_the_program_beside_an_onnx_file_finds_the_same_without_selfdet(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export(init=saved(tmp_path, "fcos"), to="onnx", out=str(tmp_path / "out"))
    image = trial_images(150)[0]  # to be reduced, and with transparency
    seen = torch.cat([image, image[:1].div(2, rounding_mode="floor") + 128])
    Image.fromarray(seen.permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    code = "import sys, runpy; sys.modules['selfdet'] = sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    words = [sys.executable, "-B", "-c", code, str(tmp_path / "out" / "run.py"), str(tmp_path / "photo.png")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (listed,) = json.loads(done.stdout)
    (expected,) = DETECTORS["fcos"]().predict([resize_sample(plain_sample(read_image(tmp_path / "photo.png")), 64)])
    assert [each["score"] for each in listed["detections"]] == pytest.approx(expected["scores"].tolist(), abs=1e-4)
    sides = torch.tensor([each["bbox"] for each in listed["detections"]])
    boxes = torch.cat([sides[:, :2], sides[:, :2] + sides[:, 2:]], 1)
    assert float((boxes - expected["boxes"]).abs().max()) <= 0.015  # 0.005 of it of rounding, twice
    assert {each["category_id"] for each in listed["detections"]} <= {17, 18}


@SLOW
def test_a_backbone_gives_the_same_maps_without_selfdet(tmp_path: Path) -> None:
    answer = export(init=backbone(tmp_path), to="torch-export", out=str(tmp_path / "out"))
    assert answer["files"] == ["README.md", "backbone.pt2"]
    assert answer["check"]["maps"] == 16
    assert answer["check"]["largest_difference"] <= 1e-6


@SLOW
def test_a_backbone_gives_the_same_maps_in_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    answer = export(init=backbone(tmp_path, "mobilenetv3_small_050"), to="onnx", out=str(tmp_path / "out"))
    assert answer["files"] == ["README.md", "backbone.onnx"]
    assert answer["check"]["largest_difference"] <= 1e-4


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("onnx", {"opset": 99}, "--opset 99: expected 18 to 23"),
        ("onnx", {"nms": "out"}, "--nms is for detectors"),
        ("torchvision", {"opset": 18}, "--opset is for onnx, not for --to torchvision"),
        ("timm", {"nms": "in"}, "--nms is for onnx, torch-export"),
    ],
)
def test_what_no_graph_can_be_is_refused(tmp_path: Path, to: Any, options: Any, message: str) -> None:
    init = backbone(tmp_path)
    with pytest.raises(UserError, match=message):
        export(init=init, to=to, out=str(tmp_path / "out"), **options)
    assert os.listdir(tmp_path) == ["b.safetensors"]
