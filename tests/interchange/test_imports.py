"""Backbones out of other programs' files: the same network, or a refusal with the report of what did not fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from tests.interchange.foreign_files import ALSO, FILES, body, folded, mm_swin, numbered, resnet18, swin, under, vit

from selfdet.data.pixels import IMAGENET_MEAN, IMAGENET_STD
from selfdet.errors import UserError
from selfdet.interchange.architectures import RESNETS, told_by
from selfdet.interchange.formats import FORMATS, tensors_in
from selfdet.interchange.imports import Imported, NotTakenError, import_backbone, read_content
from selfdet.interchange.transformers_names import check_strides
from selfdet.models.backbones import Backbone, build_backbone, evaluating


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as large as any of these; the content goes to the reader by itself."""
    file = tmp_path_factory.mktemp("foreign") / "weights.pth"
    with file.open("wb") as large:
        large.truncate(2**30)
    return file


def flat(content: Any, key: str) -> tuple[dict[str, Any], Any]:
    """A copy of the content and, inside it, the mapping of tensors that the format takes."""
    content = dict(content)
    found, name = tensors_in(content, key)
    if not name:
        return content, content
    content[name] = dict(found)
    return content, content[name]


def outputs(name: str, state: dict[str, Any]) -> list[torch.Tensor]:
    backbone = build_backbone(name)
    backbone.net.load_state_dict(state)
    with torch.no_grad(), evaluating(backbone):
        return list(backbone(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))).values())


def test_every_format_has_a_file_to_test_it_with() -> None:
    assert set(FILES) == set(FORMATS)


@pytest.mark.parametrize("key", FORMATS)
def test_every_format_gives_the_network_that_was_saved(place: Path, key: str) -> None:
    make, name, expected = FILES[key]
    content = make()
    given = import_backbone(place, content, key, None, "rgb")
    told = import_backbone(place, content, "auto", None, "rgb")
    assert (given.format, told.format) == (key, ALSO.get(key, key))
    assert given.backbone.name == told.backbone.name == name
    assert given.report.rows["backbone"].share == 1
    true = expected()
    own = given.backbone.net.state_dict()
    for taken in (given, told):
        assert taken.state.keys() == own.keys()
        counts = {each for each in own if each.endswith("num_batches_tracked")}  # not in every format
        assert all(value.equal(true[each]) for each, value in taken.state.items() if each not in counts)


def refused(place: Path, content: Any, key: str, **more: Any) -> UserError:
    with pytest.raises(UserError) as error:
        import_backbone(place, content, key, more.pop("name", None), more.pop("pixels", "rgb"))
    return error.value


@pytest.mark.parametrize("key", FORMATS)
def test_a_file_with_one_wrong_prefix_is_refused(place: Path, key: str) -> None:
    content, state = flat(FILES[key][0](), key)
    part = {
        "simmim": "layers.1.",
        "mmpretrain": "stages.1.",
        "timm": "blocks.1.",
        "mae": "blocks.1.",
        "lightly": ".5.",
        "detectron2": "res3.",
        "transformers": "stages.1.",
    }.get(key, "layer2.")
    for name in [each for each in state if part in each]:
        state[name.replace(part, f"x{part}" if part[0] != "." else f".x{part[1:]}", 1)] = state.pop(name)
    for asked in (key, "auto"):
        error = refused(place, content, asked)
        assert isinstance(error, NotTakenError)
        assert error.report.rows["backbone"].share < 0.97
        assert "x" + part.strip(".") in error.message or "missing" in error.message


@pytest.mark.parametrize("key", FORMATS)
def test_another_prefix_before_every_name_is_refused(place: Path, key: str) -> None:
    content, state = flat(FILES[key][0](), key)
    for name in list(state):
        state[f"wrong.{name}"] = state.pop(name)
    refused(place, content, key)
    refused(place, content, "auto")


