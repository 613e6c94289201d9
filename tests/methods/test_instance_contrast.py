"""Claims about the box-domain loss: it equals its definition, in value and gradient, for any ids, and stays lean."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests import reference
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from selfdet.methods import contrast
from selfdet.methods import instance_contrast as module
from selfdet.methods.contrast import instance_contrast

# (online ids, teacher ids): in order, mixed, absent from either view, background everywhere or nowhere, alone.
LAYOUTS = {
    "ordered": ([0, 0, 1, 1, 1, 2, -1], [-1, -1, 0, 1, 1, 2, 2]),
    "mixed": ([5, -1, 0, 5, 3, 0, 3, -1, 5], [3, 5, -1, 0, 0, 5, -1, 3]),
    "absent from the teacher": ([4, 4, 4, 1, 2, -1, 2], [1, -1, 1, 7]),
    "nothing in common": ([3, 1, 3], [2, -1]),
    "no background": ([0, 1, 0, 1, 2], [2, 1, 0, 1]),
    "no negatives": ([6, 6, 6, 6], [6, 6]),
    "an empty teacher": ([0, 2, 0, -1], []),
    "numbers of any size": ([2**62, 300, 2**40, 300, -(2**40)], [300, 2**62, 7, -3]),
}


def embeddings(rows: int, dim: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.rand(rows, 1, generator=generator, dtype=torch.float64).mul(6).sub(3).exp()
    return (torch.randn(rows, dim, generator=generator, dtype=torch.float64) * lengths).to(dtype)


def views(layout: str, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    online_ids, teacher_ids = (torch.tensor(ids, dtype=torch.int64) for ids in LAYOUTS[layout])
    online = embeddings(len(online_ids), **options).requires_grad_()
    return online, embeddings(len(teacher_ids), seed=1, **options), online_ids, teacher_ids


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, the last ones short, ids across their borders, on tiny inputs."""
    monkeypatch.setattr(module, "CPU_TILE", (3, 4))


class Operations(TorchDispatchMode):
    """Counts operations and notes the largest tensor that any of them makes."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("fallback", ["query", "skip"])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_equals_the_per_id_form_in_value_and_gradient(
    small_tiles: None, layout: str, temperature: float, fallback: str
) -> None:
    inputs = views(layout)
    inputs[1].requires_grad_()
    loss = instance_contrast(*inputs, temperature, fallback)
    expected = reference.instance_contrast(*inputs, temperature, fallback)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, inputs[:2])
    wanted = torch.autograd.grad(expected, inputs[:2], allow_unused=True)
    for gradient, other, tensor in zip(found, wanted, inputs):
        torch.testing.assert_close(gradient, torch.zeros_like(tensor) if other is None else other)


def test_tiles_change_nothing(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    online, teacher = embeddings(40).requires_grad_(), embeddings(31, seed=1)
    ids = torch.randint(-1, 6, (71,), generator=generator)
    tiled = instance_contrast(online, teacher, ids[:40], ids[40:])
    monkeypatch.setattr(module, "CPU_TILE", (1000, 1000))
    whole = instance_contrast(online, teacher, ids[:40], ids[40:])
    torch.testing.assert_close(tiled, whole)
    torch.testing.assert_close(torch.autograd.grad(tiled, online), torch.autograd.grad(whole, online))


def test_gradients_pass_gradcheck_for_fixed_negatives(small_tiles: None) -> None:
    """The public function's negatives move with its inputs but count as constants, so they are held fast here."""
    query_ids = torch.tensor([0, 0, 1, 3, 3])
    key_ids = torch.tensor([0, 1, 1, 1, 3, 3])
    bank_ids = torch.tensor([-1, -1, 0, 0, 1, 2, 3, 3])
    query, keys, bank = embeddings(5), embeddings(6, seed=1), functional.normalize(embeddings(8, seed=2), dim=1)

    def pairs(q: Tensor, k: Tensor) -> Tensor:
        q, k = module._unit(q), module._unit(k)
        return module._GroupedInfoNCE.apply(q, k, bank, query_ids, key_ids, bank_ids, 0.5, True)

    def queries_as_keys(q: Tensor) -> Tensor:
        q = module._unit(q)
        return module._GroupedInfoNCE.apply(q, q, bank, query_ids, query_ids, bank_ids, 0.5, True)

    assert torch.autograd.gradcheck(pairs, (query.requires_grad_(), keys.requires_grad_()))
    assert torch.autograd.gradcheck(queries_as_keys, (query,))


def test_one_query_one_key_and_one_negative_by_hand() -> None:
    online, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0], [-0.5, 0.0]])
    loss = instance_contrast(online, teacher, torch.tensor([4]), torch.tensor([4, -1]), 0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1 / 0.5)))


