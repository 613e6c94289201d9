"""What a weights file says of itself, held to what may be said: the file may be anybody's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdet.data.untrusted import is_integer, parse_json
from selfdet.errors import UserError, shown

WORDS = ("kind", "backbone", "library", "method", "detector", "segmenter")
SIDES = ("image_size", "crop_size")
# Far beyond what anybody trains, and still something that a machine can build.
MOST_PIXELS, MOST_CLASSES, MOST_OF_OPTION = 16_384, 20_000, 16_384
MOST_CELLS = 2**26  # channels² × convolutions of a head, and classes × channels


def read_note(text: str) -> dict[str, Any]:
    """The note in a file's metadata; empty where there is none that can be read."""
    try:
        note = parse_json(text.encode("utf-8", "replace"))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


def check_note(note: Mapping[str, Any], source: str | Path) -> None:
    """Refuse a note whose values are of the wrong kind, or would build something that no machine holds.

    Raises: UserError.
    """
    for name, value in note.items():
        if not _is_sound(name, value):
            raise UserError(f"{source} says of itself {name} {shown(value)}", "Use the file as selfdet wrote it")
    classes, ids = note.get("classes", []), note.get("category_ids", [])
    if ids and len(ids) != len(classes):
        told = f"{len(classes)} classes with {len(ids)} numbers"
        raise UserError(f"{source} says of itself {told}", "Use the file as selfdet wrote it")
    options = note.get("options", {})
    width = options.get("fpn_channels", 0) if isinstance(options.get("fpn_channels"), int) else 0
    depth = options.get("head_convs", 1) if isinstance(options.get("head_convs"), int) else 1
    if width * width * depth > MOST_CELLS or width * len(classes) > MOST_CELLS:
        raise UserError(
            f"{source} describes a network of {width} channels, {depth} convolutions and {len(classes)} classes, which "
            "is too large to build",
            "Use the file as selfdet wrote it",
        )


def _is_sound(name: str, value: Any) -> bool:
    if name in WORDS:
        return isinstance(value, str) and 0 < len(value) < 200 and value.isprintable()
    if name in SIDES:
        return is_integer(value) and 0 <= value <= MOST_PIXELS
    if name == "classes":
        return isinstance(value, list) and len(value) <= MOST_CLASSES and all(isinstance(each, str) for each in value)
    if name == "category_ids":
        return isinstance(value, list) and all(map(is_integer, value))
    if name == "history":
        return isinstance(value, list) and len(value) < 100 and all(map(_is_step, value))
    if name == "options":
        return isinstance(value, dict) and all(map(_is_option, value.values()))
    return True


def _is_step(value: Any) -> bool:
    """Whether this may be something that was done to weights: names with words and numbers."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("done"), str)
        and len(value) < 20
        and all(is_integer(each) or (isinstance(each, str) and len(each) < 300) for each in value.values())
        and all(each.isprintable() for each in (*value, *value.values()) if isinstance(each, str))
    )


def _is_option(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) < 100 and all(map(_is_option, value))
    if isinstance(value, dict):
        return len(value) < 100 and all(map(_is_option, value.values()))
    if isinstance(value, float):
        return math.isfinite(value)
    if is_integer(value):
        return abs(value) <= MOST_OF_OPTION
    return value is None or isinstance(value, (bool, str))
