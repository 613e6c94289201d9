"""A verb's flags, read off its signature; a command line and a YAML file, read by those flags.

jsonargparse turns the given texts into the types of the signature. It has no hyphens in flags, no switches, and only
one way to write a list, so the words are sorted to their flags here first, and its messages are put into one line.
"""

from __future__ import annotations

import difflib
import inspect
import re
from argparse import ArgumentError
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from selfdet.cli_recipes import config_file
from selfdet.cli_types import choices, expectation, is_list, members
from selfdet.errors import UserError, shown

REQUIRED = inspect.Parameter.empty
LENGTHS = ("epochs", "steps")  # two ways to give one length


@dataclass(frozen=True)
class Flag:
    """One flag: the argument `key` (dotted inside settings, as in `backbone_stage.epochs`), its type and default.

    `default` is `REQUIRED` where there is none.
    """

    key: str
    hint: Any
    default: Any
    description: str = ""

    @property
    def name(self) -> str:
        """As typed: `--backbone-stage.batch-size`."""
        return "--" + self.key.replace("_", "-")

    @property
    def group(self) -> str:
        """The argument that holds this one's settings: `backbone_stage`; empty for most."""
        return self.key.rpartition(".")[0]

    @property
    def off_name(self) -> str:
        """The opposite of a switch: `--no-flip`, `--backbone-stage.no-flip`."""
        group, dot, leaf = self.name.removeprefix("--").rpartition(".")
        return f"--{group}{dot}no-{leaf}"

    @property
    def is_switch(self) -> bool:
        return members(self.hint) == [bool]


ADAPTER_FLAGS = (
    Flag(
        "config",
        list[str],
        None,
        "YAML files of flags, keys with hyphens or underscores, or names of recipes; flags typed here win.",
    ),
    Flag("json", bool, False, "exactly one JSON object on stdout, everything else on stderr."),
)


class Given(NamedTuple):
    """A value as the user wrote it, and where: `--epochs`, or `epochs in run.yaml`."""

    value: Any
    source: str


def flags_of(function: Callable[..., Any]) -> list[Flag]:
    """The flags of a verb's function, in the order of its signature; a dataclass gives one for each of its fields."""
    parameters = inspect.signature(function).parameters.values()
    return _flags(function, [(parameter.name, parameter.default) for parameter in parameters], prefix="")


def _flags(owner: Any, names: Iterable[tuple[str, Any]], prefix: str) -> list[Flag]:
    from docstring_parser import DocstringStyle, parse

    hints = get_type_hints(owner)
    parameters = parse(owner.__doc__ or "", style=DocstringStyle.GOOGLE).params
    descriptions = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in parameters}
    flags: list[Flag] = []
    for name, default in names:
        settings = settings_type(hints[name])
        if settings is None:
            flags.append(Flag(prefix + name, hints[name], default, descriptions.get(name, "")))
        else:
            flags += _flags(settings, _field_defaults(settings, default), f"{prefix}{name}.")
    return flags


def settings_type(hint: Any) -> Any:
    """The dataclass in `Settings` or `Settings | None`, else None."""
    return next((member for member in members(hint) if is_dataclass(member)), None)


def _field_defaults(settings: Any, instance: Any) -> Iterable[tuple[str, Any]]:
    """Each field of a dataclass with its default: that of the instance which is the argument's default, if there is."""
    for field in fields(settings):
        if isinstance(instance, settings):
            yield field.name, getattr(instance, field.name)
        elif field.default_factory is not MISSING:
            yield field.name, field.default_factory()
        else:
            yield field.name, REQUIRED if field.default is MISSING else field.default