def test_every_query_meets_every_key_and_ids_weigh_the_same_whatever_their_pairs() -> None:
    inputs = views("ordered")
    z, k = (functional.normalize(tensor.detach(), dim=1) for tensor in inputs[:2])
    everything, ids = torch.cat([z, k]), torch.cat(inputs[2:])
    means = []
    for i in (0, 1, 2):
        losses = []
        for q in z[inputs[2] == i]:
            others = [math.exp(float(q @ n) / 0.5) for n in everything[ids != i]]
            for key in k[inputs[3] == i]:
                own = math.exp(float(q @ key) / 0.5)
                losses.append(-math.log(own / (own + sum(others))))
        means.append(sum(losses) / len(losses))
    assert instance_contrast(*inputs).item() == pytest.approx(sum(means) / 3)


def test_without_the_teacher_the_queries_are_keys_for_each_other_and_for_themselves() -> None:
    online = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    loss = instance_contrast(online, teacher, torch.tensor([8, 8]), torch.tensor([-1]), 1.0)
    # Negative logits -1 and 0; the four pairs have the logits 1, 0, 0, 1.
    pairs = [math.log1p(math.exp(n - p)) for n in (-1, 0) for p in (1, 0)]
    assert loss.item() == pytest.approx(sum(pairs) / 4)
    detached = reference.instance_contrast(
        online, torch.cat([online.detach(), teacher]), torch.tensor([8, 8]), torch.tensor([8, 8, -1]), 1.0
    )
    assert detached.item() == pytest.approx(loss.item())
    (found,), (half,) = torch.autograd.grad(loss, online), torch.autograd.grad(detached, online)
    assert not torch.allclose(found, half), "the fallback's keys must get their gradient as well"


def test_skip_leaves_out_what_the_teacher_has_not_got() -> None:
    online, teacher, online_ids, teacher_ids = views("absent from the teacher")
    kept = torch.isin(online_ids, teacher_ids)
    loss = instance_contrast(online, teacher, online_ids, teacher_ids, fallback="skip")
    # As if the absent ids were background: still negatives, no queries.
    torch.testing.assert_close(loss, instance_contrast(online, teacher, online_ids.where(kept, -1), teacher_ids))
    (gradient,) = torch.autograd.grad(loss, online)
    assert gradient[~kept].count_nonzero() == 0


def test_background_gets_no_gradient_and_the_teacher_only_as_a_key_that_asks_for_one() -> None:
    online, teacher, online_ids, teacher_ids = views("mixed")
    instance_contrast(online, teacher, online_ids, teacher_ids).backward()
    assert teacher.grad is None
    assert online.grad is not None
    assert online.grad[online_ids < 0].count_nonzero() == 0
    assert (online.grad[online_ids >= 0].abs().amax(1) > 0).all()
    (gradient,) = torch.autograd.grad(
        instance_contrast(online, teacher.requires_grad_(), online_ids, teacher_ids), teacher
    )
    assert gradient[teacher_ids < 0].count_nonzero() == 0
    assert (gradient[teacher_ids >= 0].abs().amax(1) > 0).all()


@pytest.mark.parametrize(
    ("online_ids", "teacher_ids", "fallback"),
    [
        ([], [], "query"),
        ([], [0, 1, -1], "query"),
        ([-1, -1], [0, -1], "query"),
        ([-1, -1], [], "query"),
        ([0, 1], [], "skip"),
        ([0, 1], [2, -1], "skip"),
        ([3, 3], [3], "query"),
    ],
)
def test_nothing_to_compare_gives_zero_on_the_graph(
    online_ids: list[int], teacher_ids: list[int], fallback: str
) -> None:
    online = embeddings(len(online_ids)).requires_grad_()
    ids = [torch.tensor(values, dtype=torch.int64) for values in (online_ids, teacher_ids)]
    loss = instance_contrast(online, embeddings(len(teacher_ids)), *ids, fallback=fallback)
    assert loss.item() == 0
    loss.backward()
    assert online.grad is not None
    assert online.grad.shape == online.shape
    assert online.grad.count_nonzero() == 0


def test_identical_embeddings_give_the_loss_of_chance() -> None:
    online = torch.ones(6, 8, requires_grad=True)
    ids = torch.tensor([0, 0, 0, 1, 1, -1])
    loss = instance_contrast(online, torch.ones(6, 8), ids, ids)
    # Id 0 has six negatives in both views together, id 1 eight.
    assert loss.item() == pytest.approx((math.log(7) + math.log(9)) / 2)
    loss.backward()
    assert online.grad is not None
    assert online.grad.abs().max() < 1e-6


def test_more_ids_than_a_byte_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    online, teacher = embeddings(700).requires_grad_(), embeddings(650, seed=1)
    online_ids, teacher_ids = torch.randint(-1, 400, (1350,), generator=generator).split([700, 650])
    assert len(online_ids.unique()) > 257
    loss = instance_contrast(online, teacher, online_ids, teacher_ids)
    expected = reference.instance_contrast(online, teacher, online_ids, teacher_ids)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, online), torch.autograd.grad(expected, online))


