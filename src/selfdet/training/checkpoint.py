"""Checkpoints: plain tensors and containers with a format version, written atomically, never executed on reading."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdet.errors import UserError, shown

FORMAT = 1
SHARED = 100  # times a tensor's bytes may be told under several names in one file


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings, lists, dicts) so that a kill leaves the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises: UserError when the file is missing, damaged, holds more than plain tensors, or has another format.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", "Name a run that has saved a checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that it refuses, torch warns first
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of a file that is not one, or is cut off, torch raises anything: its own checks are few
        raise UserError(
            f"{path} is not a checkpoint of plain tensors, or is damaged", "Restore the file or start a new run"
        ) from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {shown(found)}, expected {FORMAT}", "Use the version that wrote it"
        )
    return content


def product_of(path: Path, checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of what a checkpoint's run is to give, by the names they get in its file, and its note.

    Raises: UserError when the checkpoint has none.
    """
    product, method = checkpoint.get("product"), checkpoint.get("method")
    prefix = product.get("prefix") if isinstance(product, dict) else None
    note = product.get("note") if isinstance(product, dict) else None
    if not isinstance(prefix, str) or not isinstance(note, dict) or not isinstance(method, Mapping):
        raise UserError(f"{path} is a checkpoint of something else than a run of selfdet", "Name a run or its weights")
    named = {str(name): value for name, value in method.items() if str(name).startswith(prefix)}
    check_tensors(path, named)
    return {name.removeprefix(prefix): value for name, value in named.items()}, note


def check_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Refuse what is no plain tensor, and tensors that pretend to more elements than their file can hold.

    Raises: UserError.
    """
    told = 0
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
            raise UserError(f"{path}: {name!r} is not a plain tensor", "Save only the network's state dict")
        told += value.numel() * value.element_size()
    held = path.stat().st_size
    if told > SHARED * held + 2**20:
        raise UserError(
            f"{path} is {held:,} bytes, and its tensors would be {told:,}: they are not what they say they are",
            "Fetch or write the file again",
        )


def random_state() -> dict[str, Any]:
    """The state of torch's global random generators, as tensors; nothing of selfdet draws from any other."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back where `random_state` saw them; devices that are not here any more are left out."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        for device, kept in zip(range(torch.cuda.device_count()), state["cuda"]):
            torch.cuda.set_rng_state(kept, device)
