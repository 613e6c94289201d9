"""The text of `selfdet VERB --help`, from the function's signature and docstring."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from docstring_parser import DocstringStyle, parse

from selfdet.cli_flags import ADAPTER_FLAGS, REQUIRED, Flag, flags_of
from selfdet.cli_types import label

COLUMN = 30


def verb_help(verb: str, function: Callable[..., Any]) -> str:
    """What the verb does, each flag with type, default and meaning, and an example."""
    document = parse(function.__doc__ or "", style=DocstringStyle.GOOGLE)
    flags = flags_of(function)
    required = [flag for flag in flags if flag.default is REQUIRED]
    optional = [flag for flag in flags if flag.default is not REQUIRED]
    usage = " ".join([f"selfdet {verb}", *(f"{flag.name} {label(flag.hint)}" for flag in required), "[flags]"])
    sections = [f"usage: {usage}", document.short_description, document.long_description]
    sections.append(_section("required", required))
    sections.append(_section("flags", [flag for flag in [*optional, *ADAPTER_FLAGS] if not flag.group]))
    meaning = {parameter.arg_name: parameter.description or "" for parameter in document.params}
    for group in dict.fromkeys(flag.group for flag in optional if flag.group):
        title = f"{group.replace('_', '-')} ({' '.join(meaning.get(group, '').split()).rstrip('.')})"
        sections.append(_section(title.removesuffix(" ()"), [flag for flag in optional if flag.group == group]))
    examples = [example.description or "" for example in document.examples]
    sections += ["example:\n" + textwrap.indent("\n".join(examples), "  ")] if examples else []
    return "\n\n".join(section for section in sections if section)


def _section(title: str, flags: Iterable[Flag]) -> str:
    entries = "\n".join(map(_entry, flags))
    return f"{title}:\n{entries}" if entries else ""


def _entry(flag: Flag) -> str:
    """A flag in two columns: as it is typed, and what it means."""
    if flag.is_switch:
        left = f"  {flag.name}, {flag.off_name}" if flag.default else f"  {flag.name}"
    else:
        left = f"  {flag.name} {label(flag.hint)}"
    width = max(60, min(shutil.get_terminal_size().columns, 110)) - COLUMN
    default = default_words(flag)
    glued = f"({'switch; ' if flag.is_switch else ''}default: {default})" if default else ""
    glued = glued.replace(" ", "\xa0")  # the default stays on one line
    lines = textwrap.wrap(f"{flag.description} {glued}".strip(" "), width)
    right = textwrap.indent("\n".join(lines), " " * COLUMN).replace("\xa0", " ")
    return f"{left:{COLUMN}}{right.lstrip()}" if len(left) < COLUMN - 1 else f"{left}\n{right}".rstrip()


def default_words(flag: Flag) -> str:
    """A flag's default as it would be typed; empty where there is none, or where its description says what happens."""
    if flag.default is REQUIRED:
        return ""
    if flag.is_switch:
        return "on" if flag.default else "off"
    if flag.default is None:
        return "" if re.search("default|not given", flag.description, re.IGNORECASE) else "none"
    values = flag.default if isinstance(flag.default, (list, tuple)) else [flag.default]
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
