"""One HTML file that tells a run's story: text, tables and pictures, needing nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageOps, UnidentifiedImageError

from selfdet.errors import UserError
from selfdet.training.rundir import write_text

Cell = str | int | float | None

UNBROKEN = 18  # letters of a word that stay together in a table on a phone
FIGURE = 30  # letters of a cell from which it is a sentence, even if it begins with a number
_NUMBER = re.compile(r"[+−-]?\d")


@dataclass(frozen=True)
class Text:
    """Plain text; an empty line starts a new paragraph."""

    text: str


@dataclass(frozen=True)
class Points:
    """Plain sentences, each a point of a list."""

    sentences: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines to be shown as typed, such as the commands that lead to the figures."""

    text: str


@dataclass(frozen=True)
class Table:
    """`rows` under `header`; None shows as a dash. Columns of figures are aligned right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture inside the file: a path, encoded bytes or a PIL picture.

    `photograph`: kept small as JPEG, without its metadata; else PNG, as it is. `alt`: what it shows, for who can't see
    it. `wide`: made of parts that would be too small on a phone, which scrolls it instead. Pictures that follow each
    other stand side by side where there is room.
    """

    source: Path | bytes | Image.Image
    caption: str = ""
    alt: str = ""
    photograph: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Widget:
    """A part of the page that answers: `script`, a file in templates/ without its .js, finds every element of the class
    `script` and draws in it from the JSON there.

    The page runs this script and no other, whatever its texts and names hold.
    """

    script: str
    data: Any


Item = Text | Points | Code | Table | Picture | Widget


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    items: Sequence[Item] = field(default_factory=tuple)


def write_report(
    out: Path,
    *,
    title: str,
    intro: str = "",
    facts: Mapping[str, Cell] | None = None,
    sections: Sequence[Section] = (),
) -> Path:
    """Write one self-contained HTML file, whole or not at all; returns `out`.

    `intro`: a paragraph or more under the title; `facts`: name → value, shown large, for the few figures that matter.
    All text is escaped, and the file forbids itself to load anything from outside.
    Raises: UserError when a picture file is missing or unreadable.
    """
    widgets = dict.fromkeys(item.script for section in sections for item in section.items if isinstance(item, Widget))
    scripts = [_templates().get_template(f"{name}.js").render() for name in widgets]
    html = (
        _templates()
        .get_template("report.html.j2")
        .render(
            title=title,
            scripts=scripts,
            policy=_policy(scripts),
            intro=_paragraphs(intro),
            facts={name: _cell(value).replace(" %", "\N{NO-BREAK SPACE}%") for name, value in (facts or {}).items()},
            sections=[{"title": section.title, "blocks": _blocks(section.items)} for section in sections],
        )
    )
    # File names may hold bytes that are no text: shown as escapes instead of failing.
    encoded = html.encode("utf-8", "backslashreplace")
    # The same page again is left as it is: a finished run changes in no way when it is resumed.
    if not out.is_file() or out.read_bytes() != encoded:
        write_text(out, encoded.decode("utf-8"))
    return out


def _policy(scripts: Sequence[str]) -> str:
    """What the page may load and run: pictures inside it and, by their hashes, its own scripts."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = "".join(f" 'sha256-{each}'" for each in hashes)
    return "default-src 'none'; img-src data:; style-src 'unsafe-inline'" + (allowed and f"; script-src{allowed}")


@lru_cache(maxsize=1)
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("selfdet.drawing"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _blocks(items: Sequence[Item]) -> list[dict[str, Any]]:
    """What the template lays out, with pictures in a row gathered into one block."""
    blocks: list[dict[str, Any]] = []
    for kind, group in groupby(items, key=type):
        if kind is Picture:
            blocks.append({"kind": "pictures", "pictures": [_picture(item) for item in group]})  # type: ignore[arg-type]
            continue
        for item in group:
            if isinstance(item, Text):
                blocks.append({"kind": "text", "paragraphs": _paragraphs(item.text)})
            elif isinstance(item, Points):
                blocks.append({"kind": "points", "sentences": list(item.sentences)})
            elif isinstance(item, Code):
                blocks.append({"kind": "code", "text": item.text.strip("\n")})
            elif isinstance(item, Table):
                blocks.append(_table(item))
            elif isinstance(item, Widget):
                # Nothing in a name may end the element that holds it.
                data = json.dumps(item.data).replace("<", "\\u003c")
                blocks.append({"kind": "widget", "script": item.script, "data": data})
    return blocks


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def _cell(value: Cell, decimals: int | None = None) -> str:
    """A value as text; `decimals`: digits behind the point that its column's floats share."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if decimals is None or not math.isfinite(value) else f"{value:.{decimals}f}"
    return str(value)


def _column(values: Sequence[Cell]) -> list[str]:
    """The cells of one column; its floats with as many digits behind the point as four figures of any of them need."""
    short = [f"{value:.4g}" for value in values if isinstance(value, float) and math.isfinite(value)]
    if any("e" in figure for figure in short):
        return [_cell(value) for value in values]
    decimals = max((len(figure.partition(".")[2]) for figure in short), default=0)
    return [_cell(value, decimals) for value in values]


def _table(table: Table) -> dict[str, Any]:
    """Raises: ValueError when a row is not as long as the header."""
    for row in table.rows:
        if len(row) != len(table.header):
            raise ValueError(f"a row of {len(row)} cells under a header of {len(table.header)}: {row}")
    columns = [_column([row[place] for row in table.rows]) for place in range(len(table.header))]
    figures = [bool(column) and all(cell == "–" or _is_figure(cell) for cell in column) for column in columns]
    return {
        "kind": "table",
        "caption": table.caption,
        "header": list(zip(table.header, figures)),
        "rows": [[(cell, _kind(cell, figure)) for cell, figure in zip(row, figures)] for row in zip(*columns)],
    }


def _is_figure(cell: str) -> bool:
    return len(cell) < FIGURE and _NUMBER.match(cell) is not None


def _kind(cell: str, figure: bool) -> str:
    """How a cell is laid out: figures stand right, and what has no place to break, such as paths, breaks anywhere."""
    return "figure" if figure else "unbroken" if max(map(len, cell.split()), default=0) > UNBROKEN else ""


def _picture(picture: Picture) -> dict[str, Any]:
    """A data URI with the size that keeps the page from jumping while it loads."""
    source = picture.source
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        opened = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
        opened.load()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        name = source if isinstance(source, Path) else "A picture"
        raise UserError(f"{name} is missing or not a picture that can be read", "Make the picture again") from None
    if isinstance(data, bytes) and opened.format == "PNG" and not picture.photograph:
        kind, encoded = "png", data
    else:
        upright = ImageOps.exif_transpose(opened)
        file = io.BytesIO()
        if picture.photograph:
            kind = "jpeg"
            _without_alpha(upright).save(file, "JPEG", quality=85, optimize=True)
        else:
            kind = "png"
            plain = upright if upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else upright.convert("RGB")
            plain.save(file, "PNG", optimize=True)
        opened, encoded = upright, file.getvalue()
    return {
        "uri": f"data:image/{kind};base64,{base64.b64encode(encoded).decode('ascii')}",
        "width": opened.width,
        "height": opened.height,
        "caption": picture.caption,
        "alt": picture.alt or picture.caption,
        "kind": "wide" if picture.wide else "" if picture.photograph else "chart",
    }


def _without_alpha(picture: Image.Image) -> Image.Image:
    """RGB on white, since JPEG has no transparency."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return picture.convert("RGB")
