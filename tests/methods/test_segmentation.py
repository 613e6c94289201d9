"""Supervised segmentation learns labelled pixels, and those only."""

from __future__ import annotations

import torch
from torch.nn import functional

from selfdet.data.masked import MaskedBatch
from selfdet.detectors.segmenter import fcn
from selfdet.methods.segmentation import SupervisedSegmentation, pixel_cross_entropy
from selfdet.models.atrous import build_atrous_backbone


def test_the_loss_is_the_mean_over_labelled_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, 5, generator=generator)
    classes = torch.randint(0, 3, (2, 4, 5), generator=generator).to(torch.uint8)
    classes[0, 1:3] = 255
    pixels = [
        functional.cross_entropy(scores[image, :, row, column], classes[image, row, column].long())
        for image, row, column in (classes != 255).nonzero().tolist()
    ]
    torch.testing.assert_close(pixel_cross_entropy(scores, classes), torch.stack(pixels).mean())


def test_without_labelled_pixels_the_loss_is_zero_and_so_is_its_gradient() -> None:
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = pixel_cross_entropy(scores, torch.full((1, 4, 4), 255, dtype=torch.uint8))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_a_method_on_a_batch_gives_its_loss_and_how_much_was_right() -> None:
    torch.manual_seed(0)
    method = SupervisedSegmentation(fcn(3, build_atrous_backbone("test_resnet")))
    classes = torch.zeros(2, 36, 36, dtype=torch.uint8)
    classes[:, :18] = 255
    batch = MaskedBatch(torch.randint(0, 256, (2, 3, 36, 36)).to(torch.uint8), classes)
    losses = method(batch)
    assert losses.keys() == {"loss"}
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    health = method.health()
    assert health["labelled_pixels"] == 0.5
    assert 0 <= health["batch_accuracy"] <= 1
