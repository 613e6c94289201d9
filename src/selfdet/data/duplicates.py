"""Images that show the same: equal files, and pictures that were only resized, recompressed or made lighter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from selfdet.data.inspection import SIDE, Look

BITS = 5  # of the 64 of a hash in which two pictures of the same may differ
ALIKE = 0.98  # correlation of the small grey pictures, at least
SHAPE = 0.04  # difference of the logarithms of width over height, at most
FLAT = 2.0  # grey levels (standard deviation) below which a picture shows nothing to be known again by
_ROWS = 1 << 22  # pairs that are compared at once


def duplicate_groups(looks: Sequence[Look]) -> list[list[int]]:
    """Positions in `looks` of the images that show the same, at least two a group, in order.

    Files of the same bytes always do. Else the perceptual hashes must differ in 5 of 64 bits at most, the pictures at
    16 × 16 px correlate by 0.98 or more, and width : height be the same; pictures of one colour are not compared.
    """
    parents = list(range(len(looks)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    def join(one: int, other: int) -> None:
        one, other = sorted((root(one), root(other)))
        parents[other] = one

    first: dict[bytes, int] = {}
    for place, look in enumerate(looks):
        if look.digest:
            join(first.setdefault(look.digest, place), place)
    places, pictures = [], []
    for place in first.values():
        small = looks[place].small
        if small is not None and small.std() >= FLAT:
            places.append(place)
            pictures.append(small)
    if places:
        codes = perceptual_hashes(np.stack(pictures))
        # A quarter of the picture is enough to compare, and a quarter of the memory.
        known = np.stack(pictures).reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean((2, 4), dtype=np.float32)
        known = known.reshape(len(known), -1)
        known -= known.mean(1, keepdims=True)
        known /= np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-6)
        shapes = np.log([looks[place].width / looks[place].height for place in places])
        for left, right in _near(codes):
            alike = (known[left] * known[right]).sum(1) >= ALIKE
            for i, j in zip(left[alike], right[alike]):
                if abs(shapes[i] - shapes[j]) <= SHAPE:
                    join(places[i], places[j])
    groups: dict[int, list[int]] = defaultdict(list)
    for place in range(len(looks)):
        groups[root(place)].append(place)
    return [group for group in groups.values() if len(group) > 1]


def perceptual_hashes(small: np.ndarray) -> np.ndarray:
    """(N, 32, 32) grey pictures → (N,) uint64: which of the 64 slowest waves (cosine transform) exceed their median."""
    steps = np.arange(SIDE)
    waves = np.cos(np.pi * np.arange(8)[:, None] * (steps + 0.5) / SIDE).astype(np.float32)
    low = np.einsum("ui,nij,vj->nuv", waves, small.astype(np.float32), waves, optimize=True).reshape(len(small), 64)
    low[:, 0] = 0  # how light the picture is
    above = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(above, axis=1).view(">u8").reshape(-1).astype(np.uint64)


def _near(codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions whose codes differ in at most `BITS` bits, in batches; some pairs come more than once.

    Of one more piece than bits that may differ, at least one is equal in both: only codes that share it are compared.
    """
    edges = np.linspace(0, 64, BITS + 2).astype(int)
    for low, high in pairwise(edges.tolist()):
        pieces = (codes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(pieces, kind="stable")
        bounds = np.flatnonzero(np.diff(pieces[order])) + 1
        for bucket in np.split(order, bounds):
            if len(bucket) < 2:
                continue
            rows = max(1, _ROWS // len(bucket))
            for start in range(0, len(bucket), rows):
                part = bucket[start : start + rows]
                differ = _ones(codes[part][:, None] ^ codes[bucket][None])
                left, right = np.nonzero(differ <= BITS)
                once = right > left + start
                if once.any():
                    yield part[left[once]], bucket[right[once]]


def _ones(values: np.ndarray) -> np.ndarray:
    """How many bits are set in each uint64, by adding up neighbours."""
    for shift, mask in ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        values = (values & np.uint64(mask)) + ((values >> np.uint64(shift)) & np.uint64(mask))
    return (values * np.uint64(0x0101010101010101)) >> np.uint64(56)
