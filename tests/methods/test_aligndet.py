"""AlignDet: what trains and what does not, what the teacher is, whose places are compared."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests import reference
from tests.detectors.scenes import EVERY_LEVEL, SMALL, sample, view_batch
from torch import Tensor, nn

from selfdet.data.box_views import BoxViewBatch
from selfdet.detectors.fcos import fcos
from selfdet.detectors.optim import part_of
from selfdet.errors import UserError
from selfdet.methods import aligndet
from selfdet.methods.aligndet import AlignDet, cosine_momentum, numbered
from selfdet.models.backbones import build_backbone

# Networks of mmdet's by their settings: distances as exponentials and in strides, the centerness on either tower.
MMDETS = [
    ("fcos", {}),
    ("fcos", {"norm_on_bbox": True, "centerness_on_reg": True}),
    ("retinanet", {}),
    ("retinanet", {"add_extra_convs": "on_output", "relu_before_extra_convs": True}),
]
BOXES = [[10, 12, 40, 60], [50, 20, 120, 90]]


@pytest.fixture(params=list(SMALL))
def key(request: pytest.FixtureRequest) -> str:
    return request.param


def build(key: str = "fcos", seed: int = 0, options: dict | None = None, **settings) -> AlignDet:
    settings = {"embedding_dim": 16, "samples": 60, **settings}
    return AlignDet(SMALL[key](num_classes=1, seed=seed, **(options or {})), **settings)


def train(method: AlignDet, batches: list[BoxViewBatch], first: int = 0, total: int = 10) -> list[dict[str, Tensor]]:
    """Train one step per batch; returns the losses."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.05, weight_decay=0.1)
    history = []
    for step, batch in enumerate(batches, first):
        losses = method(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        method.after_step(step, total)
        history.append({name: loss.detach() for name, loss in losses.items()})
    return history


def own(teacher: nn.Module, detector: nn.Module) -> list[nn.Parameter]:
    """Parameters that the teacher does not share."""
    shared = {id(parameter) for parameter in detector.parameters()}
    return [parameter for parameter in teacher.parameters() if id(parameter) not in shared]


def test_the_loss_is_the_sum_of_the_contrast_and_the_detectors_own(key: str) -> None:
    losses = build(key)(view_batch(BOXES, BOXES[:1]))
    boxes = {"bbox_regression", "bbox_ctrness"} if key == "fcos" else {"bbox_regression"}
    assert set(losses) == {"contrast", "objectness", "loss"} | boxes
    torch.testing.assert_close(losses["loss"], sum(loss for name, loss in losses.items() if name != "loss"))


def test_the_contrast_is_that_of_the_places_of_the_online_view_with_the_teachers(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list = []
    original = aligndet.instance_contrast

    def listen(*arguments) -> Tensor:
        seen.extend(arguments)
        return original(*arguments)

    monkeypatch.setattr(aligndet, "instance_contrast", listen)
    batch = view_batch(BOXES, BOXES[:1])
    batch.teacher[0] = sample(128, 100, BOXES[:1], seed=9)  # the second object of the first image has left this view
    method = build(key, temperature=0.3, fallback="skip")
    loss = method(batch)["contrast"]
    online, teacher, online_ids, teacher_ids, temperature, fallback = seen
    assert (temperature, fallback) == (0.3, "skip")
    assert online.requires_grad
    assert not teacher.requires_grad
    # 0 and 1 are of the first image, 2 is of the second, though all images count their objects from 0.
    assert set(online_ids.tolist()) == {-1, 0, 1, 2}
    assert set(teacher_ids.tolist()) == {-1, 0, 2}
    torch.testing.assert_close(
        loss, reference.instance_contrast(online, teacher, online_ids, teacher_ids, temperature, fallback)
    )


def test_objects_are_numbered_through_the_batch_and_stay_the_same_in_both_views() -> None:
    online = [sample(20, 20, [[1, 1, 9, 9]] * 3), sample(20, 20), sample(20, 20, [[1, 1, 9, 9]])]
    teacher = [sample(20, 20, [[1, 1, 9, 9]] * 2), sample(20, 20, [[2, 2, 8, 8]]), sample(20, 20)]
    online[0].ids, teacher[0].ids = torch.tensor([900, 5, 7]), torch.tensor([7, 900])
    assert [one.ids.tolist() for one in numbered(online, teacher)] == [[2, 0, 1], [], [4], [1, 2], [3], []]
    assert online[0].ids.tolist() == [900, 5, 7]


@pytest.mark.parametrize(("key", "form"), [*((key, None) for key in SMALL), *MMDETS], ids=str)
def test_gradients_reach_every_level_tower_and_projector(key: str, form: dict | None) -> None:
    method = build(key, samples=None, options={"image_size": 256, "mmdet": form})
    method(view_batch(EVERY_LEVEL, size=512))["loss"].backward()
    for name, parameter in [*method.detector.net.named_parameters(), *method.projector.named_parameters()]:
        if name.startswith("backbone.body."):
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            # In mmdet's FCOS the coarsest level is for distances of more than 512 px.
            if not (key == "fcos" and form is not None and ".p7." in name):
                assert parameter.grad.any(), name
    assert all(not p.requires_grad and p.grad is None for p in own(method.teacher, method.detector))
    assert all(not p.requires_grad and p.grad is None for p in method.teacher_projector.parameters())


def test_nothing_of_the_backbone_moves(key: str) -> None:
    method = build(key, options={"neck_norm": "bn"}).train()
    before = {name: value.clone() for name, value in method.detector.net.state_dict().items()}
    train(method, [view_batch(BOXES, seed=seed) for seed in range(2)])
    method.eval().train()
    moved = {name for name, value in method.detector.net.state_dict().items() if not value.equal(before[name])}
    assert {part_of(method.detector, name) for name in moved} == {"neck", "head", "last"}
    assert "backbone.fpn.inner_blocks.0.1.running_mean" in moved
    body = method.detector.backbone.net
    assert not any(module.training for module in body.modules())
    assert method.teacher.backbone.net is body


def test_the_teacher_costs_no_pass_of_the_backbone(key: str) -> None:
    method = build(key)
    passes: list[int] = []
    method.detector.backbone.net.register_forward_hook(lambda module, given, found: passes.append(len(given[0])))
    method(view_batch(BOXES, BOXES))["loss"].backward()
    assert passes == [4]  # both views of two images at once


def test_a_trained_backbone_has_a_teacher_of_its_own(key: str) -> None:
    method = build(key, train_backbone=True)
    passes: list[int] = []
    for detector in (method.detector, method.teacher):
        detector.backbone.net.register_forward_hook(lambda module, given, found: passes.append(len(given[0])))
    before = [copy.deepcopy(each.backbone.net.conv1.weight) for each in (method.detector, method.teacher)]
    train(method, [view_batch(BOXES, BOXES)])
    assert passes == [2, 2]
    assert method.teacher.backbone.net is not method.detector.backbone.net
    online, teacher = (each.backbone.net.conv1.weight for each in (method.detector, method.teacher))
    assert not online.equal(before[0])
    torch.testing.assert_close(teacher, before[1].lerp(online, 1 - 0.996))
    assert not teacher.requires_grad
    assert method.detector.backbone.net.bn1.training


def test_the_teacher_counts(key: str) -> None:
    method, batch = build(key), view_batch(BOXES, BOXES)
    with torch.no_grad():
        draws = copy.deepcopy(method.draws.state_dict())
        before = method(batch)
        for part, shared in ((method.teacher, method.detector), (method.teacher_projector, method.projector)):
            for parameter in own(part, shared):
                parameter.add_(0.05 * torch.randn(parameter.shape))
            method.draws.load_state_dict(draws)
            after = method(batch)
            assert after["contrast"] != before["contrast"]
            assert after["bbox_regression"] == before["bbox_regression"]
            before = after


def test_after_three_steps_the_teacher_is_the_average_by_hand(key: str) -> None:
    method = build(key)
    pairs = [(method.detector, method.teacher), (method.projector, method.teacher_projector)]
    expected = [copy.deepcopy(teacher.state_dict()) for _, teacher in pairs]
    for step in range(3):
        train(method, [view_batch(BOXES, seed=step)], first=step, total=3)
        momentum = 1 - (1 - 0.996) * (math.cos(math.pi * step / 3) + 1) / 2
        for average, (online, _) in zip(expected, pairs):
            for name, _ in online.named_parameters():
                average[name] = momentum * average[name] + (1 - momentum) * online.state_dict()[name]
    for average, (online, teacher) in zip(expected, pairs):
        for name, parameter in teacher.named_parameters():
            torch.testing.assert_close(parameter.data, average[name])
        assert any(not p.equal(q) for p, q in zip(online.parameters(), teacher.parameters()))
    assert method.health()["momentum"] == pytest.approx(1 - 0.004 * 0.25)


def test_the_momentum_rises_from_its_start_to_one() -> None:
    assert cosine_momentum(0.996, 0, 100) == 0.996
    assert cosine_momentum(0.996, 50, 100) == pytest.approx(0.998)
    assert cosine_momentum(0.996, 100, 100) == 1
    assert cosine_momentum(0.9, 7, None) == 0.9


@pytest.mark.parametrize(
    "boxes",
    [[[], []], [BOXES, []], [[[300, 300, 320, 330]], []]],
    ids=["no proposals at all", "one image without", "all outside"],
)
def test_images_without_proposals_give_finite_losses_with_gradients(boxes: list, key: str) -> None:
    method = build(key)
    losses = method(view_batch(*boxes))
    losses["loss"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    if len(boxes[0]) < 2:
        assert losses["contrast"] == 0
        assert losses["bbox_regression"] == 0
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert all(math.isfinite(value) for value in method.health().values())


def test_more_than_256_objects_and_identical_boxes_are_nothing_special(key: str) -> None:
    many = [[8 * x, 8 * y, 8 * x + 17, 8 * y + 17] for x in range(17) for y in range(17)]
    method = build(key, samples=None)
    losses = method(view_batch([*many, *many], size=160))
    assert all(loss.isfinite() for loss in losses.values())
    assert method.health()["ids_per_image"] > 256
    losses = method(view_batch([BOXES[0]] * 5))
    assert losses["contrast"] > 0
    assert method.health()["ids_per_image"] == 1


def test_a_saved_state_continues_bit_identically(key: str) -> None:
    first, second = build(key), build(key, seed=1)
    batches = [view_batch(BOXES, BOXES, seed=seed) for seed in range(4)]
    train(first, batches[:2])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for ours, theirs in zip(train(first, batches[2:], 2), train(second, batches[2:], 2)):
        assert ours == theirs
    for ours, theirs in zip(first.state_dict().values(), second.state_dict().values()):
        assert ours.equal(theirs)
    assert first.health() == second.health()


def test_which_places_are_drawn_follows_from_the_seed_and_differs_from_step_to_step() -> None:
    batch = view_batch(BOXES)
    first, again, other = build(seed=0), build(seed=0), AlignDet(SMALL["fcos"](1), embedding_dim=16, samples=60, seed=1)
    other.projector.load_state_dict(first.projector.state_dict())
    other.teacher_projector.load_state_dict(first.projector.state_dict())
    with torch.no_grad():
        losses = [[float(method(batch)["contrast"]) for _ in range(3)] for method in (first, again, other)]
    assert losses[0] == losses[1]
    assert len({*losses[0], *losses[2]}) == 6


def test_the_projector_is_no_part_of_the_detector_and_leaves_the_random_state_alone(key: str) -> None:
    detector = SMALL[key](num_classes=1)
    names, state = list(detector.net.state_dict()), torch.random.get_rng_state()
    method = AlignDet(detector)
    assert torch.random.get_rng_state().equal(state)
    assert method.detector is detector
    assert list(detector.net.state_dict()) == names
    assert method.projector.last.out_features == (256 if key == "fcos" else 9 * 256)


def test_losses_are_float32_and_nearly_the_same_under_bfloat16_autocast(key: str) -> None:
    method, batch = build(key, samples=None), view_batch(BOXES, BOXES[:1])
    exact = method(batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(batch)
    losses["loss"].backward()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], atol=0.05, rtol=0.05)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)


@pytest.mark.parametrize(
    ("key", "form"),
    [*((key, None) for key in SMALL), *(pytest.param(*each, marks=pytest.mark.slow) for each in MMDETS)],
    ids=str,
)
def test_training_lowers_the_losses_and_boxes_come_to_fit(key: str, form: dict | None) -> None:
    method = build(key, samples=None, options={"mmdet": form})
    batch = view_batch(BOXES, [[20, 30, 110, 100]])
    first = method(batch)
    before = method.health()
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 2e-3)
    for step in range(20):
        losses = method(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        method.after_step(step, 20)
    for name in ("contrast", "bbox_regression", "objectness"):
        assert losses[name] < first[name]
    health = method.health()
    assert health["box_iou"] > before["box_iou"] + 0.1
    assert health["contrast_floor"] < losses["contrast"] < health["contrast_chance"]
    assert not any(found["labels"].any() for found in method.detector.predict(batch.online))


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"momentum_start": 1.5}, {"embedding_dim": 0}, {"samples": 0}, {"fallback": "none"}],
    ids=str,
)
def test_values_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(UserError):
        build(**settings)


def test_of_a_composite_backbone_the_connections_train_and_both_copies_are_common() -> None:
    torch.manual_seed(0)
    detector = fcos(1, build_backbone("cb-resnet18"), fpn_channels=64, head_convs=1, image_size=128)
    method = AlignDet(detector, embedding_dim=16, samples=60)
    online, teacher = detector.backbone.net, method.teacher.backbone.net
    assert online is detector.net.backbone.body
    assert (teacher.assistant, teacher.lead) == (online.assistant, online.lead)
    assert teacher.connections is not online.connections
    copies = {name: value.clone() for name, value in online.state_dict().items() if "connections." not in name}
    scale = online.connections[0][1][1].weight
    train(method, [view_batch(BOXES, BOXES[:1])] * 2)
    state = online.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in copies.items())
    assert scale.any()  # they start at 0
    averaged = teacher.connections[0][1][1].weight
    assert averaged.any()
    assert not averaged.equal(scale)
    assert not online.lead.training
    assert online.connections.training
