"""`selfdet correspond`: which places of two views of an image backbones take for the same, and which are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdet.data.images import UnreadableImage, list_images, read_image
from selfdet.data.untrusted import expanded
from selfdet.data.views import TwoViews
from selfdet.drawing.correspondence import Row, draw_heat, draw_matches
from selfdet.drawing.correspondence_page import write_page
from selfdet.errors import UserError
from selfdet.evaluation.correspondence import Matches, Pair, cell_at, counts, covered, match_pairs, whole_images
from selfdet.interchange.named_backbones import NamedBackbone, name_backbones
from selfdet.training.log import Reporter, plural
from selfdet.training.rundir import check_out_is_new, write_text
from selfdet.training.runtime import start_runtime

THRESHOLDS = (0.9, 0.5)


def correspond(
    *,
    out: str,
    init: list[str],
    images: str | None = None,
    pair: tuple[str, str] | None = None,
    point: tuple[float, float] | None = None,
    thresholds: list[float] | None = None,
    over_time: bool = False,
    backbone: str | None = None,
    image_size: int = 224,
    pairs: int = 32,
    shown: int = 3,
    seed: int = 0,
    threads: int = 0,
) -> dict[str, Any]:
    """Show which cells of two views backbones take for the same place, beside the true geometry.

    Every backbone's last map has a grid of cells. Cells of the two views that are each the other's most similar are
    joined by a line; as both views are cut from one image, it is known which of them show the same point. The untrained
    network always stands beside, on the same pairs.

    Args:
        out: folder to make: correspondence.html, where cells can be pointed at, a PNG for each threshold, figures.json.
        init: run directory, weights file, library:NAME or scratch; repeat it for several in one figure.
        images: folder, glob, text list or COCO JSON; two seeded views are made of each image, as for pre-training.
        pair: two image files, instead of images; each is shown whole, and no match is marked right or wrong.
        point: x and y in pixels of the first image: a map of its similarity to every cell of the other view.
        thresholds: smallest cosine similarities of a match, -1…1; 0.9 and 0.5 if not given.
        over_time: show the snapshots of each run (pretrain --snapshots), in order, instead of the run.
        backbone: architecture, if the weights don't record theirs; resnet50 if not given.
        image_size: side of a view, pixels.
        pairs: images to count matches in, spread over all.
        shown: images to draw, the first of those counted.
        seed: seed of the views and of the untrained network.
        threads: CPU threads; 0 for torch's choice.

    Raises: UserError for images that can't be read, views too small, a threshold or point out of range.

    Example:
        selfdet correspond --init runs/pre --images photos/ --out correspondence/
    """
    asked = list(dict.fromkeys(THRESHOLDS if thresholds is None else thresholds))
    _check(asked, pairs, shown, image_size)
    if (images is None) == (pair is None):
        raise UserError("correspond needs images or a pair, and not both", "Add --images photos/ or --pair A.jpg B.jpg")
    folder = Path(out)
    check_out_is_new(folder)
    named = name_backbones(init, backbone, over_time)
    reporter = Reporter()
    several, unreadable = (
        _views(str(images), image_size, seed, pairs) if pair is None else (_given(pair, image_size), [])
    )
    if point is not None and cell_at(several[0], point, 1) is None:
        raise _outside(several[0], point)
    for path in unreadable:
        reporter.line(f"unreadable, left out: {path}")
    runtime = start_runtime(devices=1, precision="fp32", threads=threads)
    found: dict[str, list[Matches]] = {}
    for each in named:
        net = each.build(seed)
        net.check_image_size(image_size)
        found[each.name] = match_pairs(runtime.place(net), several)
        _check_grid(each, found[each.name][0].grid, image_size)
    apart = [one.name for one, matches in zip(several, found[named[0].name]) if matches.shared == 0]
    for name in apart:
        reporter.line(f"{name}: the two views have no point in common, so nothing can correspond")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}", "Name another folder") from None
    rows = [Row(name, matches[:shown]) for name, matches in found.items()]
    pictures = {t: draw_matches(several[:shown], rows, folder / f"matches-{t:g}.png", t) for t in asked}
    result: dict[str, Any] = {
        "out": out,
        "image_size": image_size,
        "pairs": len(several),
        "shown": [one.name for one in several[:shown]],
        "unreadable": unreadable,
        "without_overlap": apart,
        "models": [_figures(each, found[each.name], asked) for each in named],
    }
    heat = None
    if point is not None:
        first = [Row(row.name, row.found[:1]) for row in rows]
        cells = [_cell(several[0], point, row.found[0].grid) for row in first]
        heat = draw_heat(several[0], first, cells, folder / "similarity.png")
        result["point"] = {"x": point[0], "y": point[1], "cells": dict(zip(found, cells))}
    write_text(folder / "figures.json", json.dumps(result, indent=1))
    page = write_page(folder / "correspondence.html", several[:shown], rows, result, pictures, heat)
    for line in _table(result["models"]):
        reporter.line(line)
    reporter.line(f"{plural(len(several), 'pair')} of views counted, {len(several[:shown])} shown: {page}")
    return result


def _check(thresholds: Sequence[float], pairs: int, shown: int, image_size: int) -> None:
    """Raises: UserError for numbers that can't be meant."""
    for threshold in thresholds:
        if not -1 <= threshold <= 1:
            raise UserError(f"--thresholds {threshold:g} is no cosine, expected -1 to 1", "0.9 and 0.5 are usual")
    if not thresholds:
        raise UserError("--thresholds is empty", "Give one or more, such as 0.9")
    for flag, value in (("--pairs", pairs), ("--shown", shown), ("--image-size", image_size)):
        if value < 1:
            raise UserError(f"{flag} is {value}, expected 1 or more", "Leave it out")


