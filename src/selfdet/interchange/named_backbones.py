"""Backbones of several starts, each by a short name, beside an untrained network of their architecture."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from selfdet.data.untrusted import expanded
from selfdet.errors import UserError
from selfdet.interchange.starts import fill_backbone, resolve_start
from selfdet.interchange.whole_detectors import as_detector
from selfdet.models.backbones import Backbone, build_backbone
from selfdet.training.rundir import RunDir

UNTRAINED = "untrained"
FRESH = ("scratch", "random")
OTHER_BACKBONE = "resnet50"  # where neither the user nor a start names one
STAGES = ("backbone", "", "detector")  # where a run keeps its snapshots: the stage that trains the backbone first
_EPOCH = re.compile(r"epoch-(\d+)")


@dataclass(frozen=True)
class NamedBackbone:
    """A backbone by a short name that no other has; `init` as the user wrote it, None for the untrained network."""

    name: str
    architecture: str
    init: str | None = None

    def build(self, seed: int) -> Backbone:
        """The backbone with its weights; `seed` is that of the untrained network's.

        Raises: UserError for weights of another architecture.
        """
        torch.manual_seed(seed)
        if self.init is None:
            return build_backbone(self.architecture)
        start = as_detector(resolve_start(self.init), self.architecture)
        if start.kind == "library":
            return build_backbone(self.architecture, "library")
        backbone = build_backbone(self.architecture)
        fill_backbone(backbone, start)
        return backbone


def name_backbones(inits: Sequence[str], backbone: str | None = None, over_time: bool = False) -> list[NamedBackbone]:
    """The backbones of `inits` in their order, after the untrained network of each architecture among them.

    `inits`: what `--init` may name, and `random` for `scratch`, which is there anyway. `backbone`: the architecture of
    weights that don't say theirs. `over_time`: instead of each run its snapshots.
    Raises: UserError for what is no start, one given twice, a run without snapshots, a `backbone` that no start is.
    """
    places = [init if init.startswith("library:") else os.path.normpath(init) for init in inits]
    if twice := [init for position, init in enumerate(inits) if places[position] in places[:position]]:
        raise UserError(f"--init {twice[0]} is given twice", "Name each start once")
    trained = [init for init in inits if init not in FRESH]
    if over_time:
        if not trained:
            raise UserError("--over-time needs a run", "Name one that pretrain made with --snapshots as --init")
        trained = [file for init in trained for file in snapshots(init)]
    told = {init: resolve_start(init).note.get("backbone") for init in trained}
    if backbone and told and all(told.values()) and backbone not in told.values():
        init, own = next(iter(told.items()))
        raise UserError(f"--backbone {backbone} and --init {init} disagree: that is a {own}", "Leave --backbone out")
    other = backbone or next((name for name in told.values() if name), OTHER_BACKBONE)
    architectures = {init: name or other for init, name in told.items()} or {"": other}
    kinds = list(dict.fromkeys(architectures.values()))
    named = [NamedBackbone(UNTRAINED if len(kinds) == 1 else f"{UNTRAINED} {kind}", kind) for kind in kinds]
    names = _names(trained)
    return [*named, *(NamedBackbone(name, architectures[init], init) for init, name in zip(trained, names))]


def snapshots(init: str) -> list[str]:
    """The weights that a run kept of its training, in order of time.

    Raises: UserError when it is no run, or kept none.
    """
    run = RunDir(expanded(init), writes=False)
    run.read_config()
    for stage in STAGES:
        if found := sorted((run.snapshots / stage).glob("epoch-*.safetensors")):
            return [str(file) for file in found]
    raise UserError(f"{init} has no snapshots", "Pre-train with --snapshots, such as --snapshots 0,1,5,20")


def _names(inits: Sequence[str]) -> list[str]:
    """A short name for each, that of its folder or file, with a number where another has it already."""
    runs = {_run_of_snapshot(Path(init)) for init in inits} - {None}
    names: list[str] = []
    for init in inits:
        path, run = Path(init), _run_of_snapshot(Path(init))
        name = init if init.startswith("library:") else path.name
        if run is not None and (epoch := _EPOCH.fullmatch(path.stem)):
            name = f"{f'{run} ' if len(runs) > 1 else ''}epoch {int(epoch[1])}"
        elif path.is_file():
            name = path.parent.name if path.stem in ("backbone", "detector", "best", "last") else path.stem
        name = name or init
        names.append(next(each for each in (name, *(f"{name} ({n})" for n in range(2, 999))) if each not in names))
    return names


def _run_of_snapshot(path: Path) -> str | None:
    """The name of the run that kept these weights, if they are a snapshot."""
    folders = path.parent.parts
    return folders[folders.index("snapshots") - 1] if "snapshots" in folders[1:] else None
