"""Two views of one image for the image domain, and where each came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfdet.data import pixels
from selfdet.data.geometry import Crop, draw_crop, true_matches, view_affine
from selfdet.data.images import read_image
from selfdet.data.loader import sample_rng
from selfdet.data.path_list import PathList
from selfdet.data.shards import ShardedImages

__all__ = [
    "Recipe",
    "TwoViews",
    "ViewBatch",
    "ViewDataset",
    "ViewPair",
    "collate_views",
    "render",
    "true_matches",
]

JITTER = {
    "brightness": pixels.brighten,
    "contrast": pixels.contrast,
    "saturation": pixels.saturate,
    "hue": pixels.rotate_hue,
}


@dataclass(frozen=True)
class Recipe:
    """Everything random about one view, drawn before a pixel is touched."""

    crop: Crop
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    """(key of `JITTER`, factor) in the order of application; empty for none."""
    grey: bool
    sigma: float
    """Standard deviation of the blur in pixels of the view; 0 for none."""


@dataclass(frozen=True)
class ViewPair:
    """Two views of one image: (3, S, S) uint8 each, and their maps (2, 3) float32 from view to source pixels."""

    query: Tensor
    key: Tensor
    query_affine: Tensor
    key_affine: Tensor
    path: str = ""


@dataclass  # not frozen: lightning-fabric refuses to pass frozen ones to a module
class ViewBatch:
    """A batch of view pairs: views (B, 3, S, S) uint8, affines (B, 2, 3) float32 from view to source pixels."""

    query: Tensor
    key: Tensor
    query_affine: Tensor
    key_affine: Tensor
    paths: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewBatch:
        """Return the batch with its tensors on `device`."""
        return ViewBatch(
            query=self.query.to(device, non_blocking=non_blocking),
            key=self.key.to(device, non_blocking=non_blocking),
            query_affine=self.query_affine.to(device, non_blocking=non_blocking),
            key_affine=self.key_affine.to(device, non_blocking=non_blocking),
            paths=self.paths,
        )


@dataclass(frozen=True)
class TwoViews:
    """Draw two independent views of an image with MoCo v2's augmentation.

    Each view: random resized crop to `size` pixels (area share `scale`, aspect ratio `ratio`); with probability 0.8
    brightness, contrast, saturation (factors 0.6 to 1.4) and hue (±0.1 turn) in random order; greyscale with
    probability 0.2; with probability 0.5 a Gaussian blur of σ 0.1 to 2 *pixels of the view*, whatever `size` is (the
    published range is for 224 pixels, and is not scaled); mirrored with probability 0.5.

    Source: Chen et al., "Improved baselines with momentum contrastive learning" (arXiv 2003.04297), and its predecessor
    SimCLR (arXiv 2002.05709), appendix A.
    """

    size: int
    seed: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, image: Tensor, epoch: int, index: int) -> ViewPair:
        """Make both views of `image` (3, H, W) uint8: a pure function of the image and (seed, epoch, index)."""
        rng = sample_rng(self.seed, epoch, index)
        height, width = image.shape[-2:]
        first, second = self.draw(rng, height, width), self.draw(rng, height, width)
        return ViewPair(
            query=render(image, first, self.size),
            key=render(image, second, self.size),
            query_affine=view_affine(first.crop, first.flip, self.size),
            key_affine=view_affine(second.crop, second.flip, self.size),
        )

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Recipe:
        """Draw one view of an image of `height × width` pixels."""
        crop = draw_crop(rng, height, width, self.scale, self.ratio)
        jitter: list[tuple[str, float]] = []
        if rng.random() < 0.8:
            factors = [*rng.uniform(0.6, 1.4, 3), rng.uniform(-0.1, 0.1)]
            jitter = [(name, float(factor)) for name, factor in zip(JITTER, factors)]
            rng.shuffle(jitter)
        grey = bool(rng.random() < 0.2)
        sigma = float(rng.uniform(0.1, 2.0)) if rng.random() < 0.5 else 0.0
        return Recipe(crop=crop, flip=bool(rng.random() < 0.5), jitter=tuple(jitter), grey=grey, sigma=sigma)


def render(image: Tensor, recipe: Recipe, size: int) -> Tensor:
    """Make the view of `image` (3, H, W) uint8 that `recipe` describes: (3, size, size) uint8."""
    top, left, height, width = recipe.crop
    # A plain tensor: a tv_tensor would dispatch through Python on every operation.
    source = image.as_subclass(Tensor)[:, top : top + height, left : left + width]
    view = pixels.resize(source, size, size)
    if recipe.flip:
        view = view.flip(-1)
    if not (recipe.jitter or recipe.grey or recipe.sigma):
        return view.contiguous()
    values = np.ascontiguousarray(view.numpy(), dtype=np.float32)
    for name, factor in recipe.jitter:
        JITTER[name](values, factor)
    if recipe.grey:
        pixels.greyscale(values)
    if recipe.sigma:
        values = pixels.gaussian_blur(values, recipe.sigma)
    return pixels.to_uint8(values)


@dataclass(frozen=True)
class ViewDataset:
    """Image files as pairs of views: a `TrainingDataset`."""

    paths: Sequence[str | Path]
    views: TwoViews

    def __post_init__(self) -> None:
        # A loader process holds them all, and a list of Paths takes ten times as much. Those in shards stay an index.
        if not isinstance(self.paths, (PathList, ShardedImages)):
            object.__setattr__(self, "paths", PathList(map(str, self.paths)))

    def __len__(self) -> int:
        return len(self.paths)

    def path_of(self, index: int) -> str:
        """The file of image `index`."""
        return str(self.paths[index])

    def load(self, index: int, epoch: int) -> ViewPair:
        """Decode image `index` once and make both views of it for `epoch`.

        Raises: `UnreadableImage` when the file cannot be decoded.
        """
        path = self.path_of(index)
        return replace(self.views(read_image(path), epoch, index), path=path)


def collate_views(pairs: Sequence[ViewPair]) -> ViewBatch:
    """Stack pairs of one view size into a batch."""
    return ViewBatch(
        query=torch.stack([pair.query for pair in pairs]),
        key=torch.stack([pair.key for pair in pairs]),
        query_affine=torch.stack([pair.query_affine for pair in pairs]),
        key_affine=torch.stack([pair.key_affine for pair in pairs]),
        paths=[pair.path for pair in pairs],
    )
