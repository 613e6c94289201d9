"""Which cells of two views a backbone takes for the same place, beside which ones are.

A view of S × S pixels has a last map of g × g cells. Cell i (row by row: row i // g, column i % g) covers a square of
S/g pixels and stands for its centre, ((column + ½) · S/g, (row + ½) · S/g) in continuous view pixels, pixel n covering
[n, n + 1). A view's affine (2, 3) takes that point to the pixels of the source image, and the other view's affine,
inverted, takes it on to where it is shown there: the key cell that contains it is the true one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from selfdet.data.geometry import Crop, grid_centres, true_matches, view_affine
from selfdet.data.pixels import normalise, resize
from selfdet.data.views import ViewPair
from selfdet.models.backbones import Backbone
from selfdet.training.health import batch_statistics


@dataclass(frozen=True)
class Pair:
    """Two views (3, S, S) uint8 and what they are of; `known`: whether their affines tell which points are the same."""

    name: str
    views: ViewPair
    known: bool = True

    @property
    def size(self) -> int:
        """S, pixels."""
        return self.views.query.shape[-1]


def whole_images(first: Tensor, second: Tensor, names: tuple[str, str], size: int) -> Pair:
    """Two images (3, H, W) uint8, each as a whole, as views of `size` pixels; what corresponds is not known."""
    views, affines = [], []
    for image in (first, second):
        height, width = image.shape[-2:]
        views.append(resize(image.as_subclass(Tensor), size, size))
        affines.append(view_affine(Crop(0, 0, height, width), False, size))
    pair = ViewPair(views[0], views[1], affines[0], affines[1], names[0])
    return Pair(" and ".join(names), pair, known=False)


@dataclass(frozen=True)
class Matches:
    """The cells of one pair: `similarity` (Q, K) float32, the cosine of the features of each query and key cell, and
    its mutual nearest cells `query`, `key` (M,) int64, best first.

    `true` (Q,) int64: the key cell that shows each query cell's centre, -1 for none; `points` (Q, 2) float32 where in
    the key view, pixels; None where nobody knows. `size`: of a view, pixels.
    """

    similarity: Tensor
    query: Tensor
    key: Tensor
    size: int
    true: Tensor | None = None
    points: Tensor | None = None

    @property
    def grid(self) -> int:
        """g, cells along a side."""
        return math.isqrt(len(self.similarity))

    @property
    def values(self) -> Tensor:
        """The similarity of each match, (M,)."""
        return self.similarity[self.query, self.key]

    @property
    def hits(self) -> Tensor | None:
        """Which matches are right, (M,) bool. One from a cell that the other view does not show is wrong."""
        return None if self.true is None else self.true[self.query] == self.key

    @property
    def beside(self) -> Tensor | None:
        """Which matches, right ones included, have their true point at most one cell's side from the matched cell's
        centre, (M,) bool: a point near a cell's edge is shown by its neighbour nearly as well."""
        if self.points is None or self.true is None:
            return None
        distance = (self.centres(self.key) - self.points[self.query]).norm(dim=1)
        return (distance <= self.size / self.grid) & (self.true[self.query] >= 0)

    @property
    def shared(self) -> int | None:
        """How many query cells the other view shows."""
        return None if self.true is None else int((self.true >= 0).sum())

    def centres(self, cells: Tensor) -> Tensor:
        """The centres (N, 2) of cells (N,), view pixels (x, y)."""
        return grid_centres(self.size, self.grid).float()[cells]


