"""A network as one ONNX file, checked in onnxruntime."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfdet.errors import UserError
from selfdet.interchange.companions.texts import text_of
from selfdet.interchange.export_words import differences, map_differences
from selfdet.interchange.graph_export import (
    check_detections,
    check_maps,
    graph_of,
    input_names,
    shortest_side,
    taken_down,
)
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.interchange.suppression import onnx_operators, suppressed_by_onnx
from selfdet.training.rundir import write_text

PROGRAM = "run.py"
OPSETS = range(18, 24)
SUFFIX = ".onnx"


def export_onnx(folder: Path, given: Outgoing) -> Written:
    """Write detector.onnx, segmenter.onnx or backbone.onnx, of a detector that finds with run.py, and compare in
    onnxruntime what it gives.

    Raises: UserError without the extra `onnx`, for an opset that is not known and a network that is no graph.
    """
    opset = given.options.get("opset") or OPSETS[0]
    if opset not in OPSETS:
        raise UserError(f"--opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}", f"Leave it out for {OPSETS[0]}")
    _check_libraries()
    graph = graph_of(given, suppressed_by_onnx)
    file = folder / f"{given.kind}{SUFFIX}"
    about = described(given, graph)
    _write(file, graph, about, opset, given.source)
    session = _session(file)

    def answer(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(graph.outputs, found)}  # type: ignore[arg-type]

    if given.kind == "detector":
        if "labels" in about["outputs"]:
            write_text(folder / PROGRAM, text_of("run_onnx"))
        figures = check_detections(graph, given.network, given.note["image_size"], answer)
        return Written(figures, f"run in onnxruntime, {differences(figures)}", about)
    figures = check_maps(graph, given.note.get("image_size", 224), answer)
    return Written(figures, f"run in onnxruntime, {map_differences(figures)}", about)


def described(given: Outgoing, graph: nn.Module) -> dict[str, Any]:
    """What whoever runs the graph has to know, as plain values."""
    names = ("classes", "category_ids", "image_size", "crop_size")
    return {
        **{name: given.note[name] for name in names if name in given.note},
        "step": graph.step,
        "least_side": shortest_side(graph),
        "inputs": input_names(graph),
        "outputs": list(graph.outputs),  # type: ignore[arg-type]
        **({"threshold": given.network.options["score_threshold"]} if given.kind == "detector" else {}),
    }


def _check_libraries() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--to onnx needs {error.name}", "pip install 'selfdet[onnx]'") from None


def _write(file: Path, graph: nn.Module, about: dict[str, Any], opset: int, name: str) -> None:
    import numpy as np
    import onnx_ir

    taken = taken_down(graph, name)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                taken,
                dynamo=True,
                custom_translation_table=onnx_operators(),
                input_names=about["inputs"],
                output_names=about["outputs"],
                opset_version=opset,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    keep_constants(program.model.graph)
    program.model.metadata_props["selfdet"] = json.dumps(about)
    for value in program.model.graph.inputs:
        if value.name == "threshold":  # an input with a value is one that may be left out
            value.const_value = onnx_ir.tensor(np.array([about["threshold"]], np.float32), name=value.name)
            program.model.graph.initializers[value.name] = value
    program.save(str(file))


def keep_constants(graph: Any) -> None:
    """Give a graph of onnx_ir the constants back that its nodes use and it doesn't have.

    Where onnxscript (0.7) fuses two clamps of one value, their bounds get the same name, under which a graph keeps the
    last alone: such a graph can't be run.
    """
    from onnx_ir.traversal import RecursiveGraphIterator

    for node in RecursiveGraphIterator(graph):
        for value in node.inputs:
            if value is not None and value.const_value is not None and value.producer() is None:
                graph.initializers.setdefault(value.name, value)


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
