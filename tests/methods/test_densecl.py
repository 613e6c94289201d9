"""Claims about DenseCL: MoCo plus a dense branch, with each matching and each kind of negatives."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests import reference
from tests.methods.tiny import tiny_backbone, train, view_batch
from torch import Tensor
from torch.nn import functional

from selfdet.data.pixels import normalise
from selfdet.errors import UserError
from selfdet.methods.densecl import MATCHINGS, NEGATIVES, DenseCL
from selfdet.methods.moco import MoCo, unit


def densecl(**options: Any) -> DenseCL:
    return DenseCL(tiny_backbone(), **{"queue_length": 24, "dim": 8, **options})


def plain_outputs(method: DenseCL, count: int = 3) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What a twin's encoders say of both views: (embedding, features, cells) each."""
    twin, batch = copy.deepcopy(method), view_batch(count)
    return twin.encoder(normalise(batch.query)), twin.key_encoder(normalise(batch.key))


def test_the_losses_are_the_definitions_on_what_the_two_encoders_say() -> None:
    method = densecl(key_batch_norm="none", dense_weight=0.3)
    (q, q_features, q_cells), (k, k_features, k_cells) = plain_outputs(method)
    queue, dense_queue = method.queue.clone(), method.dense_queue.clone()
    losses = method(view_batch(3))
    global_loss = reference.info_nce(q, k, queue, 0.2)
    match = reference.match_dense(q_features, k_features)
    dense_loss = reference.dense_info_nce(unit(q_cells), unit(k_cells), match, dense_queue, 0.2)
    torch.testing.assert_close(losses["global"], global_loss)
    torch.testing.assert_close(losses["dense"], dense_loss)
    torch.testing.assert_close(losses["loss"], 0.7 * global_loss + 0.3 * dense_loss)


def test_matching_uses_the_backbones_last_map_before_any_head() -> None:
    method = densecl()
    images = normalise(view_batch(2).query)
    twin = copy.deepcopy(method)
    assert method.encoder(images)[1].equal(list(twin.encoder.backbone(images).values())[-1])


def test_without_dense_weight_the_loss_is_mocos_exactly_over_several_steps() -> None:
    dense = densecl(dense_weight=0.0, negatives="dense", matching="random")
    moco = MoCo(tiny_backbone(), queue_length=24, dim=8)
    assert train(dense, [9, 9, 5]) == train(moco, [9, 9, 5])
    assert dense.queue.equal(moco.queue)


def test_the_dense_queue_holds_pooled_key_cells_normalised_after_pooling() -> None:
    method = densecl(key_batch_norm="none")
    _, (k, _, k_cells) = plain_outputs(method)
    method(view_batch(3))
    torch.testing.assert_close(method.dense_queue[:3], functional.normalize(k_cells.mean((2, 3)), dim=1))
    torch.testing.assert_close(method.queue[:3], k)


def test_dense_negatives_are_one_cell_of_each_image() -> None:
    method = densecl(key_batch_norm="none", negatives="dense")
    _, (_, _, k_cells) = plain_outputs(method)
    method(view_batch(3))
    cells = unit(k_cells).flatten(2)
    for entry, image in zip(method.dense_queue[:3], cells):
        assert (image.T - entry).abs().sum(1).min() < 1e-5
    assert int(method.dense_queue_entered) == 3


def test_geometric_matching_pairs_the_cells_that_show_the_same_point_and_leaves_out_the_rest() -> None:
    method = densecl(key_batch_norm="none", matching="geometric")
    batch = view_batch(3)
    # The key view starts one cell (8 px) further right: the first column of query cells has no partner.
    batch.key_affine[:, 0, 2] = 8.0
    (_, _, q_cells), (_, _, k_cells) = plain_outputs(method)
    queue = method.dense_queue.clone()
    q, k = unit(q_cells)[:, :, :, 1:].flatten(2), unit(k_cells)[:, :, :, :-1].flatten(2)
    expected = reference.info_nce(q.transpose(1, 2).flatten(0, 1), k.transpose(1, 2).flatten(0, 1), queue, 0.2)
    torch.testing.assert_close(method(batch)["dense"], expected)


