"""The texts of the programs, each one file that imports nothing of selfdet."""

from __future__ import annotations

import ast
from pathlib import Path

OWN = "selfdet.interchange.companions."
# What a program is put together of, each part behind those that it imports.
PARTS = {"rebuild": ("images", "bodies", "anchors", "one_stage", "two_stage", "cascade")}


def text_of(program: str) -> str:
    """The text of a program: its docstring, what it or a part of it imports from elsewhere, the parts, itself."""
    names: dict[str, set[str]] = {}
    title, bodies = "", []
    for part in (*PARTS.get(program, ()), program):
        text = Path(__file__).with_name(f"{part}.py").read_text(encoding="utf-8")
        statements, lines = ast.parse(text).body, text.splitlines()
        title = "\n".join(lines[: statements[0].end_lineno])
        imports = [each for each in statements if isinstance(each, (ast.Import, ast.ImportFrom))]
        for each in imports:
            module = (each.module or "") if isinstance(each, ast.ImportFrom) else ""
            if not module.startswith(OWN):
                names.setdefault(module, set()).update(map(ast.unparse, each.names))
        bodies.append("\n".join(lines[imports[-1].end_lineno :]).strip("\n"))
    future = f"from __future__ import {', '.join(names.pop('__future__'))}"
    whole = [f"import {name}" for name in sorted(names.pop("", ()))]
    chosen = [f"from {module} import {', '.join(sorted(own))}" for module, own in sorted(names.items())]
    return "\n\n".join([title, future, "\n".join([*whole, *chosen]), "\n\n\n".join(bodies)]) + "\n"
