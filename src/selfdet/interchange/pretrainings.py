"""Whole checkpoints of MoCo v2 and DenseCL: encoder, heads, key encoder and queues, for `pretrain` to go on from.

A table of where the programs keep them; the query's backbone is found by `import_backbone`, as in any file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selfdet.detectors.network import Part
from selfdet.errors import UserError
from selfdet.interchange.architectures import State, fitted, renamed
from selfdet.interchange.formats import tensors_in
from selfdet.interchange.imports import Imported, NotTakenError, full_tensors, import_backbone
from selfdet.interchange.notes import check_note, read_note
from selfdet.interchange.pixels import Pixels, with_own_pixels
from selfdet.interchange.starts import NOTE, PRETRAINING, QUERY_BODY
from selfdet.interchange.weights import metadata_of, read_weights
from selfdet.methods.densecl import DenseEncoder
from selfdet.methods.moco import Encoder
from selfdet.models.backbones import Backbone
from selfdet.training.transfer import transfer

QUEUES = {"queue": "queue", "queue2": "dense_queue"}  # theirs (D, K) → ours (K, D)
BACKBONE_ALONE = "Leave --part out for its backbone"


class Layout(NamedTuple):
    """Where a program keeps the query's heads, the key encoder's backbone and its heads, and the heads' layers."""

    heads: str
    key_backbone: str
    key_heads: str
    layers: dict[str, str]


MOCO = {"0.": "global_head.first.", "2.": "global_head.last."}
DENSE = {f"mlp.{name}": ours for name, ours in MOCO.items()}
DENSE |= {"mlp2.0.": "dense_head.first.", "mlp2.2.": "dense_head.last."}
# The first whose key encoder the file has. MoCo's own; mmselfsup's of 2022 and later; OpenSelfSup's, also DenseCL's.
LAYOUTS = (
    Layout("encoder_q.fc.", "encoder_k.", "encoder_k.fc.", MOCO),
    Layout("neck.", "encoder_k.module.0.", "encoder_k.module.1.", DENSE),
    Layout("encoder_q.1.", "encoder_k.0.", "encoder_k.1.", DENSE),
)


@dataclass
class Pretraining:
    """A momentum pre-training out of somebody's file: `state` by the names of `MoCo` or `DenseCL`, the `method`."""

    taken: Imported
    state: State
    method: str
    dim: int
    queue_length: int


def import_pretraining(
    path: Path, content: Mapping[str, Any], key: str, name: str | None, pixels: Pixels | None
) -> Pretraining:
    """The whole of a checkpoint of MoCo v2 or DenseCL; arguments as of `import_backbone`.

    Raises: UserError for a file without a key encoder, queue or heads of two layers; NotTakenError where not every
    tensor of both encoders and the queues is there, in its shape and finite.
    """
    taken = import_backbone(path, content, key, name, pixels)
    found, _ = tensors_in(content, taken.format)
    state = {
        re.sub(r"^module\.", "", str(each)): value.detach()
        for each, value in found.items()
        if isinstance(value, Tensor)
    }
    layout = next((each for each in LAYOUTS if any(name.startswith(each.key_heads) for name in state)), None)
    if layout is None or "queue" not in state:
        raise UserError(f"{path} has no key encoder with heads and a queue: no whole MoCo or DenseCL", BACKBONE_ALONE)
    if f"{layout.heads}weight" in state or f"{layout.heads}mlp.weight" in state:
        raise UserError(f"{path} has a head of one layer, MoCo v1's; MoCo v2's has two", BACKBONE_ALONE)
    for queue in QUEUES:
        if queue in state and state[queue].dim() != 2:
            raise UserError(f"{path}: {queue} has {state[queue].dim()} dimensions, expected D × K", BACKBONE_ALONE)
    key_state, _ = renamed(
        {
            each.removeprefix(layout.key_backbone): value
            for each, value in state.items()
            if each.startswith(layout.key_backbone) and not each.startswith(layout.key_heads)
        }
    )
    key_state, _ = fitted(key_state, taken.backbone.name)
    if pixels not in (None, "rgb"):
        key_state, _ = with_own_pixels(taken.backbone, key_state, pixels)
    ours = {
        **{f"{QUERY_BODY}{each}": value for each, value in taken.state.items()},
        **{f"key_{QUERY_BODY}{each}": value for each, value in key_state.items()},
    }
    for own, start in (("encoder.", layout.heads), ("key_encoder.", layout.key_heads)):
        ours |= {f"{own}{name}": value for name, value in _heads(path, state, start, layout).items()}
    for theirs, queue in QUEUES.items():
        if theirs in state:
            ours[queue] = state[theirs].t().contiguous()
            ours[f"{queue}_entered"] = _entered(path, state, theirs)
    return _whole(path, taken, ours)


