"""`parts()` alone decides what is frozen, how fast each part learns, and what the table says."""

import pytest
import torch
from tests.detectors.scenes import sample, small_fcos

from selfdet.detectors.optim import freeze, parameter_groups, parameter_table, part_of
from selfdet.errors import UserError


def test_groups_hold_every_trainable_parameter_once():
    detector = small_fcos(batch_norm="frozen")
    groups = parameter_groups(detector, {}, 1e-4, norm_decay=0.0)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(parameter) for parameter in detector.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trainable)


def test_groups_carry_the_scale_and_decay_of_their_part():
    groups = parameter_groups(small_fcos(), {"backbone": 0.1, "last": 2.0}, 1e-4)
    settings = {group["name"]: (group["lr_scale"], group["weight_decay"]) for group in groups}
    assert settings == {"backbone": (0.1, 1e-4), "neck": (1.0, 1e-4), "head": (1.0, 1e-4), "last": (2.0, 1e-4)}


def test_norms_can_be_left_undecayed():
    detector = small_fcos()
    groups = parameter_groups(detector, {}, 1e-4, norm_decay=0.0)
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert id(detector.net.backbone.body.bn1.weight) in undecayed
    assert id(detector.net.head.classification_head.conv[1].bias) in undecayed
    assert id(detector.net.backbone.body.conv1.weight) not in undecayed


def test_tables_of_positions_are_decayed_like_norms() -> None:
    detector = small_fcos()
    table = torch.nn.Parameter(torch.zeros(3))
    detector.net.backbone.body.layer1.register_parameter("relative_position_bias_table", table)  # as Swin names it
    groups = parameter_groups(detector, {}, 0.05, norm_decay=0.0)
    undecayed = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert id(table) in undecayed


def test_a_frozen_part_does_not_move_and_the_others_do():
    detector = small_fcos()
    freeze(detector, ["backbone", "head"])
    detector.train()
    before = {name: value.clone() for name, value in detector.net.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(detector, {}, 1e-4), lr=0.1)
    sum(detector.losses(detector.prepare([sample(64, 64, [[8, 8, 50, 50]], [0])])).values()).backward()
    optimizer.step()
    moved = {
        part_of(detector, name) for name, v in detector.net.state_dict().items() if not torch.equal(v, before[name])
    }
    assert moved == {"neck", "last"}


def test_the_table_counts_what_trains():
    detector = small_fcos()
    freeze(detector, ["backbone"])
    rows = {line.split()[0]: line.split()[1:] for line in parameter_table(detector).splitlines()[1:]}
    assert list(rows) == ["backbone", "neck", "head", "last", "total"]
    assert rows["backbone"] == ["11,176,512", "0"]
    assert rows["total"][0] == f"{sum(p.numel() for p in detector.parameters()):,}"


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match="'tail'"):
        freeze(small_fcos(), ["tail"])
    with pytest.raises(UserError, match="'tail'"):
        parameter_groups(small_fcos(), {"tail": 1.0}, 0.0)


def test_layers_that_give_boxes_can_be_counted_to_the_head() -> None:
    detector = small_fcos()
    groups = parameter_groups(detector, {"last": 0.1}, 1e-4, keep_box_outputs=True)
    (last,) = (group for group in groups if group["name"] == "last")
    classifier = detector.net.head.classification_head.cls_logits
    assert {id(parameter) for parameter in last["params"]} == {id(parameter) for parameter in classifier.parameters()}
    assert last["lr_scale"] == 0.1
    assert all(group["lr_scale"] == 1.0 for group in groups if group is not last)