def test_a_resnet_of_transformers_with_other_strides_is_refused(tmp_path: Path) -> None:
    """Its tensors are those of torchvision's; its settings, which stand beside them, tell."""
    for told, expected in (
        ('{"downsample_in_bottleneck": true}', "has downsample_in_bottleneck"),
        ("{}", ""),
        ("?", ""),
    ):
        (tmp_path / "config.json").write_text(told)
        if expected:
            with pytest.raises(UserError, match=expected):
                import_backbone(tmp_path / "model.safetensors", FILES["transformers"][0](), "auto", None)
        else:
            check_strides(tmp_path / "model.safetensors")


@pytest.mark.parametrize("key", FORMATS)
def test_half_the_names_are_refused(place: Path, key: str) -> None:
    content, state = flat(FILES[key][0](), key)
    for name in list(state)[::2]:
        del state[name]
    refused(place, content, key)


def test_a_wrong_format_is_refused_and_the_right_one_named(place: Path) -> None:
    error = refused(place, FILES["moco"][0](), "dino")
    assert "its names start like 'module.encoder_q." in error.message
    assert error.hint == "Its names look like --format moco"
    error = refused(place, FILES["torchvision"][0](), "moco")
    assert "--format moco expects names that start with 'module.encoder_q.'" in error.message
    assert error.hint == "Its names look like --format torchvision"
    assert (
        "a ResNet (resnet18), where --format simmim has a Swin"
        in refused(place, {"model": under("encoder.", body())}, "simmim").message
    )
    assert "no known format" in refused(place, {"a": torch.ones(1)}, "auto").message
    assert "holds no tensors" in refused(place, {"state_dict": {"a": 1}}, "torchvision").message


def changed(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**resnet18(), name: value}


def test_tensors_of_another_shape_or_not_finite_are_refused_with_the_report(place: Path) -> None:
    weight = resnet18()["layer4.0.conv1.weight"]
    error = refused(place, changed("layer4.0.conv1.weight", weight.transpose(0, 1)), "torchvision")
    assert isinstance(error, NotTakenError)
    assert "layer4.0.conv1.weight 256×512×3×3 for 512×256×3×3" in error.message
    assert error.report.mismatched
    error = refused(place, changed("layer1.0.bn1.bias", torch.full((64,), torch.nan)), "torchvision")
    assert "layer1.0.bn1.bias is not finite" in error.message
    assert isinstance(error, NotTakenError)
    wide = {name: torch.cat([value, value]) if value.dim() else value for name, value in resnet18().items()}
    assert isinstance(refused(place, wide, "torchvision"), NotTakenError)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_numbers_of_another_kind_are_refused(place: Path, kind: torch.dtype) -> None:
    weight = resnet18()["layer4.0.conv1.weight"]
    error = refused(place, changed("layer4.0.conv1.weight", weight.to(kind)), "torchvision")
    assert re.search(rf"layer4\.0\.conv1\.weight'? (is of )?{kind}", error.message)


def test_a_single_number_where_many_are_is_refused(place: Path) -> None:
    for name in ("layer1.0.conv1.weight", "conv1.weight", "bn1.running_var"):
        assert f"{name}' is a single number" in refused(place, changed(name, torch.tensor(1.0)), "torchvision").message


def test_nearly_all_is_not_said_to_be_all(place: Path) -> None:
    state = dict(resnet18())
    del state["layer1.0.bn1.bias"]
    error = refused(place, state, "torchvision")
    assert isinstance(error, NotTakenError)
    assert "only 99.9% of the backbone fits" in error.message
    assert "99.9%" in error.report.table()


def test_a_deeper_network_is_not_taken_for_its_first_layers(place: Path) -> None:
    error = refused(place, torchvision.models.resnet34().state_dict(), "torchvision", name="resnet18")
    assert "has layers that resnet18 does not have: layer1.2.conv1.weight" in error.message
    assert isinstance(error, NotTakenError)


@pytest.mark.slow
def test_the_shapes_tell_every_resnet() -> None:
    for name in RESNETS.values():
        with torch.device("meta"):
            net = torchvision.models.get_model(name)
        found = told_by(net.state_dict())
        assert found is not None
        assert found.name == name


def test_timm_has_resnets_of_its_own(place: Path) -> None:
    assert import_backbone(place, resnet18(), "timm", None).backbone.name == "timm/resnet18"
    assert "resnet18 is torchvision's" in refused(place, resnet18(), "timm", name="resnet18").message
    assert "test_resnet is timm's" in refused(place, resnet18(), "torchvision", name="test_resnet").message


