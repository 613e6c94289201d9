"""Claims about the losses: they equal their definitions, in value and gradient, and stay lean."""

from __future__ import annotations

import math

import pytest
import torch
from tests import reference
from torch import Tensor
from torch.nn import functional

from selfdet.methods import contrast
from selfdet.methods.contrast import dense_info_nce, info_nce, match_dense


def units(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=1)


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, the last ones short, on tiny inputs."""
    monkeypatch.setattr(contrast, "CPU_TILE", (3, 4))


@pytest.mark.parametrize("temperature", [0.01, 0.2, 1.0])
@pytest.mark.parametrize(("queries", "negatives"), [(1, 1), (7, 9), (3, 4), (5, 0)])
def test_info_nce_equals_the_definition_in_value_and_gradient(
    small_tiles: None, queries: int, negatives: int, temperature: float
) -> None:
    q, k, queue = (
        units(queries, 6).requires_grad_(),
        units(queries, 6, seed=1).requires_grad_(),
        units(negatives, 6, seed=2),
    )
    loss, expected = info_nce(q, k, queue, temperature), reference.info_nce(q, k, queue, temperature)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, q, k), gradients(expected, q, k))


def test_info_nce_passes_gradcheck(small_tiles: None) -> None:
    q, k, queue = units(5, 4).requires_grad_(), units(5, 4, seed=1).requires_grad_(), units(6, 4, seed=2)
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, queue, 0.2), (q, k))


def test_no_queries_give_zero_on_the_graph() -> None:
    q = torch.empty(0, 8, requires_grad=True)
    loss = info_nce(q, torch.empty(0, 8), units(4, 8).float(), 0.2)
    loss.backward()
    assert loss.item() == 0
    assert q.grad is not None
    assert q.grad.shape == (0, 8)


def test_negatives_are_constants() -> None:
    q, queue = units(3, 4).requires_grad_(), units(5, 4, seed=2).requires_grad_()
    info_nce(q, units(3, 4, seed=1), queue, 0.2).backward()
    assert queue.grad is None
    assert q.grad is not None


def test_only_the_positive_may_ask_for_a_gradient() -> None:
    q, k, queue = units(3, 4), units(3, 4, seed=1).requires_grad_(), units(5, 4, seed=2)
    (found,) = gradients(info_nce(q, k, queue, 0.2), k)
    torch.testing.assert_close(found, gradients(reference.info_nce(q, k, queue, 0.2), k)[0])


def test_without_gradients_the_value_is_the_same_and_off_the_graph() -> None:
    q, k, queue = units(6, 4).requires_grad_(), units(6, 4, seed=1), units(9, 4, seed=2)
    with torch.no_grad():
        loss = info_nce(q, k, queue, 0.2)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, info_nce(q, k, queue, 0.2).detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_losses_are_computed_in_float32_even_under_autocast(dtype: torch.dtype) -> None:
    q, k, queue = (units(*shape, seed=shape[0]).to(dtype) for shape in ((4, 16), (4, 16), (9, 16)))
    k.requires_grad_()
    expected = reference.info_nce(q.double(), k.double(), queue.double(), 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(q, k, queue, 0.2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    assert k.grad is not None
    assert k.grad.dtype == dtype


def test_double_stays_double() -> None:
    assert info_nce(units(2, 4), units(2, 4), units(3, 4), 0.2).dtype == torch.float64


def test_extreme_temperatures_stay_finite() -> None:
    q = units(4, 8, dtype=torch.float32).requires_grad_()
    loss = info_nce(q, -q.detach(), q.detach(), 1e-3)
    loss.backward()
    assert loss.item() == pytest.approx(2000, rel=1e-3)
    assert q.grad is not None
    assert torch.isfinite(q.grad).all()


def test_equal_similarities_give_the_loss_of_chance() -> None:
    q = units(1, 8).expand(5, 8)
    assert info_nce(q, q, q[:1].expand(100, 8), 0.2).item() == pytest.approx(math.log(101))


def test_backward_keeps_nothing_of_the_size_of_the_logits() -> None:
    saved: list[int] = []
    q = units(20, 4).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        info_nce(q, units(20, 4, seed=1), units(500, 4, seed=2), 0.2)
    assert saved
    assert max(saved) <= 20 * 4


def test_matches_are_the_most_similar_cells_by_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(3, 5, 4, 4, generator=generator) for _ in range(2))
    # Long vectors must not win by their length.
    key[:, :, 0, 0] *= 1000
    match = match_dense(query, key)
    assert match.dtype == torch.int64
    assert match.equal(reference.match_dense(query, key))


def test_a_view_matches_itself_cell_by_cell() -> None:
    features = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    assert match_dense(features, features).equal(torch.arange(15).expand(2, -1))


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 2, 2), (2, 64, 7, 7), (1, 512, 7, 7), (3, 100, 5, 9), (1, 2048, 14, 14), (19, 368, 5, 1), (24, 544, 5, 1)],
)
def test_the_first_of_equal_cells_is_taken(shape: tuple[int, ...]) -> None:
    cells = shape[2] * shape[3]
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(shape, generator=generator)
    key = torch.randn(*shape[:2], 1, 1, generator=generator).expand(shape)
    assert match_dense(query, key).equal(torch.zeros(shape[0], cells, dtype=torch.int64))
    # Every vector twice, far apart: the second of a pair must never be chosen.
    halves = torch.randn(shape[0], shape[1], cells, 1, generator=generator)
    assert int(match_dense(query, torch.cat([halves, halves], 3).transpose(2, 3)).max()) < cells


def test_matching_goes_image_by_image_where_maps_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(5, 6, 4, 4, generator=generator) for _ in range(2))
    whole = match_dense(query, key)
    monkeypatch.setattr(contrast, "MATCH_ELEMENTS", 1)
    assert match_dense(query, key).equal(whole)


def test_matching_has_no_gradient_and_takes_maps_of_two_sizes_and_empty_cells() -> None:
    query = torch.randn(2, 4, 3, 3, requires_grad=True)
    match = match_dense(query * 0, torch.randn(2, 4, 2, 2))
    assert match.equal(torch.zeros(2, 9, dtype=torch.int64))
    assert not match.requires_grad


def test_dense_info_nce_equals_the_definition_in_value_and_gradient() -> None:
    q, k, queue = units(2, 4, 3, 3).requires_grad_(), units(2, 4, 3, 3, seed=1).requires_grad_(), units(5, 4, seed=2)
    match = torch.randint(0, 9, (2, 9), generator=torch.Generator().manual_seed(0))
    loss, expected = dense_info_nce(q, k, match, queue, 0.2), reference.dense_info_nce(q, k, match, queue, 0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, q, k), gradients(expected, q, k))


def test_cells_that_are_not_valid_are_left_out_of_the_mean() -> None:
    q, k, queue = units(2, 4, 2, 2).requires_grad_(), units(2, 4, 2, 2, seed=1), units(5, 4, seed=2)
    match = torch.tensor([[0, 1, -1, 3], [-1, -1, 2, 2]])
    valid = match >= 0
    parts = [
        reference.info_nce(q[b, :, c // 2, c % 2][None], k[b, :, m // 2, m % 2][None], queue, 0.2)
        for b, row in enumerate(match.tolist())
        for c, m in enumerate(row)
        if m >= 0
    ]
    torch.testing.assert_close(dense_info_nce(q, k, match, queue, 0.2, valid), torch.stack(parts).mean())
    nothing = dense_info_nce(q, k, match, queue, 0.2, torch.zeros_like(valid))
    nothing.backward()
    assert nothing.item() == 0
