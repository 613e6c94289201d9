"""Reading and writing weights: plain tensors by name, nothing that could be executed."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from selfdet.data.disk import writing
from selfdet.data.untrusted import parse_json
from selfdet.errors import UserError
from selfdet.training.checkpoint import check_tensors

DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}
CONTAINERS = ("state_dict", "model")  # where training programs keep the weights inside a checkpoint


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, on the CPU, and the file's metadata (empty but for safetensors).

    Safetensors are told by their content; anything else must be a torch file of tensors by name, or hold such a dict
    under "state_dict" or "model".

    Raises: UserError for a missing, damaged or empty file, and for one that holds more than plain tensors: it is
    refused without being executed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", "name a .safetensors, .pt or .pth file") from error
    tensors, metadata = _read_safetensors(path) if start[8:] == b"{" else (_read_torch(path), {})
    if not tensors:
        raise UserError(f"{path} holds no tensors", "name a file with weights")
    check_tensors(path, tensors)
    return tensors, metadata


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors; empty where there is none or it can't be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception:  # SafetensorError, OSError: whoever reads the tensors says it
        return {}


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors by name, atomically: a reader sees the old file or the whole new one.

    Tensors are written one after the other, so that no second copy of all is ever in memory; those that share memory
    are written in full under every name. Raises: UserError when there is no room for the file.
    """
    path = Path(path)
    # Wide numbers first: each then begins where its kind may.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        kind = DTYPES[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path, 8 + len(head) + end), unfinished.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name in names:
                flat = tensors[name].detach().cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())  # a file that a run goes by when it is resumed is whole
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def differing(path: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that a safetensors file has otherwise, or that only one of both has.

    It is read a tensor at a time, and not mapped: there is no second copy of all in memory.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(size))
        header.pop("__metadata__", None)
        wrong = [*(tensors.keys() ^ header.keys())]
        for name in tensors.keys() & header.keys():
            told, value = header[name], tensors[name].detach().cpu().contiguous()
            start, end = told["data_offsets"]
            file.seek(8 + size + start)
            same = told["dtype"] == DTYPES[value.dtype] and told["shape"] == list(value.shape)
            own = value.reshape(-1).view(torch.uint8).numpy()
            if (
                not same
                or own.nbytes != end - start
                or not np.array_equal(own, np.fromfile(file, np.uint8, end - start))
            ):
                wrong.append(name)
    return wrong


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # SafetensorError, and of types that torch does not have, what torch raises
        raise UserError(
            f"{path} is a damaged safetensors file ({_first_sentence(error)})", "fetch or write it again"
        ) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        # From an open file, because torch goes by the suffix of a name; a refused file warns before it raises.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than plain tensors and was not executed ({_first_sentence(error)})",
            "if you trust its source, load it yourself with torch.load(file, weights_only=False) and write its state "
            "dict with safetensors.torch.save_file",
        ) from error
    except Exception as error:  # of a file that is not one, or is cut off, torch raises anything: its checks are few
        raise UserError(
            f"{path} is neither safetensors nor a readable torch file ({_first_sentence(error)})",
            "name a .safetensors, .pt or .pth file",
        ) from error
    return _flat(path, content)


def _flat(path: Path, content: Any) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, expected tensors by name", "save a state dict")
    other = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise UserError(
            f"{path}: {other!r} is a {type(content[other]).__name__}, expected only tensors by name, "
            f"at the top or under {' or '.join(map(repr, CONTAINERS))}",
            "save only the network's state dict",
        )
    return {str(name): value.detach() for name, value in content.items()}


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:160]
