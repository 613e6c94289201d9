"""Claims about the averaged encoder, the queue, the seeded draws and split batch norm."""

from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
from torch import Tensor, nn

from selfdet.methods.momentum import Draws, enqueue, gather, seeded_queue, split_batch_norm, update_average


def rows(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].repeat(1, 2)


def test_the_average_moves_parameters_and_leaves_buffers_alone() -> None:
    online, average = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.constant_(online.weight, 3.0)
    online.running_mean.fill_(7.0)
    update_average(online, average, 0.9)
    torch.testing.assert_close(average.weight, torch.full((3,), 0.9 * 1.0 + 0.1 * 3.0))
    assert average.running_mean.equal(torch.zeros(3))


def test_equal_modules_stay_bit_equal_and_shared_parameters_are_left_alone() -> None:
    online = nn.Linear(4, 4)
    average = copy.deepcopy(online)
    average.bias = online.bias
    before = online.bias.clone()
    update_average(online, average, 0.999)
    assert average.weight.equal(online.weight)
    assert online.bias.equal(before)


@pytest.mark.parametrize("sizes", [[3, 3, 3], [5, 5, 1, 7], [12], [7, 14, 3], [1] * 16, [0, 4]])
def test_the_queue_holds_the_last_keys_first_in_first_out(sizes: list[int]) -> None:
    queue, entered = rows(-7, 7), torch.zeros((), dtype=torch.int64)
    expected = deque(rows(-7, 7).unbind(), maxlen=7)
    total = 0
    for size in sizes:
        enqueue(queue, entered, rows(total, size))
        expected.extend(rows(total, size).unbind())
        total += size
        oldest = int(entered) % 7
        assert torch.cat([queue[oldest:], queue[:oldest]]).equal(torch.stack(list(expected)))
    assert int(entered) == total


def test_keys_are_written_from_the_start_of_the_queue() -> None:
    queue = rows(-5, 5)
    enqueue(queue, torch.zeros((), dtype=torch.int64), rows(0, 3))
    assert queue.equal(torch.cat([rows(0, 3), rows(-2, 2)]))


def test_a_seeded_queue_holds_unit_vectors_and_follows_from_its_seed() -> None:
    queue = seeded_queue(9, 5, seed=3)
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(9))
    assert queue.equal(seeded_queue(9, 5, seed=3))
    assert not queue.equal(seeded_queue(9, 5, seed=4))


def test_draws_continue_where_a_saved_state_stopped() -> None:
    draws = Draws(0)
    draws.permutation(5)
    resumed = Draws(1)
    resumed.load_state_dict(copy.deepcopy(draws.state_dict()))
    assert draws.permutation(20).equal(resumed.permutation(20))
    assert draws.integers(9, (3, 4)).equal(resumed.integers(9, (3, 4)))


@pytest.mark.parametrize(
    ("images", "groups"), [(1, [1]), (7, [7]), (8, [4, 4]), (11, [5, 6]), (13, [4, 4, 5]), (64, [8] * 8)]
)
def test_split_batch_norm_encodes_every_image_in_groups_and_keeps_their_order(images: int, groups: list[int]) -> None:
    seen: list[Tensor] = []

    def encode(part: Tensor) -> tuple[Tensor, ...]:
        seen.append(part)
        return part * 2, part + 1

    batch = rows(0, images)
    doubled, added = split_batch_norm(encode, batch, Draws(0))
    assert doubled.equal(batch * 2)
    assert added.equal(batch + 1)
    assert sorted(len(part) for part in seen) == groups
    if images > 7:
        assert not torch.cat(seen).equal(batch)


def test_each_group_has_batch_statistics_of_its_own() -> None:
    norm = nn.BatchNorm1d(2)
    batch = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    (found,) = split_batch_norm(lambda part: (norm(part),), batch, Draws(5))
    order = Draws(5).permutation(16)
    for group in order.tensor_split(4):
        part = batch[group]
        expected = (part - part.mean(0)) / (part.var(0, unbiased=False) + norm.eps).sqrt()
        torch.testing.assert_close(found[group], expected)


def test_gather_in_one_process_is_the_tensor_itself() -> None:
    everyone, start = gather(rows(0, 3).requires_grad_())
    assert everyone.equal(rows(0, 3))
    assert start == 0
    assert not everyone.requires_grad
