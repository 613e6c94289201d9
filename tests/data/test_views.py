"""Views show the source where their affine says they do, and depend on nothing but (seed, epoch, index)."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from selfdet.data.geometry import Crop, view_affine
from selfdet.data.loader import sample_rng
from selfdet.data.views import Recipe, TwoViews, ViewBatch, ViewDataset, collate_views, render


def coordinates(height: int, width: int) -> Tensor:
    """An image whose red is the x and whose green is the y of each pixel's centre, both on a 0…255 scale."""
    x = (np.arange(width) + 0.5) / width * 255
    y = (np.arange(height) + 0.5) / height * 255
    image = np.stack([np.tile(x, (height, 1)), np.tile(y[:, None], (1, width)), np.zeros((height, width))])
    return torch.from_numpy(image.round().astype(np.uint8))


def noise(height: int = 50, width: int = 70) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))


def geometry_of(views: TwoViews, index: int, height: int, width: int) -> Recipe:
    drawn = views.draw(sample_rng(views.seed, 0, index), height, width)
    return Recipe(crop=drawn.crop, flip=drawn.flip, jitter=(), grey=False, sigma=0.0)


@pytest.mark.parametrize("index", range(12))
@pytest.mark.parametrize(("height", "width"), [(255, 255), (180, 240), (40, 30)])
def test_view_pixels_hold_the_source_coordinates_that_the_affine_predicts(height: int, width: int, index: int) -> None:
    size = 64
    recipe = geometry_of(TwoViews(size, seed=1), index, height, width)
    view = render(coordinates(height, width), recipe, size).double()
    affine = view_affine(recipe.crop, recipe.flip, size).double()
    centre = torch.arange(size).double() + 0.5
    x = (affine[0, 0] * centre + affine[0, 2]) / width * 255
    y = (affine[1, 1] * centre + affine[1, 2]) / height * 255
    # Within half a source pixel of the crop's edge the resize has nothing to interpolate with.
    edge = 1 + int(size / min(recipe.crop.height, recipe.crop.width))
    inner = slice(edge, -edge)
    assert (view[0] - x).abs()[:, inner].max() < 1.2
    assert (view[1] - y[:, None]).abs()[inner].max() < 1.2
    # Rounding to bytes averages out, a shift would not: on average the affine is right to a tenth of a source pixel.
    assert (view[0] - x)[:, inner].mean().abs() < 0.1 * 255 / width
    assert (view[1] - y[:, None])[inner].mean().abs() < 0.1 * 255 / height


def test_flipped_and_plain_views_are_both_drawn_and_mirror_each_other() -> None:
    recipes = [geometry_of(TwoViews(32, seed=1), index, 50, 70) for index in range(40)]
    assert {recipe.flip for recipe in recipes} == {False, True}
    plain = render(noise(), Recipe(Crop(3, 4, 40, 50), False, (), False, 0.0), 32)
    mirrored = render(noise(), Recipe(Crop(3, 4, 40, 50), True, (), False, 0.0), 32)
    assert torch.equal(plain.flip(-1), mirrored)


def test_operations_occur_as_often_as_specified() -> None:
    views = TwoViews(32, seed=0)
    recipes = [views.draw(np.random.default_rng(i), 100, 100) for i in range(3000)]
    shares = {
        "jitter": np.mean([bool(r.jitter) for r in recipes]),
        "grey": np.mean([r.grey for r in recipes]),
        "blur": np.mean([r.sigma > 0 for r in recipes]),
        "flip": np.mean([r.flip for r in recipes]),
        "hue before brightness": np.mean([list(dict(r.jitter)).index("hue") < 2 for r in recipes if r.jitter]),
    }
    expected = {"jitter": 0.8, "grey": 0.2, "blur": 0.5, "flip": 0.5, "hue before brightness": 0.5}
    assert shares == pytest.approx(expected, abs=0.03)
    factors = {name: [dict(r.jitter)[name] for r in recipes if r.jitter] for name in dict(recipes[0].jitter)}
    for name, values in factors.items():
        low, high = (-0.1, 0.1) if name == "hue" else (0.6, 1.4)
        assert low <= min(values) < low + 0.02
        assert high - 0.02 < max(values) <= high
    sigmas = [r.sigma for r in recipes if r.sigma]
    assert 0.1 <= min(sigmas) < 0.15
    assert 1.95 < max(sigmas) <= 2.0


def test_a_pair_is_a_pure_function_of_seed_epoch_and_index() -> None:
    image = noise()
    pair, again = TwoViews(32, seed=7)(image, 2, 5), TwoViews(32, seed=7)(image, 2, 5)
    assert torch.equal(pair.query, again.query)
    assert torch.equal(pair.key, again.key)
    assert torch.equal(pair.query_affine, again.query_affine)
    for other in (
        TwoViews(32, seed=8)(image, 2, 5),
        TwoViews(32, seed=7)(image, 3, 5),
        TwoViews(32, seed=7)(image, 2, 6),
    ):
        assert not torch.equal(pair.query_affine, other.query_affine)


def test_the_two_views_are_drawn_independently() -> None:
    pairs = [TwoViews(32, seed=0)(noise(), 0, index) for index in range(60)]
    assert all(not torch.equal(pair.query_affine, pair.key_affine) for pair in pairs)
    flips = np.array([[pair.query_affine[0, 0] < 0, pair.key_affine[0, 0] < 0] for pair in pairs])
    assert 0.2 < np.mean(flips[:, 0] != flips[:, 1]) < 0.8


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (17, 2), (300, 40)])
def test_images_of_any_shape_give_views_of_the_asked_size(shape: tuple[int, int]) -> None:
    image = torch.full((3, *shape), 200, dtype=torch.uint8)
    for index in range(20):
        pair = TwoViews(32, seed=0)(image, 0, index)
        assert pair.query.shape == pair.key.shape == (3, 32, 32)
        assert pair.query.dtype == torch.uint8
        assert pair.query.flatten(1).double().std(dim=1).max() == 0


def test_the_source_image_is_left_alone_and_its_memory_layout_does_not_matter() -> None:
    image = noise()
    before = image.clone()
    interleaved = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for index in range(10):
        pair, other = TwoViews(32, seed=0)(image, 0, index), TwoViews(32, seed=0)(interleaved, 0, index)
        assert (pair.query.int() - other.query.int()).abs().max() <= 1
    assert torch.equal(image, before)


def save(folder: Path, count: int) -> list[Path]:
    paths = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.fromarray(noise(40 + i, 60).permute(1, 2, 0).numpy()).save(path)
        paths.append(path)
    return paths


def test_a_dataset_of_files_gives_batches_with_paths_and_affines(tmp_path: Path) -> None:
    dataset = ViewDataset(save(tmp_path, 3), TwoViews(32, seed=0))
    batch = collate_views([dataset.load(index, epoch=4) for index in range(len(dataset))])
    assert isinstance(batch, ViewBatch)
    assert len(batch) == 3
    assert batch.query.shape == batch.key.shape == (3, 3, 32, 32)
    assert batch.query_affine.shape == batch.key_affine.shape == (3, 2, 3)
    assert batch.paths == [str(path) for path in dataset.paths]
    assert batch.to("cpu").paths == batch.paths
    alone = dataset.load(1, epoch=4)
    assert torch.equal(batch.query[1], alone.query)


def test_pairs_travel_between_processes(tmp_path: Path) -> None:
    dataset = ViewDataset(save(tmp_path, 1), TwoViews(32, seed=0))
    twin = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(twin.load(0, 1).key, dataset.load(0, 1).key)
