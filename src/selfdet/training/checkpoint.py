"""Checkpoints: plain tensors and containers with a format version, written atomically, never executed on reading."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from selfdet.errors import UserError

FORMAT = 1
# What torch.load raises for a file that is not one, or is cut off: its own checks are few.
DAMAGED: tuple[type[Exception], ...] = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError),
    *(KeyError, AttributeError, TypeError, IndexError),
)


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
    except DAMAGED:
        raise UserError(
            f"{path} is not a checkpoint of plain tensors, or is damaged", "Restore the file or start a new run"
        ) from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} has checkpoint format {found}, expected {FORMAT}", "Use the version that wrote it")
    return content


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
