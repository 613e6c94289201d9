"""An exported backbone is a weights file of its own library."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

from selfdet.data.images import PIXELS
from selfdet.errors import UserError
from selfdet.interchange.export_backbone import (
    export_backbone,
    fresh_modules,
    in_library,
    open_backbone,
    write_backbone,
)
from selfdet.interchange.outgoing import Outgoing
from selfdet.interchange.starts import resolve_start, save_backbone
from selfdet.interchange.weights import read_weights, write_safetensors
from selfdet.models.backbones import build_backbone, evaluating, torchvision_resnets


@pytest.mark.parametrize(
    ("name", "whole", "absent"),
    [
        ("resnet18", lambda: torchvision.models.resnet18(), ["fc.weight", "fc.bias"]),
        ("timm/resnet18", lambda: timm.create_model("resnet18"), ["fc.weight", "fc.bias"]),
        (
            "mobilenetv3_small_050",
            lambda: timm.create_model("mobilenetv3_small_050"),
            ["conv_head.weight", "conv_head.bias", "classifier.weight", "classifier.bias"],
        ),
    ],
    ids=["torchvision", "timm", "timm with a neck before its classifier"],
)
def test_the_library_loads_the_file_and_misses_only_what_lies_behind_the_maps(tmp_path, name, whole, absent):
    backbone = build_backbone(name)
    write_backbone(tmp_path, backbone, {"method": "densecl"})
    net = whole()
    result = net.load_state_dict(load_file(tmp_path / "backbone.safetensors"), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == absent
    assert all(missing.startswith(tuple(fresh_modules(backbone))) for missing in absent)


@pytest.mark.parametrize(("name", "library"), [("resnet18", "timm"), ("timm/resnet18", "torchvision")])
def test_a_resnet_goes_to_the_other_library_too(tmp_path, name, library):
    backbone = build_backbone(name)
    written = export_backbone(tmp_path, Outgoing("backbone", backbone, {"method": "densecl"}, "runs/pre"), library)
    assert written.figures["maps"] == 4
    assert written.figures["largest_difference"] < 1e-5
    assert f'{library}.{"create_model" if library == "timm" else "models.get_model"}("resnet18"' in (
        tmp_path / "load.py"
    ).read_text("utf-8")


@pytest.mark.parametrize("name", torchvision_resnets())
def test_timm_has_every_resnet_of_torchvisions(name):
    with torch.device("meta"):
        assert in_library(build_backbone(name), "timm").library == "timm"


def test_a_network_that_only_one_library_has_is_refused_with_where_it_goes(tmp_path):
    for name, library, hint in (
        ("mobilenetv3_small_050", "torchvision", "Use --to timm"),
        ("cb-resnet18", "timm", "Use --to onnx or --to torch-export"),
    ):
        with pytest.raises(UserError, match=hint):
            export_backbone(tmp_path, Outgoing("backbone", build_backbone(name), {}, "runs/pre"), library)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_an_opened_backbone_sees_what_the_saved_one_saw(tmp_path, name):
    """Also where the network has numbers that no file has, such as a Swin's places in a window, or can't be built
    without weights."""
    backbone = build_backbone(name)
    save_backbone(tmp_path / "backbone.safetensors", backbone, {})
    again = open_backbone(resolve_start(str(tmp_path / "backbone.safetensors")))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad(), evaluating(backbone), evaluating(again):
        ours, theirs = again(images), backbone(images)
    assert all(torch.equal(ours[level], theirs[level]) for level in theirs)
    # Whoever builds a network afterwards gets one with weights.
    assert not any(parameter.is_meta for parameter in build_backbone("resnet18").parameters())


def test_the_exported_file_is_a_start_again(tmp_path):
    backbone = build_backbone("resnet18")
    write_backbone(tmp_path, backbone, {"method": "densecl"})
    start = resolve_start(str(tmp_path / "backbone.safetensors"))
    own = {"kind": "backbone", "backbone": "resnet18", "library": "torchvision", "pixels": PIXELS}
    assert start.note == {**own, "method": "densecl"}
    again = open_backbone(start).net.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in backbone.net.state_dict().items())


def test_a_file_that_names_no_network_is_refused(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "somebodys.pth")
    with pytest.raises(UserError, match="does not say which network"):
        open_backbone(resolve_start(str(tmp_path / "somebodys.pth")))


@pytest.mark.parametrize("change", ["prefix", "shape", "gone"])
def test_tensors_that_do_not_fit_the_named_network_are_refused(tmp_path, change):
    file = tmp_path / "backbone.safetensors"
    save_backbone(file, build_backbone("resnet18"), {})
    state, metadata = read_weights(file)
    weight = state.pop("layer4.1.conv2.weight")
    state |= {"prefix": {"net.layer4.1.conv2.weight": weight}, "shape": {"layer4.1.conv2.weight": weight[:7]}}.get(
        change, {}
    )
    write_safetensors(file, state, metadata)
    with pytest.raises(UserError, match="does not fit its own description"):
        open_backbone(resolve_start(str(file)))