def _heads(path: Path, state: State, start: str, layout: Layout) -> State:
    made: State = {}
    for name, value in state.items():
        if not name.startswith(start) or value.dim() == 0:
            continue
        layer, _, kind = name.removeprefix(start).rpartition(".")
        if f"{layer}." not in layout.layers:
            raise UserError(f"{path} has another head than two layers with a ReLU: {name}", BACKBONE_ALONE)
        made[f"{layout.layers[f'{layer}.']}{kind}"] = value
    return made


def _entered(path: Path, state: State, queue: str) -> Tensor:
    """How many keys have entered, as ours counts: the queue is full, and the pointer says where the next goes."""
    length, pointer = state[queue].shape[1], state.get(f"{queue}_ptr", torch.zeros(1))
    at = int(pointer.flatten()[0]) if pointer.numel() == 1 else -1
    if not 0 <= at < max(1, length):
        raise UserError(f"{path}: {queue}_ptr is {at}, expected 0 to {length - 1}", BACKBONE_ALONE)
    return torch.tensor(length + at)


def _whole(path: Path, taken: Imported, ours: State) -> Pretraining:
    (length, dim), dense = ours["queue"].shape, "dense_queue" in ours
    shapes = _Shapes(taken.backbone, length, dim, dense)
    parts = {
        "backbone": Part([r"encoder\.backbone\."]),
        "heads": Part([r"encoder\."]),
        "keys": Part([r"key_encoder\."]),
        "queues": Part([r"(dense_)?queue"]),
    }
    bare = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in ours.items()}
    report = transfer(shapes, bare, parts, expect=())
    try:
        transfer(shapes, ours, parts, expect=parts, minimum=1.0, source=str(path))
    except UserError as error:
        wrong = [*(f"{name} is missing" for name in report.missing), *report.mismatched]
        if not wrong:
            raise NotTakenError(error, report) from None
        # The names here are ours already: no prefix of the file's is to be changed.
        more = f", and {len(wrong) - 1} more" if wrong[1:] else ""
        raise NotTakenError(UserError(f"{path} is not whole: {wrong[0]}{more}", BACKBONE_ALONE), report) from None
    taken.report = report
    taken.left = []
    return Pretraining(taken, full_tensors(shapes.state_dict(), ours), "densecl" if dense else "moco", dim, length)


class _Shapes(nn.Module):
    """What the tensors of such a checkpoint have to be, without memory of its own."""

    def __init__(self, backbone: Backbone, length: int, dim: int, dense: bool) -> None:
        super().__init__()
        with torch.device("meta"):
            for name in ("encoder", "key_encoder"):
                self.add_module(name, DenseEncoder(backbone, dim, None) if dense else Encoder(backbone, dim))
            for queue in ("queue", "dense_queue")[: 1 + dense]:
                self.register_buffer(queue, torch.empty(length, dim))
                self.register_buffer(f"{queue}_entered", torch.empty((), dtype=torch.int64))


class Whole(NamedTuple):
    """A file of `import-weights --part pretraining`: its tensors by the names of `MoCo` or `DenseCL`, the `method`."""

    source: str
    state: State
    method: str

    @property
    def queue_length(self) -> int:
        """Keys in its queue."""
        return len(self.state["queue"])

    @property
    def dim(self) -> int:
        """Size of its embeddings."""
        return self.state["queue"].shape[1]

    def fill(self, module: nn.Module) -> str:
        """Fill a fresh `MoCo` or `DenseCL` of the same method and size, and say so in a line; a queue of another length
        begins afresh.

        Raises: UserError, with `module` unchanged, when a tensor of the heads or the key encoder is missing.
        """
        own = module.state_dict()
        queues = len(own["queue"]) == self.queue_length
        wanted = [
            name
            for name in own
            if name.startswith(("encoder.", "key_encoder.")) or (queues and name.startswith(("queue", "dense_queue")))
        ]
        for name in wanted:
            if name not in self.state or self.state[name].shape != own[name].shape:
                raise UserError(f"{self.source} lacks {name} of this {self.method}", "Import the checkpoint again")
        module.load_state_dict({name: self.state[name] for name in wanted}, strict=False)
        if queues:
            return f"goes on from the heads, the key encoder and the queues of this {self.method}"
        return (
            f"goes on from the heads and the key encoder of this {self.method}; its queue of {self.queue_length} keys, "
            f"not {len(own['queue'])}, begins afresh"
        )


def whole_of(weights: str | None) -> Whole | None:
    """What a file of `import-weights --part pretraining` holds; None for any other weights. Raises: UserError."""
    path = Path(weights or "").expanduser()
    note = read_note(metadata_of(path).get(NOTE, "{}"))
    if note.get("kind") != PRETRAINING:
        return None
    check_note(note, path)
    state, _ = read_weights(path)
    if "queue" not in state or state["queue"].dim() != 2 or "method" not in note:
        raise UserError(f"{path} lacks its queue or its method", "Import the checkpoint again")
    return Whole(str(path), state, note["method"])
