"""The memory that training takes, from the shapes of what a pass keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfdet.data.trial import trial_samples
from selfdet.detectors.zoo import DETECTORS
from selfdet.methods.supervised import Supervised
from selfdet.models.backbones import build_backbone
from selfdet.training.memory import batch_area, estimate, kept_bytes, kept_of_two, peak


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


def test_the_estimate_grows_with_what_is_kept_and_less_is_in_mixed_precision() -> None:
    network, device = nn.Conv2d(3, 8, 3), torch.device("cpu")
    little, much = (estimate(network, kept, device) for kept in (1e9, 10e9))
    assert little is not None
    assert much is not None
    assert abs(much - little - 9e9) < 1e8
    assert (kept_bytes(network, 32, mixed=True) or 0) * 2 == kept_bytes(network, 32)
    assert (peak(device) or 0) > 1e8  # torch alone is more


def detector(key: str) -> Supervised:
    return Supervised(DETECTORS[key](2, build_backbone("test_resnet"), image_size=256, fpn_channels=64))


@pytest.mark.parametrize("key", ["fcos", "faster_rcnn"])
def test_small_images_tell_what_a_pass_of_larger_ones_keeps(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = detector(key)
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in method.state_dict().items()}
    foretold = kept_of_two(method, trial_samples, 256**2)
    assert torch.get_rng_state().equal(state)
    assert all(value.equal(before[name]) for name, value in method.state_dict().items())
    monkeypatch.setattr("selfdet.training.memory.SIDES", (256, 300))  # now these are small
    passed = kept_of_two(method, trial_samples, 256**2)
    assert foretold is not None
    assert passed is not None
    assert 0.85 < foretold / passed < 1.15


def test_a_batch_is_as_wide_as_its_widest_image_and_as_high_as_its_highest() -> None:
    assert batch_area([(400, 300), (200, 150)], 800) == 800 * 600
    assert batch_area([(400, 300), (300, 400)], 800) == 800 * 800
    assert batch_area([(0, 0)], 100) == 100 * 100  # YOLO's labels don't say
