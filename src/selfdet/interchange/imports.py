"""Backbones out of other programs' files: every tensor of the network found there under a known name, or nothing."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdet.detectors.network import Part
from selfdet.errors import UserError, shown
from selfdet.interchange.architectures import Architecture, State, fitted, renamed, told_by
from selfdet.interchange.detectron2 import read_pickle
from selfdet.interchange.formats import FORMATS, prefix_of, recognise, tensors_in
from selfdet.interchange.pixels import Pixels, check_pixels, has_imagenets, with_own_pixels, with_own_statistics
from selfdet.interchange.training_settings import check_settings, settings_text
from selfdet.interchange.transformers_names import check_strides
from selfdet.interchange.weights import read_weights
from selfdet.models.backbones import Backbone, build_backbone
from selfdet.training.checkpoint import check_tensors
from selfdet.training.transfer import TransferReport, transfer

TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # how torch's files began before they were archives
NAME_ONE = "Name a .safetensors, .pt, .pth, .ckpt or .pkl file"
NONE_OF_THESE = "See the table of formats in docs/how-to-weights.md"
MANY = re.compile(r"(weight|bias|table|embed|tokens?|running_(mean|var))$")
TOKENS = re.compile(r"(?!mask_)\w+_tokens?")
LIKE_IT = "unless --backbone names one of the same shapes (deit_small_patch16_224, vit_small_patch16_224.dino, …)"


@dataclass
class Imported:
    """A backbone out of somebody's file: `state` has every tensor of `backbone.net`, which itself has no weights.

    `format`: the key of the format it came in. `report`: what was taken. `said`: a line for each thing that was done
    beside renaming. `left`: the first parts of the names that were left out.
    """

    backbone: Backbone
    state: State
    format: str
    report: TransferReport
    said: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class NotTakenError(UserError):
    """Weights that don't fit, with the report of what would have been taken."""

    def __init__(self, error: UserError, report: TransferReport) -> None:
        super().__init__(error.message, error.hint)
        self.report = report


def read_content(path: Path) -> Mapping[str, Any]:
    """What a safetensors, torch or detectron2 file holds; where it can be, a tensor is not read before it is used.

    Raises: UserError for a missing or damaged file, and for one that holds more than tensors and plain values: it is
    refused without being executed.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", NAME_ONE) from None
    if start[8:] == b"{":
        return read_weights(path)[0]
    if start[:1] == b"\x80" and not start.startswith(TORCH):
        return read_pickle(path)
    if start[:2] != b"PK" and not start.startswith(TORCH):
        raise UserError(f"{path} is neither safetensors nor a torch file", NAME_ONE)
    try:
        # Settings that a program was called with are what Python's own parser makes: names and values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            mapped = zipfile.is_zipfile(path)
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values and was not executed ({_first_line(error)})",
            "If you trust its source, load it yourself with torch.load(file, weights_only=False) and write its state "
            "dict with safetensors.torch.save_file",
        ) from None
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # of a file that is not one, or is cut off, torch raises anything: its checks are few
        raise UserError(
            f"{path} is no readable torch file ({_first_line(error)})",
            NAME_ONE,
        ) from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {shown(content)}, expected tensors by name", "Name a file with weights")
    return content


def import_backbone(
    path: Path, content: Mapping[str, Any], key: str, name: str | None, pixels: Pixels | None = None
) -> Imported:
    """The backbone in a file's content.

    `key`: its format, `auto` for what its names tell. `name`: the backbone's, where its shapes don't tell. `pixels`:
    what its first convolution expects, which becomes what the library's does; rgb where nobody says and the format has
    no other.
    Raises: UserError for a format that the file does not have; NotTakenError where not every tensor of the network is
    there under its name, in its shape, finite, or where the file has layers that the network hasn't.
    """
    asked, told = key, recognise(content)
    if key == "auto":
        if told is None:
            named = tensors_in(content, key)[0]
            raise UserError(f"{path}: its names ({_first(named)}) are those of no known format", NONE_OF_THESE)
        key = told
    known = FORMATS[key]
    check_pixels(path, key, pixels, content)
    if key == "transformers":
        check_strides(path)
    found, container = tensors_in(content, key)
    tensors = {str(each): value.detach() for each, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors by name{f' under {container!r}' if container else ''}", NONE_OF_THESE)
    check_imported(path, tensors)
    check_settings(path, settings_text(content), tensors, pixels)
    prefix = prefix_of(tensors, key)
    if prefix is None:
        expected = " or ".join(map(repr, known.prefixes))
        raise UserError(
            f"{path}: --format {key} expects names that start with {expected}; its names are {_first(tensors)}",
            f"Its names look like --format {told}" if told not in (None, key) else NONE_OF_THESE,
        )
    state, said = renamed({each.removeprefix(prefix): v for each, v in tensors.items() if each.startswith(prefix)})
    architecture = told_by(state, known.library)
    told_name = name is None
    if name is None:
        if architecture is None or architecture.family not in known.networks:
            raise _unknown(path, key, asked, told, tensors, state, architecture)
        name = architecture.name
    with torch.device("meta"):
        backbone = build_backbone(name)
    if known.library is not None and backbone.library != known.library:
        raise UserError(
            f"--format {key}: {name} is {backbone.library}'s",
            f"Use --format {backbone.library}, or --backbone timm/{name.removeprefix('timm/')}"
            if known.library == "timm"
            else f"Use --format {backbone.library}",
        )
    others = not has_imagenets(backbone)
    if told_name and others and key == "timm":
        if asked == "auto" and "head.weight" not in tensors:
            raise UserError(
                f"{path}: a {backbone.name} without a classifier, which DINO, MAE and timm write under the same names, "
                "and train on pixels of other means",
                "Say whose it is with --format dino, mae or timm",
            )
        said = [*said, f"taken as timm's {name}, for pixels of the mean {tuple(backbone.mean)}, {LIKE_IT}"]
    state, more = fitted(state, name)
    report = taken(backbone, state, str(path))
    if pixels not in (None, "rgb"):
        state, line = with_own_pixels(backbone, state, pixels)
        more = [*more, line]
    if others and key != "timm":
        state, line = with_own_statistics(backbone, state)
        more = [*more, line]
    outside = {each.removeprefix("module.").partition(".")[0] for each in tensors if not each.startswith(prefix)}
    inside = {each.partition(".")[0] for each in state} - {each.partition(".")[0] for each in backbone.net.state_dict()}
    return Imported(
        backbone, full_tensors(backbone.net.state_dict(), state), key, report, [*said, *more], sorted(outside | inside)
    )


def check_imported(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises: UserError where a tensor is none that a network here can have, or a single number where one has many."""
    check_tensors(path, tensors)
    single = next((name for name, value in tensors.items() if value.dim() == 0 and MANY.search(name)), None)
    if single is not None:
        raise UserError(f"{path}: {shown(single)} is a single number, expected many", "Fetch or write the file again")