def _check_grid(each: NamedBackbone, grid: int, image_size: int) -> None:
    """Raises: UserError where the last map is a single cell: it corresponds to everything."""
    if grid < 2:
        raise UserError(
            f"--image-size {image_size} leaves a single cell on the last map of {each.architecture}",
            "Use at least twice its stride, better 224 or more",
        )


def _views(images: str, size: int, seed: int, count: int) -> tuple[list[Pair], list[str]]:
    """Pairs of views of up to `count` images, spread over all, and the files that can't be read.

    Raises: UserError when none can.
    """
    paths = list_images(images)
    chosen = [paths[place * len(paths) // min(count, len(paths))] for place in range(min(count, len(paths)))]
    views = TwoViews(size, seed)
    found, unreadable = [], []
    for index, path in enumerate(chosen):
        try:
            found.append(Pair(path.name, views(read_image(path), 0, index)))
        except UnreadableImage:
            unreadable.append(str(path))
    if not found:
        raise UserError(f"--images {images}: none of {plural(len(chosen), 'image')} can be read", "Look at the files")
    return found, unreadable


def _given(files: tuple[str, str], size: int) -> list[Pair]:
    """The one pair of two files. Raises: UserError for a file that is no image."""
    images = []
    for file in files:
        try:
            images.append(read_image(expanded(file)))
        except (UnreadableImage, OSError):
            raise UserError(f"--pair {file} is no image that can be read", "Name two image files") from None
    return [whole_images(images[0], images[1], (Path(files[0]).name, Path(files[1]).name), size)]


def _cell(pair: Pair, point: tuple[float, float], grid: int) -> int:
    cell = cell_at(pair, point, grid)
    assert cell is not None  # looked at before anything was computed
    return cell


def _outside(pair: Pair, point: tuple[float, float]) -> UserError:
    x1, y1, x2, y2 = covered(pair)
    return UserError(
        f"--point {point[0]:g},{point[1]:g} is not in the first view of {pair.name}",
        f"That view shows x {math.ceil(x1)}…{math.ceil(x2) - 1} and y {math.ceil(y1)}…{math.ceil(y2) - 1}"
        + ("; another --seed makes another" if pair.known else ""),
    )


def _figures(each: NamedBackbone, found: Sequence[Matches], thresholds: Sequence[float]) -> dict[str, Any]:
    """What one backbone's matches come to, for figures.json."""
    return {
        "name": each.name,
        "init": each.init,
        "backbone": each.architecture,
        "grid": found[0].grid,
        "counts": [counts(found, threshold) for threshold in thresholds],
    }


def _table(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """The counts as lines of a terminal."""
    width = max(len(model["name"]) for model in models)
    lines = [f"{'backbone':{width}}  least  matches  right  share  or beside  median error"]
    for model in models:
        for count in model["counts"]:
            shares = [f"{'–' if count[k] is None else f'{count[k]:.1%}':>{w}}" for k, w in SHARES.items()]
            error = "–" if count["error_px"] is None else f"{count['error_px']:.0f} px"
            hits = "–" if count["hits"] is None else count["hits"]
            lines.append(
                f"{model['name']:{width}}  {count['threshold']:>5g}  {count['matches']:>7}  {hits:>5}  "
                f"{'  '.join(shares)}  {error:>12}"
            )
    return lines


SHARES = {"hit_share": 5, "beside_share": 9}  # and the width of their columns