def mutual_nearest(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of cells each of which is the most similar to the other; of ties the first.

    `similarity`: (Q, K). Returns the query and the key cells, (M,) int64 each, in order of falling similarity.
    """
    # A matrix product may round equal cells differently by their position: what rounding can explain is a tie.
    slack = 8 * torch.finfo(similarity.dtype).eps
    forth, back = (
        (matrix >= matrix.amax(1, keepdim=True) - slack).view(torch.uint8).argmax(1)
        for matrix in (similarity, similarity.T)
    )
    query = torch.arange(len(similarity))
    query = query[back[forth] == query]
    order = similarity[query, forth[query]].argsort(descending=True, stable=True)
    return query[order], forth[query[order]]


PIXELS_AT_ONCE = 64 * 320 * 320  # of views in one pass: 1.6 GB of a ResNet-50's maps


def match_pairs(backbone: Backbone, pairs: Sequence[Pair]) -> list[Matches]:
    """Match the cells of pairs of views of one size by the cosine of their features on the backbone's last map.

    The backbone runs in float32 with the batch norm statistics of the views themselves (an untrained network's own are
    of nothing), all together or, if they are many or large, in parts of about one size; it is left as it was.
    """
    parts = min(len(pairs), math.ceil(2 * sum(pair.size**2 for pair in pairs) / PIXELS_AT_ONCE))
    ends = [place * len(pairs) // parts for place in range(parts + 1)]
    return [found for begin, end in pairwise(ends) for found in _match(backbone, pairs[begin:end])]


@torch.no_grad()
def _match(backbone: Backbone, pairs: Sequence[Pair]) -> list[Matches]:
    device = next(backbone.parameters()).device
    views = torch.stack([view for pair in pairs for view in (pair.views.query, pair.views.key)]).to(device)
    with batch_statistics(backbone), torch.autocast(device.type, enabled=False):
        features = list(backbone(normalise(views, backbone.mean, backbone.std)).values())[-1]
    cells = functional.normalize(features.float().flatten(2).cpu(), dim=1)
    grid, found = features.shape[-1], []
    for pair, query, key in zip(pairs, cells[::2], cells[1::2]):
        similarity = query.T @ key
        truth: dict[str, Tensor] = {}
        if pair.known:
            affines = pair.views.query_affine[None], pair.views.key_affine[None]
            true, _, points = true_matches(*affines, pair.size, grid)
            truth = {"true": true[0], "points": points[0]}
        found.append(Matches(similarity, *mutual_nearest(similarity), pair.size, **truth))
    return found


def counts(found: Sequence[Matches], threshold: float) -> dict[str, Any]:
    """What the matches of at least this similarity come to, over all pairs.

    `matches`; and of the pairs whose truth is known `hits`, `hit_share` (of their matches), `beside_share` (hits and
    matches of a cell beside the true one), `found_share` (hits of the cells that both views show), `error_px` (median
    distance in the key view from the true point to the matched cell's centre). What there is nothing to take of is
    None.
    """
    kept = [one.values >= threshold for one in found]
    known = [(one, keep) for one, keep in zip(found, kept) if one.true is not None]
    hits = sum(int((one.hits & keep).sum()) for one, keep in known if one.hits is not None)
    near = sum(int((one.beside & keep).sum()) for one, keep in known if one.beside is not None)
    judged, shared = sum(int(keep.sum()) for _, keep in known), sum(one.shared or 0 for one, _ in known)
    errors = [
        (one.centres(one.key[keep]) - one.points[one.query[keep]]).norm(dim=1)
        for one, keep in known
        if one.points is not None
    ]
    distances = torch.cat(errors) if errors else torch.empty(0)
    return {
        "threshold": threshold,
        "matches": sum(int(keep.sum()) for keep in kept),
        "hits": hits if known else None,
        "hit_share": hits / judged if judged else None,
        "beside_share": near / judged if judged else None,
        "found_share": hits / shared if shared else None,
        "error_px": float(distances.median()) if len(distances) else None,
    }


def cell_at(pair: Pair, point: tuple[float, float], grid: int) -> int | None:
    """The query cell that shows a point (x, y) of the source image, pixels; None where the view does not show it."""
    affine = pair.views.query_affine.double()
    source = torch.tensor(point, dtype=torch.float64)
    x, y = torch.linalg.solve(affine[:, :2], source - affine[:, 2]).tolist()
    if not (0 <= x < pair.size and 0 <= y < pair.size):
        return None
    return math.floor(y * grid / pair.size) * grid + math.floor(x * grid / pair.size)


def covered(pair: Pair) -> tuple[float, float, float, float]:
    """The rectangle (x1, y1, x2, y2) of the source image that the query view shows, pixels."""
    affine = pair.views.query_affine.double()
    corners = torch.tensor([[0.0, 0.0], [pair.size, pair.size]], dtype=torch.float64)
    ends = corners @ affine[:, :2].T + affine[:, 2]
    (x1, y1), (x2, y2) = ends.amin(0).tolist(), ends.amax(0).tolist()
    return x1, y1, x2, y2
