"""Outlines and surface patterns of generated objects, as functions of the object's own coordinates.

Every outline and pattern takes `u`, `v` (H, W) float32: coordinates in which the object fills the unit disc. An outline
returns the signed distance to its edge (positive inside, in the same units, exact near straight edges and close to it
elsewhere); a pattern returns a wave that is positive on one colour and negative on the other, scaled like a distance,
so both turn into smooth-edged coverage by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Field = Callable[[Floats, Floats], Floats]


class Kind(NamedTuple):
    """A class of objects: its name, outline and surface pattern."""

    name: str
    outline: Field
    pattern: Field


def disc(u: Floats, v: Floats) -> Floats:
    """A full disc."""
    return 1 - np.hypot(u, v)


def ring(u: Floats, v: Floats) -> Floats:
    """A ring whose hole is 0.45 of its width."""
    return np.float32(0.275) - np.abs(np.hypot(u, v) - np.float32(0.725))


def star(points: int, inner: float) -> Field:
    """A star with `points` tips on the unit circle and its dents at radius `inner`; cos(π / points) is a polygon."""
    sector = math.pi / points
    dent = (inner * math.cos(sector), inner * math.sin(sector))
    normal = np.array([dent[1], 1 - dent[0]]) / math.hypot(dent[1], 1 - dent[0])
    a, b = (float(n) for n in normal)

    def outline(u: Floats, v: Floats) -> Floats:
        angle = np.arctan2(v, u)
        folded = np.abs(np.mod(angle + np.float32(sector), np.float32(2 * sector)) - np.float32(sector))
        radius = np.hypot(u, v)
        return np.float32(a) - radius * (np.float32(a) * np.cos(folded) + np.float32(b) * np.sin(folded))

    return outline


def cross(u: Floats, v: Floats) -> Floats:
    """Two bars at a right angle, each 0.6 wide."""
    across, along = np.abs(u), np.abs(v)
    arm, reach = np.float32(0.3), np.float32(0.95)
    upright = np.minimum(arm - across, reach - along)
    return np.maximum(upright, np.minimum(reach - across, arm - along))


def crescent(u: Floats, v: Floats) -> Floats:
    """A disc with a smaller disc cut from one side."""
    return np.minimum(1 - np.hypot(u, v), np.hypot(u - np.float32(0.5), v) - np.float32(0.65))


def flower(u: Floats, v: Floats) -> Floats:
    """Six round petals."""
    waves = np.float32(0.78) + np.float32(0.22) * np.cos(6 * np.arctan2(v, u))
    return np.float32(0.8) * (waves - np.hypot(u, v))


def bar(u: Floats, v: Floats) -> Floats:
    """A thin bar; no class has this outline."""
    return np.minimum(1 - np.abs(u), np.float32(0.14) - np.abs(v))


def pebble(rng: np.random.Generator) -> Field:
    """Draw an irregular round outline; no class has it."""
    sizes, phases = rng.uniform(0.05, 0.13, 3).astype(np.float32), rng.uniform(0, 2 * math.pi, 3).astype(np.float32)

    def outline(u: Floats, v: Floats) -> Floats:
        angle = np.arctan2(v, u)
        edge = np.full_like(u, 0.64)
        for waves, (size, phase) in enumerate(zip(sizes, phases), start=2):
            edge += size * np.cos(waves * angle + phase)
        return np.float32(0.9) * (edge - np.hypot(u, v))

    return outline


def stripes(u: Floats, v: Floats) -> Floats:
    """Four pairs of straight stripes."""
    return _wave(u, 4)


def checks(u: Floats, v: Floats) -> Floats:
    """A chequerboard of about five fields across."""
    return np.sin(u * np.float32(2.5 * math.pi)) * np.sin(v * np.float32(2.5 * math.pi)) / np.float32(2.5 * math.pi)


def dots(u: Floats, v: Floats) -> Floats:
    """Round dots in rows, about five across."""
    pitch = np.float32(0.42)
    x, y = np.mod(u + pitch / 2, pitch) - pitch / 2, np.mod(v + pitch / 2, pitch) - pitch / 2
    return np.float32(0.13) - np.hypot(x, y)


def spokes(u: Floats, v: Floats) -> Floats:
    """Twelve sectors in alternating colours."""
    return np.sin(6 * np.arctan2(v, u)) * np.hypot(u, v) / np.float32(6)


def circles(u: Floats, v: Floats) -> Floats:
    """Concentric circles."""
    return _wave(np.hypot(u, v), 3)


def zigzag(u: Floats, v: Floats) -> Floats:
    """Stripes that run in a zigzag."""
    return _wave(v + np.abs(np.mod(u, np.float32(0.5)) - np.float32(0.25)), 3)


def halves(u: Floats, v: Floats) -> Floats:
    """Two halves of different colour."""
    return v


def plain(u: Floats, v: Floats) -> Floats:
    """One colour all over."""
    return np.ones_like(u)


def _wave(distance: Floats, pairs: int) -> Floats:
    frequency = np.float32(pairs * math.pi)
    return np.sin(distance * frequency) / frequency


FIVE_STAR = star(5, 0.45)
TRIANGLE = star(3, 0.5)
SQUARE = star(4, math.cos(math.pi / 4))

KINDS = (
    Kind("striped disc", disc, stripes),
    Kind("dotted star", FIVE_STAR, dots),
    Kind("checked cross", cross, checks),
    Kind("spoked ring", ring, spokes),
    Kind("zigzag triangle", TRIANGLE, zigzag),
    Kind("circled square", SQUARE, circles),
    Kind("halved crescent", crescent, halves),
    Kind("dotted flower", flower, dots),
)
"""The classes, in the order in which they come into use: `classes=4` takes the first four."""

PATTERNS = (stripes, checks, dots, spokes, circles, zigzag)