def test_a_network_that_its_shapes_do_not_tell_is_named(place: Path) -> None:
    state = build_backbone("test_convnext").net.state_dict()
    assert "Name its network with --backbone" in refused(place, state, "timm").hint
    taken = import_backbone(place, state, "timm", "test_convnext")
    assert all(value.equal(taken.state[name]) for name, value in state.items())


def test_blue_first_becomes_red_first(place: Path) -> None:
    turned = changed("conv1.weight", resnet18()["conv1.weight"].flip(1))
    taken = import_backbone(place, turned, "torchvision", None, pixels="bgr")
    assert taken.state["conv1.weight"].equal(resnet18()["conv1.weight"])
    assert "blue first" in taken.said[0]


def test_caffes_pixels_are_folded_into_the_first_convolution(place: Path) -> None:
    taken = import_backbone(place, resnet18(), "torchvision", None, pixels="caffe")
    image = torch.rand(1, 3, 64, 64)
    theirs = image.flip(1) * 255 - torch.tensor([103.53, 116.28, 123.675]).view(1, 3, 1, 1)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (taken.backbone.mean, taken.backbone.std))
    true, ours = (build_backbone("resnet18") for _ in range(2))
    true.net.load_state_dict(body())
    ours.net.load_state_dict(taken.state)
    with torch.no_grad(), evaluating(true), evaluating(ours):
        for expected, found in zip(true(theirs).values(), ours((image - mean) / std).values()):
            torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def seen(backbone: Backbone, image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """The map of an image (1, 3, H, W) in 0…1, normalised so."""
    shift, factor = (torch.tensor(each).view(1, 3, 1, 1) for each in (mean, std))
    with torch.no_grad(), evaluating(backbone):
        return backbone((image - shift) / factor)["0"]


@pytest.mark.parametrize("key", ["dino", "mae"])
def test_the_pixels_of_a_vit_are_those_it_was_trained_on(place: Path, key: str) -> None:
    """DINO and MAE normalise by ImageNet's mean, timm most of its own ViTs by another."""
    encoder = {name: value for name, value in vit().items() if not name.startswith("head.")}
    taken = import_backbone(place, encoder, key, None)
    true, ours = build_backbone("vit_tiny_patch16_224"), taken.backbone
    assert ours.mean == (0.5, 0.5, 0.5)
    true.net.load_state_dict({name: encoder[name] for name in true.net.state_dict()})
    ours.net.load_state_dict(taken.state, assign=True)
    image = torch.rand(1, 3, 64, 96)
    expected = seen(true, image, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(seen(ours, image, ours.mean, ours.std), expected, atol=1e-4, rtol=1e-4)
    assert "ImageNet's mean" in taken.said[0]


def test_a_vit_that_may_be_of_several_programs_needs_to_be_told(place: Path) -> None:
    encoder = {name: value for name, value in vit().items() if not name.startswith("head.")}
    assert refused(place, encoder, "auto").hint == "Say whose it is with --format dino, mae or timm"
    taken = import_backbone(place, encoder, "timm", None)
    assert taken.state["patch_embed.proj.weight"].equal(encoder["patch_embed.proj.weight"])
    assert "pixels of the mean (0.5, 0.5, 0.5)" in taken.said[0]


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_is_told_and_its_registers_are_not_left_out(place: Path, registers: int) -> None:
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    true = build_backbone(name)
    state = dict(true.net.state_dict())
    if registers:  # there positions are of the class token as well, which is without a share of its own here
        first = torch.randn(1, 1, 384)
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
        state["cls_token"] = state["cls_token"] - first
    state = {re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", each): value for each, value in state.items()}
    teacher = {**under("backbone.", state), "backbone.mask_token": torch.zeros(1, 384)}
    taken = import_backbone(place, {"teacher": teacher}, "auto", None)
    assert (taken.format, taken.backbone.name, taken.said) == ("dino", name, [])
    for each, value in true.net.state_dict().items():
        torch.testing.assert_close(taken.state[each], value)
    if registers:
        refused(place, {"teacher": teacher}, "auto", name="vit_small_patch14_dinov2")


def test_strides_in_other_convolutions_are_refused(place: Path) -> None:
    state = torchvision.models.resnet50().state_dict()
    assert "strides in the 1×1" in refused(place, state, "torchvision", pixels="caffe").message


def test_norms_folded_into_convolutions_stay_there(place: Path) -> None:
    taken = import_backbone(place, folded(body()), "torchvision", None)
    assert "folded" in taken.said[0]
    for expected, found in zip(outputs("resnet18", body()), outputs("resnet18", taken.state)):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    half = {**folded(body()), "layer3.0.bn1.weight": torch.ones(256)}
    assert "Fold the norms of the whole network" in refused(place, half, "torchvision").hint


def test_smaller_windows_are_interpolated_and_said_to_be(place: Path) -> None:
    state = {
        name: value[:121] if name.endswith("bias_table") else value
        for name, value in FILES["simmim"][0]()["model"].items()
    }
    taken = import_backbone(place, {"model": state}, "simmim", None)
    assert "windows of 6 are interpolated for windows of 7" in taken.said[0]
    assert taken.state["layers.0.blocks.0.attn.relative_position_bias_table"].shape == (169, 3)


def merged_like_mm(image: torch.Tensor, state: dict[str, torch.Tensor], stage: int) -> torch.Tensor:
    """mmpretrain's patch merging: the 2 × 2 cells of a channel side by side, a norm, a matrix."""
    cells = torch.nn.functional.unfold(image, 2, stride=2).transpose(1, 2)
    start = f"stages.{stage}.downsample."
    cells = torch.nn.functional.layer_norm(
        cells, cells.shape[-1:], state[f"{start}norm.weight"], state[f"{start}norm.bias"]
    )
    return cells @ state[f"{start}reduction.weight"].T


def test_the_patch_merging_of_mmpretrain_gives_the_same(place: Path) -> None:
    state = mm_swin({**swin(), "layers.1.downsample.norm.weight": torch.rand(384)})
    taken = import_backbone(place, {"state_dict": under("backbone.", state)}, "mmpretrain", None)
    image = torch.randn(1, 96, 8, 8)
    merging = build_backbone(taken.backbone.name)
    merging.net.load_state_dict(taken.state)
    with torch.no_grad():
        ours = merging.net.get_submodule("layers.1.downsample")(image.permute(0, 2, 3, 1)).flatten(1, 2)
    torch.testing.assert_close(ours, merged_like_mm(image, state, 0), atol=1e-5, rtol=1e-5)


def test_numbered_modules_are_named_with_any_prefix(place: Path) -> None:
    state = under("online_network.encoder.", numbered(body()))
    taken = import_backbone(place, {"state_dict": state}, "byol", None)
    assert all(value.equal(body()[name]) for name, value in taken.state.items())


def test_what_is_left_out_is_named(place: Path) -> None:
    taken: Imported = import_backbone(place, FILES["swav"][0](), "auto", None)
    assert taken.left == ["projection_head", "prototypes"]
    assert import_backbone(place, FILES["lightly"][0](), "auto", None).left == ["backbone_momentum", "projection_head"]


def test_settings_of_a_program_are_no_reason_to_refuse_a_file_and_others_are(tmp_path: Path) -> None:
    file = tmp_path / "dino.pth"
    torch.save(FILES["dino"][0](), file)
    assert import_backbone(file, read_content(file), "auto", None).format == "dino"
    torch.save({"state_dict": {}, "scheduler": torch.optim.lr_scheduler.StepLR}, file)
    with pytest.raises(UserError, match="more than tensors and plain values and was not executed"):
        read_content(file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="is no readable torch file"):
        read_content(file)
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="neither safetensors nor a torch file"):
        read_content(file)


def test_a_file_of_torchs_first_format_is_read(tmp_path: Path) -> None:
    file = tmp_path / "old.pth"
    torch.save({"state_dict": resnet18()}, file, _use_new_zipfile_serialization=False)
    assert import_backbone(file, read_content(file), "auto", None).backbone.name == "resnet18"
