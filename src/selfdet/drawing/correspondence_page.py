"""The page of `selfdet correspond`: pictures, counts, and two views that answer to being pointed at."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from selfdet.drawing.correspondence import Row, match_kinds
from selfdet.drawing.report import Picture, Points, Section, Table, Text, Widget, write_report
from selfdet.evaluation.correspondence import Matches, Pair

SHEET: dict[str, Any] = {"photograph": True, "wide": True}


def write_page(
    out: Path,
    pairs: Sequence[Pair],
    rows: Sequence[Row],
    figures: Mapping[str, Any],
    pictures: Mapping[float, Path],
    heat: Path | None = None,
) -> Path:
    """Write the page, one file that loads nothing; returns `out`.

    `pairs`, `rows`: what is shown; `figures`: the verb's answer; `pictures`: the lines drawn at each threshold; `heat`:
    the map of a point's similarity.
    """
    known = any(pair.known for pair in pairs)
    thresholds = sorted(pictures, reverse=True)
    lines = [
        Section(
            f"Lines from {each:g} on",
            [Picture(pictures[each], f"Mutual nearest cells with a similarity of at least {each:g}.", **SHEET)],
        )
        for each in thresholds
    ]
    shown = [] if heat is None else [Picture(heat, "How similar each cell is to the framed one.", photograph=True)]
    sections = [
        Section(
            "Point at a cell",
            [Text(_invitation(known)), Widget("correspondence", _explorer(pairs, rows, _opening(rows, thresholds)))],
        ),
        *([Section("One point", shown)] if shown else []),
        *lines,
        Section("Counts", [_table(figures), Points(list(_reading(figures, known)))]),
    ]
    intro = (
        "Two views are cut into cells, and each backbone gives every cell a feature. Cells that are each other's most "
        "similar are joined. The untrained network shows what comes without learning."
    )
    return write_report(out, title="What is taken for the same place", intro=intro, sections=sections)


def _invitation(known: bool) -> str:
    words = (
        "Point at a cell of the left view, tap it, or use the arrow keys: the right view is coloured by similarity, a "
        "frame marks its most similar cell."
    )
    if not known:
        return words
    return f"{words} A ring marks where the same point really is."


def _opening(rows: Sequence[Row], thresholds: Sequence[float]) -> float:
    """The highest threshold at which there is something to see at first: of the last backbone in the first pair."""
    similar = float(rows[-1].found[0].values[0])
    return next((each for each in thresholds if each <= similar), thresholds[-1])


def _explorer(pairs: Sequence[Pair], rows: Sequence[Row], threshold: float) -> dict[str, Any]:
    """What the page's script draws from: similarities as bytes, 0 for −1 and 255 for 1."""
    return {
        "threshold": max(threshold, 0.0),
        "pairs": [
            {"name": p.name, "size": p.size, "query": _uri(p.views.query), "key": _uri(p.views.key)} for p in pairs
        ],
        "models": [
            {"name": row.name, "grid": row.found[0].grid, "pairs": [_told(found) for found in row.found]}
            for row in rows
        ],
    }


def _told(found: Matches) -> dict[str, Any]:
    levels = ((found.similarity + 1) * 127.5).round().clamp(0, 255).byte()
    kinds: Sequence[int | None] = match_kinds(found) or [None] * len(found.query)
    points = None
    if found.points is not None and found.true is not None:
        rounded = found.points.round(decimals=1).tolist()
        points = [point if cell >= 0 else None for point, cell in zip(rounded, found.true.tolist())]
    return {
        "similarity": base64.b64encode(levels.numpy().tobytes()).decode("ascii"),
        "mutual": list(zip(found.query.tolist(), found.key.tolist(), kinds)),
        "points": points,
    }


def _uri(view: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(view.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _table(figures: Mapping[str, Any]) -> Table:
    header = ["backbone", "least similarity", "matches", "right", "right, %", "right or beside, %", "median error, px"]
    rows: list[list[Any]] = []
    for model in figures["models"]:
        for count in model["counts"]:
            shares = [None if count[k] is None else round(100 * count[k], 1) for k in ("hit_share", "beside_share")]
            rows.append(
                [model["name"], f"{count['threshold']:g}", count["matches"], count["hits"], *shares, count["error_px"]]
            )
    return Table(
        header, rows, f"Mutual nearest cells in {figures['pairs']} pairs of views of {figures['image_size']} px"
    )


def _reading(figures: Mapping[str, Any], known: bool) -> Sequence[str]:
    """How the figures are to be read."""
    grids = sorted({model["grid"] for model in figures["models"]})
    sizes = " or ".join(f"{grid} × {grid}" for grid in grids)
    points = [
        f"A view of {figures['image_size']} px has {sizes} cells. A cell stands for its centre; the crop that made the "
        "view says where in the image that is, and the other crop where in the other view.",
    ]
    if known:
        points += [
            "Right: the matched cell holds that very point. Beside: the point is at most a cell's side from the "
            "matched cell's centre. A match from a place that the other view does not show is wrong.",
            f"Guessing a cell is right in {100 / min(grids) ** 2:.1f} %. A high similarity alone says little: it grows "
            "when all features become alike.",
        ]
    else:
        points.append("The two images are not views of one, so nobody knows which matches are right.")
    if figures["without_overlap"]:
        points.append(f"Views without a common point: {', '.join(figures['without_overlap'])}.")
    return points
