"""Detectors over a composite backbone: its parts, and the assistant's own supervision."""

import pytest
import torch
from tests.detectors.scenes import sample

from selfdet.detectors.optim import part_of
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.methods.supervised import Supervised
from selfdet.models.backbones import build_backbone

BOXES = [[10, 12, 40, 60], [30, 20, 60, 50]]
NARROW = {"fcos": {"fpn_channels": 64, "head_convs": 1}, "cascade_rcnn": {"fpn_channels": 64}, "detr": {"layers": 1}}
BODY = {"detr": "model.backbone.model."}


def over_composite(key: str = "fcos", classes: int = 2):
    torch.manual_seed(0)
    return DETECTORS[key](classes, build_backbone("cb-resnet18"), image_size=64, **NARROW[key])


@pytest.mark.parametrize("key", list(NARROW))
def test_both_copies_are_the_backbone_and_their_connections_count_to_the_neck(key):
    detector = over_composite(key)
    parts = {name: part_of(detector, name) for name in detector.net.state_dict()}
    body = BODY.get(key, "backbone.body.")
    copies = [name for name in parts if name.startswith((f"{body}assistant.", f"{body}lead."))]
    assert {parts[name] for name in copies} == {"backbone"}
    assert len(copies) == sum(part == "backbone" for part in parts.values())
    connections = [part for name, part in parts.items() if name.startswith(f"{body}connections.")]
    assert connections == ["neck"] * 60  # ten convolutions with a norm of five values


def test_training_adds_half_of_the_losses_on_the_assistants_maps():
    detector = over_composite().eval()
    with torch.no_grad():
        for parameter in detector.backbone.net.lead.parameters():
            parameter.mul_(1.1)
    samples = [sample(64, 64, BOXES, [0, 1])]
    batch = detector.prepare(samples)
    own = detector.losses(batch)
    # A plain detector with the assistant's weights has the assistant's maps.
    plain = DETECTORS["fcos"](2, build_backbone("resnet18"), image_size=64, **NARROW["fcos"]).eval()
    whole = detector.net.state_dict()
    left_out = ("backbone.body.lead.", "backbone.body.connections.")
    state = {name: value for name, value in whole.items() if not name.startswith(left_out)}
    plain.net.load_state_dict({name.replace("body.assistant.", "body."): value for name, value in state.items()})
    assistants = plain.losses(batch)
    together = Supervised(detector).eval()(samples)
    assert together.keys() == {*own, "loss"}
    for name, loss in own.items():
        assert not torch.isclose(loss, assistants[name], rtol=1e-3)
        torch.testing.assert_close(together[name], loss + 0.5 * assistants[name])


def test_detection_uses_the_lead_alone():
    detector = over_composite().eval()
    before = detector.predict([sample(64, 64)])[0]
    with torch.no_grad():
        for parameter in detector.backbone.net.assistant.parameters():
            parameter.zero_()
    torch.testing.assert_close(detector.predict([sample(64, 64)])[0], before)


def test_on_c4_it_is_refused():
    with pytest.raises(UserError, match="neck c4 on backbone cb-resnet18"):
        DETECTORS["faster_rcnn"](2, build_backbone("cb-resnet18"), neck="c4", image_size=64)