def taken(backbone: Backbone, state: Mapping[str, Tensor], source: str) -> TransferReport:
    """The report of what of `state` fits the backbone, where that is all of the network, and all of it finite.

    Raises: NotTakenError.
    """
    parts = {"backbone": Part([".*"])}
    # The report comes first, of shapes alone: also of what is refused.
    shapes = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}
    report = transfer(backbone.net, shapes, parts, expect=())
    own = backbone.net.state_dict()
    modules = {name.partition(".")[0] for name in own}
    more = [name for name in state if name not in own and name.partition(".")[0] in modules and state[name].dim() > 1]
    # Tokens that take part in every block; a mask's does only while it is trained.
    more += [name for name in state if name not in own and TOKENS.fullmatch(name)]
    try:
        transfer(backbone.net, state, parts, expect={"backbone"}, minimum=1.0, source=source)
        if more:
            raise UserError(
                f"{source} has layers that {backbone.name} does not have: {', '.join(more[:3])}",
                "Name the network that these weights are of with --backbone",
            )
    except UserError as error:
        raise NotTakenError(error, report) from None
    return report


def full_tensors(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> State:
    """The tensors of a network, of the types of its `own`; what counts batches, and old files lack, begins at 0."""
    return {
        name: state[name].to(wanted.dtype)
        if name in state
        else torch.zeros(wanted.shape, dtype=wanted.dtype, device="cpu")
        for name, wanted in own.items()
    }


def _unknown(
    path: Path,
    key: str,
    asked: str,
    told: str | None,
    tensors: Mapping[str, Tensor],
    state: State,
    architecture: Architecture | None,
) -> UserError:
    """Why a file has no network of this format, with the report where its names hide one."""
    if architecture is not None:
        networks = " or ".join(FORMATS[key].networks)
        return UserError(
            f"{path}: a {architecture.family} ({architecture.name}), where --format {key} has a {networks}",
            f"Its names look like --format {told}" if told not in (None, key) else NONE_OF_THESE,
        )
    hidden = _hidden(tensors)
    if hidden is not None:
        with torch.device("meta"):
            backbone = build_backbone(hidden.name)
        try:
            taken(backbone, state, str(path))
        except NotTakenError as error:
            if asked != "auto" and told not in (None, key):
                error.hint = f"Its names look like --format {told}"
            return error
    return UserError(
        f"{path}: its names ({_first(state)}) and shapes tell no network that selfdet knows",
        "Name its network with --backbone, as timm calls it",
    )


def _hidden(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """The network that the names tell once something is taken off their beginning."""
    for sign in ("layer1.0.conv1.weight", "layers.0.blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight"):
        for name in tensors:
            if name.endswith(sign):
                start = name.removesuffix(sign)
                state = {each.removeprefix(start): v for each, v in tensors.items() if each.startswith(start)}
                if found := told_by(renamed(state)[0]):
                    return found
    return None


def _first(names: Iterable[Any]) -> str:
    listed = [shown(name, 60) for name, _ in zip(names, range(3))]
    return ", ".join(listed) or "none"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:160]
