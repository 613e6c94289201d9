"""AlignDet over DETR: the queries of every layer are contrasted, and where they begin is common to both sides."""

from __future__ import annotations

import pytest
import torch
from tests import reference
from tests.detectors.detr_scenes import BOXES, small_detr
from tests.detectors.scenes import view_batch
from torch import Tensor

from selfdet.detectors.optim import part_of
from selfdet.methods import aligndet
from selfdet.methods.aligndet import AlignDet


def step(method: AlignDet, batch) -> dict[str, Tensor]:
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-3)
    losses = method(batch)
    losses["loss"].backward()
    optimizer.step()
    method.after_step(0, 10)
    return {name: loss.detach() for name, loss in losses.items()}


def test_the_contrast_is_a_sum_over_layers_of_all_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list = []
    original = aligndet.instance_contrast

    def listen(*arguments) -> Tensor:
        seen.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(aligndet, "instance_contrast", listen)
    losses = AlignDet(small_detr(num_classes=1), embedding_dim=16)(view_batch(BOXES, BOXES[:1]))
    assert set(losses) == {"contrast", "loss_class", "loss_bbox", "loss_giou", "loss"}
    assert len(seen) == 2  # decoder layers
    for online, teacher, online_ids, teacher_ids, *_ in seen:
        assert len(online) == len(teacher) == 2 * 60
        assert (
            sorted(online_ids[online_ids >= 0].tolist()) == sorted(teacher_ids[teacher_ids >= 0].tolist()) == [0, 1, 2]
        )
    expected = sum(reference.instance_contrast(*arguments) for arguments in seen)
    torch.testing.assert_close(losses["contrast"], expected, atol=1e-4, rtol=1e-5)


def test_the_contrast_is_held_against_the_chance_of_all_layers() -> None:
    method = AlignDet(small_detr(num_classes=1), embedding_dim=16)
    with torch.no_grad():
        for layer in (method.projector, method.teacher_projector):
            for parameter in layer.parameters():
                parameter.zero_()  # equal similarities: nothing is known
    contrast = float(method(view_batch(BOXES, BOXES[:1]))["contrast"].detach())
    assert method.health()["contrast_chance"] == pytest.approx(contrast, rel=1e-5)
    assert method.health()["contrast_floor"] < contrast


def test_the_queries_are_one_for_both_and_train_and_the_backbone_does_not() -> None:
    method = AlignDet(small_detr(num_classes=1), embedding_dim=16)
    before = {name: value.clone() for name, value in method.detector.net.state_dict().items()}
    step(method, view_batch(BOXES))
    moved = {name for name, value in method.detector.net.state_dict().items() if not value.equal(before[name])}
    assert {part_of(method.detector, name) for name in moved} == {"neck", "head", "last"}
    ours, theirs = (each.net.model for each in (method.detector, method.teacher))
    assert "model.query_position_embeddings.weight" in moved
    assert theirs.query_position_embeddings.weight is ours.query_position_embeddings.weight
    assert theirs.backbone.model is ours.backbone.model
    assert not theirs.decoder.layers[0].self_attn.q_proj.weight.requires_grad
    assert theirs.encoder.layers[0].self_attn.q_proj.weight is not ours.encoder.layers[0].self_attn.q_proj.weight


def test_the_teacher_counts() -> None:
    method, batch = AlignDet(small_detr(num_classes=1), embedding_dim=16).eval(), view_batch(BOXES)
    with torch.no_grad():
        before = method(batch)
        for name, parameter in method.teacher.net.named_parameters():
            if "encoder" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape))
        after = method(batch)
    assert after["contrast"] != before["contrast"]
    assert all(after[name] == before[name] for name in after if name.startswith("loss_"))
