"""Matches are mutual, judged by exact geometry, and counted as stated."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.patches import noise, pixels

import reference
from selfdet.data.geometry import Crop, view_affine
from selfdet.data.views import Recipe, ViewPair, render
from selfdet.evaluation.correspondence import (
    Matches,
    Pair,
    cell_at,
    counts,
    covered,
    match_pairs,
    mutual_nearest,
    whole_images,
)

SIZE = 64  # four cells of 16 px


def pair(first: Crop, second: Crop, flip: bool = False) -> Pair:
    """Two plain crops of one image as views; `flip`: the second one mirrored."""
    image = noise(128, 128)
    views = [render(image, Recipe(crop, turn, (), False, 0.0), SIZE) for crop, turn in ((first, False), (second, flip))]
    affines = view_affine(first, False, SIZE), view_affine(second, flip, SIZE)
    return Pair("noise.jpg", ViewPair(views[0], views[1], *affines))


SAME = Crop(0, 0, SIZE, SIZE)


@pytest.mark.parametrize("levels", [3, 1000])
def test_mutual_nearest_cells_are_those_of_the_loop_ties_included(levels: int) -> None:
    for seed in range(20):
        drawn = torch.randint(0, levels, (7, 9), generator=torch.Generator().manual_seed(seed)) / levels
        query, key = mutual_nearest(drawn)
        assert set(zip(query.tolist(), key.tolist())) == reference.mutual_nearest(drawn.tolist())
        values = drawn[query, key]
        assert (values[:-1] >= values[1:]).all()


def test_a_network_that_sees_the_pixels_is_right_everywhere_on_equal_views() -> None:
    (found,) = match_pairs(pixels(), [pair(SAME, SAME)])
    assert found.grid == 4
    assert found.query.sort().values.tolist() == list(range(16))
    assert found.hits is not None
    assert found.hits.all()
    assert counts([found], 0.99) == {
        "threshold": 0.99,
        "matches": 16,
        "hits": 16,
        "hit_share": 1.0,
        "beside_share": 1.0,
        "found_share": 1.0,
        "error_px": 0.0,
    }


def test_many_pairs_are_matched_in_parts_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    several = [pair(SAME, Crop(0, 4 * place, SIZE, SIZE)) for place in range(5)]
    whole = match_pairs(pixels(), several)
    monkeypatch.setattr("selfdet.evaluation.correspondence.PIXELS_AT_ONCE", 4 * SIZE**2)
    for one, other in zip(whole, match_pairs(pixels(), several), strict=True):
        assert torch.allclose(one.similarity, other.similarity, atol=1e-6)


def test_a_view_that_lies_a_cell_to_the_right_matches_a_cell_to_the_left() -> None:
    (found,) = match_pairs(pixels(), [pair(SAME, Crop(0, 16, SIZE, SIZE))])
    sure = found.values > 0.99
    assert sorted(zip(found.query[sure].tolist(), found.key[sure].tolist())) == [
        (row * 4 + column, row * 4 + column - 1) for row in range(4) for column in (1, 2, 3)
    ]
    assert found.shared == 12
    told = counts([found], 0.99)
    assert (told["hits"], told["found_share"]) == (12, 1.0)
    # What the other view does not show can't be matched rightly.
    assert found.hits is not None
    assert not found.hits[found.query % 4 == 0].any()


def test_a_mirrored_view_is_judged_by_where_its_points_are() -> None:
    both = pair(SAME, SAME, flip=True)
    (found,) = match_pairs(pixels(), [both])
    assert found.true is not None
    assert found.true.tolist() == [row * 4 + 3 - column for row in range(4) for column in range(4)]


def test_a_cells_map_has_its_peak_at_the_point_itself() -> None:
    for second in (SAME, Crop(16, 16, SIZE, SIZE)):
        both = pair(SAME, second)
        (found,) = match_pairs(pixels(), [both])
        cell = cell_at(both, (40.0, 50.0), found.grid)
        assert cell == 3 * 4 + 2
        assert found.true is not None
        assert found.similarity[cell].argmax() == found.true[cell]


def test_points_are_found_in_mirrored_and_enlarged_views_and_refused_outside() -> None:
    crop = Crop(top=10, left=20, height=32, width=32)
    views = ViewPair(
        noise(SIZE, SIZE), noise(SIZE, SIZE), view_affine(crop, True, SIZE), view_affine(crop, False, SIZE)
    )
    one = Pair("x", views)
    assert covered(one) == (20.0, 10.0, 52.0, 42.0)
    assert cell_at(one, (21.0, 11.0), 4) == 3  # the top left of the crop is the top right of the mirrored view
    assert cell_at(one, (51.9, 41.9), 4) == 12
    for outside in ((19.0, 20.0), (30.0, 42.0), (-1.0, -1.0)):
        assert cell_at(one, outside, 4) is None


def test_counts_are_what_can_be_counted_by_hand() -> None:
    """Two cells a side of 10 px. Matches: right at 0.9, a cell beside at 0.8, wrong at 0.6, unseen there at 0.5."""
    similarity = torch.tensor([[0.9, 0, 0, 0], [0, 0, 0, 0.8], [0, 0, 0.6, 0], [0, 0.5, 0, 0]])
    true = torch.tensor([0, 1, 1, -1])
    points = torch.tensor([[5.0, 5.0], [15.0, 7.0], [15.0, 5.0], [99.0, 99.0]])
    found = Matches(similarity, *mutual_nearest(similarity), size=20, true=true, points=points)
    assert counts([found], 0.5) == {
        "threshold": 0.5,
        "matches": 4,
        "hits": 1,
        "hit_share": 0.25,
        "beside_share": 0.5,
        "found_share": 1 / 3,
        "error_px": pytest.approx(8.0),  # of 0, 8, √200 and √17716 px the lower middle one
    }
    assert counts([found, found], 0.85)["hits"] == 2
    empty = counts([found], 0.95)
    assert (empty["matches"], empty["hits"], empty["hit_share"], empty["error_px"]) == (0, 0, None, None)


def test_of_two_images_nobody_knows_what_is_right() -> None:
    one = whole_images(noise(50, 80), noise(70, 30), ("a.jpg", "b.jpg"), SIZE)
    assert (one.name, one.size) == ("a.jpg and b.jpg", SIZE)
    assert covered(one) == (0.0, 0.0, 80.0, 50.0)
    (found,) = match_pairs(pixels(), [one])
    assert (found.true, found.hits, found.shared) == (None, None, None)
    told = counts([found], -1.0)
    assert told["matches"] == len(found.query) > 0
    assert told["hits"] is told["hit_share"] is told["error_px"] is None


def test_views_without_a_common_point_share_no_cell() -> None:
    (found,) = match_pairs(pixels(), [pair(SAME, Crop(64, 64, SIZE, SIZE))])
    assert found.shared == 0
    assert counts([found], -1.0)["hits"] == 0
    assert counts([found], -1.0)["found_share"] is None
