"""The flow of docs/architecture.md holds in every file, and the libraries' insides are touched where it says."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from torch import nn
from torchvision.models.detection import (
    anchor_utils,
    fcos,
    generalized_rcnn,
    retinanet,
    roi_heads,
    rpn,
    transform,
)
from torchvision.ops import poolers

from selfdet.interchange.companions.texts import PARTS

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
    # Recipes are settings without code.
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "recipes")}
    assert rooms <= set(FLOW)


# What torchvision documents; of these the names without an underscore.
DOCUMENTED = {
    "torchvision",
    "torchvision.models",
    "torchvision.models.feature_extraction",
    "torchvision.ops",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
    "torchvision.tv_tensors",
}
# Files that know more of it, each held to what it knows by a test file of its name.
INSIDERS = {
    "detectors/_torchvision.py": "everything of one-stage networks",
    "detectors/_torchvision_rcnn.py": "everything of two-stage networks",
    "detectors/_torchvision_mmdet.py": "what of one-stage networks mmdet does otherwise",
    "models/fpn.py": "the levels that torchvision's own pyramids add",
    **dict.fromkeys(
        (f"interchange/companions/{part}.py" for part in (*PARTS["rebuild"], "rebuild")),
        "stands alone beside an export, so it can't import the first two",
    ),
}


def from_torchvision(tree: ast.AST) -> list[tuple[str, str]]:
    """Pairs (module, name) of what a file imports from torchvision."""
    pairs = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            pairs += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            pairs += [(node.module, alias.name) for alias in node.names]
    return [(module, name) for module, name in pairs if module.split(".")[0] == "torchvision"]


def test_only_insiders_import_what_torchvision_does_not_document() -> None:
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        odd = [
            f"{module} {name}"
            for module, name in from_torchvision(ast.parse(file.read_text()))
            if module not in DOCUMENTED or name.startswith("_")
        ]
        if odd:
            found[file.relative_to(SOURCE).as_posix()] = odd
    assert {name: odd for name, odd in found.items() if name not in INSIDERS} == {}
    assert set(found) == set(INSIDERS)
    assert {line.split()[0] for line in found["models/fpn.py"]} == {"torchvision.ops.feature_pyramid_network"}


def test_only_two_files_call_what_torchvisions_detectors_do_inside() -> None:
    rooms = (anchor_utils, fcos, generalized_rcnn, retinanet, roi_heads, rpn, transform, poolers)
    classes = [kind for room in rooms for _, kind in inspect.getmembers(room, inspect.isclass)]
    own = [kind for kind in classes if kind.__module__ in {room.__name__ for room in rooms}]
    inside = {name for kind in own for name, value in vars(kind).items() if inspect.isfunction(value)}
    inside = {name for name in inside if not hasattr(nn.Module, name)} | {"decode", "decode_single", "box_coder"}
    assert {"compute_loss", "select_training_samples", "filter_proposals", "grid_anchors"} <= inside
    wrong = [
        f"{file.name}:{node.lineno} {ast.unparse(node)}"
        for file in sorted((SOURCE / "detectors").glob("*.py"))
        if not file.name.startswith(("_torchvision", "_transformers"))  # which has methods of the same names
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in inside
    ]
    assert not wrong


def test_no_private_attribute_of_anothers_object_is_touched_in_the_room_of_detectors() -> None:
    wrong = [
        f"{file.name}:{node.lineno} {ast.unparse(node)}"
        for file in sorted((SOURCE / "detectors").glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if ast.unparse(node.value) not in ("self", "super()")
    ]
    assert not wrong


def test_one_stage_and_two_stage_detectors_do_not_import_each_other() -> None:
    kinds = ({"one_stage", "fcos", "retinanet"}, {"two_stage", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "c4"})
    for own, others in (kinds, kinds[::-1]):
        for name in own:
            names = imported(ast.parse((SOURCE / "detectors" / f"{name}.py").read_text()))
            assert not {each.split(".")[-1] for each in names} & others, name
