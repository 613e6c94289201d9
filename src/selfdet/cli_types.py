"""Types of a signature in the words of a command line."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

LABELS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "BOOL"}
PHRASES = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}


def members(hint: Any) -> list[Any]:
    """The types of a union without None; a list of the type itself where it is no union."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [part for part in parts if part is not type(None)]


def is_list(hint: Any) -> bool:
    """Whether a flag of this type takes several values."""
    return any((get_origin(member) or member) in (list, tuple, set, Sequence) for member in members(hint))


def choices(hint: Any) -> list[str]:
    """The words that a type allows where it allows only certain ones, inside lists too."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [word for part in get_args(hint) for word in choices(part)]


def label(hint: Any) -> str:
    """The placeholder of a value in help: `INT`, `INT|TEXT`, `{fcos,retinanet}`, `FLOAT ...`, `FLOAT FLOAT`."""
    if is_list(hint):
        element, count = _elements(hint)
        return " ".join([label(element)] * count) if count else f"{label(element)} ..."
    return "|".join(
        "{" + ",".join(choices(part)) + "}" if get_origin(part) is Literal else LABELS.get(part, _name(part).upper())
        for part in members(hint)
    )


def expectation(hint: Any) -> str:
    """What to write for a value of this type, to complete "expected …"."""
    if is_list(hint):
        element, count = _elements(hint)
        return f"{count or 'one or more'} values, each {expectation(element)}"
    return " or ".join(
        f"one of {', '.join(choices(part))}" if get_origin(part) is Literal else PHRASES.get(part, _name(part))
        for part in members(hint)
    )


def _elements(hint: Any) -> tuple[Any, int]:
    """The type of a list's elements, and their number where it is fixed (a tuple), else 0."""
    member = next(member for member in members(hint) if is_list(member))
    arguments = get_args(member) or (str,)
    fixed = get_origin(member) is tuple and Ellipsis not in arguments
    return arguments[0], len(arguments) if fixed else 0


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))
