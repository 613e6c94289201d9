"""`selfdet export`: what was trained, for use without selfdet, checked there before it is called done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from selfdet.errors import UserError
from selfdet.interchange.cards import write_card
from selfdet.interchange.targets import TARGETS, TargetKey, backbone_of, open_outgoing
from selfdet.training.log import Reporter
from selfdet.training.rundir import check_out_is_new

GRAPHS = ("onnx", "torch-export")  # taking a network down as one says nothing until it is done


def export(
    *,
    init: str,
    to: TargetKey,
    out: str,
    part: Literal["backbone"] | None = None,
    nms: Literal["in", "out"] | None = None,
    opset: int | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """Write a detector, segmenter or backbone for use without selfdet.

    A detector goes to torchvision, whatever its backbone: detector.safetensors, detector.json and rebuild.py, which
    needs torch, torchvision, timm and safetensors only. A backbone goes to the library it comes from, with a load.py,
    a ResNet to torchvision and timm alike; of a detector timm gets the backbone as it was fine-tuned. A segmenter goes
    the same ways, its weights named as those of torchvision's FCN. ONNX and torch.export take all three, for any number
    of images of any size. A DETR or a plain ResNet goes to transformers, a folder that this library loads by itself.
    Nothing is called done before the other side has found the same: a process that cannot import selfdet, or
    onnxruntime. Each has a card, README.md.

    Args:
        init: run directory or weights file, of pretrain or finetune.
        to: library or format that it is for; docs/how-to-weights.md has what each takes.
        out: folder to make; refused when not empty.
        part: backbone: export only the backbone of a detector or segmenter.
        nms: whether non-maximum suppression is in the graph (in, if not given) or left to the program that runs it
            (out).
        opset: ONNX opset, 18 to 23; 18 if not given.
        licence: licence of the weights, for the card; unknown if not given.

    Raises: UserError when `init` names nothing to export or something of another library, or `out` is not empty;
    ExportMismatchError when the result behaves differently.

    Example:
        selfdet export --init runs/ft --to torchvision --out exported/
    """
    check_out_is_new(out)
    target = Path(os.path.abspath(out))
    reporter, goal = Reporter(), TARGETS[to]
    options = {name: value for name, value in (("nms", nms), ("opset", opset)) if value is not None}
    if foreign := [name for name in options if name not in goal.options]:
        named = ", ".join(key for key, each in TARGETS.items() if foreign[0] in each.options)
        raise UserError(f"--{foreign[0]} is for {named}, not for --to {to}", "Leave it out")
    given = replace(open_outgoing(init), options=options)
    if part == "backbone" or given.kind not in goal.writers:
        given = backbone_of(given)
    wait = ", which takes a minute or two" if to in GRAPHS else ""
    reporter.line(f"writing the {given.kind} of {init} for {to} and comparing what it does there{wait}")
    with _whole_folder(target) as folder:
        written = goal.writers[given.kind](folder, given)
        write_card(folder, given, to, written, licence)
    files = sorted(file.name for file in target.iterdir())
    reporter.line(written.line)
    reporter.line(f"{given.kind} for {to}: {out} ({', '.join(files)})")
    return {"out": out, "to": to, "kind": given.kind, "files": files, "check": written.figures}


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place once the block is through; after an error nothing is left."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {target} cannot be written: {error.strerror}", "Name another folder") from None
    try:
        yield unfinished
        if target.is_dir():
            target.rmdir()
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
