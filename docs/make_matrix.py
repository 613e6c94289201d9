"""Write docs/matrix.md from docs/results/matrix.jsonl: `python docs/make_matrix.py`; with `--run` first try what has no
line there yet, one after another.

A row that has passed is a line; take its line out to try it again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE, RECORD = ROOT / "docs" / "matrix.md", ROOT / "docs" / "results" / "matrix.jsonl"
NAMED = ("backbone", "detector", "method", "export", "masks")
# What a backbone is, by the beginning of its name; the first that fits.
BACKBONES = {
    "cb-": "composite (CBNet v2)",
    "resnet": "ResNet",
    "swin_": "Swin",
    "vit_": "plain transformer",
    "convnext": "ConvNeXt",
    "": "small CNN",
}
DETECTORS = {
    "fcos": "one stage",
    "retinanet": "one stage",
    "faster_rcnn": "two stages",
    "mask_rcnn": "two stages",
    "cascade_rcnn": "cascade",
    "": "DETR",
}
HEAD = """<!-- Written by docs/make_matrix.py from docs/results/matrix.jsonl: change those. -->
# What has been tried together
Each line is a combination that went all the way at tiny size (64 px, one step a stage, `tests/test_matrix.py`): the
library's own network is imported, the backbone pre-trained where a method is named, then neck and head (AlignDet); they
are handed over and fine-tuned; the network that goes out finds the same. That the parts fit is all it says; how well
they detect, [results](results.md) say.

"""
TAIL = """
Each line stands for its kinds. {pairs} Any other ResNet of torchvision and network of timm with maps goes the same way
([how to choose a backbone](how-to-backbones.md)). Weights come in and go out in more ways than a line says
([how to bring weights](how-to-weights.md)); "–" is what it does not try, not what is impossible.
"""


def record() -> list[dict[str, Any]]:
    """The lines of what has passed."""
    return [json.loads(line) for line in RECORD.read_text("utf-8").splitlines()] if RECORD.exists() else []


def same(line: dict[str, Any], row: Any) -> bool:
    """Whether a line is of this row of the tests."""
    return all(line[name] == getattr(row, name) for name in NAMED)


def kind(backbone: str) -> str:
    """What a backbone is."""
    return next(kind for start, kind in BACKBONES.items() if backbone.startswith(start))


def kind_of_detector(detector: str) -> str:
    """What a detector is."""
    return DETECTORS.get(detector, DETECTORS[""])


def page(lines: list[dict[str, Any]]) -> str:
    """The text of the page."""
    stages = ("backbone stage", "detector stage", "fine-tuned")
    table = [("backbone", "kind", "detector", "weights in", *stages, "export", "commit")]
    table.append(("---",) * len(table[0]))
    order = list(BACKBONES.values())
    for line in sorted(
        lines, key=lambda line: (order.index(kind(line["backbone"])), line["backbone"], line["detector"])
    ):
        detector = line["detector"] + (" with masks" if line["masks"] and line["detector"] == "cascade_rcnn" else "")
        cells = [line["backbone"], kind(line["backbone"]), detector, line["import"], line["method"] or "–"]
        cells += ["AlignDet" if "detector" in line["stages"] else "–", "yes" if "finetune" in line["stages"] else "–"]
        table.append((*cells, line["export"] or "–", line["commit"]))
    return HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in table) + TAIL.format(pairs=pairs(lines))


def pairs(lines: list[dict[str, Any]]) -> str:
    """Which kinds of backbones and detectors have been together, in words."""
    there = {(kind(line["backbone"]), kind_of_detector(line["detector"])) for line in lines}
    whole = [(one, other) for one in BACKBONES.values() for other in dict.fromkeys(DETECTORS.values())]
    absent = [f"{one} with {other}" for one, other in whole if (one, other) not in there]
    if not absent:
        return "Each kind of backbone is here with each kind of detector: one stage, two stages, cascade and DETR."
    return f"Of {len(whole)} pairs of kinds these are not here: {', '.join(absent)}."


def run(names: list[str]) -> None:
    """Try the rows that have no line, or those of them that are named, and keep what passes."""
    sys.path.insert(0, str(ROOT))
    from tests.matrix import ROWS, whole_way

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    for row in ROWS:
        if any(same(line, row) for line in record()) or (names and row.name not in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            line = {"experiment": "matrix", **whole_way(row, Path(folder)), "commit": commit.strip()}
        kept = [known for known in record() if any(known[name] != line[name] for name in ("backbone", "detector"))]
        RECORD.write_text("".join(json.dumps(each) + "\n" for each in [*kept, line]), encoding="utf-8")
        print(f"{row.name}: passed", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--run", nargs="*", metavar="NAME", help="try the rows without a line, or those named")
    given = arguments.parse_args()
    if given.run is not None:
        run(given.run)
    PAGE.write_text(page(record()), encoding="utf-8")


if __name__ == "__main__":
    main()
