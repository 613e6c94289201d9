"""Checkpoints: plain tensors and containers with a format version, written atomically, never executed on reading."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdet.data.disk import replacing
from selfdet.errors import UserError, shown

FORMAT = 1
SHARED = 100  # times a tensor's bytes may be told under several names in one file


class DamagedCheckpoint(UserError):
    """A checkpoint that is not there, is cut off, or has other bytes than were written."""


def save_checkpoint(path: Path, content: Mapping[str, Any], previous: Path | None = None) -> None:
    """Write `content` (tensors, numbers, strings, lists, dicts) so that a kill leaves the old file or the new one.

    `previous`: the name under which the old one is kept besides.
    Raises: UserError when there is no room for it; the old files stay as they were.
    """
    with replacing(path, needed=_bytes(content)) as file:
        torch.save({"format": FORMAT, **content}, file)
        if previous is not None and path.is_file():
            file.flush()
            os.fsync(file.fileno())
            _keep(path, previous)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises: DamagedCheckpoint when the file is missing, damaged, or holds more than plain tensors; UserError when it has
        another format.
    """
    if not path.is_file():
        raise DamagedCheckpoint(f"{path} does not exist", "Name a run that has saved a checkpoint")
    try:
        _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that it refuses, torch warns first
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:  # says nothing of the file
        raise
    except Exception:  # of a file that is not one, or is cut off, torch raises anything: its own checks are few
        raise DamagedCheckpoint(
            f"{path} is not a checkpoint of plain tensors, or is damaged", "Restore the file or start a new run"
        ) from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {shown(found)}, expected {FORMAT}", "Use the version that wrote it"
        )
    return content


def newest_whole(path: Path, previous: Path) -> tuple[dict[str, Any], str]:
    """The checkpoint `path`, or where that is gone or damaged the `previous` one with a line that says so (else "").

    Raises: UserError about `path` when neither can be read.
    """
    try:
        return load_checkpoint(path), ""
    except DamagedCheckpoint as error:
        fault = error
    try:
        content = load_checkpoint(previous)
    except UserError:
        raise fault from None
    what = "is damaged" if path.is_file() else "is gone"
    step = content["progress"]["step"]
    return content, f"{path} {what}: going on from the checkpoint before it, {previous.name}, of step {step}"


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
    """Refuse what is no plain tensor, numbers of kinds that no network here has (complex ones, those of 8 bits), and
    tensors that pretend to more elements than their file can hold.

    Raises: UserError.
    """
    told = 0
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
            raise UserError(f"{path}: {name!r} is not a plain tensor", "Save only the network's state dict")
        if value.is_complex() or value.is_quantized or (value.is_floating_point() and value.element_size() < 2):
            raise UserError(
                f"{path}: {name!r} is of {shown(value.dtype)}, expected plain numbers of 16 bits or more",
                "Save it as float32",
            )
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


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, at no moment taking away the first: where links are known, else the first name."""
    spare = previous.with_name(previous.name + ".partial")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:
        os.replace(path, previous)
        return
    os.replace(spare, previous)
    spare.unlink(missing_ok=True)  # which of two names of one file does nothing: a kill has come between before


def _check_sums(path: Path) -> None:
    """Hold every byte against the sums that were written with it; torch does not.

    Raises: zipfile.BadZipFile, and whatever else reading a file that is none may raise.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # Nothing in it is packed, so that nothing can unpack to more than there is.
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size or archive.testzip() is not None:
            raise zipfile.BadZipFile


def _bytes(content: object) -> int:
    """Of all tensors in nested containers."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(_bytes, content.values()))
    return sum(map(_bytes, content)) if isinstance(content, (list, tuple)) else 0
