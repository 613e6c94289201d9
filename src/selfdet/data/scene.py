"""One generated scene: what lies where, what is seen of it, and the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from selfdet.data import shapes
from selfdet.data.shapes import KINDS, Field, Floats

SMALLEST, LARGEST = 0.08, 0.64
"""An object's extent as a share of the scene's side: eight to one."""
VISIBLE_SHARE, VISIBLE_PIXELS = 0.2, 16
"""Objects that would show less of themselves than either are left out, so that every object painted is labelled."""
EMPTY_SHARE = 0.08

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) uint8, and per object its class (N,) and the pixels (N, H, W) bool in which it is seen."""

    image: NDArray[np.uint8]
    labels: list[int]
    masks: list[Mask]


@dataclass(frozen=True)
class _Thing:
    """Something to paint: a labelled object, or clutter (label -1). Lengths in pixels."""

    label: int
    outline: Field
    pattern: Field
    x: float
    y: float
    radius: float
    axes: NDArray[np.float64]
    """(2, 2): pixel offsets to the thing's own coordinates."""
    colours: NDArray[np.float32]
    """(2, 3): the two colours of the pattern, 0…255."""
    shading: tuple[float, float]

    def coordinates(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[Floats, Floats]:
        x = (columns + 0.5 - self.x)[None, :]
        y = (rows + 0.5 - self.y)[:, None]
        (a, b), (c, d) = self.axes
        return (a * x + b * y).astype(np.float32), (c * x + d * y).astype(np.float32)


def draw_scene(rng: np.random.Generator, *, size: int, classes: int, max_objects: int) -> Scene:
    """Draw one scene of `size × size` pixels."""
    things = _arrange(rng, size, classes, max_objects)
    canvas = _backdrop(rng, size)
    light = rng.uniform(0, 2 * math.pi)
    shadow = float(rng.uniform(0.2, 0.6)) if rng.random() < 0.5 else 0.0
    visible: dict[int, Mask] = {}
    # Front to back: what is before a thing decides how much of it shows, so a thing left out changes nothing before it.
    covered = np.zeros((size, size), dtype=bool)
    kept = []
    for thing in reversed(things):
        rows, columns = _window(thing, size, margin=0.0)
        inside = thing.outline(*thing.coordinates(rows, columns)) >= 0
        mask = np.zeros((size, size), dtype=bool)
        clip = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
        mask[np.ix_(rows[clip[0]], columns[clip[1]])] = inside[np.ix_(*clip)]
        seen = mask & ~covered
        shown = np.count_nonzero(seen)
        if thing.label >= 0 and (shown < VISIBLE_PIXELS or shown < VISIBLE_SHARE * np.count_nonzero(inside)):
            continue
        covered |= mask
        visible[id(thing)] = seen
        kept.append(thing)
    kept.reverse()
    for thing in kept:
        _paint(canvas, thing, light, shadow)
    objects = [thing for thing in kept if thing.label >= 0]
    image = _photograph(rng, canvas)
    return Scene(image, [thing.label for thing in objects], [visible[id(thing)] for thing in objects])


def _arrange(rng: np.random.Generator, size: int, classes: int, max_objects: int) -> list[_Thing]:
    """Draw what lies where, from back to front."""
    objects: list[_Thing] = []
    if rng.random() >= EMPTY_SHARE:
        for _ in range(int(rng.integers(1, max_objects + 1))):
            label = int(rng.integers(classes))
            radius = size / 2 * math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST)))
            x, y = rng.uniform(0.04, 0.96, 2) * size
            if objects and rng.random() < 0.3:
                # Beside an earlier one, near enough to overlap it.
                other, angle = objects[int(rng.integers(len(objects)))], rng.uniform(0, 2 * math.pi)
                gap = rng.uniform(0.5, 1.0) * (other.radius + radius)
                x, y = other.x + gap * math.cos(angle), other.y + gap * math.sin(angle)
            objects.append(_thing(rng, label, KINDS[label].outline, KINDS[label].pattern, float(x), float(y), radius))
    behind = [_clutter(rng, size, classes) for _ in range(int(rng.integers(2, 9)))]
    for _ in range(int(rng.integers(0, 3))):
        objects.insert(int(rng.integers(len(objects) + 1)), _clutter(rng, size, classes))
    return behind + objects


def _clutter(rng: np.random.Generator, size: int, classes: int) -> _Thing:
    """Draw a thing of no class: a class's outline without a pattern, or any pattern on an outline of no class."""
    x, y = rng.uniform(0, size, 2)
    radius = size / 2 * math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST)))
    if rng.random() < 0.25:
        return _thing(rng, -1, KINDS[int(rng.integers(classes))].outline, shapes.plain, x, y, radius)
    outline = shapes.bar if rng.random() < 0.4 else shapes.pebble(rng)
    pattern = shapes.PATTERNS[int(rng.integers(len(shapes.PATTERNS)))] if rng.random() < 0.35 else shapes.plain
    return _thing(rng, -1, outline, pattern, x, y, radius)


def _thing(
    rng: np.random.Generator, label: int, outline: Field, pattern: Field, x: float, y: float, radius: float
) -> _Thing:
    """Draw pose and colours of a thing whose place and size are given."""
    angle, squash, shear = rng.uniform(0, 2 * math.pi), rng.uniform(0.7, 1.0), rng.uniform(-0.2, 0.2)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    tilt = rng.uniform(0, 2 * math.pi)
    view = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
    # Flattened along a random direction, as a disc seen from the side is; the longest extent stays the radius.
    flatten = view.T @ np.diag([1.0, 1 / squash]) @ view
    axes = np.array([[1.0, shear], [0.0, 1.0]]) @ turn @ flatten
    axes = axes / np.linalg.svd(axes, compute_uv=False).min() / radius
    return _Thing(
        label=label,
        outline=outline,
        pattern=pattern,
        x=float(x),
        y=float(y),
        radius=radius,
        axes=axes,
        colours=_two_colours(rng),
        shading=(float(rng.uniform(0, 0.35)), float(rng.uniform(-0.4, 0.4))),
    )


