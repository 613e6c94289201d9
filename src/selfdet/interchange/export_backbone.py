"""A backbone as a folder for its own library: its weights, and the few lines that load them there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
import torchvision

from selfdet.errors import UserError
from selfdet.interchange.export_check import check_backbone
from selfdet.interchange.export_words import map_differences
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.interchange.starts import Start, save_backbone
from selfdet.models.backbones import Backbone, build_backbone, build_unfilled, torchvision_resnets
from selfdet.training.rundir import write_text

WEIGHTS, PROGRAM = "backbone.safetensors", "load.py"

CALLS = {
    "torchvision": 'torchvision.models.get_model("{name}", weights=None, **options)',
    "timm": 'timm.create_model("{name}", pretrained=False, **options)',
}

LOAD = '''"""{name} with the weights of backbone.safetensors, on {library} and safetensors alone.

    from load import load
    net = load()            # options go to {library}: load(num_classes=10)

Images: RGB in 0…1, minus MEAN, divided by STD (one value a channel).
"""

from pathlib import Path

import {library}
from safetensors.torch import load_file

MEAN, STD = {mean}, {std}
FRESH = {fresh}  # what lies behind the last feature map is not pre-trained


def load(**options):
    """{library}'s {name} with the pre-trained weights; only FRESH stays as {library} initialises it."""
    net = {call}
    weights = load_file(Path(__file__).with_name("backbone.safetensors"))
    missing, unexpected = net.load_state_dict(weights, strict=False)
    wrong = unexpected + [name for name in missing if not name.startswith(tuple(FRESH))]
    if wrong:
        raise ValueError(f"backbone.safetensors does not fit {library}'s {name}: {{wrong[:3]}}")
    return net


if __name__ == "__main__":
    print(load())
'''


def open_backbone(start: Start) -> Backbone:
    """The backbone of a start, every tensor of it from the start.

    Raises: UserError when the file doesn't say which network it is of, or its tensors are another's.
    """
    name = start.note.get("backbone")
    if not name:
        raise UserError(
            f"{start.source} does not say which network its weights belong to",
            "Export a run made by pretrain or finetune, or a weights file of one",
        )
    backbone = build_unfilled(lambda: build_backbone(name))  # the start's own tensors become the network's
    try:
        backbone.net.load_state_dict(start.state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{start.source} does not fit its own description ({reason})", "Pre-train again") from error
    return backbone


def export_backbone(folder: Path, given: Outgoing, library: str) -> Written:
    """Write a backbone for `library`, torchvision or timm, and compare its maps there.

    Raises: UserError when it is no network of that library's; ExportMismatchError.
    """
    backbone: Backbone = given.network
    theirs = in_library(backbone, library)
    if theirs is None:
        raise UserError(
            f"--to {library}: the backbone of {given.source} is {backbone.library}'s {backbone.library_name}",
            home_of(backbone),
        )
    write_backbone(folder, theirs, given.note)
    figures = check_backbone(folder / PROGRAM, folder / WEIGHTS, backbone, library)
    return Written(figures, f"loaded without selfdet, {map_differences(figures)}")


def home_of(backbone: Backbone) -> str:
    """Where a backbone goes that another target doesn't take, as the hint of its refusal."""
    return f"Use --to {backbone.library}" if backbone.library in CALLS else "Use --to onnx or --to torch-export"


def in_library(backbone: Backbone, library: str) -> Backbone | None:
    """The same network as `library` has it, with the same tensors; None where it has none whose names and shapes are
    the same. Those of torchvision's ResNets are in timm, too."""
    if backbone.library == library:
        return backbone
    name = f"timm/{backbone.library_name}" if library == "timm" else backbone.library_name
    if backbone.library not in CALLS or backbone.library_name not in torchvision_resnets():
        return None
    if library == "timm" and not timm.is_model(backbone.library_name):
        return None
    theirs = build_unfilled(lambda: build_backbone(name))
    own, wanted = backbone.net.state_dict(), theirs.net.state_dict()
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in wanted.items()}:
        return None
    theirs.net.load_state_dict(own, assign=True)
    theirs.mean, theirs.std = backbone.mean, backbone.std
    return theirs


def write_backbone(folder: Path, backbone: Backbone, note: Mapping[str, str]) -> None:
    """Write backbone.safetensors, under its library's names, and load.py into `folder`."""
    save_backbone(folder / WEIGHTS, backbone, note)
    text = LOAD.format(
        name=backbone.library_name,
        library=backbone.library,
        mean=tuple(backbone.mean),
        std=tuple(backbone.std),
        fresh=json.dumps(fresh_modules(backbone)),
        call=CALLS[backbone.library].format(name=backbone.library_name),
    )
    write_text(folder / PROGRAM, text)


def fresh_modules(backbone: Backbone) -> list[str]:
    """Prefixes of the names that the library's whole network has and the backbone hasn't: what lies behind its maps."""
    with torch.device("meta"):  # for its names alone
        if backbone.library == "torchvision":
            whole = torchvision.models.get_model(backbone.library_name, weights=None)
        else:
            whole = timm.create_model(backbone.library_name, pretrained=False)
    known = set(backbone.net.state_dict())
    absent = [name for name in whole.state_dict() if name not in known]
    return list(dict.fromkeys(name.rpartition(".")[0] + "." for name in absent))