def test_views_without_overlap_give_a_dense_loss_of_zero_that_can_be_trained_on() -> None:
    method = densecl(matching="geometric")
    batch = view_batch(3)
    batch.key_affine[:, 0, 2] = 1000.0
    losses = method(batch)
    losses["loss"].backward()
    assert losses["dense"].item() == 0
    assert "dense_pos_similarity" in method.health()


def test_random_matching_is_seeded() -> None:
    losses = [densecl(matching="random", seed=seed)(view_batch(4))["dense"].item() for seed in (0, 0)]
    assert losses[0] == losses[1]
    method = densecl(matching="random")
    first, second = (method.match(view_batch(4), *[torch.zeros(4, 1, 3, 3)] * 2)[0] for _ in range(2))
    assert not first.equal(second)
    assert int(first.max()) <= 8


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_every_trainable_part_gets_a_gradient_and_every_option_resumes_bit_for_bit(
    matching: str, negatives: str
) -> None:
    options = {"matching": matching, "negatives": negatives, "dense_warmup": 4}
    straight = densecl(**options)
    train(straight, [9, 1, 30])
    for name, p in straight.encoder.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0 or "0.bias" in name, name
    assert all(p.grad is None for p in straight.key_encoder.parameters())
    saved = copy.deepcopy(straight.state_dict())
    expected = train(straight, [9, 5], first_step=3)
    resumed = densecl(**options, seed=5)
    resumed.load_state_dict(saved)
    assert train(resumed, [9, 5], first_step=3) == expected
    for name, value in straight.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name


def test_the_dense_weight_rises_linearly_over_its_warm_up() -> None:
    method = densecl(dense_weight=0.8, dense_warmup=4)
    weights = []
    for step in range(6):
        weights.append(float(method.current_weight()))
        method.after_step(step)
    assert weights == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8])


def test_a_fixed_grid_pools_cells_and_matched_features_alike() -> None:
    method = densecl(grid=2)
    embedding, features, cells = method.encoder(normalise(view_batch(3).query))
    assert embedding.shape == (3, 8)
    assert features.shape == (3, 16, 2, 2)
    assert cells.shape == (3, 8, 2, 2)
    for matching in MATCHINGS:
        assert torch.isfinite(densecl(grid=2, matching=matching)(view_batch(3))["dense"])


def test_replacing_the_key_encoders_dense_head_changes_the_dense_loss_alone() -> None:
    method, other = densecl(), densecl()
    other.key_encoder.dense_head.load_state_dict(densecl(seed=1).encoder.dense_head.state_dict())
    losses, changed = method(view_batch(4)), other(view_batch(4))
    assert losses["global"] == changed["global"]
    assert losses["dense"] != changed["dense"]


def test_identical_views_and_encoders_match_every_cell_with_itself() -> None:
    method = densecl(key_batch_norm="none")
    batch = view_batch(3)
    (_, q_features, _), (_, k_features, _) = method.both_views(replace(batch, key=batch.query))
    assert method.match(batch, q_features, k_features)[0].equal(torch.arange(16).expand(3, -1))


def test_health_has_figures_of_the_cells() -> None:
    method = densecl()
    train(method, [8])
    figures = method.health()
    for name in ("dense_pos_similarity", "dense_neg_similarity"):
        assert -1 <= figures[name] <= 1
    assert figures["dense_feature_std"] > 0
    assert all(isinstance(value, float) for value in figures.values())


@pytest.mark.parametrize(
    "options",
    [{"dense_weight": 1.5}, {"dense_warmup": -1}, {"grid": 0}, {"matching": "best"}, {"negatives": "all"}],
    ids=lambda options: next(iter(options)),
)
def test_arguments_out_of_range_are_refused_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        densecl(**options)
    assert "\n" not in str(caught.value)
