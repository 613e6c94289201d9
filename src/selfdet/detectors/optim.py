"""What `parts()` drives: freezing, learning rates by part, and the table of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from selfdet.detectors.network import Network
from selfdet.errors import UserError

# Tables that tell a transformer where its tokens are; decayed like norms.
POSITIONS = ("relative_position_bias_table", "absolute_pos_embed", "pos_embed")
NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def part_of(network: Network, name: str, keep_box_outputs: bool = False) -> str:
    """The part of `network.parts(keep_box_outputs)` that holds a name of `network.net.state_dict()`.

    Raises: KeyError when none does, which is a fault of the network's `parts()`.
    """
    for part, spec in network.parts(keep_box_outputs).items():
        if spec.holds(name):
            return part
    raise KeyError(name)


def freeze(network: Network, parts: Iterable[str]) -> None:
    """Stop training of whole parts, batch norm statistics included; `train()` will not wake them.

    Raises: UserError for a part the network does not have.
    """
    chosen = set(parts)
    _check(network, chosen)
    for name, parameter in network.net.named_parameters():
        if part_of(network, name) in chosen:
            parameter.requires_grad_(False)
    for name, module in network.net.named_modules():
        if isinstance(module, _BatchNorm) and part_of(network, f"{name}.weight") in chosen:
            network.frozen_norms.add(name)
    network.train(network.training)


def parameter_groups(
    network: Network,
    lr_by_part: Mapping[str, float],
    weight_decay: float,
    norm_decay: float | None = None,
    keep_box_outputs: bool = False,
) -> list[dict[str, Any]]:
    """Optimiser groups of the trainable parameters: one a part of `network.parts(keep_box_outputs)`, two where norms
    are decayed differently.

    `lr_by_part`: multiples of the schedule's learning rate (1 where a part is not named), kept as "lr_scale".
    `norm_decay`: weight decay of normalisation layers' parameters and of tables of positions, `weight_decay` if None.
    Raises: UserError for a part the network does not have.
    """
    _check(network, set(lr_by_part))
    norms = {id(p) for m in network.net.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    decays = {False: weight_decay, True: weight_decay if norm_decay is None else norm_decay}
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameter in network.net.named_parameters():
        if parameter.requires_grad:
            is_norm = id(parameter) in norms or name.rpartition(".")[2] in POSITIONS
            part, decay = part_of(network, name, keep_box_outputs), decays[is_norm]
            settings = {"name": part, "lr_scale": float(lr_by_part.get(part, 1.0)), "weight_decay": decay, "params": []}
            groups.setdefault((part, decay), settings)["params"].append(parameter)
    return list(groups.values())


def parameter_table(network: Network) -> str:
    """Parameters of each part and how many of them train, as text."""
    counts = {part: [0, 0] for part in network.parts()}
    for name, parameter in network.net.named_parameters():
        row = counts[part_of(network, name)]
        row[0] += parameter.numel()
        row[1] += parameter.numel() if parameter.requires_grad else 0
    rows = [*counts.items(), ("total", [sum(column) for column in zip(*counts.values())])]
    lines = [f"{'part':<10}{'parameters':>14}{'trained':>14}"]
    return "\n".join(lines + [f"{part:<10}{total:>14,}{trained:>14,}" for part, (total, trained) in rows])


def _check(network: Network, names: set[str]) -> None:
    unknown = sorted(names - set(network.parts()))
    if unknown:
        raise UserError(f"unknown part {unknown[0]!r}", f"it has {', '.join(network.parts())}")