def arguments(verb: str, function: Callable[..., Any], words: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments for a verb's function: its YAML files first, then the flags over them.

    Raises:
        UserError: for an unknown flag or key, a missing one, a value of the wrong type.
    """
    flags = flags_of(function)
    typed = read_words(verb, words, [*flags, *ADAPTER_FLAGS])
    typed.pop("json", None)
    given: dict[str, Given] = {}
    for file in typed.pop("config", Given([], "")).value:
        given = _over(given, read_yaml(config_file(verb, file), flags, verb), flags)
    given = _over(given, typed, flags)
    missing = [flag.name for flag in flags if flag.default is REQUIRED and flag.key not in given]
    if missing:
        raise UserError(f"{verb} needs {' and '.join(missing)}", f"`selfdet {verb} --help` shows an example")
    return _convert(function, given, {flag.key: flag for flag in flags})


def _over(below: dict[str, Given], above: dict[str, Given], flags: Iterable[Flag]) -> dict[str, Given]:
    """What was given first and what was given over it, which replaces more than the same keys.

    A length replaces one that was given the other way, and a flag what a stage would have in its place: settings of
    stages that are None follow the flag of their name.
    """
    replaced: set[str] = set()
    for key in above:
        group, dot, leaf = key.rpartition(".")
        same = LENGTHS if leaf in LENGTHS else (leaf,)
        replaced |= {f"{group}{dot}{name}" for name in same}
        if not group:
            followers = (flag for flag in flags if flag.group and flag.default is None)
            replaced |= {flag.key for flag in followers if flag.key.rpartition(".")[2] in same}
    return {key: value for key, value in below.items() if key not in replaced} | above


def read_words(verb: str, words: Sequence[str], flags: Iterable[Flag]) -> dict[str, Given]:
    """Sort the words of a command line to their flags: a text, a list of texts, or a bool for each."""
    spellings: dict[str, tuple[Flag, bool]] = {flag.name: (flag, True) for flag in flags}
    for flag, _ in list(spellings.values()):
        if flag.is_switch:
            spellings.setdefault(flag.off_name, (flag, False))
    given: dict[str, Given] = {}
    left = deque(words)
    previous: Flag | None = None
    while left:
        word = left.popleft()
        if not _is_flag(word):
            raise _stray(word, previous, spellings)
        name, equals, text = word.partition("=")
        if name.replace("_", "-") not in spellings:
            raise UserError(f"{verb} has no flag {name}", _nearest(name, spellings, f"`selfdet {verb} --help`"))
        previous, on = spellings[name.replace("_", "-")]
        if previous.is_switch:
            if equals:
                raise UserError(f"{name} is a switch and takes no value, not '{text}'", f"Write {name} alone")
            given[previous.key] = Given(on, name)
            continue
        values = [text] if equals else []
        while left and not _is_flag(left[0]) and (is_list(previous.hint) or not values):
            values.append(left.popleft())
        if is_list(previous.hint):
            values = _split_commas(values)
        if not values:
            hint = f"A value that starts with a dash is written {name}=-VALUE"
            raise UserError(f"{name} needs a value: {expectation(previous.hint)}", hint)
        if is_list(previous.hint):
            earlier = given[previous.key].value if previous.key in given else []
            given[previous.key] = Given([*earlier, *values], name)
        else:
            given[previous.key] = Given(values[0], name)
    return given


def _is_flag(word: str) -> bool:
    """Whether a word is meant as a flag: a dash, but no negative number and not the dash alone."""
    return word.startswith("-") and word != "-" and not re.match(r"-\.?\d|-inf$", word)


def _split_commas(values: Iterable[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _stray(word: str, previous: Flag | None, spellings: dict[str, tuple[Flag, bool]]) -> UserError:
    """The advice for a word that belongs to no flag."""
    if previous is None:
        first = next(iter(spellings))
        return UserError(f"'{word}' stands without a flag", f"Every input is a flag, for example {first} {word}")
    if previous.is_switch:
        return UserError(f"{previous.name} is a switch and takes no value, not '{word}'")
    hint = "A pattern goes in quotes, so that the shell leaves it alone: 'photos/*.jpg'"
    return UserError(f"{previous.name} takes one value; '{word}' is one too many", hint)


def _nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(word.replace("_", "-"), [name.replace("_", "-") for name in known], n=1)
    return f"Did you mean {near[0]}?" if near else f"{otherwise} lists what there is"


def read_yaml(file: Path, flags: Iterable[Flag], verb: str = "") -> dict[str, Given]:
    """Sort the keys of a YAML file, written with hyphens or underscores, to their flags.

    Where it says for which `verb` it is, it must be this one.
    """
    from selfdet.data.untrusted import parse_yaml

    try:
        content = parse_yaml(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "--config takes a YAML file") from error
    except ValueError as error:
        raise UserError(f"{file} is not YAML: {error}", "--config takes a YAML file") from None
    if isinstance(content, dict) and (other := content.pop("verb", verb)) != verb:
        raise UserError(f"{file} is for selfdet {other}, not {verb}", "Name one for this verb, or use that verb")
    return _read_mapping({} if content is None else content, file, {flag.key: flag for flag in flags}, prefix="")


def _read_mapping(content: Any, file: Path, flags: dict[str, Flag], prefix: str) -> dict[str, Given]:
    if not isinstance(content, dict):
        where = f"{prefix.rstrip('.').replace('_', '-')} in {file}" if prefix else str(file)
        raise UserError(f"{where} is {shown(content)}, expected keys with values", "Write one `key: value` a line")
    given: dict[str, Given] = {}
    for written, value in content.items():
        key = prefix + str(written).replace("-", "_")
        source = f"{prefix}{written} in {file}"
        if key in flags:
            if is_list(flags[key].hint) and isinstance(value, (str, int, float)):
                value = _split_commas([str(value)])
            found = {key: Given(value, source)}
        elif any(known.startswith(f"{key}.") for known in flags):
            found = _read_mapping(value, file, flags, f"{key}.")
        else:
            raise UserError(f"{file}: unknown key {prefix}{written}", _nearest(key, flags, "The verb's --help"))
        if twice := found.keys() & given.keys():
            raise UserError(f"{source}: {twice.pop()} is given twice", "Keep one of the two")
        given |= found
    return given


def _convert(function: Callable[..., Any], given: dict[str, Given], flags: dict[str, Flag]) -> dict[str, Any]:
    """Let jsonargparse turn the given values into the signature's types, with the defaults of all others."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function)
    nested: dict[str, Any] = {}
    for key, (value, _) in given.items():
        *groups, leaf = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[leaf] = value
    try:
        return dict(parser.instantiate(parser.parse_object(nested)).as_dict())
    except ArgumentError as error:
        # The outer key comes first in the message where settings are optional: "backbone_stage", then "epochs".
        key = ".".join(re.findall(r'Parser key "([^"]+)"', str(error)))
        if key not in given:
            raise UserError(str(error)) from error
        value, source = given[key]
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        near = difflib.get_close_matches(str(shown), choices(flags[key].hint), n=1)
        hint = f"Did you mean {near[0]}?" if near else "--help shows each flag with its type"
        raise UserError(f"{source} is '{shown}', expected {expectation(flags[key].hint)}", hint) from error
