"""AlignDet over two-stage detectors: what trains and what does not, whose regions are compared, odd batches."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests import reference
from tests.detectors.rcnn_scenes import BOXES, TWO_STAGE, small_cascade
from tests.detectors.scenes import EVERY_LEVEL, sample, view_batch
from torch import Tensor, nn

from selfdet.detectors.optim import part_of
from selfdet.methods import aligndet
from selfdet.methods.aligndet import AlignDet

KINDS = [("faster_rcnn", "rpn"), ("faster_rcnn", "proposals"), ("mask_rcnn", "rpn")]


def build(seed: int = 0, options: dict | None = None, key: str = "faster_rcnn", **settings) -> AlignDet:
    detector = TWO_STAGE[key](num_classes=1, seed=seed, **(options or {}))
    return AlignDet(detector, **{"embedding_dim": 16, **settings})


def train(method: AlignDet, batches: list, first: int = 0, total: int = 10) -> list[dict[str, Tensor]]:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.01, weight_decay=0.1)
    history = []
    for step, batch in enumerate(batches, first):
        losses = method(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        method.after_step(step, total)
        history.append({name: loss.detach() for name, loss in losses.items()})
    return history


def calm(method: AlignDet) -> None:
    """Have both RPNs propose boxes near their anchors, some of which meet proposals."""
    with torch.no_grad():
        for detector in (method.detector, method.teacher):
            for layer in (detector.net.rpn.head.bbox_pred, detector.net.rpn.head.cls_logits):
                layer.weight.mul_(0.02)


def own(teacher: nn.Module, detector: nn.Module) -> list[nn.Parameter]:
    shared = {id(parameter) for parameter in detector.parameters()}
    return [parameter for parameter in teacher.parameters() if id(parameter) not in shared]


def test_the_loss_is_the_sum_of_the_contrast_and_the_detectors_own() -> None:
    losses = build()(view_batch(BOXES, BOXES[:1]))
    names = {"loss_objectness", "loss_rpn_box_reg", "loss_box_reg", "loss_classifier"}
    assert set(losses) == {"contrast", "loss"} | names
    torch.testing.assert_close(losses["loss"], sum(loss for name, loss in losses.items() if name != "loss"))


def test_the_contrast_is_that_of_the_regions_of_the_online_view_with_the_teachers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list = []
    original = aligndet.instance_contrast

    def listen(*arguments) -> Tensor:
        seen.extend(arguments)
        return original(*arguments)

    monkeypatch.setattr(aligndet, "instance_contrast", listen)
    batch = view_batch(BOXES, BOXES[:1])
    batch.teacher[0] = sample(128, 100, BOXES[:1], seed=9)  # the second object of the first image has left this view
    loss = build(fallback="skip")(batch)["contrast"]
    online, teacher, online_ids, teacher_ids, temperature, fallback = seen
    assert online.requires_grad
    assert not teacher.requires_grad
    assert set(online_ids.tolist()) == {0, 1, 2}
    assert set(teacher_ids.tolist()) == {0, 2}
    torch.testing.assert_close(
        loss, reference.instance_contrast(online, teacher, online_ids, teacher_ids, temperature, fallback)
    )


def test_a_cascade_contrasts_each_stage_by_its_weight_and_every_stage_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    original = aligndet.instance_contrast

    def listen(*arguments) -> Tensor:
        seen.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(aligndet, "instance_contrast", listen)
    method = AlignDet(small_cascade(num_classes=1), embedding_dim=16, samples=24)
    before = {name: value.clone() for name, value in method.detector.net.state_dict().items()}
    losses = train(method, [view_batch(BOXES)])[0]
    stages = [reference.instance_contrast(*arguments) for arguments in seen]
    torch.testing.assert_close(losses["contrast"], stages[0] + 0.5 * stages[1] + 0.25 * stages[2])
    assert all((arguments[2] == -1).any() and (arguments[2] >= 0).any() for arguments in seen)  # background repels
    moved = {name for name, value in method.detector.net.state_dict().items() if not value.equal(before[name])}
    assert {part_of(method.detector, name) for name in moved} == {"neck", "rpn", "head", "last"}
    assert {f"{heads}.box_head.fc6.weight" for heads in ("roi_heads", "refine.0", "refine.1")} <= moved


@pytest.fixture(params=list(TWO_STAGE))
def key(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(
    ("key", "box_head"), [("faster_rcnn", "2fc"), ("faster_rcnn", "4conv1fc"), ("mask_rcnn", "2fc")]
)
def test_gradients_reach_neck_rpn_box_head_and_projector(key: str, box_head: str) -> None:
    method = build(options={"box_head": box_head, "neck_norm": "gn"}, key=key)
    method(view_batch(EVERY_LEVEL, size=256))["loss"].backward()
    for name, parameter in [*method.detector.net.named_parameters(), *method.projector.named_parameters()]:
        if name.startswith(("backbone.body.", "roi_heads.mask_")):
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    assert all(not p.requires_grad and p.grad is None for p in own(method.teacher, method.detector))


def test_nothing_of_the_backbone_moves(key: str) -> None:
    method = build(options={"neck_norm": "bn"}, key=key).train()
    before = {name: value.clone() for name, value in method.detector.net.state_dict().items()}
    passes: list[int] = []
    method.detector.backbone.net.register_forward_hook(lambda module, given, found: passes.append(len(given[0])))
    train(method, [view_batch(BOXES, seed=seed) for seed in range(3)])
    assert passes == [2, 2, 2]  # both views of an image at once
    moved = {name for name, value in method.detector.net.state_dict().items() if not value.equal(before[name])}
    assert {part_of(method.detector, name) for name in moved} == {"neck", "rpn", "head", "last"}
    assert method.teacher.backbone.net is method.detector.backbone.net


@pytest.mark.parametrize(("key", "teacher_rois"), KINDS)
def test_the_teacher_counts_and_so_do_all_of_its_parts(key: str, teacher_rois: str) -> None:
    method, batch = build(options={"teacher_rois": teacher_rois}, key=key), view_batch(BOXES)
    parts = {"neck", "head"} | ({"rpn"} if teacher_rois == "rpn" else set())
    calm(method)
    with torch.no_grad():
        draws = copy.deepcopy(method.draws.state_dict())
        before = method(batch)
        for part in sorted(parts):
            for name, parameter in method.teacher.net.named_parameters():
                if part_of(method.teacher, name) == part:
                    parameter.add_((0.001 if part == "rpn" else 0.05) * torch.randn(parameter.shape))
            method.draws.load_state_dict(draws)
            after = method(batch)
            assert after["contrast"] != before["contrast"], part
            assert all(after[name] == before[name] for name in after if name.startswith("loss_"))
            before = after


def test_after_three_steps_the_teacher_is_the_average_by_hand(key: str) -> None:
    method = build(key=key)
    expected = copy.deepcopy(method.teacher.state_dict())
    for step in range(3):
        losses = train(method, [view_batch(BOXES, seed=step)], first=step, total=3)
        assert losses[0]["loss"].isfinite()
        momentum = 1 - (1 - 0.996) * (math.cos(math.pi * step / 3) + 1) / 2
        for name, parameter in method.detector.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * parameter.data
    for name, parameter in method.teacher.named_parameters():
        torch.testing.assert_close(parameter.data, expected[name])
    assert any(not p.equal(q) for p, q in zip(method.detector.parameters(), method.teacher.parameters()))


@pytest.mark.parametrize("boxes", [[[], []], [BOXES, []], [[[300, 300, 320, 330]], []]], ids=["none", "one", "outside"])
@pytest.mark.parametrize(("key", "teacher_rois"), KINDS)
def test_images_without_proposals_give_finite_losses_with_gradients(boxes: list, key: str, teacher_rois: str) -> None:
    method = build(options={"teacher_rois": teacher_rois, "box_head": "4conv1fc", "neck_norm": "bn"}, key=key)
    losses = method(view_batch(*boxes))
    losses["loss"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    if len(boxes[0]) < 2:
        assert losses["contrast"] == losses["loss_box_reg"] == 0
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    assert all(math.isfinite(value) for value in method.health().values())


@pytest.mark.parametrize("side", [16, 256], ids=["finest", "coarsest"])
def test_images_whose_proposals_all_fall_on_one_level_of_the_rpn_train(side: int, key: str) -> None:
    method, box = build(key=key), [128 - side / 2, 128 - side / 2, 128 + side / 2, 128 + side / 2]
    losses = method(view_batch([box], [box], size=256))
    losses["loss"].backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["contrast"] > 0
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)


def test_more_than_256_objects_and_identical_boxes_are_nothing_special(key: str) -> None:
    many = [[8 * x, 8 * y, 8 * x + 17, 8 * y + 17] for x in range(17) for y in range(17)]
    method = build(key=key)
    with torch.no_grad():
        losses = method(view_batch([*many, *many], size=160))
        assert all(loss.isfinite() for loss in losses.values())
        assert method.health()["ids_per_image"] > 256
        losses = method(view_batch([BOXES[0]] * 5, BOXES))
    assert losses["contrast"] > 0
    assert method.health()["ids_per_image"] == 1.5


def test_a_saved_state_continues_bit_identically() -> None:
    first, second = build(), build(seed=1)
    batches = [view_batch(BOXES, BOXES, seed=seed) for seed in range(4)]
    train(first, batches[:2])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for ours, theirs in zip(train(first, batches[2:], 2), train(second, batches[2:], 2)):
        assert ours == theirs
    assert all(ours.equal(theirs) for ours, theirs in zip(first.state_dict().values(), second.state_dict().values()))
    assert first.health() == second.health()


def test_nothing_is_drawn_from_the_common_random_state() -> None:
    method, batch = build(samples=3), view_batch(EVERY_LEVEL[:3], size=256)
    state = torch.random.get_rng_state()
    method(batch)
    assert torch.random.get_rng_state().equal(state)


def test_training_lowers_the_losses_and_the_rpn_comes_to_meet_the_proposals() -> None:
    method, batch = build(), view_batch(BOXES)
    calm(method)
    seen, progress = [], []
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.005, momentum=0.9)
    for step in range(12):
        losses = method(batch)
        health = method.health()
        chance, floor = health["contrast_chance"], health["contrast_floor"]
        progress.append((chance - losses["contrast"].item()) / (chance - floor))
        seen.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 10)
        optimizer.step()
        method.after_step(step, 12)
    for name in ("loss_objectness", "loss_box_reg", "loss_classifier"):
        assert seen[-1][name] < seen[0][name], name
    assert progress[-1] > progress[0]  # chance itself moves with the number of regions
    assert health["rpn_recall"] == 1
    assert health["positives_per_id"] > 1
    assert not any(found["labels"].any() for found in method.detector.predict(batch.online))
