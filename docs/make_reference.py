"""Write docs/reference/ from signatures and docstrings: `make reference`.

`verbs.md` has every flag of the command line, `python.md` what the package offers to Python beside the verbs. A test
holds the committed pages to what this writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from docstring_parser import DocstringStyle, parse

from selfdet.cli import VERBS, load_verb
from selfdet.cli_flags import ADAPTER_FLAGS, REQUIRED, Flag, flags_of
from selfdet.cli_help import default_words
from selfdet.cli_types import label
from selfdet.data.box_views import BoxViews
from selfdet.data.geometry import true_matches
from selfdet.data.images import list_images, read_image
from selfdet.data.labels import load_labels
from selfdet.data.sample import Sample
from selfdet.data.views import TwoViews
from selfdet.detectors.base import Detector
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.evaluation.detection import evaluate_detections
from selfdet.methods.aligndet import AlignDet
from selfdet.methods.contrast import dense_info_nce, info_nce, instance_contrast, match_dense, nt_xent
from selfdet.methods.densecl import DenseCL
from selfdet.methods.moco import MoCo
from selfdet.methods.simclr import SimCLR
from selfdet.models.backbones import Backbone, build_backbone
from selfdet.training.transfer import transfer

FOLDER = Path(__file__).parent / "reference"
GENERATED = "<!-- Written by `make reference` from signatures and docstrings: change those. -->"
PYTHON: dict[str, tuple[Callable[..., Any], ...]] = {
    "Losses": (info_nce, match_dense, dense_info_nce, nt_xent, instance_contrast),
    "Methods": (MoCo, DenseCL, SimCLR, AlignDet),
    "Networks": (build_backbone, Backbone, *DETECTORS.values(), Detector, transfer),
    "Data": (list_images, read_image, load_labels, Sample, TwoViews, true_matches, BoxViews),
    "Measures and errors": (evaluate_detections, UserError),
}
SECTIONS = re.compile(r"(Args|Returns|Raises|Example|Source|Legend):")


def pages() -> dict[Path, str]:
    """Each page's file and text."""
    return {FOLDER / "verbs.md": verbs_page(), FOLDER / "python.md": python_page()}


def verbs_page() -> str:
    """Every verb with its flags."""
    head = f"""{GENERATED}
# Verbs and flags

As `selfdet VERB --help` shows them. Python has the same functions, `_` for `-`: `selfdet.pretrain(images=…, out=…)`.
What several verbs share, such as the forms of `--images` and `--data`, is in the [reference](../reference.md).
Every verb also takes these:
"""
    return "\n\n".join([head + "\n" + table(ADAPTER_FLAGS), *map(verb_section, VERBS)]) + "\n"


def verb_section(verb: str) -> str:
    """What a verb does, its flags and an example."""
    function = load_verb(verb)
    document = parse(function.__doc__ or "", style=DocstringStyle.GOOGLE)
    flags = flags_of(function)
    groups = dict.fromkeys(flag.group for flag in flags)
    meaning = {parameter.arg_name: parameter.description or "" for parameter in document.params}
    parts = [f"## {verb}", document.short_description, document.long_description]
    for group in groups:
        if group:
            parts.append(f"`--{group.replace('_', '-')}.…`: {' '.join(meaning.get(group, '').split())}")
        parts.append(table(flag for flag in flags if flag.group == group))
    parts += [f"```sh\n{example.description}\n```" for example in document.examples]
    return "\n\n".join(part.strip() for part in parts if part)


def table(flags: Iterable[Flag]) -> str:
    """Flags as rows of Markdown."""
    rows = ["| flag | value | default | meaning |", "|---|---|---|---|"]
    for flag in flags:
        name = f"`{flag.name}`" + (f", `{flag.off_name}`" if flag.is_switch and flag.default is True else "")
        value = "switch" if flag.is_switch else f"`{label(flag.hint)}`"
        default = "**required**" if flag.default is REQUIRED else default_words(flag)
        rows.append(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in (name, value, default, flag.description)) + " |"
        )
    return "\n".join(rows)


def python_page() -> str:
    """What is offered to Python, room by room."""
    head = f"""{GENERATED}
# Python

Beside the [verbs](verbs.md), what others may build on. Tensors are described by shape, unit and box format; a mistake
of the caller's raises `UserError`."""
    parts = [head]
    for title, things in PYTHON.items():
        parts += [f"## {title}", *map(entry, things)]
    return "\n\n".join(parts) + "\n"


def entry(thing: Callable[..., Any]) -> str:
    """A function, or a class with its methods: how it is called, and what its docstring says."""
    parts = [
        f"### {thing.__name__}",
        f"```python\n{thing.__module__}.{call(thing)}\n```",
        markdown(thing.__doc__ or ""),
    ]
    if inspect.isclass(thing):
        described = [
            f"* `.{call(member)}`: {first_paragraph(member.__doc__)}"
            for name, member in vars(thing).items()
            if not name.startswith("_") and inspect.isfunction(member) and member.__doc__
        ]
        parts += ["**Methods**", "\n".join(described)] if described else []
    return "\n\n".join(parts)


def call(thing: Callable[..., Any]) -> str:
    """Name and arguments, without the types, which the docstring tells better."""
    signature = inspect.signature(thing)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    return f"{thing.__name__}{signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"


def first_paragraph(text: str) -> str:
    """The docstring's first paragraph."""
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


def markdown(text: str) -> str:
    """A docstring as Markdown: sections with bold titles, each argument, field and error a bullet."""
    lines: list[str] = []
    listing = fields = False  # inside a section of names; among a dataclass's fields
    for line in inspect.cleandoc(text).splitlines():
        section = SECTIONS.match(line)
        if section:
            listing = section[1] in ("Args", "Raises") and line == section.group()
            lines += ["", f"**{section[1]}**{line[section.end() - 1 :].removesuffix(':')}"] + [""] * (
                line == section.group()
            )
            continue
        fields = bool(re.match("[a-z_]+: ", line) and (fields or not lines[-1])) or (fields and line.startswith(" "))
        if (listing and re.match(" {4}[^ ]", line)) or (fields and not line.startswith(" ")):
            name, colon, rest = line.strip().partition(":")
            lines.append(f"* `{name}`:{rest}" if colon else f"* {line.strip()}")
        else:
            listing = listing and (line.startswith(" ") or not line)
            lines.append(line.strip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
