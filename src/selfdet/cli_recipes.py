"""The published settings that come with selfdet, found by name: `--config aligndet-fcos-resnet50`.

A recipe holds the flags of one command as YAML, and under `verb` whose they are. Data and start are the user's.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from selfdet.data.untrusted import expanded
from selfdet.errors import UserError

FOLDER = Path(__file__).parent / "recipes"


def recipes(verb: str) -> list[str]:
    """The names of a verb's recipes."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml") if f"\nverb: {verb}\n" in f"\n{file.read_text()}")


def config_file(verb: str, named: str) -> Path:
    """The YAML file that `--config` names: a file if there is one, else a recipe.

    Raises: UserError for a bare name that is neither.
    """
    path, recipe = expanded(named), FOLDER / f"{named}.yaml"
    if path.is_file() or len(path.parts) > 1:
        return path
    if path.suffix and path.stem in recipes(verb):
        raise UserError(f"--config {named} does not exist", f"The recipe of that name is taken by --config {path.stem}")
    if path.suffix:
        return path
    if recipe.is_file():
        return recipe
    known = recipes(verb)
    near = difflib.get_close_matches(named, known, n=3, cutoff=0.4)
    if near:
        hint = f"Did you mean {' or '.join(near)}? {verb} has {len(known)} recipes, listed in docs/how-to-recipes.md"
    else:
        hint = f"The recipes of {verb} are {', '.join(known)}" if known else "It has none: name a YAML file"
    raise UserError(f"--config {named} is no file and no recipe of {verb}", hint)
