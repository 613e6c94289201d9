"""A DETR in transformers' own code: the same detections, names and sizes; what it cannot express is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.detectors.detr_scenes import KEYS, small
from tests.interchange.rebuilding import noise, note_of, own
from torch import nn

from selfdet.data.pixels import normalise
from selfdet.errors import UserError
from selfdet.interchange.companions import detect
from selfdet.interchange.export_check import ExportMismatchError, check_images
from selfdet.interchange.export_transformers import (
    check_transformers,
    export_transformers,
    write_transformers,
)
from selfdet.interchange.export_transformers_backbone import export_transformers_backbone, write_transformers_backbone
from selfdet.interchange.outgoing import Outgoing
from selfdet.models.backbones import build_backbone, evaluating


def trained(key: str, **options):
    """A small detector whose norms have met images, and which finds things."""
    options = {"layers": 1, "image_size": 64, "score_threshold": 0.0, "detections": 60, **options}
    detector = small(key, **options).eval()
    with torch.no_grad():
        for module in detector.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
    return detector


@pytest.mark.parametrize("key", KEYS)
def test_transformers_loads_the_folder_and_finds_the_same(key: str, tmp_path: Path) -> None:
    detector = trained(key)
    write_transformers(tmp_path, detector, note_of(detector))
    net, processor, settings = detect.load(tmp_path)
    assert type(net).__name__ == type(detector.net).__name__
    assert net.config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}
    # One reduced and padded, one enlarged and with fewer cells than queries.
    for height, width in ((75, 90), (20, 17)):
        image = noise(height, width)
        found = detect.find(image, net, processor, settings)
        expected = own(detector, image, 64)
        assert len(expected["scores"]) == len(found["scores"]) == 60
        torch.testing.assert_close(found["scores"], expected["scores"], atol=1e-5, rtol=1e-4)
        near = (found["boxes"] - expected["boxes"]).abs().amax(1) < 0.01
        assert near.float().mean() > 0.95  # equal scores may change places
    # What a user of transformers gets who knows nothing of detector.json.
    inputs = processor(images=[noise(75, 90)], return_tensors="pt")
    assert max(inputs["pixel_values"].shape[-2:]) == 64
    assert net(**inputs).logits.shape[1] == 60


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
@pytest.mark.parametrize("key", KEYS)
def test_a_stranger_finds_the_same_over_usual_backbones(
    key: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.detectors.detr_scenes as scenes

    monkeypatch.setattr(scenes, "build_backbone", lambda name: build_backbone(backbone))
    detector = trained(key, image_size=128)
    written = export_transformers(tmp_path, Outgoing("detector", detector, note_of(detector), "run"))
    assert written.figures["box_difference"] < 0.01
    assert written.figures["score_difference"] < 1e-4
    assert written.line.startswith("loaded in transformers, ")


@pytest.mark.slow
def test_weights_that_were_changed_are_found_out(tmp_path: Path) -> None:
    detector = trained("deformable_detr")
    write_transformers(tmp_path, detector, note_of(detector))
    with torch.no_grad():
        detector.net.class_embed[0].weight.add_(0.1)
    with pytest.raises(ExportMismatchError, match="have a counterpart"):
        check_transformers(tmp_path, detector, check_images(64))


def test_the_folder_says_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = trained("rtdetr")
    write_transformers(tmp_path, detector, note_of(detector))
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "detector.json", "detect.py"}
    assert {file.name for file in tmp_path.iterdir()} == names
    described = json.loads((tmp_path / "detector.json").read_text())
    assert described["classes"] == ["class 0", "class 1", "class 2"]
    assert described["category_ids"] == [10, 20, 30]
    assert (described["image_size"], described["strides"], described["least_side"]) == (64, [8, 16, 32], 64)
    Image.fromarray(noise(30, 40).permute(1, 2, 0).numpy()).save(tmp_path / "grey.png")
    assert detect.read(tmp_path / "grey.png").equal(noise(30, 40))


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet50"])
def test_a_resnet_has_the_same_maps_under_transformers_own_names(name: str, tmp_path: Path) -> None:
    """Of bytes: its image processor normalises as the network was trained."""
    import transformers

    torch.manual_seed(0)
    backbone = build_backbone(name)
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    write_transformers_backbone(tmp_path, backbone)
    net, told = transformers.ResNetBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    last = transformers.AutoModel.from_pretrained(tmp_path).eval()
    image = noise(70, 90)
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path)(images=[image], return_tensors="pt").pixel_values
    with torch.no_grad(), evaluating(backbone):
        ours = list(backbone(normalise(image[None], backbone.mean, backbone.std)).values())
        theirs = net.eval()(pixels).feature_maps
        torch.testing.assert_close(last(pixels).last_hidden_state, ours[-1], rtol=1e-4, atol=1e-4)
    assert len(ours) == len(theirs) == 4
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_what_transformers_does_not_have_is_refused(tmp_path: Path) -> None:
    detector = trained("detr")
    with pytest.raises(UserError, match=r"--init runs/x is a fcos, which transformers does not have; it has detr"):
        export_transformers(tmp_path, Outgoing("detector", detector, {"detector": "fcos"}, "runs/x"))
    mobile = Outgoing("backbone", build_backbone("mobilenetv3_small_050"), {}, "runs/x")
    with pytest.raises(UserError, match=r"only plain ResNets have names of their own there\. Use --to timm"):
        export_transformers_backbone(tmp_path, mobile)
    detector.backbone.library_name = "nobody_knows"
    with pytest.raises(UserError, match="the backbone test_resnet is none of timm's"):
        write_transformers(tmp_path, detector, note_of(detector))
    detector.backbone.library_name = "resnet18"  # of other widths
    with pytest.raises(UserError, match="its test_resnet has no tensor"):
        write_transformers(tmp_path, detector, note_of(detector))
    assert not list(tmp_path.iterdir())
