"""Weights are handed over with a report, all or nothing: what does not fit is refused, with what would make it fit."""

import pytest
import timm
import torch
import torchvision
from tests.detectors.scenes import small_fcos

from selfdet.detectors.network import Part
from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone
from selfdet.training.transfer import transfer

WHOLE = {"backbone": Part([".*"])}


def elements(state):
    return sum(value.numel() for value in state.values() if value.is_floating_point())


def fill(module, state, parts=WHOLE, expect=("backbone",), **options):
    return transfer(module, state, parts, expect=expect, **options)


def test_a_backbone_file_fills_the_backbone():
    source, target = build_backbone("resnet18").net, build_backbone("resnet18").net
    report = fill(target, source.state_dict())
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    row = report.rows["backbone"]
    assert (row.reused, row.share) == (elements(source.state_dict()), 1.0)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_a_classification_checkpoint_fills_the_backbone_and_its_classifier_is_unexpected(name):
    whole = torchvision.models.resnet18() if name == "resnet18" else timm.create_model(name)
    backbone = build_backbone(name)
    report = fill(backbone.net, whole.state_dict())
    own = backbone.net.state_dict()
    assert report.rows["backbone"].share == 1.0
    assert report.rows["backbone"].unexpected == elements(whole.state_dict()) - elements(own)
    assert any("fc" in name or "classifier" in name for name in report.unexpected)


def test_a_detector_file_fills_all_but_the_last_layers():
    source, target = small_fcos(num_classes=5, seed=1), small_fcos(num_classes=3, seed=2)
    fresh = {name: value.clone() for name, value in target.net.state_dict().items()}
    report = fill(target.net, source.net.state_dict(), target.parts(), {"backbone", "neck", "head"})
    for name, value in target.net.state_dict().items():
        last = target.parts()["last"].holds(name)
        assert torch.equal(value, fresh[name] if last else source.net.state_dict()[name]), name
    assert {part: row.share for part, row in report.rows.items()} == {"backbone": 1, "neck": 1, "head": 1, "last": 0}
    assert report.rows["last"].reinitialised == report.rows["last"].size > 0


def test_last_layers_start_afresh_even_where_they_would_fit():
    source, target = small_fcos(seed=1), small_fcos(seed=2)
    fill(target.net, source.net.state_dict(), target.parts(), {"backbone"})
    name = "head.classification_head.cls_logits.weight"
    assert not torch.equal(target.net.state_dict()[name], source.net.state_dict()[name])


def test_each_part_is_counted_in_elements():
    target = small_fcos()
    state = {name: value for name, value in target.net.state_dict().items() if not name.startswith("backbone.fpn")}
    state["backbone.body.fc.weight"] = torch.zeros(10, 512)
    report = fill(target.net, state, target.parts(), {"backbone"})
    assert report.rows["neck"].missing == report.rows["neck"].size
    assert report.rows["backbone"].unexpected == 5120
    assert sum(row.size for row in report.rows.values()) == elements(target.net.state_dict())
    assert report.to_dict()["parts"]["neck"]["missing"] == report.rows["neck"].missing


def test_batch_counters_are_copied_but_never_counted():
    source, target = build_backbone("resnet18").net, build_backbone("resnet18").net
    source.bn1.num_batches_tracked.fill_(7)
    fill(target, source.state_dict())
    assert target.bn1.num_batches_tracked == 7
    older = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    assert not fill(target, older).missing


@pytest.mark.parametrize("prefix", ["encoder.", "module.", "backbone.", "module.encoder_q.", "backbone.body."])
def test_one_wrong_prefix_is_refused_and_named(prefix):
    source, target = build_backbone("resnet18").net, build_backbone("resnet18").net
    before = target.conv1.weight.clone()
    renamed = {prefix + name: value for name, value in source.state_dict().items()}
    with pytest.raises(UserError, match=r"only 0\.0% of the backbone") as refused:
        fill(target, renamed, source="moco.pth")
    assert refused.value.message.startswith("moco.pth")
    assert f"'{prefix}conv1.weight', expected 'conv1.weight'" in refused.value.message
    assert f"removeprefix('{prefix}')" in refused.value.hint
    assert torch.equal(target.conv1.weight, before)


def test_a_missing_prefix_is_named_too():
    target = small_fcos()
    with pytest.raises(UserError) as refused:
        fill(target.net, target.backbone.net.state_dict(), target.parts(), {"backbone"})
    assert "expected 'backbone.body.conv1.weight'" in refused.value.message
    assert "'backbone.body.'" in refused.value.hint


def test_a_prefix_among_other_tensors_is_named():
    source, target = build_backbone("resnet18").net, build_backbone("resnet18").net
    state = {f"module.encoder_q.{name}": value for name, value in source.state_dict().items()}
    state |= {"module.encoder_q.fc.0.weight": torch.zeros(512, 512), "module.queue": torch.zeros(128, 65536)}
    with pytest.raises(UserError) as refused:
        fill(target, state)
    assert "removeprefix('module.encoder_q.')" in refused.value.hint


def test_another_architecture_is_refused_with_the_first_shapes():
    with pytest.raises(UserError, match="mismatched") as refused:
        fill(build_backbone("resnet18").net, build_backbone("resnet50").net.state_dict())
    assert "layer1.0.conv1.weight 64×64×1×1 for 64×64×3×3" in refused.value.message
    assert "architecture" in refused.value.hint
    assert "\n" not in str(refused.value)


def test_just_enough_of_a_part_is_accepted_and_just_too_little_refused():
    target = torch.nn.ModuleDict({"a": torch.nn.Linear(90, 1, bias=False), "b": torch.nn.Linear(10, 1, bias=False)})
    state = {"a.weight": torch.ones(1, 90)}
    assert fill(target, state).rows["backbone"].share == 0.9
    with pytest.raises(UserError, match=r"90\.0% of the backbone"):
        fill(target, state, minimum=0.91)


def test_a_part_nobody_expects_may_be_missing():
    target = small_fcos()
    state = {name: value for name, value in target.net.state_dict().items() if name.startswith("backbone.body")}
    report = fill(target.net, state, target.parts(), {"backbone"})
    assert (report.rows["head"].share, report.rows["backbone"].share) == (0.0, 1.0)


def test_weights_that_are_not_finite_are_refused_before_anything_is_copied():
    source, target = build_backbone("resnet18").net, build_backbone("resnet18").net
    before = target.conv1.weight.clone()
    state = dict(source.state_dict())
    state["layer4.1.bn2.bias"] = torch.full((512,), float("nan"))
    with pytest.raises(UserError, match=r"layer4\.1\.bn2\.bias is not finite"):
        fill(target, state)
    assert torch.equal(target.conv1.weight, before)


def test_half_precision_files_fill_a_float32_network():
    source, target = build_backbone("resnet18").net, build_backbone("resnet18").net
    fill(target, {name: value.half() for name, value in source.state_dict().items()})
    assert target.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(target.conv1.weight, source.conv1.weight, atol=1e-3, rtol=1e-3)


def test_the_table_shows_every_part_and_what_did_not_fit():
    target = small_fcos()
    state = dict(target.net.state_dict())
    state.pop("head.classification_head.conv.0.weight")
    text = fill(target.net, state, target.parts(), {"backbone"}).table()
    assert [line.split()[0] for line in text.splitlines()] == ["part", "backbone", "neck", "head", "last", "missing:"]
    assert "head.classification_head.conv.0.weight" in text
