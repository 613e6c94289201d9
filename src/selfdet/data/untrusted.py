"""Text, JSON, YAML and XML from anybody: parsed without executing, fetching or expanding anything, or a ValueError."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import yaml
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from selfdet.errors import one_line

LARGEST = 2**63 - 1  # of whole numbers, which go into arrays
LONGEST_SIDE = 10**6  # of an image, pixels
DEEPEST = 100  # levels of brackets; labels have four


def parse_json(content: bytes) -> Any:
    """The value of JSON in UTF-8 (UTF-16 and UTF-32 are known by their marks). NaN and infinities are numbers.

    Raises: ValueError, in words for the user, for what is not JSON, is nested too deeply or has a key twice.
    """
    try:
        return json.loads(content, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {error.lineno}") from None
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    except ValueError as error:
        raise ValueError(_reason(error)) from None


def parse_yaml(content: bytes) -> Any:
    """The value of one YAML document in UTF-8: plain values, lists and mappings only.

    Aliases are refused: a few lines of them stand for more than any memory holds. So are keys that stand twice.

    Raises: ValueError, in words for the user.
    """
    try:
        return yaml.load(content.decode("utf-8-sig"), Loader=_PlainLoader)
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(one_line(f"{error.problem or error.context or 'it can not be parsed'}{where}")) from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(str(error).splitlines()[0])) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (ValueError, OverflowError, TypeError) as error:  # PyYAML lets through what dates and numbers raise
        raise ValueError(_reason(error)) from None


def parse_xml(content: bytes) -> Element:
    """The root of an XML document. Whatever declares a document type is refused: entities are declared there.

    Raises: ValueError, in words for the user.
    """
    try:
        root: Element = fromstring(content, forbid_dtd=True)
    except ParseError as error:
        raise ValueError(str(error)) from None
    except DefusedXmlException:
        raise ValueError("it declares a document type (DOCTYPE), which is not read") from None
    except (ValueError, LookupError) as error:  # encodings that Python does not know, or expat does not take
        raise ValueError(_reason(error)) from None
    return root


def read_lines(file: Path) -> list[str]:
    """The lines of a text in UTF-8, with or without its mark at the beginning.

    Raises: OSError; ValueError, in words for the user, where it is no text.
    """
    try:
        return file.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None


def expanded(path: str | Path) -> Path:
    """The path with `~` as the user's folder; as it is where there is no such user, or no user can be called so."""
    try:
        return Path(os.path.expanduser(str(path)))
    except ValueError:  # a zero byte in the user's name
        return Path(path)


def is_name(name: str) -> bool:
    """Whether the system can have a file of this name at all."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def to_float(value: Any) -> float | None:
    """A JSON number as a float, infinite where it is too large for one; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def is_side(value: Any) -> bool:
    """Whether a value may be the width or height of an image in pixels."""
    side = to_float(value)
    return side is not None and 1 <= side <= LONGEST_SIDE and side.is_integer()


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number that an array can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # JSON readers differ in which of the two they take
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f'the key "{twice[:80]}" stands twice in one object')
    return found


def _reason(error: Exception) -> str:
    return one_line(str(error).split(";")[0], 200) or type(error).__name__


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, keys that stand twice, depth, and numbers beyond 64 bits."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read: write the value out", mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise RecursionError
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return found

    def construct_whole_number(self, node: Any) -> int:
        value = self.construct_yaml_int(node)
        if abs(value) > LARGEST:
            raise yaml.constructor.ConstructorError(None, None, "a number is too large", node.start_mark)
        return value


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_whole_number)
