"""Crops stay inside the image, affines are exact, true matches are those of a slow loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from selfdet.data.geometry import Crop, draw_crop, grid_centres, true_matches, view_affine


def draw(height: int, width: int, times: int = 300) -> list[Crop]:
    rng = np.random.default_rng(0)
    return [draw_crop(rng, height, width, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(times)]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (2, 3), (7, 900), (900, 7), (120, 160)])
def test_crops_lie_inside_images_of_any_shape(height: int, width: int) -> None:
    for top, left, h, w in draw(height, width):
        assert h >= 1
        assert w >= 1
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w


def test_crops_are_distributed_like_torchvisions() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.zeros(3, 400, 500, dtype=torch.uint8)
        theirs = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    ours = np.array(draw(400, 500, times=2000), dtype=float)
    other = np.array(theirs, dtype=float)
    steps = np.linspace(0.05, 0.95, 10)
    for values, reference in [
        (ours[:, 2] * ours[:, 3] / 200_000, other[:, 2] * other[:, 3] / 200_000),
        (ours[:, 3] / ours[:, 2], other[:, 3] / other[:, 2]),
        (ours[:, 0] / 400, other[:, 0] / 400),
        (ours[:, 1] / 500, other[:, 1] / 500),
    ]:
        np.testing.assert_allclose(np.quantile(values, steps), np.quantile(reference, steps), atol=0.04)


def test_the_affine_maps_view_corners_to_crop_corners() -> None:
    crop = Crop(top=10, left=20, height=60, width=90)
    corners = torch.tensor([[0.0, 0.0, 1.0], [32.0, 32.0, 1.0]])
    assert (corners @ view_affine(crop, False, 32).T).tolist() == [[20, 10], [110, 70]]
    assert (corners @ view_affine(crop, True, 32).T).tolist() == [[110, 10], [20, 70]]


def slow_matches(query: Tensor, key: Tensor, view_size: int, grid: int) -> list[list[int]]:
    rows = []
    for q, k in zip(query.double().tolist(), key.double().tolist()):
        row = []
        for cell in range(grid * grid):
            x, y = ((cell % grid) + 0.5) * view_size / grid, ((cell // grid) + 0.5) * view_size / grid
            source_x, source_y = q[0][0] * x + q[0][2], q[1][1] * y + q[1][2]
            key_x, key_y = (source_x - k[0][2]) / k[0][0], (source_y - k[1][2]) / k[1][1]
            column, line = math.floor(key_x * grid / view_size), math.floor(key_y * grid / view_size)
            inside = 0 <= column < grid and 0 <= line < grid
            row.append(line * grid + column if inside else -1)
        rows.append(row)
    return rows


@pytest.mark.parametrize("grid", [1, 5, 7])
def test_true_matches_are_those_of_a_slow_loop(grid: int) -> None:
    rng = np.random.default_rng(5)
    query, key = (
        torch.stack([view_affine(c, bool(rng.random() < 0.5), 96) for c in draw_many(rng, 24)]) for _ in range(2)
    )
    match, valid, key_xy = true_matches(query, key, 96, grid)
    assert match.tolist() == slow_matches(query, key, 96, grid)
    assert torch.equal(valid, match >= 0)
    assert match.dtype == torch.int64
    assert key_xy.shape == (24, grid * grid, 2)
    if grid > 1:
        assert 0.1 < valid.double().mean() < 0.95


def draw_many(rng: np.random.Generator, count: int) -> list[Crop]:
    return [draw_crop(rng, 333, 251, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(count)]


def test_matched_points_are_the_same_source_point() -> None:
    rng = np.random.default_rng(6)
    query = torch.stack([view_affine(c, True, 64) for c in draw_many(rng, 8)])
    key = torch.stack([view_affine(c, False, 64) for c in draw_many(rng, 8)])
    key_xy = true_matches(query, key, 64, 4)[2]
    centres = grid_centres(64, 4).float()
    from_query = centres @ query[:, :, :2].transpose(1, 2) + query[:, None, :, 2]
    from_key = key_xy @ key[:, :, :2].transpose(1, 2) + key[:, None, :, 2]
    torch.testing.assert_close(from_query, from_key, atol=1e-3, rtol=0)


def test_equal_views_match_each_cell_with_itself_and_mirrored_ones_with_its_mirror_image() -> None:
    crop = Crop(3, 5, 100, 77)
    plain, mirrored = view_affine(crop, False, 70)[None], view_affine(crop, True, 70)[None]
    cells = torch.arange(49).reshape(7, 7)
    assert torch.equal(true_matches(mirrored, mirrored, 70, 7)[0][0], cells.flatten())
    assert torch.equal(true_matches(plain, mirrored, 70, 7)[0][0], cells.flip(1).flatten())


def test_views_of_disjoint_crops_have_no_matches() -> None:
    one, other = view_affine(Crop(0, 0, 10, 10), False, 32)[None], view_affine(Crop(50, 50, 10, 10), False, 32)[None]
    match, valid, _ = true_matches(one, other, 32, 7)
    assert not valid.any()
    assert (match == -1).all()
