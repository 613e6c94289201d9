"""RT-DETR alone: where its queries come from, noisy boxes, and images smaller than its queries are many."""

from __future__ import annotations

import pytest
import torch
from tests.detectors.detr_scenes import BOXES, small
from tests.detectors.scenes import sample

from selfdet.detectors.queries import pixel_mask
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.models.backbones import build_backbone


def test_losses_while_training_are_the_librarys_own_with_noisy_boxes() -> None:
    detector = small("rtdetr", layers=1, denoising=8, batch_norm="frozen").train()
    for norm in detector.net.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()
    batch = detector.prepare([sample(128, 128, BOXES, [0, 1]), sample(128, 128, BOXES[:1], [2]), sample(128, 128)])
    torch.manual_seed(3)
    losses = detector.losses(batch)
    torch.manual_seed(3)
    targets = detector.targets(batch, batch.tensor)
    theirs = detector.net(pixel_values=batch.tensor, pixel_mask=pixel_mask(batch), labels=targets)
    assert {name.rsplit("_", 1)[0] for name in theirs.loss_dict} >= {"loss_vfl_dn", "loss_bbox_dn", "loss_giou_aux"}
    torch.testing.assert_close(sum(losses.values()), theirs.loss, atol=1e-3, rtol=1e-4)
    calm = small("rtdetr", layers=1, denoising=8, batch_norm="frozen").eval()
    assert sum(calm.losses(batch).values()) < sum(losses.values())


def test_pre_training_has_no_noisy_boxes_and_trains_nothing_of_them() -> None:
    detector = small("rtdetr", layers=1, num_classes=1).train()
    batch = detector.prepare([sample(128, 128, BOXES)])
    found = detector.regions(detector.features(batch), batch, detector.projector(8), torch.Generator(), losses=True)
    assert [len(stage.ids) for stage in found] == [60]
    sum(stage.embeddings.sum() + sum(stage.losses.values()) for stage in found).backward()
    reached = {name for name, value in detector.net.named_parameters() if value.grad is not None}
    missed = {name for name, _ in detector.net.named_parameters()} - reached
    assert missed == {"model.denoising_class_embed.weight"}
    assert all(detector.labels_only.holds(name) for name in missed)


def test_the_choice_of_queries_is_trained_in_pre_training_too() -> None:
    detector = small("rtdetr", layers=2, num_classes=1).train()
    batch = detector.prepare([sample(128, 128, BOXES)])
    stages = detector.regions(detector.features(batch), batch, detector.projector(8), torch.Generator(), losses=True)
    sum(stages[1].losses.values()).backward(retain_graph=True)
    assert detector.net.model.enc_score_head.weight.grad is None
    sum(stages[0].losses.values()).backward()
    assert detector.net.model.enc_score_head.weight.grad.abs().sum() > 0


def test_a_small_image_is_padded_to_have_as_many_cells_as_there_are_queries() -> None:
    detector = small("rtdetr", layers=1, queries=60).eval()
    assert detector.padded_size(65, 96) == (96, 96)
    assert detector.padded_size(20, 30) == (64, 64)
    found = detector.predict([sample(20, 30)])[0]
    assert (found["boxes"][:, 0::2] <= 30).all()
    assert (found["boxes"][:, 1::2] <= 20).all()


def test_a_backbone_whose_maps_do_not_halve_is_refused() -> None:
    backbone = build_backbone("resnet18")
    backbone.strides = [4, 8, 16, 16]
    with pytest.raises(UserError, match=r"each of half the size of the one before; resnet18 has the strides 8, 16, 16"):
        DETECTORS["rtdetr"](1, backbone)
    with pytest.raises(UserError, match="denoising -1"):
        DETECTORS["rtdetr"](1, build_backbone("resnet18"), denoising=-1)
