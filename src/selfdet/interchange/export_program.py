"""A network as a program of torch.export, checked in a process that cannot import selfdet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdet.interchange.export_check import run_stranger
from selfdet.interchange.export_onnx import described
from selfdet.interchange.export_words import differences, map_differences
from selfdet.interchange.graph_export import check_detections, check_maps, graph_of, taken_down
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.interchange.suppression import suppressed

ABOUT = "selfdet.json"  # among the program's extra files
STRANGER = """
import sys
sys.modules["selfdet"] = None  # from here on `import selfdet` fails
import torch, torchvision
from safetensors.torch import load_file, save_file

program, inputs, outputs, threads, *names = sys.argv[1:]
torch.set_num_threads(int(threads))
net = torch.export.load(program).module(check_guards=False)
given, found = load_file(inputs), {}
runs = sorted({int(name.partition(".")[0]) for name in given})
for run in runs:
    own = [given[f"{run}.{name}"] for name in ("images", "sizes", "threshold") if f"{run}.{name}" in given]
    with torch.no_grad():
        found.update({f"{run}.{name}": value.contiguous() for name, value in zip(names, net(*own))})
save_file(found, outputs)
"""


def export_program(folder: Path, given: Outgoing) -> Written:
    """Write detector.pt2, segmenter.pt2 or backbone.pt2, and compare what it gives without selfdet.

    Raises: UserError for a network that is no graph; ExportMismatchError.
    """
    graph = graph_of(given, suppressed)
    file = folder / f"{given.kind}.pt2"
    about = described(given, graph)
    torch.export.save(taken_down(graph, given.source), str(file), extra_files={ABOUT: json.dumps(about)})
    names: tuple[str, ...] = graph.outputs  # type: ignore[assignment]

    # One process for all: first what it is asked is written down, then answered.
    asked: list[dict[str, Tensor]] = []

    def check(answer: Any) -> dict[str, float]:
        if given.kind == "detector":
            return check_detections(graph, given.network, given.note["image_size"], answer)
        return check_maps(graph, given.note.get("image_size", 224), answer)

    def write_down(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        asked.append(inputs)
        with torch.no_grad():
            return dict(zip(names, graph(*inputs.values())))

    check(write_down)
    tensors = {f"{run}.{name}": value for run, inputs in enumerate(asked) for name, value in inputs.items()}
    answered = run_stranger(STRANGER, file, tensors, *names)
    runs = iter(range(len(asked)))

    def answer(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        run = next(runs)
        return {name: answered[f"{run}.{name}"] for name in names}

    figures = check(answer)
    said = differences(figures) if given.kind == "detector" else map_differences(figures)
    return Written(figures, f"loaded without selfdet, {said}", about)
