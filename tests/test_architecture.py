"""The flow of docs/architecture.md holds in every file."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "selfdet"
FLOW = [
    "errors",
    "data",
    "proposing",
    "models",
    "detectors",
    "methods",
    "training",
    "evaluation",
    "drawing",
    "interchange",
    "verbs",
    "cli",
]


def room_of(module: str) -> str | None:
    """`selfdet.data.images` → data; the files of the command line count as one room."""
    parts = module.split(".")
    if parts[0] != "selfdet" or len(parts) < 2:
        return None
    return "cli" if parts[1].startswith("cli") or parts[1] == "__main__" else parts[1]


def imported(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def test_no_module_imports_one_to_its_right() -> None:
    wrong = []
    for file in sorted(SOURCE.rglob("*.py")):
        own = room_of(".".join(("selfdet", *file.relative_to(SOURCE).with_suffix("").parts)))
        if own in (None, "__init__"):
            continue
        for name in imported(ast.parse(file.read_text())):
            room = room_of(name)
            if room in FLOW and FLOW.index(room) > FLOW.index(own):
                wrong.append(f"{file.relative_to(SOURCE)} imports {name}")
    assert not wrong


def test_every_source_file_belongs_to_a_room() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(FLOW)