def _two_colours(rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw two colours (2, 3) in 0…255 whose lightness differs by at least 90 grey levels."""
    dark = rng.uniform(15, 120)
    levels = np.array([dark, rng.uniform(dark + 90, 245)])
    tints = rng.uniform(-75, 75, (2, 3))
    tints -= tints.mean(axis=1, keepdims=True)
    colours = np.clip(levels[:, None] + tints, 5, 250)
    return (colours if rng.random() < 0.5 else colours[::-1]).astype(np.float32)


def _window(thing: _Thing, size: int, margin: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns around a thing; they may reach beyond the scene."""
    reach = thing.radius + margin + 1.5
    return (
        np.arange(math.floor(thing.y - reach), math.ceil(thing.y + reach)),
        np.arange(math.floor(thing.x - reach), math.ceil(thing.x + reach)),
    )


def _paint(canvas: Floats, thing: _Thing, light: float, shadow: float) -> None:
    """Paint a thing and its shadow onto `canvas` (H, W, 3), with edges one pixel soft."""
    size = canvas.shape[0]
    fall = 0.18 * thing.radius if shadow else 0.0
    rows, columns = (np.clip(line, 0, size) for line in _window(thing, size, margin=1.6 * fall))
    rows, columns = np.unique(rows[rows < size]), np.unique(columns[columns < size])
    if not len(rows) or not len(columns):
        return
    patch = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    u, v = thing.coordinates(rows, columns)
    scale = np.float32(thing.radius)
    if shadow:
        (a, b), (c, d) = thing.axes
        dx, dy = fall * math.cos(light), fall * math.sin(light)
        shade = thing.outline(u - np.float32(a * dx + b * dy), v - np.float32(c * dx + d * dy))
        shade = np.clip(shade * np.float32(thing.radius / max(fall, 1.0)) + np.float32(0.5), 0, 1)
        patch *= 1 - np.float32(shadow) * shade[:, :, None]
    cover = np.clip(thing.outline(u, v) * scale + np.float32(0.5), 0, 1)[:, :, None]
    mix = np.clip(thing.pattern(u, v) * scale + np.float32(0.5), 0, 1)[:, :, None]
    surface = thing.colours[0] + mix * (thing.colours[1] - thing.colours[0])
    strength, offset = thing.shading
    (a, b), (c, d) = np.linalg.inv(thing.axes * thing.radius)
    facing = (a * u + b * v) * np.float32(math.cos(light)) + (c * u + d * v) * np.float32(math.sin(light))
    surface *= 1 - np.float32(strength) * (facing + np.float32(offset))[:, :, None].astype(np.float32)
    patch += cover * (surface - patch)


def _backdrop(rng: np.random.Generator, size: int) -> Floats:
    """Draw a textured background (H, W, 3): clouds at several scales between three colours, perhaps with a pattern."""
    roughness = rng.uniform(0.35, 0.75)
    cloud = np.zeros((size, size), dtype=np.float32)
    for octave in range(5):
        cells = min(size, 2 ** (octave + 1) + 1)
        grain = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
        cloud += np.float32(roughness**octave) * np.asarray(grain.resize((size, size), Image.Resampling.BICUBIC))
    if rng.random() < 0.5:
        thing = _thing(rng, -1, shapes.plain, shapes.plain, size / 2, size / 2, size * rng.uniform(0.12, 0.6))
        pattern = shapes.PATTERNS[int(rng.integers(len(shapes.PATTERNS)))]
        wave = pattern(*thing.coordinates(np.arange(size), np.arange(size)))
        cloud += np.float32(rng.uniform(0.2, 1.0)) * np.clip(wave * np.float32(thing.radius / 2), -1, 1)
    cloud -= cloud.min()
    cloud /= max(float(cloud.max()), 1e-6)
    level = rng.uniform(50, 200)
    stops = np.clip(level + rng.uniform(-70, 70, (3, 1)) + rng.uniform(-35, 35, (3, 3)), 10, 245).astype(np.float32)
    canvas = np.empty((size, size, 3), dtype=np.float32)
    for channel in range(3):
        canvas[:, :, channel] = np.interp(cloud, [0.0, 0.5, 1.0], stops[:, channel])
    return canvas


def _photograph(rng: np.random.Generator, canvas: Floats) -> NDArray[np.uint8]:
    """Light the canvas unevenly, expose it, blur it slightly and add sensor noise; returns (H, W, 3) uint8."""
    size = canvas.shape[0]
    line = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.uniform(-0.3, 0.3, 2).astype(np.float32)
    gain = 1 + slope[0] * line[:, None] + slope[1] * line[None, :]
    gain -= np.float32(rng.uniform(0, 0.2)) * (line[:, None] ** 2 + line[None, :] ** 2)
    tint = np.float32(rng.uniform(0.75, 1.15)) * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    canvas = canvas * gain[:, :, None] * tint
    blur, grain = float(rng.uniform(0, 0.9)), np.float32(rng.uniform(0, 9))
    if rng.random() < 0.5:
        soft = Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
        canvas = np.asarray(soft).astype(np.float32)
    canvas = canvas + grain * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
