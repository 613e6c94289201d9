"""A backbone as lightly-train exports one itself: the state dict of its library's whole network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from selfdet.errors import UserError
from selfdet.interchange.export_backbone import CALLS
from selfdet.interchange.export_check import check_maps_of
from selfdet.interchange.export_words import map_differences
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.models.backbones import Backbone
from selfdet.training.rundir import write_text

WEIGHTS, PROGRAM = "backbone.pt", "load.py"
LOAD = '''"""{name} with the weights of backbone.pt, whole, as lightly-train exports and takes {library}'s networks.

    import lightly_train
    from load import load
    lightly_train.pretrain(model=load(), data="photos/", out="runs/further")
"""

from pathlib import Path

import torch
import {library}


def load():
    """{library}'s {name}; what lies behind its last feature map is as {library} initialises it."""
    net = {call}
    net.load_state_dict(torch.load(Path(__file__).with_name("backbone.pt"), weights_only=True))
    return net
'''


def export_lightly(folder: Path, given: Outgoing) -> Written:
    """Write backbone.pt and load.py, and compare the maps of what that loads.

    Raises: UserError for a network that is no library's; ExportMismatchError.
    """
    backbone: Backbone = given.network
    if backbone.library not in CALLS:
        raise UserError(
            f"--to lightly-train: the backbone of {given.source} is {backbone.name}, which no library has",
            "Export it to torchvision, within its detector",
        )
    write_lightly(folder, backbone)
    figures = check_maps_of(folder / PROGRAM, backbone)
    line = f"loaded by {backbone.library} alone, as lightly-train takes it (not run), {map_differences(figures)}"
    return Written(figures, line)


def write_lightly(folder: Path, backbone: Backbone) -> None:
    """Write backbone.pt and load.py into `folder`."""
    name, library = backbone.library_name, backbone.library
    torch.manual_seed(0)  # the classifier is nobody's, and the same each time
    make: Any = torchvision.models.get_model if library == "torchvision" else timm.create_model
    whole = {**make(name).state_dict(), **backbone.net.state_dict()}
    torch.save(whole, folder / WEIGHTS)
    call = CALLS[library].format(name=name).replace(", **options", "")
    write_text(folder / PROGRAM, LOAD.format(name=name, library=library, call=call))
