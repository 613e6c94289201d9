"""The memory that training takes, from the shapes of what a pass keeps."""

from __future__ import annotations

import torch
from torch import nn

from selfdet.training.memory import estimate, kept_bytes, peak


def test_each_map_that_a_pass_keeps_counts_once() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten())
    image, maps = 3 * 16 * 16 * 4, 8 * 16 * 16 * 4  # the convolution's input; its output; what batch norm gives
    kept = kept_bytes(network, 16)
    assert kept is not None
    assert image + 2 * maps <= kept <= image + 2 * maps + 100  # and a few statistics


def test_counting_leaves_the_network_and_the_random_state_as_they_were() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    kept_bytes(network, 16)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_frozen_layer_keeps_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1))
    trained = kept_bytes(network, 32)
    network[0].requires_grad_(False)
    frozen = kept_bytes(network, 32)
    assert trained is not None
    assert frozen is not None
    assert trained - frozen == 3 * 32 * 32 * 4


def test_the_estimate_grows_with_images_and_less_in_mixed_precision() -> None:
    network, device = nn.Conv2d(3, 8, 3), torch.device("cpu")
    one, many, mixed = (
        estimate(network, 10**9, *size) for size in ((1, device, False), (10, device, False), (10, device, True))
    )
    assert one is not None
    assert many is not None
    assert mixed is not None
    assert abs(many - one - 9e9) < 1e8
    assert abs(many - mixed - 5e9) < 1e8
    assert (peak(device) or 0) > 1e8  # torch alone is more
