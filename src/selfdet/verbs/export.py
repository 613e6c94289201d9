"""`selfdet export`: what was trained, for use without selfdet, checked there before it is called done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from selfdet.errors import UserError
from selfdet.interchange import export_backbone, export_detector, export_segmenter
from selfdet.interchange.export_check import check_backbone, check_detector, check_finite
from selfdet.interchange.export_rebuild import NETWORKS
from selfdet.interchange.segmenters import load_segmenter
from selfdet.interchange.starts import load_detector, resolve_start
from selfdet.models.backbones import Backbone
from selfdet.training.log import Reporter


def export(*, init: str, to: Literal["torchvision", "timm"], out: str) -> dict[str, Any]:
    """Write a detector, segmenter or backbone for use without selfdet.

    A detector goes to torchvision, whatever its backbone: detector.safetensors, detector.json and rebuild.py, which
    needs torch, torchvision, timm and safetensors only. A backbone goes to the library it comes from, with a load.py.
    Of a detector on a timm backbone, timm gets the backbone as it was fine-tuned. A segmenter goes the same ways, its
    weights named as those of torchvision's FCN. Nothing is called done before a
    process that cannot import selfdet has rebuilt it and found the same.

    Args:
        init: run directory or weights file, of pretrain or finetune.
        to: library that it is for: torchvision or timm.
        out: folder to make; refused when not empty.

    Raises: UserError when `init` names nothing to export or something of another library, or `out` is not empty;
    ExportMismatchError when the result behaves differently.

    Example:
        selfdet export --init runs/ft --to torchvision --out exported/
    """
    target = Path(os.path.abspath(out))
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise UserError(f"--out {out} is not empty", "Name a new folder")
    start = resolve_start(init)
    if start.kind in ("scratch", "library"):
        raise UserError(f"--init {init} holds nothing trained", "Name a run directory or a weights file of one")
    check_finite(start.state, start.source)
    reporter = Reporter()
    if start.kind == "detector":
        detector, note = load_detector(init)
        if to == "torchvision" and note["detector"] not in NETWORKS:
            raise UserError(
                f"--init {init} is a {note['detector']}; export to torchvision writes {', '.join(NETWORKS)} only",
                "Use it with selfdet",
            )
        if to == "torchvision":
            with _whole_folder(target) as folder:
                export_detector.write_detector(folder, detector, note)
                figures = check_detector(
                    folder / export_detector.PROGRAM, folder / export_detector.WEIGHTS, detector, note["image_size"]
                )
            apart = figures.get("mask_difference")
            masks = "" if apart is None else f", masks by {apart:.2g} of their pixels"
            reporter.line(
                f"rebuilt without selfdet, {figures['detections']} detections compared: boxes differ by at most "
                f"{figures['box_difference']:.2g} px, scores by {figures['score_difference']:.2g}{masks}"
            )
            return _done(reporter, target, "detector", out, to, figures)
        _check_library(init, detector.backbone, to, "--to torchvision writes the whole detector")
        backbone, described = detector.backbone, {"trained_as": f"backbone of {note['detector']}"}
    elif start.kind == "segmenter":
        segmenter, note = load_segmenter(start)
        if to == "torchvision":
            with _whole_folder(target) as folder:
                export_segmenter.write_segmenter(folder, segmenter, note)
                figures = export_segmenter.check_segmenter(folder, segmenter, note)
            reporter.line(
                f"rebuilt without selfdet, {figures['score_maps']} maps of scores compared: they differ by at most "
                f"{figures['largest_difference']:.2g} of their largest value"
            )
            return _done(reporter, target, "segmenter", out, to, figures)
        _check_library(init, segmenter.backbone, to, "--to torchvision writes the whole segmenter")
        backbone, described = export_segmenter.ordinary_backbone(segmenter), {"trained_as": "backbone of fcn"}
    else:
        backbone, described = export_backbone.open_backbone(start), start.note
        _check_library(init, backbone, to, f"Use --to {backbone.library}")
    with _whole_folder(target) as folder:
        export_backbone.write_backbone(folder, backbone, described)
        figures = check_backbone(folder / export_backbone.PROGRAM, folder / export_backbone.WEIGHTS, backbone)
    reporter.line(
        f"loaded without selfdet, {figures['maps']} maps compared: they differ by at most "
        f"{figures['largest_difference']:.2g} of their largest value"
    )
    return _done(reporter, target, "backbone", out, to, figures)


def _check_library(init: str, backbone: Backbone, to: str, hint: str) -> None:
    if backbone.library != to:
        raise UserError(f"--to {to}: the backbone of {init} is {backbone.library}'s {backbone.library_name}", hint)


def _done(reporter: Reporter, target: Path, kind: str, out: str, to: str, figures: dict[str, float]) -> dict[str, Any]:
    files = sorted(file.name for file in target.iterdir())
    reporter.line(f"{kind} for {to}: {out} ({', '.join(files)})")
    return {"out": out, "to": to, "kind": kind, "files": files, "check": figures}


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