def test_neither_the_order_of_embeddings_nor_the_numbers_of_ids_nor_lengths_matter() -> None:
    online, teacher, online_ids, teacher_ids = views("mixed")
    loss = instance_contrast(online, teacher, online_ids, teacher_ids)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randperm(len(online), generator=generator), torch.randperm(len(teacher), generator=generator)
    shuffled = instance_contrast(online[a], teacher[b], online_ids[a], teacher_ids[b])
    torch.testing.assert_close(shuffled, loss)
    torch.testing.assert_close(torch.autograd.grad(shuffled, online), torch.autograd.grad(loss, online))
    renamed = [torch.where(ids < 0, ids, 1000 - 7 * ids) for ids in (online_ids, teacher_ids)]
    torch.testing.assert_close(instance_contrast(online, teacher, *renamed), loss)
    torch.testing.assert_close(instance_contrast(online * 30, teacher / 9, online_ids, teacher_ids), loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_is_computed_in_float32_even_under_autocast(dtype: torch.dtype) -> None:
    online, teacher = (embeddings(9 - row, dim=16, seed=row).to(dtype) for row in (0, 1))
    ids = [torch.tensor(values) for values in LAYOUTS["mixed"]]
    expected = reference.instance_contrast(online.double(), teacher.double(), *ids)
    online.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = instance_contrast(online, teacher, *ids)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    assert online.grad is not None
    assert online.grad.dtype == dtype


def test_double_stays_double() -> None:
    assert instance_contrast(*views("mixed")).dtype == torch.float64


def test_zero_embeddings_have_no_direction_and_get_no_gradient() -> None:
    online, teacher, online_ids, teacher_ids = views("ordered", dtype=torch.float32)
    online = online.detach()
    online[0], teacher[3] = 0, 0
    loss = instance_contrast(online.requires_grad_(), teacher, online_ids, teacher_ids)
    torch.testing.assert_close(loss, reference.instance_contrast(online, teacher, online_ids, teacher_ids))
    (gradient,) = torch.autograd.grad(loss, online)
    assert torch.isfinite(gradient).all()
    assert gradient[0].count_nonzero() == 0


def test_extreme_temperatures_stay_finite() -> None:
    online = torch.eye(4, requires_grad=True)
    ids = torch.arange(4)
    loss = instance_contrast(online, -torch.eye(4), ids, ids, 1e-3)
    loss.backward()
    # Every key is opposite to its query, the six negatives are at right angles.
    assert loss.item() == pytest.approx(1000 + math.log(6))
    assert online.grad is not None
    assert torch.isfinite(online.grad).all()


def test_without_gradients_the_value_is_the_same_and_off_the_graph() -> None:
    inputs = views("mixed")
    with torch.no_grad():
        loss = instance_contrast(*inputs)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, instance_contrast(*inputs).detach())


@pytest.mark.parametrize("ids", [1, 7, 60])
def test_nothing_of_queries_times_embeddings_is_ever_held(small_tiles: None, ids: int) -> None:
    rows, dim = 120, 4
    online, teacher = embeddings(rows, dim).requires_grad_(), embeddings(rows, dim, seed=1)
    owner = torch.arange(rows) % (ids + 1) - 1
    with Operations() as operations:
        instance_contrast(online, teacher, owner, owner).backward()
    assert operations.largest <= 2 * rows * dim


def test_operations_do_not_grow_with_the_number_of_ids() -> None:
    counts = []
    for ids in (2, 50):
        online, owner = embeddings(100).requires_grad_(), torch.arange(100) % ids
        with Operations() as operations:
            instance_contrast(online, online.detach(), owner, owner).backward()
        counts.append(operations.count)
    assert counts[0] == counts[1]


def test_another_fallback_is_refused() -> None:
    with pytest.raises(ValueError, match="'queries'"):
        instance_contrast(*views("mixed"), fallback="queries")


def test_all_losses_are_found_in_one_place() -> None:
    assert contrast.instance_contrast is instance_contrast


def test_places_of_other_processes_are_negatives_as_background_is() -> None:
    online, teacher, online_ids, teacher_ids = views("mixed")
    elsewhere = embeddings(3, seed=2)
    instance_contrast(online, teacher, online_ids, teacher_ids, others=elsewhere).backward()
    found, online.grad = online.grad, None
    with_background = torch.cat([teacher_ids, torch.full((3,), -1)])
    expected = instance_contrast(online, torch.cat([teacher, elsewhere]), online_ids, with_background)
    expected.backward()
    torch.testing.assert_close(found, online.grad)


def test_the_ids_of_the_mean_are_counted() -> None:
    online_ids, teacher_ids = (torch.tensor(ids) for ids in LAYOUTS["absent from the teacher"])
    assert module.counted_ids(online_ids, teacher_ids) == 3
    assert module.counted_ids(online_ids, teacher_ids, "skip") == 1
