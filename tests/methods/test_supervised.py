"""Supervised detection is the detector's own losses, summed, on whatever samples a batch holds."""

import torch
from tests.detectors.scenes import sample, small_fcos

from selfdet.methods.supervised import Supervised


def test_the_loss_is_the_sum_of_the_detectors_own():
    detector = small_fcos().eval()
    samples = [sample(64, 64, [[8, 8, 50, 50]], [1]), sample(64, 48)]
    losses = Supervised(detector)(samples)
    own = detector.losses(detector.prepare(samples))
    assert set(losses) == {*own, "loss"}
    torch.testing.assert_close(losses["loss"], sum(own.values()))


def test_a_batch_without_boxes_can_be_trained_on():
    method = Supervised(small_fcos()).train()
    loss = method([sample(64, 64), sample(64, 64, seed=1)])["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_health_counts_the_boxes_of_the_last_batch():
    method = Supervised(small_fcos())
    method([sample(64, 64, [[8, 8, 50, 50], [1, 1, 9, 9]], [1, 0]), sample(64, 64, [[8, 8, 50, 50]], [2])])
    assert method.health() == {"boxes_per_image": 1.5}
