"""Claims about MoCo v2: the key encoder is used and averaged, the queue is in order, a resumed run is the same run."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tests import reference
from tests.methods.tiny import tiny_backbone, train, view_batch

from selfdet.data.pixels import normalise
from selfdet.errors import UserError
from selfdet.methods.moco import MoCo


def moco(**options: Any) -> MoCo:
    return MoCo(tiny_backbone(), **{"queue_length": 24, "dim": 8, **options})


def test_the_loss_is_the_definition_on_what_the_two_encoders_say() -> None:
    method = moco(key_batch_norm="none")
    batch, queue = view_batch(5), method.queue.clone()
    losses = method(batch)
    twin = moco(key_batch_norm="none")
    (q,), (k,) = twin.encoder(normalise(batch.query)), twin.key_encoder(normalise(batch.key))
    torch.testing.assert_close(losses["loss"], reference.info_nce(q, k, queue, 0.2))
    torch.testing.assert_close(q.norm(dim=1), torch.ones(5))


def test_replacing_the_key_encoders_weights_changes_the_loss() -> None:
    method, other = moco(), moco()
    other.key_encoder.load_state_dict(moco(seed=1).encoder.state_dict())
    assert method(view_batch(4))["loss"] != other(view_batch(4))["loss"]


def test_the_key_encoder_is_the_hand_computed_average_after_three_steps() -> None:
    method = moco(momentum=0.9)
    optimizer = torch.optim.SGD(method.encoder.parameters(), 0.1)
    average = {name: p.detach().clone().double() for name, p in method.encoder.named_parameters()}
    for step in range(3):
        for name, p in method.encoder.named_parameters():
            average[name] = 0.9 * average[name] + 0.1 * p.detach().double()
        method(view_batch(4, seed=step))["loss"].backward()
        optimizer.step()
        method.after_step(step)
        for name, p in method.key_encoder.named_parameters():
            torch.testing.assert_close(p.double(), average[name], rtol=1e-5, atol=1e-6)
    assert not method.encoder.global_head.last.weight.equal(method.key_encoder.global_head.last.weight)


def test_micro_batches_of_one_optimiser_step_average_once() -> None:
    method = moco(momentum=0.5)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p += 1.0
    start = [p.clone() for p in method.key_encoder.parameters()]
    for seed in range(3):
        method(view_batch(4, seed=seed))
    for before, after in zip(start, method.key_encoder.parameters()):
        torch.testing.assert_close(after, before + 0.5)
    method.after_step(0)
    method(view_batch(4))
    for before, after in zip(start, method.key_encoder.parameters()):
        torch.testing.assert_close(after, before + 0.75)


def test_every_trainable_part_gets_a_gradient_and_nothing_else_does() -> None:
    method = moco()
    method(view_batch(6))["loss"].backward()
    for name, p in method.encoder.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0 or "first.0.bias" in name or "second.0.bias" in name, name
    assert all(p.grad is None and not p.requires_grad for p in method.key_encoder.parameters())
    assert not method.queue.requires_grad


def test_the_backbone_given_is_the_one_that_is_trained() -> None:
    backbone = tiny_backbone()
    method = MoCo(backbone, queue_length=8, dim=8)
    assert method.encoder.backbone is backbone
    assert not set(backbone.parameters()) & set(method.key_encoder.parameters())


def test_batch_norm_statistics_of_the_key_encoder_are_its_own() -> None:
    method = moco()
    train(method, [8, 8])
    online = method.encoder.backbone.net.first[1].running_mean
    average = method.key_encoder.backbone.net.first[1].running_mean
    assert not average.equal(torch.zeros_like(average))
    assert not average.equal(online)


def test_keys_enter_the_queue_in_order_after_the_loss() -> None:
    method = moco(key_batch_norm="none")
    empty = method.queue.clone()
    with torch.no_grad():
        (expected,) = copy.deepcopy(method.key_encoder)(normalise(view_batch(4).key))
    method(view_batch(4))
    torch.testing.assert_close(method.queue[:4], expected)
    assert method.queue[4:].equal(empty[4:])
    train(method, [4] * 6)
    assert int(method.queue_entered) == 28


def test_the_queues_own_keys_are_no_negatives_of_their_batch() -> None:
    # With one queue entry, wrongly entered before the loss, every query would meet a key of its own batch.
    method = moco(queue_length=1, key_batch_norm="none")
    before = method.queue.clone()
    (q,), (k,) = method.both_views(view_batch(4))
    loss = moco(queue_length=1, key_batch_norm="none")(view_batch(4))["loss"]
    torch.testing.assert_close(loss, reference.info_nce(q, k, before, 0.2))


@pytest.mark.parametrize("sizes", [[1, 1, 1], [3, 5, 2], [50, 7], [13, 11]])
def test_any_batch_size_trains_with_any_queue_length(sizes: list[int]) -> None:
    method = moco(queue_length=17)
    assert all(torch.isfinite(loss) for loss in train(method, sizes))
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(17))


def test_a_resumed_run_is_the_same_run_bit_for_bit() -> None:
    sizes = [9, 9, 3]
    straight = moco()
    train(straight, sizes)
    saved = copy.deepcopy(straight.state_dict())
    expected = train(straight, sizes, first_step=3)
    torch.manual_seed(99)
    resumed = moco(seed=5)
    resumed.load_state_dict(saved)
    assert train(resumed, sizes, first_step=3) == expected
    for name, value in straight.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name


def test_the_seed_alone_decides_the_start_and_the_callers_random_state_is_left_as_it_was() -> None:
    torch.manual_seed(1)
    first = moco(seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = moco(seed=3)
    torch.manual_seed(1)
    assert torch.get_rng_state().equal(state)
    assert all(a.equal(b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_eval_mode_changes_nothing() -> None:
    method = moco()
    train(method, [8])
    method.eval()
    before = copy.deepcopy(method.state_dict())
    assert method(view_batch(4))["loss"] == method(view_batch(4))["loss"]
    assert all(value.equal(before[name]) for name, value in method.state_dict().items())


def test_health_tells_a_collapsed_encoder_from_a_spread_one() -> None:
    method = moco()
    assert method.health() == {"loss_chance": pytest.approx(math.log(25)), "queue_filled": 0.0}
    train(method, [12])
    spread = method.health()
    assert spread["queue_filled"] == 0.5
    assert spread["rank_limit"] == 8
    assert 1 <= spread["effective_rank"] <= 8
    with torch.no_grad():
        method.encoder.global_head.last.weight.zero_()
    method(view_batch(12))
    collapsed = method.health()
    assert collapsed["feature_std"] == pytest.approx(0, abs=1e-6)
    assert collapsed["effective_rank"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"momentum": 1.5}, {"queue_length": 0}, {"key_batch_norm": "shuffle"}],
    ids=lambda options: next(iter(options)),
)
def test_arguments_out_of_range_are_refused_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected") as caught:
        moco(**options)
    assert "\n" not in str(caught.value)


def test_one_image_as_small_as_the_stride_is_refused_because_batch_norm_sees_one_value() -> None:
    with pytest.raises(UserError, match="batch of 1 image of 8 x 8 px"):
        moco()(view_batch(1, size=8))
    assert torch.isfinite(moco()(view_batch(2, size=8))["loss"])


def test_bf16_autocast_leaves_losses_and_queue_in_float32() -> None:
    method = moco()
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(view_batch(4))["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(method.queue[:4].norm(dim=1), torch.ones(4))
