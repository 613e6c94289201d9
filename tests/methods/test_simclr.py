"""Claims about SimCLR: its loss is the definition, both views share one encoder, and it learns."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests import reference
from tests.methods.tiny import tiny_backbone, train, view_batch
from torch.nn import functional

from selfdet.data.pixels import normalise
from selfdet.errors import UserError
from selfdet.methods.contrast import nt_xent
from selfdet.methods.simclr import SimCLR


def pairs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, count, 6, generator=generator, dtype=torch.float64)
    first, second = functional.normalize(drawn, dim=2)
    return first.requires_grad_(), second.requires_grad_()


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_and_its_gradients_are_those_of_the_loop(count: int, temperature: float) -> None:
    first, second = pairs(count)
    loss, slow = nt_xent(first, second, temperature), reference.nt_xent(first, second, temperature)
    torch.testing.assert_close(loss, slow)
    for given, wanted in zip(torch.autograd.grad(loss, (first, second)), torch.autograd.grad(slow, (first, second))):
        torch.testing.assert_close(given, wanted)


def test_nt_xent_of_nothing_is_nought_on_the_graph() -> None:
    first, second = pairs(0)
    loss = nt_xent(first, second, 0.1)
    loss.backward()
    assert loss == 0


def test_nt_xent_is_float32_at_least_and_keeps_double() -> None:
    first, second = pairs(3)
    assert nt_xent(first, second, 0.1).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        halves = nt_xent(first.detach().bfloat16(), second.detach().bfloat16(), 0.1)
    assert halves.dtype == torch.float32


def test_the_loss_is_the_definition_on_what_the_one_encoder_says_of_both_views_at_once() -> None:
    method, twin, batch = SimCLR(tiny_backbone(), dim=8), SimCLR(tiny_backbone(), dim=8), view_batch(5)
    (z,) = twin.encoder(normalise(torch.cat([batch.query, batch.key])))
    torch.testing.assert_close(method(batch)["loss"], reference.nt_xent(z[:5], z[5:], 0.1))
    assert method.encoder.backbone.net.first[1].num_batches_tracked == 1


def test_every_part_gets_a_gradient() -> None:
    method = SimCLR(tiny_backbone(), dim=8)
    method(view_batch(6))["loss"].backward()
    for name, p in method.encoder.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0 or "first.0.bias" in name or "second.0.bias" in name, name


def test_a_resumed_run_is_the_same_run_bit_for_bit() -> None:
    straight = SimCLR(tiny_backbone(), dim=8)
    train(straight, [6, 6])
    resumed = SimCLR(tiny_backbone(seed=3), dim=8, seed=5)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    assert train(resumed, [6], first_step=2) == train(straight, [6], first_step=2)


def test_health_knows_chance_and_a_collapse() -> None:
    method = SimCLR(tiny_backbone(), dim=8)
    assert method.health() == {}
    method(view_batch(12))
    figures = method.health()
    assert figures["loss_chance"] == pytest.approx(math.log(23))
    assert figures["rank_limit"] == 8
    with torch.no_grad():
        for p in method.encoder.global_head.last.parameters():
            p.fill_(1.0)
    method(view_batch(12))
    assert method.health()["feature_std"] < 0.01 < figures["feature_std"]


def test_one_image_has_nothing_to_be_told_from() -> None:
    with pytest.raises(UserError, match="1 image"):
        SimCLR(tiny_backbone(), dim=8)(view_batch(1))
    with pytest.raises(UserError, match="temperature"):
        SimCLR(tiny_backbone(), temperature=0.0)
